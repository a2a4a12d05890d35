"""Tables from a synthetic study: hand-counted accuracies, verdicts each way, identical bytes, clear errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.conftest import records
from uniapl.analysis import tables
from uniapl.analysis.collect import read_study
from uniapl.analysis.labels import method_label, method_order
from uniapl.analysis.outputs import table_files
from uniapl.analysis.render import tex

Builder = Callable[..., dict[str, Any]]
RELEASED = Path(__file__).resolve().parents[2] / "results/released/laptop"


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
    assert float(found["grpo.grpo", "heldout", "all"]["seconds"]) == 25.0
    assert "IFBench (8 prompts, 1 of them not computed)" in (tmp_path / "tables/table1.md").read_text()


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


def test_each_method_with_the_adversarial_term_is_held_against_the_same_without(
    tmp_path: Path, study_builder: Builder
) -> None:
    solved = {"grpo": 8, "a_grpo": 12, "a_sft.a_grpo": 9, "uniapl": 16, "chord_mu": 10, "sft": 3}
    index = study_builder(tmp_path, methods=tuple(solved), solved={"base": 2} | solved)
    assert "table12.csv" in table_files(index)
    tables.main(tmp_path, tmp_path / "tables")
    found = {(r["method"], r["task"]): r for r in records(tmp_path / "tables", 12)}
    pairs = {(row["method"], row["without"]) for row in found.values()}
    assert pairs == {("a_grpo", "grpo"), ("uniapl", "chord_mu")}, "sft.grpo is not there"
    row = found["uniapl", "heldout"]
    assert float(row["prompt_strict_minus_without"]) == pytest.approx(0.3)
    p = sorted(float(r["prompt_strict_minus_without_p"]) for r in found.values())
    assert p[0] == pytest.approx(2 / 2**6)  # six prompts of UniAPL alone: McNemar's exact test
    assert float(row["prompt_strict_minus_without_p_holm"]) == pytest.approx(4 * p[0])
    assert "table12.csv" not in table_files(study_builder(tmp_path / "none", methods=("grpo", "uniapl")))


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


def test_uniapl_meets_grpo_at_equal_tokens_and_a_staged_path_at_equal_steps(
    tmp_path: Path, study_builder: Builder
) -> None:
    others = {("grpo", "compute.tokens"): (10, (15,)), ("sft.grpo", "equal_steps.half"): (12, (3, 3))}
    study_builder(tmp_path, seeds=(0, 1, 2), methods=("grpo", "uniapl"), other_variants=others)
    tables.main(tmp_path, tmp_path / "tables")
    found = {(row["method"], row["equal"]): row for row in records(tmp_path / "tables", 11)}
    assert set(found) == {("grpo", "steps"), ("grpo", "tokens trained"), ("sft.grpo", "steps")}
    tokens, staged = found["grpo", "tokens trained"], found["sft.grpo", "steps"]
    assert (tokens["variant"], staged["variant"]) == ("compute.tokens", "equal_steps.half")
    # 16 of 20 prompts are UniAPL's; 15 steps of GRPO train on 700 x 15 / 6 tokens, 3 + 3 steps on as many as 6
    assert float(tokens["prompt_strict_gain"]) == pytest.approx((16 - 10) / 20)
    assert (float(tokens["other_steps"]), float(tokens["other_tokens_trained"])) == (15, 1750)
    assert float(staged["prompt_strict_gain"]) == pytest.approx((16 - 12) / 20)
    assert (float(staged["other_steps"]), float(staged["other_tokens_trained"])) == (6, 700)
    text = (tmp_path / "tables/table11.md").read_text()
    assert "| GRPO | tokens trained | 6 : 15 | 600 : 1,500 | 700 : 1,750 |" in text
    assert "| SFT → GRPO | steps | 6 : 6 | 600 : 600 | 700 : 700 |" in text


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
    assert "to be tried with more seeds" not in (tmp_path / "tables/table13.md").read_text(), "one seed has no t test"


def test_several_seeds_show_the_bootstrap_beside_the_interval(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path, seeds=(0, 1, 2))
    tables.main(tmp_path, tmp_path / "tables")
    found = {(r["method"], r["task"], r["group"]): r for r in records(tmp_path / "tables", 1)}
    row = found["uniapl", "heldout", "all"]
    assert (row["num_seeds"], row["prompt_strict_minus_base_test"]) == ("3", "two-way t")
    assert float(row["prompt_strict_bootstrap_low"]) < 0.8 < float(row["prompt_strict_bootstrap_high"])
    assert {r["num_seeds"] for r in records(tmp_path / "tables", 13)} == {"3"}, "the base model goes with every seed"
    assert "to be tried with more seeds" in (tmp_path / "tables/table13.md").read_text()


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
    assert tex("CHORD-μ, CHORD-φ, ±5") == r"CHORD-$\mu$, CHORD-$\varphi$, $\pm$5"


@pytest.mark.skipif(not RELEASED.exists(), reason="no laptop study has been released")
def test_every_released_tex_is_ascii_so_that_any_engine_sets_it() -> None:
    files = sorted(RELEASED.glob("tables/*.tex"))
    assert files
    assert [file.name for file in files if not file.read_text().isascii()] == []


def test_seconds_are_those_of_training_without_probes(tmp_path: Path, study_builder: Builder) -> None:
    """Both stages of a path probed."""
    index = study_builder(tmp_path, methods=("grpo", "grpo.grpo"))
    for run, probed in zip(index["runs"], (1.5, 2.0), strict=True):
        log = tmp_path / run["directory"] / "metrics.jsonl"
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        rows[0]["seconds/probe"] = probed
        log.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    runs = read_study(tmp_path).runs
    assert dict(zip(runs["method"], runs["seconds"], strict=True)) == {"grpo": 11.0, "grpo.grpo": 21.5}


def test_every_pair_is_compared_once_and_corrected_over_all(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path, methods=("sft", "grpo", "uniapl"))
    tables.main(tmp_path, tmp_path / "tables")
    found = {(r["method"], r["other"]): r for r in records(tmp_path / "tables", 13)}
    assert set(found) == {
        ("sft", "base"), ("grpo", "base"), ("uniapl", "base"), ("grpo", "sft"), ("uniapl", "sft"), ("uniapl", "grpo"),
    }  # fmt: skip
    row = found["uniapl", "grpo"]
    assert float(row["prompt_strict_gain"]) == pytest.approx(0.4)
    assert float(row["prompt_strict_gain_p"]) == pytest.approx(2 / 2**8, abs=1e-6)
    assert float(row["prompt_strict_gain_p_holm"]) == pytest.approx(4 * 2 / 2**8, abs=1e-6), "the third smallest of 6"
    assert 0 < float(row["smallest_seen"]) < 0.4
    lines = (tmp_path / "tables/table13.md").read_text().splitlines()
    cells = next(line for line in lines if line.startswith("| UniAPL |")).split("|")[2:-1]
    assert [cell.strip()[:7] for cell in cells] == ["**+60.0", "**+50.0", "**+40.0"]
    assert next(line for line in lines if line.startswith("| SFT |")).endswith("|  |  |")


def test_methods_that_are_not_run_say_so_in_every_table(tmp_path: Path, study_builder: Builder) -> None:
    index = study_builder(tmp_path, methods=("grpo", "uniapl"), seeds=(0, 1))
    missing = {"model": "smollm2_135m", "variant": "main"}
    index["not_run"] = [missing | {"method": "chord_mu", "seed": seed} for seed in (0, 1)]
    index["not_run"].append(missing | {"method": "grpo", "seed": 2})
    index["stages"]["chord_mu"] = "CHORD-μ"
    (tmp_path / "study.json").write_text(json.dumps(index))
    tables.main(tmp_path, tmp_path / "tables")
    text = {number: (tmp_path / f"tables/table{number}.md").read_text() for number in (1, 3, 4, 10, 13)}
    assert text[1].count("| CHORD-μ | not run |") == 5, "in four evaluations and among the costs"
    assert "| CHORD-μ | 0 of 2 | not run |" in text[10]
    assert "| GRPO | 2 of 3 |" in text[10]
    for number in (3, 4, 13):
        assert "Not run: CHORD-μ." in text[number]


def test_the_terms_table_names_the_pair_that_is_not_run(tmp_path: Path, study_builder: Builder) -> None:
    solved = {"grpo": 8, "a_grpo": 12, "uniapl": 16}
    index = study_builder(tmp_path, methods=tuple(solved), solved={"base": 2} | solved)
    index["not_run"] = [{"model": "smollm2_135m", "variant": "main", "method": "chord_mu", "seed": 0}]
    index["stages"] |= {"chord_mu": "CHORD-μ", "a_grpo": "A-GRPO"}
    (tmp_path / "study.json").write_text(json.dumps(index))
    tables.main(tmp_path, tmp_path / "tables")
    text = (tmp_path / "tables/table12.md").read_text()
    assert "| UniAPL | CHORD-μ | not run | not run |" in text
    assert "| A-GRPO | GRPO | +20.0" in text


def test_study_json_must_be_json(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(ValueError, match="not valid JSON"):
        read_study(tmp_path)


def test_all_files_are_written_and_only_those_that_were_announced(tmp_path: Path, study_builder: Builder) -> None:
    index = study_builder(tmp_path, variants={"lambda_adv.5": 2})
    tables.main(tmp_path, tmp_path / "tables")
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == sorted(table_files(index))
    assert "table6.tex" in table_files(index)


def test_variants_that_another_processor_trained_are_named_where_they_are_compared(
    tmp_path: Path, study_builder: Builder
) -> None:
    study_builder(
        tmp_path, seeds=(0, 1), methods=("grpo", "sft.grpo", "uniapl"),
        variants={"lambda_adv.5": 10, "teacher.other": 9, "mu_schedule.half": 8},
        other_variants={("sft.grpo", "switch.early"): (7, (3, 9)), ("grpo", "compute.tokens"): (9, (15,))},
    )  # fmt: skip
    tables.main(tmp_path, tmp_path / "alike")
    elsewhere = (
        "uniapl/lambda_adv.5-00000000/seed1", "uniapl/teacher.other-00000000/seed0",
        "sft/switch.early-00000000/seed0", "grpo/compute.tokens-00000000/seed1",
    )  # fmt: skip
    for name in elsewhere:
        path = tmp_path / "runs/smollm2_135m" / name / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["hardware"]["instructions"] = ["avx512_bf16"]
        path.write_text(json.dumps(manifest))
    tables.main(tmp_path, tmp_path / "apart")
    of = "(a processor (avx512_bf16); the main run's: a processor (avx2)): "
    of_staged = "(a processor (avx2), a processor (avx512_bf16); the main run's: a processor (avx2)): "
    named = {
        2: of + "lambda_adv.5.",
        6: of_staged + "compute.tokens, lambda_adv.5, switch.early, teacher.other.",
        9: of + "teacher.other.",
        11: of + "compute.tokens.",
    }
    for number, said in named.items():
        assert said in (tmp_path / f"apart/table{number}.md").read_text(), number
        assert "processor" not in (tmp_path / f"alike/table{number}.md").read_text()
