"""One update on a GPU, with nothing but torch and transformers: what changes its speed does not change its result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.shapes import SHAPES, machine_settings, random_model, stage_settings, train_settings
from uniapl.checkpoint import Checkpoints
from uniapl.records import TokenSequence
from uniapl.shapes import Shape
from uniapl.update import Policy, make_policy, update

pytestmark = pytest.mark.gpu
COEFFICIENTS = {"sft": 0.3, "grpo": 0.7, "adv": 0.0, "kl": 0.05}
# Bound on the difference of two gradients, as a share of their norm, by the type of matrix products.
ROUNDING = {"float32": 1e-3, "bfloat16": 5e-2}
ONE_MICRO_BATCH, MANY_MICRO_BATCHES = 100_000, 200  # tokens
HEADLESS_SHARE = 0.25  # of the logits in float32: what an update may take beyond weights, gradients and optimizer


def make(compute: str = "float32", *, shape: Shape = SHAPES["tiny"], machine: dict[str, Any] | None = None) -> Policy:
    """A policy on the GPU that starts from the same weights every time, and a reference that differs from it."""
    here = torch.device("cuda")
    start = random_model(shape, device=here)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter *= 1.05
    machine = {"micro_batch_tokens": ONE_MICRO_BATCH} | (machine or {})
    return make_policy(
        random_model(shape, device=here), start.to(getattr(torch, compute)), None,
        train_settings(max_grad_norm=1e6), stage_settings(learning_rate=1e-3), max_new_tokens=32,
        compute=compute, machine=machine_settings(**machine),
    )  # fmt: skip


def sequences(shape: Shape = SHAPES["tiny"]) -> list[TokenSequence]:
    """Six prompts with four answers of unequal lengths and advantages each, and five demonstrations."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(shape.vocabulary, (length,), generator=generator).tolist()

    made = []
    for p in range(6):
        prompt = ids(5 + 3 * p)
        for k in range(4):
            answer = ids(3 + 5 * k + p)
            advantage = (-1.5, -0.5, 0.5, 1.5)[k]
            made.append(TokenSequence(prompt, answer, frozenset({"grpo", "kl"}), advantage, 0.0, [-5.7] * len(answer)))
    return made + [TokenSequence(ids(6), ids(4 + i), frozenset({"sft"})) for i in range(5)]


def gradients(policy: Policy) -> dict[str, Tensor]:
    """Of one update, which is not vacuous."""
    before = weights(policy)
    logged = update(policy, sequences(), COEFFICIENTS, step=0)
    assert logged["grad__norm"] > 1e-3
    assert any(not torch.equal(before[name], weight) for name, weight in weights(policy).items())
    return {name: p.grad.clone() for name, p in policy.model.named_parameters()}


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def apart(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Distance as a share of the expected norm."""
    gap = sum(float((ours[n].cpu() - w.cpu()).square().sum()) for n, w in expected.items())
    return (gap / sum(float(w.square().sum()) for w in expected.values())) ** 0.5


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch_tokens": MANY_MICRO_BATCHES}, {"packing": False},
        {"packing": False, "micro_batch_tokens": MANY_MICRO_BATCHES}, {"activation_checkpointing": True},
        {"kept_logits_bytes": 2**28}, {"compiled": True},
        {"activation_checkpointing": True, "compiled": True, "micro_batch_tokens": MANY_MICRO_BATCHES},
    ],
    ids=str,
)  # fmt: skip
def test_how_an_update_is_computed_does_not_matter(compute: str, changes: dict[str, Any]) -> None:
    changed = make(compute, machine=changes)
    assert changed.device.type == "cuda"
    assert all(p.device.type == "cuda" for model in (changed.model, changed.start) for p in model.parameters())
    assert apart(gradients(changed), gradients(make(compute))) < ROUNDING[compute]


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_a_gpu_computes_what_a_cpu_computes(compute: str) -> None:
    on_gpu, moved = make(compute), make("float32")
    for model in (moved.model, moved.start):
        model.to("cpu")
    on_cpu = replace(moved, device=torch.device("cpu"))
    assert apart(gradients(on_gpu), gradients(on_cpu)) < ROUNDING[compute]


def test_a_checkpoint_of_the_background_is_the_state_at_the_call_and_training_goes_on_from_it(tmp_path: Path) -> None:
    wide = replace(SHAPES["tiny"], hidden=512, intermediate=2048)
    undisturbed, resumed = make(shape=wide), make(shape=wide)
    checkpoints = Checkpoints(tmp_path, "aaaa0000", background=True)
    for step in range(2):
        update(undisturbed, sequences(), COEFFICIENTS, step=step)
    saved = weights(undisturbed)
    checkpoints.save(2, model=undisturbed.model, optimizer=undisturbed.optimizer)
    for step in range(2, 4):
        update(undisturbed, sequences(), COEFFICIENTS, step=step)
    checkpoints.finish()
    loaded = Checkpoints(tmp_path, "aaaa0000").load_newest(model=resumed.model, optimizer=resumed.optimizer)
    assert loaded == 2
    assert all(torch.equal(saved[name], weight) for name, weight in weights(resumed).items())
    for step in range(2, 4):
        update(resumed, sequences(), COEFFICIENTS, step=step)
    moved = apart(weights(undisturbed), saved)
    assert moved > 1e-4
    assert apart(weights(resumed), weights(undisturbed)) < 1e-3 * moved


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_an_update_never_holds_the_logits_of_all_tokens(compute: str) -> None:
    shape = replace(SHAPES["tiny"], hidden=128, vocabulary=151_936)
    policy = make(compute, shape=shape)
    prompt, answer = [1] * 64, list(range(1, 1025))
    long = [
        TokenSequence([p, *prompt], answer, frozenset({"grpo", "kl"}), 1.0, 0.0, [-11.9] * len(answer))
        for p in range(8)
    ]
    logits_bytes = 8 * len(answer) * shape.vocabulary * 4
    update(policy, long, COEFFICIENTS | {"sft": 0.0}, step=0)  # makes gradients and the optimizer's state
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    update(policy, long, COEFFICIENTS | {"sft": 0.0}, step=1)
    assert torch.cuda.max_memory_allocated() - held < HEADLESS_SHARE * logits_bytes
