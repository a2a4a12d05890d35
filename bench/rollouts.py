"""How fast vLLM samples, sleeps, wakes and takes new weights, and where a whole step's time goes."""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from bench.shapes import (
    COEFFICIENTS,
    machine_settings,
    needs_checkpointing,
    random_model,
    random_rows,
    stage_settings,
    train_settings,
)
from bench.timing import OUT_OF_MEMORY, free, seconds_of, spread, synchronize
from uniapl.config import SamplerSpec
from uniapl.distributed import device
from uniapl.models import save_model
from uniapl.records import Sample, TokenSequence
from uniapl.sampler_vllm import VLLMSampler
from uniapl.shapes import Shape
from uniapl.update import Policy, make_policy, update

END_TOKEN = 2
KV_CACHE_GIB = 0.25  # on CPU; on a GPU the sampler takes its share


def word_tokenizer(num_words: int) -> PreTrainedTokenizerFast:
    """A tokenizer of that many made-up words: the engine wants one, though only ids go in and out."""
    words = WordLevel({f"t{i}": i for i in range(num_words)}, unk_token="t0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token=f"t{END_TOKEN}")


def time_rollouts(shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """Start the engine on random weights beside the trainer's and time its parts, then whole steps."""
    model = random_model(shape, device=device())
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "weights"
        save_model(model, word_tokenizer(shape.vocabulary), checkpoint)
        spec = SamplerSpec(
            kind="vllm", kv_cache_gib=KV_CACHE_GIB, max_sequences=options.prompts * options.answers,
            max_model_tokens=options.prompt_tokens + options.new_tokens,
        )  # fmt: skip
        sampler = VLLMSampler(checkpoint, spec=spec, dtype=options.compute)
    try:
        found = {"status": "ok", "start_seconds": sampler.start_seconds, **engine_times(sampler, model, shape, options)}
        try:
            found |= step_times(sampler, model, shape, options)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if OUT_OF_MEMORY not in str(error).lower():
                raise
            found["step"] = OUT_OF_MEMORY  # e.g. a 4B model's optimizer and the engine on one GPU
        return found
    finally:
        sampler.close()
        free()


def prompts_of(shape: Shape, options: argparse.Namespace) -> list[list[int]]:
    """Random prompts, each as often as it has answers."""
    rows = random_rows(shape, rows=options.prompts, row_tokens=8 * options.prompt_tokens)
    distinct = list(dict.fromkeys(tuple(s.prompt_ids) for s in rows))
    return [list(prompt) for prompt in distinct for _ in range(options.answers)]


def sample(sampler: VLLMSampler, shape: Shape, options: argparse.Namespace) -> tuple[list[list[int]], list[Sample]]:
    """A step's prompts and answers."""
    prompts = prompts_of(shape, options)
    seeds = list(range(len(prompts)))
    return prompts, sampler.generate(prompts, seeds=seeds, max_new_tokens=options.new_tokens, temperature=1.0)


def engine_times(sampler: VLLMSampler, model: Any, shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of sampling, and of sleep, wake and push one after the other, as a step has them."""
    num_tokens: list[int] = []

    def once() -> None:
        num_tokens.append(sum(len(made.token_ids) for made in sample(sampler, shape, options)[1]))

    sampled = seconds_of(once, repetitions=options.repetitions, warmups=1)
    tokens = sum(num_tokens[1:]) / options.repetitions
    rates = {"tokens": tokens, "tokens_per_second": sum(num_tokens[1:]) / sum(sampled)}
    times: dict[str, list[float]] = {"sleep": [], "wake": [], "push": []}
    for _ in range(options.repetitions):
        for name, action in (
            ("sleep", sampler.sleep), ("wake", sampler.wake),
            ("push", lambda: sampler.push_weights(model.named_parameters())),
        ):  # fmt: skip
            times[name] += seconds_of(action, repetitions=1, warmups=0)
    return {"sample": spread(sampled) | rates, **{name: spread(values) for name, values in times.items()}}


def step_times(sampler: VLLMSampler, model: Any, shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of a whole step's parts: sample, sleep, update, wake, push. Rewards are made up."""
    policy = make_policy(
        model, None, None, train_settings(), stage_settings(), max_new_tokens=options.new_tokens,
        compute=options.compute,
        machine=machine_settings(
            activation_checkpointing=needs_checkpointing(shape), compiled=options.compile,
            micro_batch_tokens=options.micro_batch_tokens,
        ),
    )  # fmt: skip
    parts: dict[str, list[float]] = {}
    gap = 0.0
    for repetition in range(-1, options.repetitions):
        split, gap = one_step(sampler, policy, shape, options)
        for name, seconds in split.items() if repetition >= 0 else ():
            parts.setdefault(name, []).append(seconds)
    whole = [math.fsum(times) for times in zip(*parts.values(), strict=True)]
    return {
        "step": {"whole": spread(whole), **{name: spread(times) for name, times in parts.items()}},
        "sampler_gap_nats": gap,
    }


def one_step(
    sampler: VLLMSampler, policy: Policy, shape: Shape, options: argparse.Namespace
) -> tuple[dict[str, float], float]:
    """Seconds of a step's parts, and the mean gap between the sampler's log-probs and the policy's."""
    marks = [("start", time.perf_counter())]

    def mark(name: str) -> None:
        synchronize()
        marks.append((name, time.perf_counter()))

    prompts, answers = sample(sampler, shape, options)
    mark("sample")
    sampler.sleep()
    mark("sleep")
    sequences = [
        TokenSequence(prompt, made.token_ids, frozenset({"grpo"}), 1.0 if i % 2 else -1.0, 0.0, made.logprobs)
        for i, (prompt, made) in enumerate(zip(prompts, answers, strict=True))
    ]
    logged = update(policy, sequences, COEFFICIENTS, step=0)
    mark("update")
    sampler.wake()
    mark("wake")
    sampler.push_weights(policy.model.named_parameters())
    mark("push")
    split = {name: at - before for (_, before), (name, at) in pairwise(marks)}
    return split, logged["sampler__gap_nats"]
