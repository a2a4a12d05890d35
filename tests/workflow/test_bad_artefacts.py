"""Broken files between the stages, a full disk, Ctrl-C: one line of error, a non-zero exit code, nothing lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.workflow.conftest import copy_project, snakemake_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

RUN = "runs/tiny_qwen3/sft/*/seed0"


@pytest.fixture
def spoilt(smoke: Path, tmp_path: Path) -> Path:
    """A copy of the finished smoke study in which the run RUN is to be made again."""
    project = copy_project(tmp_path / "project")
    shutil.copytree(smoke / "results", project / "results")
    run = _run(project)
    for path in run.iterdir():
        if path.name != "config.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return project


def _run(project: Path) -> Path:
    (run,) = (project / "results" / "smoke").glob(RUN)
    return run


def _train(project: Path, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    """The training stage of RUN as the rule calls it."""
    root = project / "results" / "smoke"
    index = json.loads((root / "study.json").read_text())
    command = [sys.executable, "-m", "uniapl.train", str(_run(project))]
    command += ["--model", str(root / index["models"]["tiny_qwen3"]["directory"]), "--data", str(root / index["data"])]
    command += ["--demonstrations", str(root / index["demonstrations"]["tiny_qwen3"])]
    command += ["--discriminator", str(root / index["discriminators"]["tiny_qwen3"])]
    environment = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False, preexec_fn=before
    )


def _the_one_error(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]
    return line


def _training_prompts(project: Path) -> Path:
    (path,) = (project / "results" / "smoke" / "data").glob("*/train.jsonl")
    return path


def test_a_broken_line_in_a_prompt_file_is_named_with_file_and_line(spoilt: Path):
    path = _training_prompts(spoilt)
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:40]
    path.write_text("\n".join(lines) + "\n")
    assert f"{path}:3: not valid JSON" in _the_one_error(_train(spoilt))
    assert not (_run(spoilt) / "manifest.json").exists()


def test_an_unknown_constraint_kind_is_named_with_file_and_line(spoilt: Path):
    path = _training_prompts(spoilt)
    lines = path.read_text().splitlines()
    row = json.loads(lines[4])
    row["constraints"][0]["kind"] = "keywords:no_such_kind"
    lines[4] = json.dumps(row)
    path.write_text("\n".join(lines) + "\n")
    error = _the_one_error(_train(spoilt))
    assert f"{path}:5" in error
    assert "keywords:no_such_kind" in error


def test_missing_weights_are_one_line(spoilt: Path):
    for weights in (spoilt / "results" / "smoke" / "models").glob("tiny_qwen3-*/weights"):
        shutil.rmtree(weights)
    assert "weights" in _the_one_error(_train(spoilt))


def test_a_run_whose_config_was_edited_by_hand_does_not_train(spoilt: Path):
    path = _run(spoilt) / "config.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert "was edited" in _the_one_error(_train(spoilt))


def test_a_full_disk_is_one_line_and_the_same_command_finishes_afterwards(spoilt: Path):
    def small_files_only() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # less than the exported weights

    assert "no space left" in _the_one_error(_train(spoilt, small_files_only))
    assert not (_run(spoilt) / "manifest.json").exists()
    assert _train(spoilt).returncode == 0
    assert json.loads((_run(spoilt) / "manifest.json").read_text())["steps"] == 3


GRPO = ("--config", "scale=smoke", "models=tiny_qwen3", "methods=grpo", "stages={grpo: {steps: 20}}")


def _interrupted(smoke: Path, project: Path, number: signal.Signals) -> tuple[Path, int]:
    """A run of 20 steps that all processes of Snakemake's group got a signal in; and how many steps it has logged."""
    copy_project(project)
    shutil.copytree(smoke / "results", project / "results")
    environment = os.environ | {"PYTHONPATH": str(project)}
    known = set((project / "results" / "smoke" / "runs").glob("*/grpo/*/seed0"))
    with subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "2", *GRPO], cwd=project, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as running:  # fmt: skip
        deadline = time.monotonic() + 300
        rows = 0
        while rows < 3 and time.monotonic() < deadline and running.poll() is None:
            time.sleep(0.2)
            for run in set((project / "results" / "smoke" / "runs").glob("*/grpo/*/seed0")) - known:
                metrics = run / "metrics.jsonl"
                rows = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        os.killpg(running.pid, number)
        output, _ = running.communicate(timeout=120)
    assert running.returncode != 0
    assert "Traceback" not in output
    (run,) = set((project / "results" / "smoke" / "runs").glob("*/grpo/*/seed0")) - known
    interrupted_at = len((run / "metrics.jsonl").read_text().splitlines())
    assert 3 <= interrupted_at < 20
    assert not (run / "manifest.json").exists()
    return run, interrupted_at


def test_ctrl_c_during_training_is_resumed_by_the_same_command(smoke: Path, tmp_path: Path):
    project = tmp_path / "project"
    run, interrupted_at = _interrupted(smoke, project, signal.SIGINT)
    done = snakemake_in(project, str(run.relative_to(project) / "manifest.json"), *GRPO)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert f"from step {interrupted_at}" in done.stdout + done.stderr
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 21))


def test_sigterm_to_every_process_lets_the_run_save_before_snakemake_ends(smoke: Path, tmp_path: Path):
    project = tmp_path / "project"
    run, interrupted_at = _interrupted(smoke, project, signal.SIGTERM)  # as a scheduler sends it before its limit
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(run) in " ".join(one.info["cmdline"] or [])]
    log = project / "results/smoke/logs/runs" / run.relative_to(project / "results/smoke/runs").with_suffix(".log")
    assert f"step {interrupted_at} is saved" in log.read_text()
    (newest,) = (run / "checkpoints").glob(f"step_*{interrupted_at}")
    assert (newest / "COMPLETE").exists()
