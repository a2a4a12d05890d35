"""One rank equals two, four accumulation steps equal one: losses and weights, also over a change of the rank count."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.invariance.small_step import Row, Run, Setting, assert_not_vacuous, stage_spec
from uniapl.models import weights_directory
from uniapl.provenance import read_manifest
from uniapl.runlog import read_rows

ROOT = Path(__file__).resolve().parents[2]
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"mu": 1.0, "demonstrations_per_step": 5},
    # Of 5 groups one has spread in every one of 20 steps.
    "grpo": {"mu": 0.0, "learning_rate": 3e-4, "prompts_per_step": 5},
    "uniapl": {"mu": 0.3, "lambda_adv": 0.5, "w_kl": 0.05, "learning_rate": 3e-4},
}
COMPARED = ("loss", "entropy", "kl/", "reward", "tokens", "length")
SETTINGS: dict[str, Any] = {"micro_batch_tokens": 200, "checkpoint_every": 7}
Trained = tuple[list[Row], dict[str, torch.Tensor]]


def command(
    run: Run, *, ranks: int, samples: Path | None = None, fault: str = "", weights: Path | None = None,
    machine: dict[str, Any] | None = None,
) -> list[str]:  # fmt: skip
    """Train on that many processes."""
    launcher = ["-m", "uniapl.launch", "--ranks", str(ranks)]
    given = {"--samples": samples, "--fault": fault, "--weights": weights}
    options = [word for name, value in given.items() if value for word in (name, str(value))]
    inputs = [word for name, path in run.inputs().items() for word in (f"--{name}", str(path))]
    settings = ["--machine", json.dumps(run.layout | (machine or {}))]
    worker = ["-m", "tests.invariance.rank_worker", *options, str(run.directory), *inputs, *settings]
    return [sys.executable, *launcher, *worker]


def start(run: Run, *, gpus: str = "", **options: Any) -> subprocess.Popen[str]:
    """The processes of a run, each with one thread, in the background, on the CPU or on the named GPUs."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": gpus, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(run, **options), cwd=ROOT, env=environment, text=True, **pipes)


def launch(run: Run, **options: Any) -> subprocess.CompletedProcess[str]:
    """Train, and wait for the end."""
    with start(run, **options) as process:
        output, errors = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def finished(run: Run, **options: Any) -> Trained:
    """Rows and weights of a run trained to its end."""
    done = launch(run, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    rows = read_rows(run.directory / "metrics.jsonl")
    assert_not_vacuous([row | {"groups/flat_share": row["groups/flat_share"] or 0.0} for row in rows])
    return rows, load_file(run.directory / "model/model.safetensors")


def assert_same_training(ours: Trained, expected: Trained, base: dict[str, torch.Tensor]) -> None:
    """Losses within 1e-5, weights within 1e-3 of the distance that they moved."""
    for row, reference in zip(ours[0], expected[0], strict=True):
        for name in reference:
            if name.startswith(COMPARED) and reference[name] is not None:
                assert row[name] == pytest.approx(reference[name], abs=1e-5, rel=1e-5), (row["step"], name)
    moved = sum(float((expected[1][n] - w).square().sum()) for n, w in base.items()) ** 0.5
    apart = sum(float((expected[1][n] - ours[1][n]).square().sum()) for n in base) ** 0.5
    assert moved > 0.1, "the weights hardly moved"
    assert apart < 1e-3 * moved


@pytest.fixture(scope="module")
def base(setting: Setting) -> dict[str, torch.Tensor]:
    return load_file(weights_directory(setting.model_directory) / "model.safetensors")


def make_run(root: Path, setting: Setting, name: str, steps: int, **settings: Any) -> Run:
    root.mkdir(exist_ok=True)
    return Run(root, setting, stage_spec(name, steps=steps, **STAGES[name]), **(SETTINGS | settings))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(STAGES))
def test_ranks_micro_batches_and_packing_change_nothing_over_20_steps_of_recorded_rollouts(
    setting: Setting, base: dict[str, torch.Tensor], tmp_path: Path, name: str
) -> None:
    # 3 or 5 prompts, 5 demonstrations: unequal shares for 2 ranks. 200 tokens: 4 accumulation steps or more.
    samples = tmp_path / "samples.json"
    one = finished(make_run(tmp_path / "one", setting, name, 20), ranks=1, samples=samples)
    run = make_run(tmp_path / "two", setting, name, 20)
    two = finished(run, ranks=2, samples=samples, machine={"ranks": 2, "kept_logits_bytes": 0})
    assert read_manifest(run.directory)["world_size"] == 2
    assert_same_training(two, one, base)
    whole = make_run(tmp_path / "whole", setting, name, 20, micro_batch_tokens=100_000)
    assert_same_training(finished(whole, ranks=1, samples=samples), one, base)
    padded = make_run(tmp_path / "padded", setting, name, 20, micro_batch_tokens=400, packing=False)
    assert_same_training(finished(padded, ranks=2, samples=samples), one, base)


def test_one_rank_equals_two_over_3_steps_of_free_sampling(
    setting: Setting, base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    one = finished(make_run(tmp_path / "one", setting, "uniapl", 3), ranks=1)
    two = finished(make_run(tmp_path / "two", setting, "uniapl", 3), ranks=2)
    assert_same_training(two, one, base)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_checkpointed_and_compiled_layers_train_the_same_on_two_ranks(
    setting: Setting, base: dict[str, torch.Tensor], tmp_path: Path, compiled: bool
) -> None:
    samples = tmp_path / "samples.json"
    one = finished(make_run(tmp_path / "one", setting, "uniapl", 2), ranks=1, samples=samples)
    run = make_run(tmp_path / "two", setting, "uniapl", 2)
    # Compiled layers meet packed rows in test_batching.py, on one rank: their graphs take minutes to make.
    machine = {"ranks": 2, "activation_checkpointing": True, "compile": compiled, "packing": not compiled}
    two = finished(run, ranks=2, samples=samples, machine=machine)
    assert_same_training(two, one, base)


def test_a_step_whose_groups_are_all_flat_moves_nothing_on_two_ranks_too(
    setting: Setting, base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    # The log-probs are measured in that step (probe_every), and there is no backward pass after it.
    trained = []
    for ranks in (1, 2):
        run = make_run(tmp_path / str(ranks), setting, "grpo", 4)
        done = launch(run, ranks=ranks, samples=tmp_path / "samples.json", fault="flat_step")
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        rows = read_rows(run.directory / "metrics.jsonl")
        assert [row["groups/flat_share"] == 1.0 for row in rows] == [False, False, True, False]
        assert [row["grad/norm"] == 0.0 for row in rows] == [False, False, True, False]
        trained.append((rows, load_file(run.directory / "model/model.safetensors")))
    assert_same_training(trained[1], trained[0], base)


@pytest.mark.slow
def test_a_local_denominator_is_noticed(setting: Setting, base: dict[str, torch.Tensor], tmp_path: Path) -> None:
    samples = tmp_path / "samples.json"
    one = finished(make_run(tmp_path / "one", setting, "uniapl", 2), ranks=1, samples=samples)
    two = finished(make_run(tmp_path / "two", setting, "uniapl", 2), ranks=2, samples=samples, fault="local_counts")
    with pytest.raises(AssertionError):
        assert_same_training(two, one, base)


def test_weights_that_did_not_move_are_no_proof(base: dict[str, torch.Tensor]) -> None:
    with pytest.raises(AssertionError, match="hardly moved"):
        assert_same_training(([], base), ([], base), base)


def interrupt_at(run: Run, step: int, **options: Any) -> subprocess.CompletedProcess[str]:
    """Start, and send SIGTERM to the launcher once that step is logged."""
    with start(run, **options) as process:
        log = run.directory / "metrics.jsonl"
        while process.poll() is None and not (log.exists() and len(read_rows(log)) >= step):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@pytest.mark.slow
def test_a_run_that_goes_from_2_ranks_to_1_and_back_equals_the_undisturbed_one(
    setting: Setting, base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    samples = tmp_path / "samples.json"
    undisturbed = finished(make_run(tmp_path / "whole", setting, "uniapl", 20), ranks=1, samples=samples)
    run = make_run(tmp_path / "changed", setting, "uniapl", 20)
    for ranks, step in ((2, 5), (1, 12)):
        done = interrupt_at(run, step, ranks=ranks, samples=samples)
        assert done.returncode == 75, done.stdout[-2000:] + done.stderr[-2000:]
        (saved,) = (run.directory / "checkpoints").glob("step_*")
        assert json.loads((saved / "COMPLETE").read_text())["world_size"] == ranks
        assert step <= int(saved.name.removeprefix("step_")) < 20
    changed = finished(run, ranks=2, samples=samples)
    assert [row["step"] for row in changed[0]] == list(range(1, 21))
    assert_same_training(changed, undisturbed, base)


@pytest.mark.parametrize(
    ("fault", "place"),
    [("nan", "(rank 1: sft)"), ("nan_gradient", "(rank 1: gradient of micro-batch 1, which has sft")],
)
def test_what_is_not_finite_on_one_rank_stops_all_with_one_message_and_a_saved_batch(
    setting: Setting, tmp_path: Path, fault: str, place: str
) -> None:
    run = make_run(tmp_path / "run", setting, "sft", 2)
    done = launch(run, ranks=2, fault=fault)
    assert done.returncode == 2
    (line,) = [one for one in (done.stdout + done.stderr).splitlines() if "error:" in one]
    assert "step 1" in line
    assert place in line
    assert "not_finite_step_000001.jsonl" in line
    assert "Traceback" not in done.stderr
    assert len(read_rows(run.directory / "not_finite_step_000001.jsonl")) == 5
    assert not (run.directory / "manifest.json").exists()


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_and_ends_the_run(setting: Setting, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", setting, "grpo", 2)
    began = time.monotonic()
    done = launch(run, ranks=2, fault="hang", machine={"ranks": 2, "hang_seconds": 6})
    assert time.monotonic() - began < 120
    assert done.returncode == 4, done.stderr[-3000:]
    (line,) = [one for one in (done.stdout + done.stderr).splitlines() if "error:" in one]
    assert "rank 1 hangs in 'step 1: score' since" in line
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_second_trainer_on_a_run_is_refused_with_the_owner_and_the_remedy(setting: Setting, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", setting, "grpo", 5000)
    with start(run, ranks=2) as first:
        while first.poll() is None and not (run.directory / "metrics.jsonl").exists():
            time.sleep(0.02)
        second = launch(run, ranks=2)
        first.send_signal(signal.SIGTERM)
        output, errors = first.communicate(timeout=600)
    assert first.returncode == 75, output[-2000:] + errors[-4000:]
    assert second.returncode == 2
    (line,) = [one for one in (second.stdout + second.stderr).splitlines() if "error:" in one]
    assert f"{run.directory} is being made by process " in line
    assert "(step " in line
    assert "wait for it, or stop it (kill " in line
    assert "Traceback" not in second.stderr
