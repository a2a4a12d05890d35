"""Mistakes of a user: one line of error, a non-zero exit code, nothing lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.workflow.conftest import error_lines, snakemake_in
from uniapl import leases


def _the_one_error(project: Path, *config: str) -> str:
    done = snakemake_in(project, "--config", "scale=smoke", *config)
    assert done.returncode != 0
    (line,) = error_lines(done)
    assert line.startswith("error: ")
    assert "Traceback" not in line
    return line


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("methods=sfft", "unknown method 'sfft'"),
        ("stages={uniapl: {lambda_adv: -0.5}}", "stages.uniapl.lambda_adv = '-0.5'"),
        ("stages={uniapl: {mu: 1.5}}", "mu = 1.5 is above 1"),
        ("stages={uniapl: {lambda_avd: 0.5}}", "did you mean 'lambda_adv'?"),
        ("data={num_policy: 4000}", "more than num_train = 40"),
        ("models=no_such_model", "models = 'no_such_model': unknown"),
        ("ablations=no_such_ablation", "ablations = 'no_such_ablation': unknown"),
        ("methods=", "methods is empty"),
        ("ranks=0", "machine.ranks = 0"),
        ("ranks=two", "machine.ranks = 'two'"),
        ("source=elsewhere", "source = 'elsewhere'"),
        ("machine={micro_batch_tokens: 1000000000}", "models = tiny_qwen3: training it (stage "),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(shared_project: Path, config: str, expected: str):
    assert expected in _the_one_error(shared_project, config)
    assert not (shared_project / "results").exists()


def test_a_tracker_that_cannot_be_had_is_one_line_before_any_job(shared_project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "of")
    error = _the_one_error(shared_project, "machine={log_to: [wandb]}")
    assert "WANDB_MODE = 'of': give online or offline" in error
    assert not (shared_project / "results").exists()


def test_an_unknown_scale_is_one_line(shared_project: Path):
    done = snakemake_in(shared_project, "--config", "scale=huge")
    assert done.returncode != 0
    (line,) = error_lines(done)
    assert "scale = 'huge'" in line


def test_scale_paper_names_all_that_is_missing_before_any_job(shared_project: Path):
    done = snakemake_in(shared_project, "--config", "scale=paper")
    assert done.returncode != 0
    (line,) = error_lines(done)
    for part in (
        "NVIDIA GPU",
        "Qwen/Qwen3-4B@",
        "internlm/POLAR-7B@",
        "google/IFEval@",
        "uniapl fetch",
        "scale=laptop",
    ):
        assert part in line


def test_released_results_that_do_not_exist_are_one_line(shared_project: Path):
    done = snakemake_in(shared_project, "tables", "--config", "source=released")
    assert done.returncode != 0
    (line,) = error_lines(done)
    assert "results/released/laptop/study.json is missing" in line


def test_a_yaml_syntax_error_names_file_and_line(project: Path):
    # The fifth line opens a mapping that is never closed; YAML notices at the sixth.
    (project / "config" / "smoke.yaml").write_text(
        "cost: little\nmodels: [tiny_qwen3]\nseeds: [0]\nclaims: {}\nstages: {sft: {steps: 3}\ndata: 1\n"
    )
    assert "config/smoke.yaml:6: not valid YAML" in _the_one_error(project)


def test_a_misspelt_key_in_a_method_file_names_the_file(project: Path):
    path = project / "config" / "methods" / "uniapl.yaml"
    path.write_text(path.read_text().replace("lambda_adv", "lamda_adv"))
    line = _the_one_error(project)
    assert "config/methods/uniapl.yaml" in line
    assert "did you mean 'lambda_adv'?" in line


def test_a_config_that_was_edited_by_hand_stops_everything_before_any_job(project: Path, smoke: Path):
    source = next(iter(sorted(smoke.glob("results/smoke/runs/*/sft/*/seed0/config.json"))))
    target = project / source.relative_to(smoke)
    target.parent.mkdir(parents=True)
    edited = json.loads(source.read_text())
    edited["path"][0]["learning_rate"] = 0.5
    target.write_text(json.dumps(edited))
    line = _the_one_error(project)
    assert str(target.relative_to(project)) in line
    assert "was edited" in line


def test_a_second_snakemake_on_the_same_study_is_refused(project: Path):
    root = project / "results" / "smoke"
    with leases.hold(root / ".lock", what=""):
        done = snakemake_in(project, "--config", "scale=smoke")
    assert done.returncode != 0
    (line,) = [line for line in error_lines(done) if "is in use by process" in line]
    assert f"process {os.getpid()} on " in line
    assert f"stop it (kill {os.getpid()})" in line
