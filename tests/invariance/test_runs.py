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
    SIZES,
    HashDiscriminator,
    NanDiscriminator,
    Row,
    Run,
    Setting,
    assert_not_vacuous,
    run_loop,
    same_bits,
    stage_of_file,
    stage_spec,
    timeless,
    weights_of,
    without,
)
from uniapl import train
from uniapl.config import FeaturesSpec, MachineSpec
from uniapl.data import draw
from uniapl.discriminator import Discriminator, FrozenStates, Triple, train_head
from uniapl.entry import SharedError
from uniapl.layers import load_stage
from uniapl.records import Demonstration, write_jsonl
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


def file_of(name: str) -> dict[str, Any]:
    """What a stage's file in config/methods says, sizes included, but for its name."""
    return load_stage(name, [], "the tests").model_dump(exclude={"name", "title"})


@pytest.fixture(scope="module")
def grpo(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return trajectory(setting, tmp_path_factory.mktemp("grpo"), stage_of_file("grpo"), HashDiscriminator())


@pytest.mark.parametrize(
    ("name", "coefficients"),
    [("uniapl", {"mu": 0, "lambda_adv": 0}), ("chord_mu", {"mu": 0}), ("a_grpo", {"lambda_adv": 0})],
)
def test_a_method_of_config_without_its_coefficients_is_grpo_bit_for_bit(
    setting: Setting, grpo: Outcome, tmp_path: Path, name: str, coefficients: dict[str, float]
) -> None:
    with_all = stage_of_file(name)
    assert all(getattr(with_all, key) > 0 for key in coefficients)
    rows, weights = trajectory(setting, tmp_path, stage_of_file(name, **coefficients), HashDiscriminator())
    assert rows == grpo[0]
    assert same_bits(weights, grpo[1])


def test_a_grpo_without_its_adversarial_term_is_grpo_in_config() -> None:
    assert file_of("a_grpo") | {"lambda_adv": 0.0} == file_of("grpo")


def test_uniapl_without_its_adversarial_term_is_chord_mu_in_config_and_bits(setting: Setting, tmp_path: Path) -> None:
    assert file_of("uniapl") | {"lambda_adv": 0.0} == file_of("chord_mu")
    stages = [stage_of_file("uniapl", lambda_adv=0.0), stage_of_file("chord_mu")]
    found = [trajectory(setting, tmp_path / stage.name, stage, HashDiscriminator(), steps=3) for stage in stages]
    assert found[0][0] == found[1][0]
    assert found[0][0][0]["loss/sft"] > 0
    assert found[0][0][0]["loss/grpo"] is not None
    assert same_bits(found[0][1], found[1][1])


def test_chord_mu_at_mu_1_is_sft_on_the_same_demonstrations_and_draws_no_rollouts(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[str]] = []

    def noted(items: Any, *, source: str, **named: Any) -> Any:
        drawn = draw(items, source=source, **named)
        assert source == "demonstrations"
        shown.append([demonstration.prompt_id for demonstration in drawn])
        return drawn

    monkeypatch.setattr(train, "draw", noted)
    stages = [stage_of_file("chord_mu", mu=1.0), stage_of_file("sft")]
    assert not any(stage.draws_rollouts for stage in stages), "so that a run makes no sampler"
    loops = [setting.loop(tmp_path / stage.name, stage, HashDiscriminator()) for stage in stages]
    for loop in loops:
        loop.sampler = None
    ends = [timeless([loop.step(step)[0] for step in range(3)]) for loop in loops]
    assert [row["tokens/generated"] for row in ends[0]] == [0, 0, 0]
    assert [len(ids) for ids in shown] == [SIZES["demonstrations_per_step"]] * 6
    assert shown[:3] == shown[3:]
    assert len({tuple(ids) for ids in shown[:3]}) == 3
    assert ends[0] == ends[1]
    assert ends[0][2]["loss/sft"] < ends[0][0]["loss/sft"]
    assert same_bits(*(weights_of(loop.policy.model) for loop in loops))


def test_the_score_inside_the_reward_is_the_loss_with_another_weight_where_nothing_is_divided(
    setting: Setting, tmp_path: Path
) -> None:
    """Claim C7: with advantages that are centred only, as one update a batch, w_grpo lambda' B = lambda B."""
    both = {"mu": 0.3, "scale_rewards": "none"}
    stages = {
        "loss": stage_spec("loss", lambda_adv=0.2, **both),
        "reward": stage_spec("reward", lambda_adv=0.2 / 0.7, adversarial_as="reward", **both),
        "same_weight": stage_spec("same_weight", lambda_adv=0.2, adversarial_as="reward", **both),
    }
    first = {
        name: trajectory(setting, tmp_path / name, stage, HashDiscriminator(), steps=2)[0][0]
        for name, stage in stages.items()
    }
    norms = {name: row["grad/norm"] for name, row in first.items()}
    assert norms["reward"] == pytest.approx(norms["loss"], rel=1e-4)
    assert norms["same_weight"] != pytest.approx(norms["loss"], rel=1e-3)


def test_luffy_trains_on_the_experts_answer_in_every_group(setting: Setting, tmp_path: Path) -> None:
    settings = {"mu": 0.0, "normalization": "dr_grpo", "scale_rewards": "none"}
    plain, _ = trajectory(setting, tmp_path / "without", stage_spec("grpo", **settings), HashDiscriminator(), steps=1)
    joined = stage_spec("luffy", expert_in_groups=True, **settings)
    rows, _ = trajectory(setting, tmp_path / "with", joined, HashDiscriminator(), steps=2)
    assert rows[0]["tokens/generated"] == plain[0]["tokens/generated"]
    assert rows[0]["tokens/trained"] > plain[0]["tokens/trained"]
    assert rows[0]["loss/off_policy"] < 0 < rows[0]["grad/norm"]  # the expert's answer is better than the mean
    assert plain[0]["loss/off_policy"] is None


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


def test_a_data_seed_gives_other_seeds_the_same_prompts_and_demonstrations_and_other_rollouts(
    setting: Setting, tmp_path: Path
) -> None:
    stage = stage_spec("uniapl", mu=0.3, data_seed=0)
    loops = [setting.loop(tmp_path, stage, HashDiscriminator(), seed=seed) for seed in (0, 1)]
    loops.append(setting.loop(tmp_path, stage_spec("uniapl", mu=0.3), HashDiscriminator()))
    rows, groups = zip(*(loop.step(0) for loop in loops), strict=True)
    prompts = [[prompt.id for prompt, _ in found] for found in groups]
    assert prompts[0] == prompts[1] == prompts[2]
    texts = [[rollout.text for _, group in found for rollout in group] for found in groups]
    assert texts[0] == texts[2] != texts[1]
    assert rows[0]["probe/sft_nats"] == rows[1]["probe/sft_nats"]
    assert rows[0]["loss/sft"] == rows[1]["loss/sft"], "before the first update, on the same demonstrations"


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


def real_head(setting: Setting) -> Discriminator:
    """A head over the tiny model's states, trained on one pair."""
    states = FrozenStates(setting.model_directory, layer=1, micro_batch_tokens=256, dtype="float32")
    spec = FeaturesSpec.model_validate({"layer": 1, "width": 8, "num_components": 2, "epochs": 2})
    head = train_head(states.pool(["p"] * 3, ["plain words", "more plain words", "noise ? !"]), [Triple(0, 1, 2)], spec)
    return Discriminator(states, head, shift=0.0, scale=1.0)


def cotrained_run(root: Path, setting: Setting) -> Run:
    """A run whose discriminator learns on each step; its prompts have two demonstrations each."""
    stage = stage_spec("uniapl", mu=0.2, lambda_adv=0.3)
    spec = {"layer": 1, "width": 8, "num_components": 2, "cotrained_prompts": 1, "learning_rate": 0.01}
    run = Run(root, setting, stage, config={"discriminator": spec})
    twice = [
        Demonstration(p.id, p.split, take, f"Take {take} of {p.topic}.", "", (), (True,), 6)
        for p in setting.of_discriminator
        for take in (0, 1)
    ]
    write_jsonl(root / "demonstrations.jsonl", [*setting.demonstrations, *twice])
    return run


def test_a_cotrained_discriminator_learns_and_a_killed_run_resumes_with_what_it_learned(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "load_discriminator", lambda *_, **__: real_head(setting))
    undisturbed = cotrained_run(tmp_path / "undisturbed", setting)
    undisturbed.train()
    rows = undisturbed.outcome()[0]
    assert all(row["adv/cotrained_loss"] > 0 for row in rows)
    assert len({row["adv/cotrained_loss"] for row in rows}) == 5
    assert [row["adv/auc"] is not None for row in rows] == [True, False, True, False, True]
    killed = cotrained_run(tmp_path / "killed", setting)
    train_until_killed(killed, monkeypatch)
    killed.train()
    assert killed.outcome() == undisturbed.outcome()
    # Were the head not in the checkpoint, the third step would begin with the first one's.
    with monkeypatch.context() as patch:
        patch.setattr(train.Loop, "others", lambda _: None)
        forgetful = cotrained_run(tmp_path / "forgetful", setting)
        train_until_killed(forgetful, monkeypatch)
        forgetful.train()
    assert forgetful.outcome()[0] != rows


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
