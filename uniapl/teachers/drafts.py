"""What a teacher is ordered to make, and raw drafts of the base model.

Drafts are what the editor mends, and what the discriminator learns to tell from the expert. Prompts of the
discriminator get two demonstrations from independent takes.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from uniapl import chat, models
from uniapl.config import DataSpec, EditorSpec, MachineSpec, SamplerSpec, TeacherSpec
from uniapl.constraints import verify_all
from uniapl.data import discriminator_prompts, discriminator_test_prompts, policy_prompts
from uniapl.records import Prompt
from uniapl.sampler import make_sampler
from uniapl.seeding import stream, stream_seed

DRAFTS_PER_CALL = 512  # requests handed to the engine at once; a progress line follows each
CANNED = (
    "The morning light fell on the quiet street.", "Nobody knew where the path would lead.",
    "Water finds its own way.", "A good plan begins with a clear list.", "She wrote a letter to an old friend.",
    "The shop on the corner opens at nine.", "We waited for the rain to stop.",
    "Fresh bread smells best early in the day.", "He kept a small box of old coins.",
    "The garden needs sun, water and time.", "Most people forget the simple things.",
    "Their boat came back before night.", "It was a long road, but the view was worth it.",
    "The train left without a sound.", "Birds sing louder in spring.", "You can read the map in two ways.",
    "The old clock in the hall still works.", "Cats sleep for most of the day.",
    "They built the house with their own hands.", "A warm soup helps on a cold evening.",
    "The answer was in the last page.", "Some stories are better told slowly.", "I would start with the first step.",
    "The river is wide and calm here.", "Nothing grows without some patience.",
    "The music stopped, and everyone looked up.", "Her coat was blue and green.", "Every town has a place like this.",
    "The wind moved the leaves for hours.", "A short walk clears the head.", "What would you do in their place?",
    "The light went out in the kitchen.", "Good tools make the work easy.", "It rained, so we stayed at home.",
    "Old roads often follow rivers.", "There is more than one way to learn.",
)  # fmt: skip


@dataclass(frozen=True)
class Draft:
    """One raw answer, of the base model (or canned text) or of a chat teacher, with its verdict."""

    prompt_id: str
    split: str
    take: int
    index: int
    text: str
    num_tokens: int
    truncated: bool
    status: str = "ok"
    followed: tuple[bool | None, ...] = ()

    @property
    def num_followed(self) -> int:
        return sum(one is True for one in self.followed)


@dataclass(frozen=True)
class Order:
    """One demonstration to make."""

    prompt: Prompt
    take: int


@dataclass(frozen=True)
class Drafting:
    """How many drafts an order gets, and from where."""

    source: Literal["model", "canned"]
    num: int
    temperature: float
    seed: int

    @classmethod
    def of(cls, spec: TeacherSpec) -> Drafting:
        """As a teacher's file says: what the editor mends, or beside a chat teacher the discriminator's negatives."""
        if isinstance(spec, EditorSpec):
            return cls(spec.drafts, spec.num_samples, spec.temperature, spec.seed)
        return cls(spec.drafts, spec.num_drafts, spec.draft_temperature, spec.seed)


def orders(prompts: Sequence[Prompt], heldout: Sequence[Prompt], spec: DataSpec) -> list[Order]:
    """All demonstrations to make: take 0 of policy and held-out prompts, takes 0 and 1 of the discriminator's."""
    judged = [*discriminator_prompts(prompts, spec), *discriminator_test_prompts(prompts, spec)]
    single = [Order(prompt, 0) for prompt in (*policy_prompts(prompts, spec), *heldout)]
    return single + [Order(prompt, take) for prompt in judged for take in (0, 1)]


def canned_drafts(
    todo: Sequence[Order], drafting: Drafting, *, max_tokens: int, encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
) -> list[Draft]:  # fmt: skip
    """Drafts of a few canned sentences each, cut at `max_tokens` like sampled ones. `encode` adds the end token."""
    drafts = []
    for order in todo:
        for index in range(drafting.num):
            rng = stream(drafting.seed, "canned", order.take, order.prompt.id, index)
            ids = encode(" ".join(rng.sample(CANNED, rng.randint(1, 4))))
            truncated = len(ids) > max_tokens
            text = decode(ids[:max_tokens])
            identity = (order.prompt.id, order.prompt.split, order.take, index)
            drafts.append(Draft(*identity, text, min(len(ids), max_tokens), truncated))
    return drafts


def sampled_drafts(
    todo: Sequence[Order], drafting: Drafting, *, sampler_spec: SamplerSpec, machine: MachineSpec, compute: str,
    weights: Path, max_tokens: int,
) -> list[Draft]:  # fmt: skip
    """The base model's drafts for each order; each has a seed of its own.

    On CPU two engines in processes with half of the threads each share the orders: faster than one with all of them.
    """
    sample = functools.partial(
        _sample_share, drafting=drafting, sampler_spec=sampler_spec, machine=machine, compute=compute, weights=weights,
        max_tokens=max_tokens,
    )  # fmt: skip
    elsewhere = torch.cuda.is_available() or sampler_spec.kind == "server"
    if elsewhere or torch.get_num_threads() == 1 or len(todo) < 2:
        return sample(todo, num_threads=torch.get_num_threads(), name="drafts")
    half, threads = (len(todo) + 1) // 2, torch.get_num_threads()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        first = pool.submit(sample, todo[:half], num_threads=(threads + 1) // 2, name="drafts, first half")
        second = pool.submit(sample, todo[half:], num_threads=threads // 2, name="drafts, second half")
        return first.result() + second.result()


def _sample_share(
    todo: Sequence[Order], *, drafting: Drafting, sampler_spec: SamplerSpec, machine: MachineSpec, compute: str,
    weights: Path, max_tokens: int, num_threads: int, name: str,
) -> list[Draft]:  # fmt: skip
    """All drafts of some orders, by one engine."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    torch.set_num_threads(num_threads)
    tokenizer = models.load_tokenizer(weights)
    requests = [(order, index) for order in todo for index in range(drafting.num)]
    sampler = make_sampler(sampler_spec, weights, dtype=compute, machine=machine)
    drafts: list[Draft] = []
    started, num_tokens = time.monotonic(), 0
    try:
        for start in range(0, len(requests), DRAFTS_PER_CALL):
            chunk = requests[start : start + DRAFTS_PER_CALL]
            samples = sampler.generate(
                [chat.prompt_ids(tokenizer, order.prompt.text) for order, _ in chunk],
                seeds=[
                    stream_seed(drafting.seed, "teacher", order.take, order.prompt.id, index) for order, index in chunk
                ],
                max_new_tokens=max_tokens,
                temperature=drafting.temperature,
            )
            for (order, index), sample in zip(chunk, samples, strict=True):
                num_tokens += len(sample.token_ids)
                text = chat.completion_text(tokenizer, sample.token_ids)
                cut = sample.finish_reason == "length"
                identity = (order.prompt.id, order.prompt.split, order.take, index)
                drafts.append(Draft(*identity, text, len(sample.token_ids), cut))
            seconds = time.monotonic() - started
            eta = seconds / len(drafts) * (len(requests) - len(drafts))
            rate = num_tokens / seconds
            print(f"{name}: {len(drafts)}/{len(requests)}, {rate:.0f} tokens/s, {eta:.0f} s left", flush=True)
    finally:
        sampler.close()
    return drafts


def judged(drafts: Sequence[Draft], prompts: dict[str, Prompt]) -> list[Draft]:
    """The drafts with the verifiers' verdicts."""
    verdicts = verify_all([(prompts[draft.prompt_id].constraints, draft.text) for draft in drafts])
    return [
        Draft(**(vars(draft) | {"status": verdict.status, "followed": verdict.followed}))
        for draft, verdict in zip(drafts, verdicts, strict=True)
    ]
