"""Tables from a synthetic study: hand-counted accuracies, verdicts each way, identical bytes, clear errors."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.conftest import records
from uniapl.analysis import comparisons, tables
from uniapl.analysis.ablations import against_margin
from uniapl.analysis.claims import findings, verdict
from uniapl.analysis.collect import read_study
from uniapl.analysis.labels import method_label, method_order
from uniapl.analysis.outputs import table_files
from uniapl.analysis.render import tex
from uniapl.analysis.stats import EMPTY, Estimate

Builder = Callable[..., dict[str, Any]]


def verdicts(root: Path) -> dict[str, str]:
    return {row.claim: row.verdict for row in findings(read_study(root))}


def reasons(root: Path) -> dict[str, str]:
    return {row.claim: row.reason for row in findings(read_study(root))}


def test_table_1_holds_the_counted_accuracies_differences_and_costs(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path)
    tables.main(tmp_path, tmp_path / "tables")
    found = {(r["method"], r["task"], r["group"]): r for r in records(tmp_path / "tables", 1)}
    uniapl = found["uniapl", "heldout", "all"]
    # 16 of 20 prompts; 20 + 16 of 40 instructions; GRPO 8 of 20; base 4 of 20
    assert float(uniapl["prompt_strict"]) == 0.8
    assert float(uniapl["inst_strict"]) == 0.9
    assert float(uniapl["prompt_strict_minus_grpo"]) == pytest.approx(0.4)
    assert float(uniapl["prompt_strict_minus_base"]) == pytest.approx(0.6)
    # McNemar: 8 prompts solved by UniAPL alone, none by GRPO alone: 2 / 2^8
    assert float(uniapl["prompt_strict_minus_grpo_p"]) == pytest.approx(2 / 256, abs=1e-6)
    # even prompts are seen: of the 10, those below 16 are 8
    assert float(found["uniapl", "heldout", "seen"]["prompt_strict"]) == 0.8
    # the eighth IFBench prompt was not computed: 2 of 7, not of 8
    assert (found["uniapl", "ifbench", "all"]["num_prompts"], found["uniapl", "ifbench", "all"]["prompt_strict"]) == (
        "7",
        "0.285714",
    )
    assert float(found["grpo.grpo", "heldout", "all"]["steps"]) == 12
    assert found["base", "heldout", "all"]["steps"] == ""
    assert "IFBench (8 prompts, 1 of them not computed)" in (tmp_path / "tables/table1.md").read_text()


def test_all_files_are_written_and_only_those_that_were_announced(tmp_path: Path, study_builder: Builder) -> None:
    index = study_builder(tmp_path, variants={"lambda_adv.5": 2})
    tables.main(tmp_path, tmp_path / "tables")
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == sorted(table_files(index))
    assert "table6.tex" in table_files(index)


def test_the_same_study_gives_the_same_bytes(tmp_path: Path, study_builder: Builder) -> None:
    index = study_builder(tmp_path / "study", seeds=(0, 1))
    tables.main(tmp_path / "study", tmp_path / "first")
    shutil.move(tmp_path / "study", tmp_path / "moved")
    command = [
        sys.executable,
        "-m",
        "uniapl.analysis.tables",
        str(tmp_path / "moved"),
        "--output",
        str(tmp_path / "second"),
    ]
    subprocess.run(command, check=True)
    for name in table_files(index):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_tables_need_neither_torch_nor_transformers() -> None:
    imports = "import sys, uniapl.analysis.tables, uniapl.analysis.figures, uniapl.report.page"
    code = f"{imports}; print({{'torch', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_names_of_files_come_without_heavy_imports() -> None:
    code = "import sys, uniapl.analysis.outputs; print({'numpy', 'scipy', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


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


def test_a_prompt_of_which_one_instruction_was_judged_has_no_verdict(tmp_path: Path, study_builder: Builder) -> None:
    index = study_builder(tmp_path, methods=("grpo",))
    for entry in index["evaluations"]:
        path = tmp_path / entry["directory"] / "heldout.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[0] |= {"status": "unavailable", "strict": [True, None], "loose": [True, None]}
        rows[0] |= {"prompt_strict": None, "prompt_loose": None}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = tables.table1(read_study(tmp_path))
    assert {r["num_prompts"] for r in table.records if r["task"] == "heldout" and r["group"] == "all"} == {19}
    assert "Held-out (20 prompts, 1 of them not computed)" in str(table.blocks)


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


def test_table_8_shows_every_general_accuracy_with_its_questions(tmp_path: Path, study_builder: Builder) -> None:
    scored = {"mmlu": {"acc,none": 0.25, "acc_stderr,none": 0.01, "sample_len": 400}}
    results = {"base": scored, "uniapl": scored | {"gsm8k": {"exact_match,strict-match": 0.5}}}
    tasks = ("heldout", "mmlu", "gsm8k")
    index = study_builder(tmp_path, methods=("uniapl",), tasks=tasks, results=results)
    tables.main(tmp_path, tmp_path / "tables")
    assert "table8.md" in table_files(index)
    base, uniapl = records(tmp_path / "tables", 8)  # gsm8k's has no standard error
    assert (base["method"], base["task"], base["num_questions"], float(base["score"])) == ("base", "mmlu", "400", 0.25)
    # Wilson of 100 of 400: (0.25 + 1.921 / 400 -+ 1.96 sqrt(0.25 * 0.75 / 400 + 0.9604 / 400^2)) / (1 + 3.8416 / 400)
    assert (float(uniapl["score_low"]), float(uniapl["score_high"])) == pytest.approx((0.2101, 0.2947), abs=2e-4)
    shown = (tmp_path / "tables/table8.md").read_text()
    assert "MMLU (400 questions), %" in shown
    assert shown.count("25.0 [21.0, 29.5] | —") == 2


def test_a_trial_decides_no_claim_and_shows_what_it_measured(tmp_path: Path, study_builder: Builder) -> None:
    index = study_builder(tmp_path)
    assert verdicts(tmp_path)["C1-laptop"] == "supported"
    (tmp_path / "study.json").write_text(json.dumps(index | {"limit": 4}))
    assert set(verdicts(tmp_path).values()) == {"not run"}
    assert reasons(tmp_path)["C1-laptop"] == "only the first 4 questions of each task were asked"
    (row,) = [row for row in findings(read_study(tmp_path)) if row.claim == "C1-laptop"]
    assert "+40.0" in row.measured


def test_a_study_without_grpo_has_empty_cells_and_no_verdict(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path, methods=("sft",))
    tables.main(tmp_path, tmp_path / "tables")
    found = {row["claim"]: row for row in records(tmp_path / "tables", 2)}
    assert found["C1-laptop"]["verdict"] == "not run"
    assert "uniapl or grpo" in found["C5"]["reason"]
    assert {row["prompt_strict_minus_grpo"] for row in records(tmp_path / "tables", 1)} == {""}


def test_two_models_get_a_column(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path, models=("tiny", "small"))
    tables.main(tmp_path, tmp_path / "tables")
    assert "| Model | Method |" in (tmp_path / "tables/table1.md").read_text()
    assert {row["model"] for row in records(tmp_path / "tables", 1)} == {"tiny", "small"}


def test_kinds_are_counted_per_instruction_and_told_apart_by_what_training_showed(
    tmp_path: Path, study_builder: Builder
) -> None:
    study_builder(tmp_path)
    tables.main(tmp_path, tmp_path / "tables")
    found = {(r["kind"], r["method"]): r for r in records(tmp_path / "tables", 3)}
    assert float(found["always:met", "base"]["inst_strict"]) == 1.0
    assert float(found["seen:kind", "uniapl"]["inst_strict"]) == 0.8
    assert (found["unseen:kind", "uniapl"]["seen"], found["seen:kind", "uniapl"]["seen"]) == ("False", "True")


def test_distances_are_to_the_experts_answers_of_the_same_prompts(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path)
    tables.main(tmp_path, tmp_path / "tables")
    found = {row["method"]: row for row in records(tmp_path / "tables", 4)}
    assert float(found["grpo"]["wasserstein_num_tokens"]) == pytest.approx(10.0)
    assert float(found["uniapl"]["wasserstein_logprob_base"]) == pytest.approx(0.01)
    assert float(found["base"]["truncated_share"]) == pytest.approx(3 / 20)
    assert found["expert"]["num_prompts"] == "18"


@pytest.mark.parametrize(("auc", "said"), [(0.59, True), (0.6, False)])
def test_a_discriminator_without_signal_is_named(
    tmp_path: Path, study_builder: Builder, auc: float, said: bool
) -> None:
    study_builder(tmp_path, auc=auc)
    tables.main(tmp_path, tmp_path / "tables")
    assert ("carries no usable signal" in (tmp_path / "tables/table5.md").read_text()) == said


def test_the_best_and_all_that_a_test_does_not_tell_apart_from_it_are_bold(
    tmp_path: Path, study_builder: Builder
) -> None:
    solved = {"grpo": 14, "sft": 2, "uniapl": 16, "grpo.grpo": 8}
    study_builder(tmp_path, methods=("grpo", "sft", "uniapl", "grpo.grpo"), solved={"base": 2} | solved)
    tables.main(tmp_path, tmp_path / "tables")
    found = {r["method"]: r for r in records(tmp_path / "tables", 10) if (r["task"], r["group"]) == ("heldout", "all")}
    assert {method: row["mark"] for method, row in found.items()} == {
        "uniapl": "best", "grpo": "tie", "sft": "", "base": "", "grpo.grpo": "",
    }  # fmt: skip
    assert float(found["grpo"]["minus_best"]) == pytest.approx(-0.1)
    lines = (tmp_path / "tables/table10.md").read_text().splitlines()
    row = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in lines if line.startswith("| ")}
    assert row["UniAPL"].startswith("**80.0 [")
    assert row["GRPO"].startswith("**70.0 [")
    assert row["SFT"].startswith("10.0 [")
    headings = [line.split("|")[1].strip(" *") for line in lines if line.startswith("| **")]
    assert headings[0] == "Before training"
    assert headings[-1] == "Other baselines, ours"  # grpo.grpo
    assert r"\textbf{80.0 [" in (tmp_path / "tables/table10.tex").read_text()


def test_uniapl_meets_grpo_at_equal_steps_and_seconds_and_says_what_is_not_run(
    tmp_path: Path, study_builder: Builder
) -> None:
    study_builder(tmp_path, seeds=(0, 1, 2), methods=("grpo", "uniapl", "grpo.grpo"))
    tables.main(tmp_path, tmp_path / "tables")
    found = {row["equal"]: row for row in records(tmp_path / "tables", 11) if row["method"] != "sft.grpo"}
    assert set(found) == {"steps", "seconds"}
    assert float(found["steps"]["prompt_strict_gain"]) == pytest.approx(0.4)
    assert float(found["steps"]["probability_of_improvement"]) == 1.0
    assert (found["seconds"]["uniapl_steps"], found["seconds"]["other_steps"]) == ("6.000000", "12.000000")
    text = (tmp_path / "tables/table11.md").read_text()
    assert "| tokens trained | not run |" in text
    assert "6 : 12" in text
    without = study_builder(tmp_path / "without", methods=("grpo",))
    assert "table11.md" not in table_files(without)


def test_tables_stand_where_no_task_has_records_and_where_a_model_lacks_uniapl(
    tmp_path: Path, study_builder: Builder
) -> None:
    index = study_builder(tmp_path / "general", tasks=("gsm8k",), methods=("grpo", "uniapl"))
    tables.main(tmp_path / "general", tmp_path / "general/tables")
    assert "table11.md" not in table_files(index)
    root = tmp_path / "partial"
    index = study_builder(root, models=("tiny", "small"), methods=("grpo", "uniapl"))
    for kind, key in (("runs", "path"), ("evaluations", "method")):
        left = [e for e in index[kind] if e["model"] == "small" and e[key] in (["uniapl"], "uniapl")]
        index[kind] = [e for e in index[kind] if e not in left]
    (root / "study.json").write_text(json.dumps(index))
    tables.main(root, root / "tables")
    assert {row["model"] for row in records(root / "tables", 11)} == {"tiny"}
    assert "| model small | GRPO | steps | not run |" in (root / "tables/table11.md").read_text()


def test_without_a_test_against_the_best_nothing_is_a_tie(tmp_path: Path, study_builder: Builder) -> None:
    """The two methods share no seed, as in a study that is still being made."""
    index = study_builder(tmp_path, methods=("grpo", "uniapl"), seeds=(0, 1))
    kept = {("base", 0), ("grpo", 0), ("uniapl", 1)}
    index["evaluations"] = [e for e in index["evaluations"] if (e["method"], e["seed"]) in kept]
    (tmp_path / "study.json").write_text(json.dumps(index))
    tables.main(tmp_path, tmp_path / "tables")
    marks = {r["method"]: r["mark"] for r in records(tmp_path / "tables", 10) if r["group"] == "all"}
    assert marks["uniapl"] == "best"
    assert marks["grpo"] == ""


def test_c6_is_told_without_what_length_explains(tmp_path: Path, study_builder: Builder) -> None:
    """Log-probs of the built study are a line of the length: nearly nothing is left to be closer in."""
    study_builder(tmp_path)
    row = next(row for row in findings(read_study(tmp_path)) if row.claim == "C6")
    left, _ = comparisons.reduction(
        read_study(tmp_path), "smollm2_135m", "uniapl", "grpo", "logprob_base", without_length=True
    )
    assert row.quantity.value == pytest.approx(0.09)
    assert abs(left.value) < 0.03
    assert "of what length does not explain, " in row.measured


def test_several_seeds_show_the_bootstrap_beside_the_interval(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path, seeds=(0, 1, 2))
    tables.main(tmp_path, tmp_path / "tables")
    found = {(r["method"], r["task"], r["group"]): r for r in records(tmp_path / "tables", 1)}
    row = found["uniapl", "heldout", "all"]
    assert (row["num_seeds"], row["prompt_strict_minus_base_test"]) == ("3", "two-way t")
    assert float(row["prompt_strict_bootstrap_low"]) < 0.8 < float(row["prompt_strict_bootstrap_high"])


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("study.json", "holds no study; run snakemake first"),
        ("runs/smollm2_135m/grpo/main-00000000/seed0/manifest.json", "never finished; run snakemake again"),
        (
            "evaluations/smollm2_135m/sft/main-00000000/seed0/heldout.jsonl",
            "is missing although its directory is finished",
        ),
        ("discriminator/smollm2_135m-00000000/manifest.json", "never finished; run snakemake again"),
    ],
)
def test_a_missing_file_is_named_with_its_remedy(
    tmp_path: Path, study_builder: Builder, missing: str, message: str
) -> None:
    study_builder(tmp_path)
    (tmp_path / missing).unlink()
    command = [sys.executable, "-m", "uniapl.analysis.tables", str(tmp_path), "--output", str(tmp_path / "tables")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert missing in done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_records_that_the_manifest_did_not_count_are_refused(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path)
    path = tmp_path / "evaluations/smollm2_135m/sft/main-00000000/seed0/heldout.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="19 records, its manifest counted 20"):
        read_study(tmp_path)


def test_labels_and_order_are_fixed() -> None:
    stages = {"sft": "SFT", "grpo": "GRPO"}
    assert method_label("sft.grpo", stages) == "SFT → GRPO"
    assert method_label("grpo.grpo", stages) == "GRPO at UniAPL's compute"
    assert method_order(["sft", "grpo", "uniapl", "grpo.grpo", "base"]) == [
        "base",
        "sft",
        "grpo",
        "grpo.grpo",
        "uniapl",
    ]


def test_tex_escapes_what_latex_would_read() -> None:
    assert tex("lambda_adv −1 50% <") == r"lambda\_adv $-$1 50\% $<$"


def test_study_json_must_be_json(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(ValueError, match="not valid JSON"):
        read_study(tmp_path)
