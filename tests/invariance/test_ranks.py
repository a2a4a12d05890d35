"""One rank equals two: losses and weights, with prompts and micro-batches shared unequally."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.invariance.small_step import Row, Run, Setting, assert_not_vacuous, stage_spec
from uniapl.config import MachineSpec
from uniapl.models import weights_directory
from uniapl.provenance import read_manifest
from uniapl.runlog import read_rows

ROOT = Path(__file__).resolve().parents[2]
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"mu": 1.0, "demonstrations_per_step": 5},
    "grpo": {"mu": 0.0, "learning_rate": 3e-4},  # so that groups keep their spread over 20 steps
    "uniapl": {"mu": 0.3, "lambda_adv": 0.5, "w_kl": 0.05, "learning_rate": 3e-4},
}
COMPARED = ("loss", "entropy", "kl/", "reward", "tokens", "length")
SETTINGS: dict[str, Any] = {"micro_batch_tokens": 200, "checkpoint_every": 7}


def launch(
    run: Run, *, ranks: int, samples: Path | None = None, fault: str = "", weights: Path | None = None,
    gpus: str = "", **machine: Any,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Train on that many processes, each with one thread, on the CPU or on the named GPUs."""
    launcher = ["-m", "uniapl.launch", "--ranks", str(ranks)]
    given = {"--samples": samples, "--fault": fault, "--weights": weights}
    options = [word for name, value in given.items() if value for word in (name, str(value))]
    inputs = [word for name, path in run.inputs().items() for word in (f"--{name}", str(path))]
    command = [
        sys.executable, *launcher, "-m", "tests.invariance.rank_worker", *options, str(run.directory), *inputs,
        "--machine", MachineSpec(**machine).model_dump_json(),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": gpus, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def finished(run: Run, **options: Any) -> tuple[list[Row], dict[str, torch.Tensor]]:
    """Rows and weights of a run trained to its end."""
    done = launch(run, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    rows = read_rows(run.directory / "metrics.jsonl")
    assert_not_vacuous([row | {"groups/flat_share": row["groups/flat_share"] or 0.0} for row in rows])
    return rows, load_file(run.directory / "model/model.safetensors")


def assert_same_training(ours: Any, expected: Any, start: dict[str, torch.Tensor]) -> None:
    """Losses within 1e-5, weights within 1e-3 of the distance that they moved."""
    for row, reference in zip(ours[0], expected[0], strict=True):
        for name in reference:
            if name.startswith(COMPARED) and reference[name] is not None:
                assert row[name] == pytest.approx(reference[name], abs=1e-5, rel=1e-5), (row["step"], name)
    moved = sum(float((expected[1][n] - w).square().sum()) for n, w in start.items()) ** 0.5
    apart = sum(float((expected[1][n] - ours[1][n]).square().sum()) for n in start) ** 0.5
    assert moved > 0.1, "the weights hardly moved"
    assert apart < 1e-3 * moved


@pytest.fixture(scope="module")
def start(setting: Setting) -> dict[str, torch.Tensor]:
    return load_file(weights_directory(setting.model_directory) / "model.safetensors")


def make_run(root: Path, setting: Setting, name: str, steps: int) -> Run:
    root.mkdir(exist_ok=True)
    return Run(root, setting, stage_spec(name, steps=steps, **STAGES[name]), **SETTINGS)


@pytest.mark.parametrize("name", list(STAGES))
def test_one_rank_equals_two_over_20_steps_of_recorded_rollouts(
    setting: Setting, start: dict[str, torch.Tensor], tmp_path: Path, name: str
) -> None:
    samples = tmp_path / "samples.json"
    one = finished(make_run(tmp_path / "one", setting, name, 20), ranks=1, samples=samples)
    run = make_run(tmp_path / "two", setting, name, 20)
    two = finished(run, ranks=2, samples=samples)
    assert read_manifest(run.directory)["world_size"] == 2
    assert_same_training(two, one, start)


def test_one_rank_equals_two_over_3_steps_of_free_sampling(
    setting: Setting, start: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    one = finished(make_run(tmp_path / "one", setting, "uniapl", 3), ranks=1)
    two = finished(make_run(tmp_path / "two", setting, "uniapl", 3), ranks=2)
    assert_same_training(two, one, start)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_checkpointed_and_compiled_layers_train_the_same_on_two_ranks(
    setting: Setting, start: dict[str, torch.Tensor], tmp_path: Path, compiled: bool
) -> None:
    samples = tmp_path / "samples.json"
    one = finished(make_run(tmp_path / "one", setting, "uniapl", 2), ranks=1, samples=samples)
    run = make_run(tmp_path / "two", setting, "uniapl", 2)
    two = finished(run, ranks=2, samples=samples, activation_checkpointing=True, compile=compiled)
    assert_same_training(two, one, start)


def test_a_local_denominator_is_noticed(setting: Setting, start: dict[str, torch.Tensor], tmp_path: Path) -> None:
    samples = tmp_path / "samples.json"
    one = finished(make_run(tmp_path / "one", setting, "uniapl", 2), ranks=1, samples=samples)
    two = finished(make_run(tmp_path / "two", setting, "uniapl", 2), ranks=2, samples=samples, fault="local_counts")
    with pytest.raises(AssertionError):
        assert_same_training(two, one, start)


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_with_one_message(setting: Setting, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", setting, "sft", 2)
    done = launch(run, ranks=2, fault="nan")
    assert done.returncode == 2
    (line,) = [one for one in (done.stdout + done.stderr).splitlines() if "error:" in one]
    assert "step 1" in line
    assert "(rank 1: sft)" in line
    assert "not_finite_step_000001.jsonl" in line
    assert "Traceback" not in done.stderr
    assert len(read_rows(run.directory / "not_finite_step_000001.jsonl")) == 5
    assert not (run.directory / "manifest.json").exists()
