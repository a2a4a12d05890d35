"""Whole runs: what must not change a trajectory does not change a bit of it."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.invariance.small_step import (
    HashDiscriminator,
    NanDiscriminator,
    Row,
    Run,
    Setting,
    assert_not_vacuous,
    run_loop,
    same_bits,
    stage_spec,
    timeless,
    weights_of,
    without,
)
from uniapl import train
from uniapl.config import MachineSpec
from uniapl.entry import SharedError
from uniapl.runlog import read_rows
from uniapl.tracking import PACKAGES

ADVERSARIAL = ("adv/score_mean", "adv/utility_mean")
Outcome = tuple[list[Row], dict[str, torch.Tensor]]


def trajectory(
    setting: Setting, directory: Path, stage: Any, discriminator: Any, *, seed: int = 0, steps: int = 5
) -> Outcome:
    """Rows (without times) and final weights of the first steps."""
    loop = setting.loop(directory, stage, discriminator, seed=seed)
    rows = run_loop(loop, steps=steps)
    return timeless(rows), weights_of(loop.policy.model)


@pytest.fixture(scope="module")
def grpo(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return trajectory(setting, tmp_path_factory.mktemp("grpo"), stage_spec("grpo"), HashDiscriminator())


def test_uniapl_without_its_coefficients_is_grpo_bit_for_bit(setting: Setting, grpo: Outcome, tmp_path: Path) -> None:
    rows, weights = trajectory(setting, tmp_path, stage_spec("uniapl", mu=0.0, lambda_adv=0.0), HashDiscriminator())
    assert rows == grpo[0]
    assert same_bits(weights, grpo[1])


def test_a_switched_off_discriminator_may_return_nan(setting: Setting, grpo: Outcome, tmp_path: Path) -> None:
    rows, weights = trajectory(setting, tmp_path, stage_spec("uniapl", mu=0.0, lambda_adv=0.0), NanDiscriminator())
    assert [without(row, ADVERSARIAL) for row in rows] == [without(row, ADVERSARIAL) for row in grpo[0]]
    assert rows[0]["adv/score_mean"] is None
    assert grpo[0][0]["adv/score_mean"] is not None
    assert same_bits(weights, grpo[1])


def test_a_discriminator_that_is_trained_on_may_not_return_nan(setting: Setting, tmp_path: Path) -> None:
    loop = setting.loop(tmp_path, stage_spec("uniapl", mu=0.1, lambda_adv=0.2), NanDiscriminator())
    with pytest.raises(ValueError, match="the discriminator gave nan"):
        loop.step(0)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    setting: Setting, grpo: Outcome, tmp_path: Path
) -> None:
    random.seed(1234)
    torch.manual_seed(1234)  # global generators play no part
    rows, _ = trajectory(setting, tmp_path, stage_spec("grpo"), HashDiscriminator(), steps=3)
    assert rows == grpo[0][:3]
    other, _ = trajectory(setting, tmp_path, stage_spec("grpo"), HashDiscriminator(), seed=1, steps=1)
    assert other[0] != grpo[0][0]


def test_every_step_samples_from_the_weights_just_trained(grpo: Outcome) -> None:
    # float32 on both sides: were the push left out, the gap after a step of this size would be above 1e-3 nats
    assert [row["sampler/gap_nats"] < 1e-5 for row in grpo[0]] == [True] * 5
    assert grpo[0][4]["kl/start_nats"] > 1e-3


class Killed(BaseException):
    """What kill -9 is to the code: nothing more runs."""


def adversarial_run(root: Path, setting: Setting) -> Run:
    return Run(root, setting, stage_spec("uniapl", mu=0.2, lambda_adv=0.3))


def train_until_killed(run: Run, monkeypatch: pytest.MonkeyPatch, machine: MachineSpec | None = None) -> None:
    """Train; the kill comes in the fourth step, whose update is made."""
    real_update = train.update

    def killed_update(*arguments: Any, **named: Any) -> Any:
        result = real_update(*arguments, **named)
        if named["step"] == 3:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(train, "update", killed_update)
        with pytest.raises(Killed):
            run.train(machine)


@pytest.fixture(autouse=True)
def real_discriminator_replaced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The runs score with a stand-in; signal handlers are put back."""
    monkeypatch.setattr(train, "load_discriminator", lambda *_, **__: HashDiscriminator())
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def undisturbed(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load_discriminator", lambda *_, **__: HashDiscriminator())
        run = adversarial_run(tmp_path_factory.mktemp("undisturbed"), setting)
        run.train()
    outcome = run.outcome()
    assert [row["step"] for row in outcome[0]] == [1, 2, 3, 4, 5]
    assert_not_vacuous(outcome[0])
    assert outcome[0][-1]["kl/start_nats"] > 1e-3, "the weights did not move"
    assert not (run.directory / "checkpoints").exists()
    return outcome


def test_a_killed_run_resumes_to_the_same_bits(
    setting: Setting, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checkpoints stand after steps 2 and 4. The kill comes in the fourth step, so the third is made again.
    run = adversarial_run(tmp_path, setting)
    train_until_killed(run, monkeypatch)
    assert len(read_rows(run.directory / "metrics.jsonl")) == 3
    assert [p.name for p in (run.directory / "checkpoints").glob("*")] == ["step_000002"]
    assert not (run.directory / "manifest.json").exists()
    torch.manual_seed(99)
    run.train()
    assert run.outcome() == undisturbed


def test_an_interrupted_run_saves_its_step_and_resumes_to_the_same_bits(
    setting: Setting, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real_update = adversarial_run(tmp_path, setting), train.update

    def interrupted_update(*arguments: Any, **named: Any) -> Any:
        if named["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real_update(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(train, "update", interrupted_update)
        with pytest.raises(SystemExit) as stopped:
            run.train()
    assert stopped.value.code == 75
    assert [p.name for p in (run.directory / "checkpoints").glob("*")] == ["step_000003"]
    run.train()
    assert run.outcome() == undisturbed


@pytest.mark.skipif(find_spec("tensorboard") is None, reason=f"pip install {PACKAGES['tensorboard']}")
def test_tensorboard_shows_the_log_of_a_killed_run_and_changes_nothing(
    setting: Setting, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulators: Any = import_module("tensorboard.backend.event_processing.event_accumulator")
    run, machine = adversarial_run(tmp_path, setting), MachineSpec.model_validate({"log_to": ["tensorboard"]})
    train_until_killed(run, monkeypatch, machine)
    run.train(machine)
    assert run.outcome() == undisturbed
    events = accumulators.EventAccumulator(str(run.directory / "tensorboard"), purge_orphaned_data=False)
    events.Reload()
    for name in ("reward/mean", "loss/adv", "kl/start_nats"):
        rows = [row for row in read_rows(run.directory / "metrics.jsonl") if row[name] is not None]
        points = events.Scalars(name)
        assert [point.step for point in points] == [row["step"] for row in rows]
        assert [point.value for point in points] == pytest.approx([row[name] for row in rows])


def test_a_tracker_that_is_not_installed_stops_a_run_before_anything_is_loaded(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = adversarial_run(tmp_path, setting)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(train, "open_policy", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(SharedError, match=r"pip install tensorboard==2\.21\.0"):
        run.train(MachineSpec.model_validate({"log_to": ["tensorboard"]}))
