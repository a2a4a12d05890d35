"""Updates alone, on the same sequences every time: the sides of `bench.levers`."""

from __future__ import annotations

import itertools
import math
import random
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.work import Work


def own_updates(work: Work, wait: Any, tell: Any, *, compiled: bool = False) -> None:
    """What a side does. Changes, for one update: fields of Policy, `products_bytes`, `cast_once`, `flat_groups`."""
    import torch

    from bench.shapes import trained_flops
    from uniapl import attention
    from uniapl.train import open_policy
    from uniapl.update import coefficients_at, update

    torch.set_num_threads(work.threads)
    stage = work.study.stages["grpo"].model_copy(update={"learning_rate": 0.0})
    settings = work.study.train.model_copy(update={"sampler_gap_ceiling": math.inf})
    policy = open_policy(
        work.model, work.model, settings, stage, max_new_tokens=work.sizes["new_tokens"], compute=work.compute,
        machine=work.study.machine.model_copy(update={"compile": compiled}),
    )  # fmt: skip
    own = {
        name: getattr(policy, name) for name in ("packing", "micro_batch_tokens", "logits_bytes", "kept_logits_bytes")
    }
    own |= {"products_bytes": attention.PRODUCTS_BYTES, "cast_once": True, "flat_groups": 0}
    coefficients, shape = coefficients_at(stage, 0), work.shape
    layers = policy.model.get_decoder().layers
    blocks = [block for layer in layers for block in (layer.self_attn, layer.mlp)]  # those that cast once
    assert all(block._forward_pre_hooks for block in blocks)
    hooks = [block._forward_pre_hooks for block in blocks]
    for _ in itertools.count():
        values = own | wait()
        attention.PRODUCTS_BYTES = values.pop("products_bytes")
        cast_once = values.pop("cast_once")
        for block, own_hooks in zip(blocks, hooks, strict=True):
            block._forward_pre_hooks = own_hooks if cast_once else type(own_hooks)()
        sequences = make_sequences(work, policy.tokenizer, flat_groups=values.pop("flat_groups"))
        for name, value in values.items():
            setattr(policy, name, value)
        began = time.perf_counter()
        found = update(policy, sequences, coefficients, step=0)
        seconds = time.perf_counter() - began
        flops = float(trained_flops(shape, sequences, coefficients))
        tell({"step": seconds, "norm": found["grad__norm"], "flops": flops})


def make_sequences(work: Work, tokenizer: Any, *, flat_groups: int) -> list[Any]:
    """A step's rollouts with random words; the first `flat_groups` groups have no advantage."""
    from uniapl import chat
    from uniapl.records import TokenSequence

    generator, length = random.Random(0), work.sizes["new_tokens"]
    made = []
    for number, prompt in enumerate(work.prompts_at(0)):
        ids = chat.prompt_ids(tokenizer, prompt.text)
        for place in range(work.sizes["rollouts"]):
            answer = [generator.randrange(len(tokenizer)) for _ in range(length)]
            advantage = 0.0 if number < flat_groups else 1.0 - 2.0 * (place % 2)
            made.append(TokenSequence(ids, answer, frozenset({"grpo"}), advantage, 0.0, [-1.0] * length))
    return made
