"""The sides of `bench.step`: steps of this suite and of TRL, and the processor's limit, each in a process of its own.

All start from the same checkpoint (float32 weights, AdamW, bfloat16 products where the processor has them) and draw the
same prompts. A side does one step when it is told, with what is to be changed before it, and is idle otherwise.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

from bench.limit import limit
from bench.shapes import trained_flops
from bench.trl_sides import trl_grpo, trl_sft
from bench.updates import own_updates
from bench.work import FIRST_STEP, Work, reward_by_place
from uniapl.shapes import words_at_once

Wait = Callable[[], dict[str, Any]]  # until the next step; returns what is to be changed before it
Tell = Callable[[dict[str, Any]], None]  # what a step took, seconds by part


def ours(work: Work, wait: Wait, tell: Tell, *, method: str) -> None:
    """The trainer's own steps of a method of config/methods. Changes are fields of StageSpec, and `new_tokens`."""
    import psutil
    import torch

    torch.set_num_threads(work.threads)
    loop, shape, process = our_loop(work, method), work.shape, psutil.Process()
    for step in itertools.count(FIRST_STEP):
        changes = wait()
        loop.policy.max_new_tokens = changes.pop("new_tokens", loop.policy.max_new_tokens)
        loop.stage = loop.stage.model_copy(update=changes)
        row, _ = loop.step(step)
        sequences, coefficients = loop.given
        tell({
            **{part: row[f"seconds/{part}"] or 0.0 for part in ("sample", "score", "update", "push", "step")},
            "tokens_trained": row["tokens/trained"], "tokens_generated": row["tokens/generated"],
            "flat_share": row["groups/flat_share"], "flops": float(trained_flops(shape, sequences, coefficients)),
            "resident_bytes": process.memory_info().rss,
        })  # fmt: skip


def our_loop(work: Work, method: str) -> Any:
    """The trainer's loop, which keeps what its last update was given; its rewards and answers are as `work` says."""
    from uniapl import train
    from uniapl.sampler import make_sampler

    class Loop(train.Loop):
        given: tuple[Any, Any] = ([], {})

        def _update(self, sequences: Any, coefficients: Any, step: int) -> dict[str, Any]:
            self.given = (sequences, coefficients)
            return super()._update(sequences, coefficients, step)

    study, stage = work.study, work.study.stages[method]
    policy = train.open_policy(
        work.model, work.model, study.train, stage, max_new_tokens=study.data.max_new_tokens, compute=work.compute,
        machine=study.machine,
    )  # fmt: skip
    sampler = None
    if stage.draws_rollouts:
        sampler = make_sampler(study.sampler, work.model, dtype=work.compute, machine=study.machine)
        if work.kept:
            never_end(sampler, policy.tokenizer.eos_token_id)
            train.judge = judge_by_place
    prompts = {prompt.id: prompt for prompt in work.prompts}
    expert = train.Expert(prompts, {one.prompt_id: one for one in work.demonstrations})
    discriminator: Any = SimpleNamespace(shift=0.0, scale=1.0)  # never asked where there is no adversarial term
    if stage.ever(stage.lambda_adv):
        discriminator = train_discriminator(work)
    return Loop(work.folder, stage, (0, 0), policy, sampler, discriminator, expert)


def never_end(sampler: Any, end_token_id: int) -> None:
    """Let every answer have as many tokens as it may."""
    from uniapl import sampler_vllm

    if sampler.name == "vllm":
        options = sampler_vllm.sampling_options
        sampler_vllm.sampling_options = lambda **given: options(**given) | {"stop_token_ids": []}
        return

    def without_end(_module: Any, _inputs: Any, output: Any) -> None:
        output.logits[..., end_token_id] = float("-inf")

    sampler._model.register_forward_hook(without_end)


def judge_by_place(groups: Any) -> None:
    """In place of the verifiers: half of each group gets 1."""
    for _, rollouts in groups:
        for rollout in rollouts:
            rollout.reward = reward_by_place(rollout.index)


def train_discriminator(work: Work) -> Any:
    """The study's discriminator of kind `features` with a head that saw a few prompts only: scoring costs the same."""
    from uniapl.config import FeaturesSpec
    from uniapl.discriminator import Discriminator, FrozenStates, make_triples, score_groups, train_head
    from uniapl.discriminator_measures import shift_and_scale

    spec, home = work.study.discriminator, work.folder / "discriminator"
    assert isinstance(spec, FeaturesSpec), f"the bench has no {type(spec).__name__}"
    home.mkdir(exist_ok=True)
    (home / "weights").symlink_to(work.model)  # as in a study's directory of a model
    states = FrozenStates(home, layer=spec.layer, micro_batch_tokens=spec.micro_batch_tokens, dtype=work.compute)
    items = [(example.prompt.text, item.text) for example in work.judged for item in example.items]
    states_ND = states.pool(*zip(*items, strict=True))
    head = train_head(states_ND, make_triples(work.judged), spec)
    shift, scale = shift_and_scale(score_groups(head, states_ND, work.judged))
    return Discriminator(states, head, shift=shift, scale=scale)


def measure_limit(work: Work, wait: Wait, tell: Tell) -> None:
    """The processor's limit, at the same times as the steps beside it."""
    import torch

    torch.set_num_threads(work.threads)
    shape, micro_batch_tokens = work.shape, work.study.machine.micro_batch_tokens
    words = words_at_once(
        shape.vocabulary, tokens=micro_batch_tokens, logits_bytes=work.study.machine.logits_bytes, on_gpu=False
    )
    while True:
        wait()
        began = time.perf_counter()
        found = limit(shape, tokens=micro_batch_tokens, words=words, dtype=getattr(torch, work.compute))
        tell(found | {"step": time.perf_counter() - began})


SIDES: dict[str, Callable[..., None]] = {
    "limit": measure_limit,
    "ours": lambda *given: ours(*given, method="grpo"),
    "ours_uniapl": lambda *given: ours(*given, method="uniapl"),
    "ours_sft": lambda *given: ours(*given, method="sft"),
    "ours_update": own_updates,
    "ours_update_compiled": lambda *given: own_updates(*given, compiled=True),
    "update_with_plain_malloc": own_updates,
    "trl": trl_grpo,
    "trl_no_checkpointing": lambda *given: trl_grpo(*given, gradient_checkpointing=False),
    "trl_large_batch": lambda *given: trl_grpo(*given, gradient_checkpointing=False, device_batch=32),
    "trl_continuous_batching": lambda *given: trl_grpo(  # which from then on trains bfloat16 weights
        *given, gradient_checkpointing=False, device_batch=32, use_transformers_continuous_batching=True
    ),
    "trl_vllm": lambda *given: trl_grpo(*given, use_vllm=True, vllm_mode="colocate"),
    "trl_sft": trl_sft,
    "trl_sft_no_checkpointing": lambda *given: trl_sft(*given, gradient_checkpointing=False),
}


def serve(name: str, work: Work, connection: Connection) -> None:
    """What a side's process does: steps as they are asked for, until the other end closes."""

    def wait() -> dict[str, Any]:
        try:
            return connection.recv()
        except EOFError:
            os._exit(0)

    try:
        SIDES[name](work, wait, connection.send)
    except Exception as error:  # a side that does not run here is a finding
        connection.send({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
