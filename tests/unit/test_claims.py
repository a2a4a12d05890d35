"""The claim table and the tables of ablations: what is measured, corrected and said of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.conftest import records
from uniapl.analysis import comparisons, tables
from uniapl.analysis.ablations import against_margin
from uniapl.analysis.claims import WAYS, findings, verdict
from uniapl.analysis.collect import Study, read_study
from uniapl.analysis.outputs import table_files
from uniapl.analysis.stats import EMPTY, Estimate

Builder = Callable[..., dict[str, Any]]
PAPER_LIKE: dict[str, Any] = {
    "models": ("qwen3_0_6b", "qwen3_4b"), "tasks": ("heldout", "ifeval"), "claims": {"evaluation": "ifeval"},
    "compared": [
        {"claim": "C3", "title": "a 32B model", "task": "ifeval", "score": 60.0, "source": "its card"},
        {"claim": "C4", "title": "the teacher", "task": "ifeval", "score": 88.7, "source": "its card"},
    ],
}  # fmt: skip


def solve_on_ifeval(root: Path, method: str, solved: int) -> None:
    """Change the IFEval records of a method, of all models, to the first `solved` prompts of 20."""
    for path in root.glob(f"evaluations/*/{method}/*/seed0/ifeval.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for i, row in enumerate(rows):
            row |= {"prompt_strict": i < solved, "strict": [True, i < solved]}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def verdicts(root: Path) -> dict[str, str]:
    return {row.claim: row.verdict for row in findings(read_study(root))}


def reasons(root: Path) -> dict[str, str]:
    return {row.claim: row.reason for row in findings(read_study(root))}


@pytest.mark.parametrize(
    ("low", "high", "margin", "p", "expected"),
    [
        (1.0, 5.0, 0.0, 0.01, "supported"),
        (1.0, 5.0, 0.0, 0.20, "inconclusive"),  # the interval is above 0, Holm's p is not small enough
        (1.0, 5.0, 2.0, 0.01, "inconclusive"),
        (3.0, 5.0, 2.0, float("nan"), "supported"),
        (-5.0, -1.0, 0.0, 0.01, "not supported"),
        (-1.0, 1.0, 0.0, 0.90, "inconclusive"),
        (-1.0, 1.0, -2.0, float("nan"), "supported"),  # kept: the loss is smaller than the margin
    ],
)
def test_a_verdict_follows_from_interval_margin_and_holm(
    low: float, high: float, margin: float, p: float, expected: str
) -> None:
    assert verdict(Estimate(0.0, low, high, 10, ""), margin, p, confidence=0.95) == expected
    assert verdict(EMPTY, margin, p, confidence=0.95) == "not run"


def test_qwen_claims_are_not_run_and_their_analogue_is_a_row_of_its_own(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path)
    found = verdicts(tmp_path)
    assert list(found) == ["C1", "C1-laptop", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9"]
    assert {found[c] for c in ("C1", "C2", "C3", "C4", "C7", "C8", "C9")} == {"not run"}
    assert found["C1-laptop"] == "supported"  # 16 against 8 of 20
    assert (found["C5"], found["C6"]) == ("supported", "supported")  # 1 token longer than the expert against 10
    assert all(reasons(tmp_path)[c] for c in ("C1", "C2", "C3", "C4", "C7", "C8", "C9"))


def test_a_loss_against_grpo_is_not_supported_and_a_tie_inconclusive(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path / "loss", solved={"base": 4, "uniapl": 1, "grpo": 15})
    study_builder(tmp_path / "tie", solved={"base": 4, "uniapl": 8, "grpo": 8})
    assert verdicts(tmp_path / "loss")["C1-laptop"] == "not supported"
    assert verdicts(tmp_path / "tie")["C1-laptop"] == "inconclusive"


def test_the_papers_models_fill_the_papers_rows(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path, models=("qwen3_0_6b",))
    found = verdicts(tmp_path)
    assert found["C1"] == "supported"
    assert found["C2"] == "not run"
    assert "C1-laptop" not in found


def test_at_the_papers_scale_ifeval_decides_c1_to_c4_and_not_the_held_out_prompts(
    tmp_path: Path, study_builder: Builder
) -> None:
    study_builder(tmp_path, **PAPER_LIKE)
    solve_on_ifeval(tmp_path, "uniapl", 1)  # held-out: 16 of 20 against GRPO's 8
    found = {(row.claim, row.model): row for row in findings(read_study(tmp_path))}
    for claim in (("C1", "qwen3_0_6b"), ("C2", "qwen3_4b")):
        assert found[claim].verdict == "not supported"
        # 1 of 20 against 8 of 20
        assert found[claim].measured.startswith("UniAPL − GRPO, prompt strict on IFEval: −35.0 [")
    assert found["C4", "qwen3_4b"].verdict == "not supported"  # 5% against the teacher's published 88.7%
    assert {row.verdict for row in findings(read_study(tmp_path)) if row.claim == "C3"} == {"not supported"}
    study_builder(tmp_path / "held-out", **PAPER_LIKE | {"claims": {"evaluation": "heldout"}})
    solve_on_ifeval(tmp_path / "held-out", "uniapl", 1)
    assert verdicts(tmp_path / "held-out")["C1"] == "supported"


def test_c3_and_c4_compare_with_published_scores_and_with_the_larger_model(
    tmp_path: Path, study_builder: Builder
) -> None:
    study_builder(tmp_path, **PAPER_LIKE)
    solve_on_ifeval(tmp_path, "uniapl", 20)
    rows = [row for row in findings(read_study(tmp_path)) if row.claim in ("C3", "C4")]
    assert [(row.source, row.verdict) for row in rows] == [
        ("[A]", "supported"), ("[O]", "supported"), ("[A] [O]", "inconclusive"),
    ]  # fmt: skip
    published, larger, teacher = rows
    # 20 of 20: Wilson's lower end is 83.9%, so 23.9 above the 32B model's 60 and 4.8 below the teacher's 88.7
    assert published.quantity.value == pytest.approx(40.0)
    assert published.quantity.low == pytest.approx(23.9, abs=0.05)
    assert larger.quantity.value == pytest.approx(80.0)  # against the untrained 4B model's 4 of 20
    assert "model qwen3_4b untrained, prompt strict on IFEval" in larger.measured
    assert teacher.quantity.low == pytest.approx(-4.8, abs=0.05)


def test_what_c1_to_c4_lack_is_said(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path / "no_ifeval", **PAPER_LIKE | {"tasks": ("heldout",)})
    found = reasons(tmp_path / "no_ifeval")
    assert found["C1"] == "uniapl or grpo was not trained or IFEval prompts were not evaluated"
    study_builder(tmp_path / "no_score", **PAPER_LIKE | {"compared": [], "models": ("qwen3_4b",)})
    found = reasons(tmp_path / "no_score")
    assert found["C4"] == "no published score of the other model on IFEval prompts is known for this study"
    assert found["C3"].startswith("needs Qwen3-0.6B")


def test_ablations_decide_c7_and_c8(tmp_path: Path, study_builder: Builder) -> None:
    better = {"adversarial_as.loss": 18, "adversarial_as.reward": 8, "lambda_adv.0": 15, "lambda_adv.5": 2}
    worse = {"adversarial_as.loss": 6, "adversarial_as.reward": 18, "lambda_adv.1": 20, "lambda_adv.x": 2}
    study_builder(tmp_path / "better", variants=better)
    study_builder(tmp_path / "worse", variants=worse, solved={"uniapl": 6})
    found = verdicts(tmp_path / "better")
    assert (found["C7"], found["C8"]) == ("supported", "supported")  # 18 against 8; main 16 against 2 at lambda_adv 5
    found = verdicts(tmp_path / "worse")
    assert (found["C7"], found["C8"]) == ("not supported", "not supported")
    tables.main(tmp_path / "better", tmp_path / "tables")
    assert "| supported at laptop scale |" in (tmp_path / "tables/table2.md").read_text()
    by_variant = {r["variant"]: float(r["prompt_strict"]) for r in records(tmp_path / "tables", 6)}
    assert by_variant == {
        "main": 0.8,
        "adversarial_as.loss": 0.9,
        "adversarial_as.reward": 0.4,
        "lambda_adv.0": 0.75,
        "lambda_adv.5": 0.1,
    }


def test_a_variant_may_have_been_asked_fewer_tasks(tmp_path: Path, study_builder: Builder) -> None:
    index = study_builder(tmp_path, variants={"lambda_adv.5": 2})
    directory = tmp_path / next(e["directory"] for e in index["evaluations"] if e["variant"] != "main")
    (directory / "ifbench.jsonl").unlink()
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["tasks"]["ifbench"]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    study = read_study(tmp_path)
    assert set(study.answers.loc[study.answers["variant"] != "main", "task"]) == {"heldout"}
    assert [row["variant"] for row in tables.table6(study).records] == ["main", "lambda_adv.5"]


def test_c7_compares_the_best_weight_of_each_way(tmp_path: Path, study_builder: Builder) -> None:
    solved = {"loss": 10, "loss_1": 18, "reward": 16, "reward_1": 4}
    study_builder(tmp_path, variants={f"adversarial_as.{name}": n for name, n in solved.items()})
    row = next(row for row in findings(read_study(tmp_path)) if row.claim == "C7")
    assert "as loss, weight 1 − reward (best weights)" in row.measured
    assert row.quantity.value == pytest.approx(100 * (18 - 16) / 20)


def test_c7_chooses_between_weights_over_the_seeds_that_all_have(tmp_path: Path, study_builder: Builder) -> None:
    """The main run is ahead of the loss by a seed alone that the ablation lacks."""
    index = study_builder(
        tmp_path, solved={"uniapl": 15}, seeds=(0, 1, 2), variants={f"adversarial_as.{n}": 16 for n in WAYS}
    )
    lacked = [e for e in index["evaluations"] if e["variant"] != "main" and e["seed"] == 2]
    index["evaluations"] = [e for e in index["evaluations"] if e not in lacked]
    (tmp_path / "study.json").write_text(json.dumps(index))
    third = tmp_path / "evaluations/smollm2_135m/uniapl/main-00000000/seed2/heldout.jsonl"
    rows = [json.loads(line) | {"prompt_strict": True} for line in third.read_text().splitlines()]
    third.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    row = next(row for row in findings(read_study(tmp_path)) if row.claim == "C7")
    assert row.measured.startswith("as loss − reward (")


@pytest.mark.parametrize(
    ("low", "high", "significant", "told"),
    [
        (-0.04, 0.05, False, "equal"), (0.01, 0.04, True, "equal"), (0.01, 0.06, True, "better"),
        (-0.09, -0.01, True, "worse"), (-0.09, -0.01, False, "undecided"), (-0.06, 0.01, True, "undecided"),
        (math.nan, math.nan, False, ""),
    ],
)  # fmt: skip
def test_a_variant_is_held_against_the_margin_by_its_whole_interval(
    low: float, high: float, significant: bool, told: str
) -> None:
    estimate = Estimate((low + high) / 2, low, high, 10, "t")
    assert against_margin(estimate, 0.05, significant=significant) == told


def test_what_is_said_of_a_variant_is_corrected_for_the_whole_table(tmp_path: Path, study_builder: Builder) -> None:
    """10 of 20 prompts against the main run's 16: p = 0.031 alone, more than 0.05 beside three others."""
    alone = study_builder(tmp_path / "alone", variants={"lambda_adv.5": 10})
    study_builder(tmp_path / "beside", variants={f"lambda_adv.{n}": 10 for n in (1, 2, 3, 5)})
    assert alone["scale"] == "laptop"
    for folder, p, p_holm, word in (("alone", 0.03125, 0.03125, "worse"), ("beside", 0.03125, 0.125, "undecided")):
        row = next(r for r in tables.table6(read_study(tmp_path / folder)).records if r["variant"] == "lambda_adv.5")
        assert row["prompt_strict_minus_main_p"] == pytest.approx(p)
        assert row["prompt_strict_minus_main_p_holm"] == pytest.approx(p_holm)
        assert row["against_margin"] == word


def test_an_ablation_that_is_not_whole_decides_no_claim(tmp_path: Path, study_builder: Builder) -> None:
    variants = {"lambda_adv.1": 15, "lambda_adv.5": 2, "adversarial_as.loss": 18, "adversarial_as.reward": 8}
    index = study_builder(tmp_path, variants=variants)
    assert (verdicts(tmp_path)["C7"], verdicts(tmp_path)["C8"]) == ("supported", "supported")
    missing = {"model": "smollm2_135m", "method": "uniapl", "seed": 0}
    index["not_run"] = [missing | {"variant": name} for name in ("lambda_adv.25", "adversarial_as.reward_scaled")]
    (tmp_path / "study.json").write_text(json.dumps(index))
    found = {row.claim: row for row in findings(read_study(tmp_path))}
    assert (found["C7"].verdict, found["C8"].verdict) == ("not run", "not run")
    assert found["C8"].reason == "1 of 3 models of the ablation lambda_adv were not run"


def test_c7_says_where_the_two_ways_are_the_same_by_construction(tmp_path: Path, study_builder: Builder) -> None:
    def measured(**solved: int) -> str:
        root = tmp_path / "-".join(solved)
        study_builder(root, solved={"uniapl": 3}, variants={f"adversarial_as.{name}": n for name, n in solved.items()})
        return next(row for row in findings(read_study(root)) if row.claim == "C7").measured

    assert "that this is chance" in measured(loss=18, reward=8)
    assert "that this is chance" not in measured(loss=18, reward=8, reward_scaled=10)


def test_a_claims_power_counts_holm_and_the_margin(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path, seeds=(0, 1, 2))
    study = read_study(tmp_path)
    rows = [row for row in findings(study) if math.isfinite(row.quantity.p)]
    assert {row.claim for row in rows} >= {"C1-laptop", "C5", "C6"}
    for row in rows:
        strictest = 1 - 0.05 / len(rows)
        assert row.smallest_seen == pytest.approx(row.quantity.smallest_seen(confidence=strictest))
        assert row.smallest_seen >= row.quantity.smallest_seen(confidence=0.95)


def test_what_another_expert_costs_is_a_table_of_methods(tmp_path: Path, study_builder: Builder) -> None:
    index = study_builder(tmp_path, variants={"teacher.violating": 6, "teacher.best_of_n": 16, "lambda_adv.5": 2})
    assert "table9.md" in table_files(index)
    tables.main(tmp_path, tmp_path / "tables")
    found = {r["expert"]: r for r in records(tmp_path / "tables", 9)}
    assert set(found) == {"violating", "best_of_n"}
    assert float(found["violating"]["prompt_strict_minus_own_expert"]) == pytest.approx((6 - 16) / 20)
    assert (found["violating"]["against_margin"], found["best_of_n"]["against_margin"]) == ("worse", "equal")
    assert "table9.md" not in table_files(study_builder(tmp_path / "without", variants={"lambda_adv.5": 2}))


def test_what_is_not_run_of_an_ablation_says_so(tmp_path: Path, study_builder: Builder) -> None:
    index = study_builder(tmp_path, seeds=(0, 1), variants={"teacher.violating": 6})
    left = [("uniapl", "teacher.violating", 2), ("sft", "teacher.violating", 0), ("uniapl", "lambda_adv.5", 0)]
    not_run = [{"model": "smollm2_135m", "method": m, "variant": v, "seed": s} for m, v, s in left]
    (tmp_path / "study.json").write_text(json.dumps(index | {"not_run": not_run}))
    study = read_study(tmp_path)
    ((_, ablations),) = tables.table6(study).blocks[0].sections
    told = {row[:2]: row[2:4] for row in ablations}
    assert told["UniAPL", "teacher.violating"][0] == "2 of 3"
    assert told["UniAPL", "lambda_adv.5"] == told["SFT", "teacher.violating"] == ("0 of 1", "not run")
    ((_, (experts,)),) = tables.table9(study).blocks[0].sections
    assert experts[:2] == ("violating", "not run")
    assert experts[2].startswith("−")
    assert experts[2].endswith("(2 of 3 seeds)")


def test_one_seed_of_a_variant_decides_nothing_where_the_main_run_has_several(
    tmp_path: Path, study_builder: Builder
) -> None:
    name = "teacher.violating"
    index = study_builder(tmp_path, seeds=(0, 1), variants={name: 6})
    of_second = [e for e in index["evaluations"] if (e["variant"], e["seed"]) == (name, 1)]
    kept = [e for e in index["evaluations"] if e not in of_second]
    not_run = [{key: e[key] for key in ("model", "method", "variant", "seed")} for e in of_second]
    both = records_of(read_study(tmp_path))
    (tmp_path / "study.json").write_text(json.dumps(index | {"evaluations": kept, "not_run": not_run}))
    study = read_study(tmp_path)
    one = records_of(study)
    assert [(r["against_margin"], r["num_seeds"]) for r in (*both, *one)] == [("worse", 2)] * 2 + [("one seed", 1)] * 2
    for table in (tables.table6(study), tables.table9(study)):
        assert any("over prompts alone: it decides nothing" in note for note in table.notes)
    assert all("nan" in map(str, row.values()) for row in one), "neither Holm's p nor power"
    cell = tables.table9(study).blocks[0].sections[0][1][0][1]
    assert "Holm" not in cell
    assert cell.endswith("one seed of 2")


def records_of(study: Study) -> list[dict[str, Any]]:
    """What Tables 6 and 9 say of the one variant."""
    (row,) = [r for r in tables.table6(study).records if r["variant"] != "main"]
    (other,) = tables.table9(study).records
    return [row, other]


def test_general_tasks_decide_c9(tmp_path: Path, study_builder: Builder) -> None:
    def scores(base: float, uniapl: float) -> dict[str, Any]:
        rows = {"base": base, "uniapl": uniapl}
        return {m: {"mmlu": {"acc,none": value, "acc_stderr,none": 0.002}} for m, value in rows.items()}

    tasks = ("heldout", "ifbench", "mmlu")
    study_builder(tmp_path / "kept", tasks=tasks, results=scores(0.30, 0.295))
    study_builder(tmp_path / "lost", tasks=tasks, results=scores(0.30, 0.20))
    # half width 1.96 sqrt(2) 0.2 = 0.55 points: -0.5 lies above -2, -10 below
    assert verdicts(tmp_path / "kept")["C9"] == "supported"
    assert verdicts(tmp_path / "lost")["C9"] == "not supported"


def test_c9_counts_the_seeds_of_uniapl(tmp_path: Path, study_builder: Builder) -> None:
    tasks = ("heldout", "mmlu")
    scored = {"mmlu": {"acc,none": 0.30, "acc_stderr,none": 0.002}}
    index = study_builder(tmp_path, tasks=tasks, seeds=(0, 1, 2), results={"base": scored, "uniapl": scored})
    alike = next(row for row in findings(read_study(tmp_path)) if row.claim == "C9").quantity
    for entry in index["evaluations"]:
        if entry["method"] == "uniapl":
            path = tmp_path / entry["directory"] / "results.json"
            found = json.loads(path.read_text())
            found["results"]["mmlu"]["acc,none"] = 0.30 + 0.05 * (entry["seed"] - 1)
            path.write_text(json.dumps(found))
    apart = next(row for row in findings(read_study(tmp_path)) if row.claim == "C9").quantity
    assert (alike.value, apart.value) == (pytest.approx(0.0), pytest.approx(0.0))
    assert alike.high == pytest.approx(1.96 * math.sqrt(2) * 0.2, rel=1e-2)
    # sd 5 points of 3 seeds: error 2.9 points, about 2 degrees of freedom
    assert apart.high == pytest.approx(4.2 * math.sqrt(25 / 3 + 0.08), rel=0.03)


def test_a_trial_decides_no_claim_and_shows_what_it_measured(tmp_path: Path, study_builder: Builder) -> None:
    index = study_builder(tmp_path)
    assert verdicts(tmp_path)["C1-laptop"] == "supported"
    (tmp_path / "study.json").write_text(json.dumps(index | {"limit": 4}))
    assert set(verdicts(tmp_path).values()) == {"not run"}
    assert reasons(tmp_path)["C1-laptop"] == "only the first 4 questions of each task were asked"
    (row,) = [row for row in findings(read_study(tmp_path)) if row.claim == "C1-laptop"]
    assert "+40.0" in row.measured


def test_c6_is_told_without_what_length_explains(tmp_path: Path, study_builder: Builder) -> None:
    """Log-probs of the built study are a line of the length: nearly nothing is left to be closer in."""
    study_builder(tmp_path)
    row = next(row for row in findings(read_study(tmp_path)) if row.claim == "C6")
    left, _ = comparisons.reduction(
        read_study(tmp_path), "smollm2_135m", "uniapl", "grpo", "logprob_base", without_length=True
    )
    assert row.quantity.value == pytest.approx(0.09)
    assert abs(left.value) < 0.03
    assert row.beside.count("of what length does not explain, ") == 2, "under the base model and the trained ones"
    tables.main(tmp_path, tmp_path / "tables")
    line = next(text for text in (tmp_path / "tables/table2.md").read_text().splitlines() if text.startswith("| C6 |"))
    order = ("reduction +0.090", "Holm p", "80% power", "Beside it: KS", "does not explain", "Under the trained models")
    assert sorted(order, key=line.index) == list(order), "Holm's p and power are of the reduction that they follow"
