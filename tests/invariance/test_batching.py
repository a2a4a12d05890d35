"""How a step is cut into micro-batches changes its speed, never its gradient: one step, updated in many ways."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.invariance.small_step import (
    MAX_NEW_TOKENS,
    HashDiscriminator,
    Setting,
    assert_not_vacuous,
    same_bits,
    stage_spec,
    weights_of,
)
from uniapl import update as update_module
from uniapl.batch import MicroBatch, needs_gradient
from uniapl.config import MachineSpec, StageSpec
from uniapl.records import TokenSequence
from uniapl.rollouts import collect, demonstration_sequences, judge, rollout_sequences, score
from uniapl.update import Policy, coefficients_at, update

COEFFICIENTS = {"mu": 0.3, "lambda_adv": 0.5}
ONE_MICRO_BATCH, MANY_MICRO_BATCHES = 100_000, 250  # tokens


@dataclass
class Recorded:
    """Eight groups of rollouts with rewards and scores, at least one of them flat, and demonstrations."""

    groups: Any
    demonstrations: list[TokenSequence]
    tokenizer: Any

    def sequences(self, stage: StageSpec) -> list[TokenSequence]:
        shift, scale = HashDiscriminator.shift, HashDiscriminator.scale
        coefficients = coefficients_at(stage, 0)
        made = rollout_sequences(self.groups, stage, coefficients, tokenizer=self.tokenizer, shift=shift, scale=scale)
        return made + (self.demonstrations if coefficients["sft"] > 0 else [])


@pytest.fixture(scope="module")
def recorded(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    loop = setting.loop(tmp_path_factory.mktemp("recorded"), stage_spec("uniapl", **COEFFICIENTS), HashDiscriminator())
    assert loop.sampler is not None
    tokenizer = loop.policy.tokenizer
    groups = collect(
        loop.sampler, setting.prompts[:8], tokenizer=tokenizer, num_rollouts=4, seed_parts=(0, 0, 0),
        max_new_tokens=MAX_NEW_TOKENS, temperature=1.0,
    )  # fmt: skip
    judge(groups)
    for rollout in groups[2][1]:
        rollout.reward = 1.0  # a group without spread, whatever the verdicts
    score(groups, HashDiscriminator(), loop.expert.demonstrations)
    shown = demonstration_sequences(setting.demonstrations[:5], loop.expert.prompts, tokenizer=tokenizer)
    spread = [len({r.reward for r in group}) > 1 for _, group in groups]
    assert sum(spread) >= len(groups) / 2
    assert len({len(r.sample.token_ids) for _, group in groups for r in group}) > 1
    return Recorded(groups, shown, tokenizer)


def gradients(policy: Policy, sequences: list[TokenSequence], stage: StageSpec) -> Update:
    """Gradients and losses of one update, which moves the weights.

    In float64: rounding in float32 reaches 2e-4 of the gradient's norm, where a wrong denominator could hide.
    """
    policy.model.double()
    before = weights_of(policy.model)
    losses = update(policy, sequences, coefficients_at(stage, 0), step=0)
    assert losses["grad__norm"] > 1e-3
    assert not same_bits(before, weights_of(policy.model))
    return {name: p.grad.clone() for name, p in policy.model.named_parameters()}, losses


def assert_same_update(ours: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    """Gradients agree to 1e-6 of their norm (rounding of the float32 logits reaches 1e-8), logged losses to 1e-6."""
    norm = torch.stack([g.square().sum() for g in expected[0].values()]).sum().sqrt()
    gap = torch.stack([(ours[0][n] - g).square().sum() for n, g in expected[0].items()]).sum().sqrt()
    assert gap / norm < 1e-6
    names = [name for name in expected[1] if name.startswith(("loss", "grad"))]
    assert names
    for name in names:
        assert ours[1][name] == pytest.approx(expected[1][name], rel=1e-4, abs=1e-6), name


Update = tuple[dict[str, Tensor], dict[str, Any]]
_references: dict[StageSpec, Update] = {}


def reference(setting: Setting, recorded: Recorded, stage: StageSpec) -> Update:
    """All sequences of the step in one padded micro-batch; made once for a stage."""
    if stage not in _references:
        _references[stage] = _make_reference(setting, recorded, stage)
    return _references[stage]


def _make_reference(setting: Setting, recorded: Recorded, stage: StageSpec) -> Update:
    policy = setting.policy(stage, micro_batch_tokens=ONE_MICRO_BATCH, max_grad_norm=1e6)
    sequences = recorded.sequences(stage)
    coefficients = coefficients_at(stage, 0)
    assert len(policy.split([s for s in sequences if needs_gradient(s, coefficients)])) == 1
    return gradients(policy, sequences, stage)


@pytest.mark.parametrize(
    ("normalization", "packing"), [("dapo", False), ("grpo", False), ("dr_grpo", False), ("dapo", True)]
)
def test_one_micro_batch_equals_many(setting: Setting, recorded: Recorded, normalization: str, packing: bool) -> None:
    stage = stage_spec("uniapl", **COEFFICIENTS, normalization=normalization)
    policy = setting.policy(stage, micro_batch_tokens=MANY_MICRO_BATCHES, packing=packing, max_grad_norm=1e6)
    assert len(policy.split(recorded.sequences(stage))) >= 4
    assert_same_update(gradients(policy, recorded.sequences(stage), stage), reference(setting, recorded, stage))


def test_packing_equals_padding(setting: Setting, recorded: Recorded) -> None:
    stage = stage_spec("uniapl", **COEFFICIENTS, sft_weighting="phi", w_kl=0.1)
    policy = setting.policy(stage, micro_batch_tokens=ONE_MICRO_BATCH, packing=True, max_grad_norm=1e6)
    sequences = recorded.sequences(stage)
    (micro,) = policy.split(sequences)
    unshared = sum(len(s.prompt_ids) + len(s.completion_ids) for s in sequences)
    assert micro.input_ids_BS.numel() < unshared, "no prompt is shared by its answers"
    assert_same_update(gradients(policy, sequences, stage), reference(setting, recorded, stage))


class Reversed(Policy):
    """Visits its micro-batches in the opposite order."""

    def split(self, sequences: list[TokenSequence]) -> list[MicroBatch]:
        return super().split(sequences)[::-1]


def test_the_order_of_micro_batches_does_not_matter(setting: Setting, recorded: Recorded) -> None:
    stage = stage_spec("uniapl", **COEFFICIENTS)
    policy = setting.policy(stage, micro_batch_tokens=MANY_MICRO_BATCHES, max_grad_norm=1e6)
    backwards = Reversed(**vars(setting.policy(stage, micro_batch_tokens=MANY_MICRO_BATCHES, max_grad_norm=1e6)))
    sequences = recorded.sequences(stage)
    first, last = policy.split(sequences)[0], backwards.split(sequences)[0]
    assert first.input_ids_BS.shape != last.input_ids_BS.shape
    assert_same_update(gradients(backwards, sequences, stage), gradients(policy, sequences, stage))


def test_the_order_of_sequences_does_not_matter(setting: Setting, recorded: Recorded) -> None:
    stage = stage_spec("uniapl", **COEFFICIENTS)
    policy = setting.policy(stage, micro_batch_tokens=MANY_MICRO_BATCHES, max_grad_norm=1e6)
    assert_same_update(gradients(policy, recorded.sequences(stage)[::-1], stage), reference(setting, recorded, stage))


def test_the_vocabulary_block_does_not_matter(setting: Setting, recorded: Recorded) -> None:
    stage = stage_spec("uniapl", **COEFFICIENTS)
    policy = setting.policy(stage, micro_batch_tokens=ONE_MICRO_BATCH, max_grad_norm=1e6)
    policy = replace(policy, logits_bytes=2**20)
    assert_same_update(gradients(policy, recorded.sequences(stage), stage), reference(setting, recorded, stage))


@pytest.mark.parametrize(
    ("checkpointed", "compiled", "packing"),
    [
        (True, False, True), (True, False, False), pytest.param(False, True, True, marks=pytest.mark.slow),
        pytest.param(True, True, True, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_checkpointed_and_compiled_layers_do_not_matter(
    setting: Setting, recorded: Recorded, checkpointed: bool, compiled: bool, packing: bool
) -> None:
    stage = stage_spec("uniapl", **COEFFICIENTS, w_kl=0.1)
    machine = MachineSpec.model_validate({"activation_checkpointing": checkpointed, "compile": compiled})
    counters.clear()
    policy = setting.policy(
        stage, machine=machine, micro_batch_tokens=MANY_MICRO_BATCHES, packing=packing, max_grad_norm=1e6
    )
    ours = gradients(policy, recorded.sequences(stage), stage)
    assert_same_update(ours, reference(setting, recorded, stage))
    assert bool(counters["stats"]["unique_graphs"]) == compiled
    assert not counters["graph_break"]
    assert not counters["unimplemented"], "a recompile limit was hit"


def test_checkpointed_layers_keep_their_inputs_alone_for_the_backward(setting: Setting, recorded: Recorded) -> None:
    stage = stage_spec("uniapl", **COEFFICIENTS)

    def saved_bytes(*, checkpointed: bool) -> int:
        """Of the tensors that a forward keeps, each storage once, weights not counted."""
        machine = MachineSpec.model_validate({"activation_checkpointing": checkpointed, "kept_logits_bytes": 0})
        policy = setting.policy(stage, machine=machine, micro_batch_tokens=ONE_MICRO_BATCH)
        (micro,) = policy.split(recorded.sequences(stage))
        known = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logprobs_T, _ = policy.logprobs(micro)
        assert logprobs_T.requires_grad
        return sum(kept.values())

    plain, checkpointed = saved_bytes(checkpointed=False), saved_bytes(checkpointed=True)
    # Two layers of a dozen activations each become two inputs; the final norm, the head's states and the mask stay.
    assert checkpointed < plain / 3


def test_leaving_flat_sequences_out_equals_keeping_them(
    setting: Setting, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_spec("grpo")
    sequences = recorded.sequences(stage)
    without = gradients(setting.policy(stage, max_grad_norm=1e6), sequences, stage)
    monkeypatch.setattr(update_module, "needs_gradient", lambda *_: True)
    kept = gradients(setting.policy(stage, max_grad_norm=1e6), sequences, stage)
    assert without[1]["tokens__trained"] < kept[1]["tokens__trained"] == sum(len(s.completion_ids) for s in sequences)
    assert_same_update(without, kept)


def test_a_step_whose_groups_are_all_flat_moves_the_weights_as_if_they_were_kept(
    setting: Setting, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_spec("grpo")
    sequences = recorded.sequences(stage)
    flat = [s for s in sequences if s.advantage == 0]
    assert flat
    results = []
    for keep in (False, True):
        policy = setting.policy(stage, max_grad_norm=1e6)
        update(policy, [s for s in sequences if s.advantage != 0], coefficients_at(stage, 0), step=0)
        if keep:
            monkeypatch.setattr(update_module, "needs_gradient", lambda *_: True)
        before = weights_of(policy.model)
        losses = update(policy, flat, coefficients_at(stage, 1), step=1)
        assert losses["grad__norm"] == 0
        assert not same_bits(before, weights_of(policy.model)), "AdamW's momentum moves the weights"
        results.append(weights_of(policy.model))
    assert same_bits(results[0], results[1])


def test_a_real_step_is_not_vacuous(setting: Setting, tmp_path: Path) -> None:
    loop = setting.loop(tmp_path, stage_spec("uniapl", **COEFFICIENTS), HashDiscriminator())
    row, groups = loop.step(0)
    assert_not_vacuous([row])
    assert len(groups) == 3
    assert 0.05 < row["reward/mean"] < 0.95
    assert row["length/truncated_share"] > 0
    assert row["loss/sft"] > 0
    assert row["loss/adv"] is not None
