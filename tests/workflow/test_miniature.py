"""The shortened miniature: the paper's config on tiny models, a vLLM teacher, a tiny POLAR and a few real rows."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.miniature.__main__ import HERE, INPUTS, write_inputs
from tests.workflow.conftest import REPOSITORY, copy_project, snakemake_in
from uniapl import chat
from uniapl.analysis.outputs import figure_files, table_files
from uniapl.answer_cache import request_key
from uniapl.config import Study
from uniapl.data import read_prompts
from uniapl.endpoint import chat_request
from uniapl.layers import load_study, read_yaml
from uniapl.models import load_policy, load_tokenizer, weight_sha256
from uniapl.provenance import content_hash
from uniapl.sampler import explain_fallback
from uniapl.seeding import stream_seed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

CONFIGS = ("--configfile", str(HERE / "paper.yaml"), str(HERE / "short.yaml"))
LIMIT = 2  # questions of each task


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory, eval_data: Path) -> Path:
    """A project in which the shortened miniature has been made by one command."""
    if reason := explain_fallback():
        pytest.skip(f"the miniature needs vLLM: {reason}")
    project = copy_project(tmp_path_factory.mktemp("miniature") / "project")
    words = ["--eval-data", str(eval_data), "--configfile", str(HERE / "short.yaml")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.miniature", *words], cwd=project, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": f"{project}{os.pathsep}{REPOSITORY}"},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return project


@pytest.fixture(scope="module")
def root(miniature: Path) -> Path:
    return miniature / "results/miniature/paper"


def index_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "study.json").read_text())


def manifest(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "manifest.json").read_text())


def table(root: Path, number: int) -> list[dict[str, str]]:
    with open(root / f"tables/table{number}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_only_names_and_sizes_differ_from_the_papers_config() -> None:
    config = {key: value for key, value in read_yaml(HERE / "paper.yaml").items() if key not in ("scale", "results")}
    same = {"models": ["qwen3_0_6b", "qwen3_4b"], "teacher": "qwen3_235b_vllm"}  # their folders are made later
    tasks = config["evaluation"]["tasks"]
    assert set(load_study("paper").evaluation.tasks) - set(tasks) == {"ceval-valid"}
    paper = flat(load_study("paper", same | {"evals": tasks}).model_dump())
    mini = flat(load_study("paper", config | same).model_dump())
    changed = {key for key in {**paper, **mini} if paper.get(key) != mini.get(key)}
    sizes = {"steps", "prompts_per_step", "rollouts_per_prompt", "demonstrations_per_step", "probe_every", "limit"}
    sizes |= {"max_new_tokens", "ifbench_max_new_tokens", "num_resamples", "ranks", "gpus_per_rank", "cost"}
    sizes |= {"max_prompts", "answers_per_prompt"}
    names = {"source", "location", "files", "columns", "kinds", "items", "if_rlvr"}
    assert {key for key in changed if not set(key.split(".")) & (sizes | names) and ".num_" not in key} == set()
    assert {"data.kinds", "machine.ranks", "stages.uniapl.steps", "discriminator.location"} <= changed


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_tables_figures_and_report_are_there_and_every_directory_is_closed(root: Path) -> None:
    index = index_of(root)
    assert (len(index["models"]), len(index["runs"]), len(index["evaluations"])) == (1, 3, 3)
    expected = [f"tables/{name}" for name in table_files(index)] + [f"figures/{name}" for name in figure_files(index)]
    assert {"tables/table7.csv", "tables/table8.csv"} <= set(expected)
    assert [name for name in [*expected, "report.html"] if (root / name).stat().st_size == 0] == []
    for path in sorted(root.glob("**/manifest.json")):
        config = json.loads((path.parent / "config.json").read_text())
        assert manifest(path.parent)["config_hash"] == content_hash(config), path


def test_training_prompts_are_generated_ones_and_autoifs_without_overlap_with_benchmarks(root: Path) -> None:
    directory = root / index_of(root)["data"]
    assert len(read_prompts(directory / "train.jsonl")) == 40 + 8
    page = (directory / "data_card.md").read_text()
    assert "| items whose functions and cases agree | 20 | 16 |" in page
    assert "48 training prompts, of which 0 were duplicates of others." in page


def test_every_model_answered_every_benchmark(root: Path) -> None:
    methods = {"base", "sft.grpo", "uniapl"}
    answered = {(row["method"], row["task"]): row["num_prompts"] for row in table(root, 1) if row["group"] == "all"}
    assert answered == {(method, task): str(LIMIT) for method in methods for task in ("heldout", "ifeval")}
    general = {(row["method"], row["task"]): row["num_questions"] for row in table(root, 8)}
    assert general == {(method, task): str(LIMIT) for method in methods for task in ("gsm8k", "humaneval")}
    (model,) = index_of(root)["models"].values()
    base, hashes = root / model["directory"] / "weights", set[str]()
    for entry in index_of(root)["evaluations"]:
        evaluated = manifest(root / entry["directory"])
        assert (evaluated["sampler"], evaluated["dtype"]) == ("vllm", "bfloat16")
        weights = root / entry["run"] / "model" if entry["run"] else base
        assert evaluated["weight_sha256"] == weight_sha256(load_policy(weights, dtype="bfloat16"))
        hashes.add(evaluated["weight_sha256"])
        originals = json.loads((root / entry["directory"] / "results.json").read_text())["n-samples"]
        assert {task: originals[task]["original"] for task in ("ifeval", "gsm8k", "humaneval")} == {
            "ifeval": 541, "gsm8k": 1319, "humaneval": 164,
        }  # fmt: skip
    assert len(hashes) == 3


def test_the_stack_check_stands_beside_the_published_score_and_judges_no_trial(root: Path) -> None:
    (row,) = table(root, 7)
    assert (row["model"], row["task"], row["published"]) == ("qwen3_0_6b", "ifeval", "54.500000")
    assert (row["stack_check"], row["reason"]) == ("no check", f"only the first {LIMIT} questions were asked")
    page = (root / "report.html").read_text()
    assert "This is a trial" in page
    claims = {row["claim"]: row for row in table(root, 2)}
    assert list(claims) == ["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9"]
    assert {row["verdict"] for row in claims.values()} == {"not run"}
    assert claims["C2"]["reason"] == "needs Qwen3-4B, which is not in this study"
    assert claims["C9"]["reason"] == f"only the first {LIMIT} questions of each task were asked"
    assert "mean of gsm8k, humaneval" in claims["C9"]["measured"]


def test_the_teacher_was_asked_with_thinking_off_and_its_report_adds_up(root: Path, study: Study) -> None:
    (directory,) = (root / name for name in index_of(root)["demonstrations"].values())
    made, answers = manifest(directory), read_lines(directory / "teacher_answers.jsonl")
    assert made["num_orders"] == made["num_demonstrations"] + made["dropped"]
    assert 0 < made["dropped"] == len(read_lines(directory / "dropped.jsonl"))
    assert made["num_demonstrations"] >= made["num_orders"] // 2
    report = made["teacher"]
    assert report["answers"] == report["attempts"] == len(answers)
    assert report["used"]["completion_tokens"] > 0
    (kept,) = (root / "demonstrations/answers").glob("*.jsonl")
    known = {row["key"] for row in read_lines(kept)}
    assert len(known) == len(answers)
    teacher: Any = study.teacher
    (prompt, *_) = read_prompts(root / index_of(root)["data"] / "train.jsonl")
    body = chat_request(
        prompt.text, model=f"qwen3_235b-{content_hash(teacher.model.model_dump())}", temperature=0.7, top_p=0.8,
        max_tokens=study.data.max_new_tokens, extra_body=teacher.extra_body,
        seed=stream_seed(teacher.seed, "answer", 0, prompt.id, 0),
    )  # fmt: skip
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert request_key(body) in known
    assert request_key(body | {"chat_template_kwargs": {"enable_thinking": True}}) not in known


@pytest.fixture
def study(miniature: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The miniature's config, resolved in its project, where its relative names are."""
    monkeypatch.chdir(miniature)
    config = {key: value for key, value in read_yaml(HERE / "paper.yaml").items() if key not in ("scale", "results")}
    return load_study("paper", config)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_base_and_trained_models_are_prompted_with_an_empty_think_block(root: Path) -> None:
    index = index_of(root)
    text = "Name a river."
    expected = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    folders = [root / model["directory"] / "weights" for model in index["models"].values()]
    folders += [root / run["directory"] / "model" for run in index["runs"]]
    assert len(folders) == 4
    for folder in folders:
        tokenizer = load_tokenizer(folder)
        assert chat.render(tokenizer, text) == expected
        assert tokenizer.decode(chat.prompt_ids(tokenizer, text)) == expected


def test_polar_was_fixed_with_a_shift_and_a_scale_and_scored_the_rollouts(root: Path) -> None:
    (directory,) = (root / name for name in index_of(root)["discriminators"].values())
    fixed = manifest(directory)
    assert math.isfinite(fixed["shift"])
    assert fixed["scale"] > 0
    middle = (fixed["score_mean_base"] + fixed["score_mean_demonstrations"]) / 2
    assert fixed["shift"] == pytest.approx(middle, abs=1e-5)
    shown = {row["name"]: row["value"] for row in table(root, 5) if row["part"] == "discriminator"}
    assert float(shown["scale"]) == pytest.approx(fixed["scale"], abs=1e-6)
    assert (directory / "probe.json").is_file()
    (uniapl,) = (root / run["directory"] for run in index_of(root)["runs"] if run["path"] == ["uniapl"])
    assert all(math.isfinite(row["adv/score_mean"]) for row in read_lines(uniapl / "metrics.jsonl"))


def test_a_second_call_has_nothing_to_do(miniature: Path) -> None:
    done = snakemake_in(miniature, *CONFIGS)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr


def test_missing_benchmark_files_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks ifeval_input_data\.jsonl, .*EVAL_DATA"):
        write_inputs(tmp_path, tmp_path)
    assert not (tmp_path / INPUTS).exists()
