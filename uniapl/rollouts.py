"""Collect and score: K rollouts per prompt from the sampler, their verifiable rewards and adversarial scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch

from uniapl import chat
from uniapl.advantages import (
    adversarial_advantages,
    adversarial_utility,
    group_advantages,
)
from uniapl.config import StageSpec
from uniapl.constraints import verify_all
from uniapl.records import Demonstration, Prompt, Rollout, Sample, TokenSequence
from uniapl.seeding import stream_seed

DISTINCT_TOKENS = 16
KEPT_ROLLOUTS = 8  # rollouts a step that are kept for reading

Group = tuple[Prompt, list[Rollout]]


class Samples(Protocol):
    """What collecting needs of a sampler."""

    def generate(
        self, prompts: Sequence[list[int]], *, seeds: Sequence[int], max_new_tokens: int, temperature: float
    ) -> list[Sample]: ...


class Scores(Protocol):
    """What scoring needs of a discriminator: higher = closer to the expert; b and tau fixed once."""

    shift: float
    scale: float

    def score(self, prompts: list[str], references: list[str], candidates: list[str]) -> list[float]: ...


def collect(
    sampler: Samples,
    prompts: Sequence[Prompt],
    *,
    tokenizer: Any,
    num_rollouts: int,
    seed_parts: tuple[int | str, ...],
    max_new_tokens: int,
    temperature: float,
) -> list[Group]:
    """Sample `num_rollouts` answers per prompt; its seed is a function of (seed, stage, step, prompt, index)."""
    requests, seeds = [], []
    for prompt in prompts:
        ids = chat.prompt_ids(tokenizer, prompt.text)
        for index in range(num_rollouts):
            requests.append(ids)
            seeds.append(stream_seed(*seed_parts, "rollout", prompt.id, index))
    samples = sampler.generate(requests, seeds=seeds, max_new_tokens=max_new_tokens, temperature=temperature)
    groups = []
    for p, prompt in enumerate(prompts):
        rollouts = []
        for index, sample in enumerate(samples[p * num_rollouts : (p + 1) * num_rollouts]):
            text = chat.completion_text(tokenizer, sample.token_ids)
            rollouts.append(Rollout(prompt_id=prompt.id, index=index, sample=sample, text=text))
        groups.append((prompt, rollouts))
    return groups


def judge(groups: Sequence[Group]) -> None:
    """Set reward (1.0 where all constraints hold, else 0.0), or status where a verdict could not be computed."""
    pairs = [(prompt, rollout) for prompt, rollouts in groups for rollout in rollouts]
    verdicts = verify_all([(prompt.constraints, rollout.text) for prompt, rollout in pairs])
    for (_, rollout), verdict in zip(pairs, verdicts, strict=True):
        rollout.status, rollout.followed = verdict.status, verdict.followed
        rollout.reward = None if verdict.passed is None else float(verdict.passed)


def score(groups: Sequence[Group], discriminator: Scores, demonstrations: dict[str, Demonstration]) -> None:
    """Set every rollout's adversarial score against the prompt's demonstration."""
    pairs = [(prompt, rollout) for prompt, rollouts in groups for rollout in rollouts]
    scores = discriminator.score(
        [prompt.text for prompt, _ in pairs],
        [demonstrations[prompt.id].text for prompt, _ in pairs],
        [rollout.text for _, rollout in pairs],
    )
    for (_, rollout), value in zip(pairs, scores, strict=True):
        rollout.adversarial_score = float(value)


def check_scores(groups: Sequence[Group]) -> None:
    """Raise ValueError where a score that is about to be trained on is not finite."""
    for prompt, rollouts in groups:
        for rollout in rollouts:
            if rollout.adversarial_score is None or not math.isfinite(rollout.adversarial_score):
                raise ValueError(
                    f"the discriminator gave {rollout.adversarial_score} for rollout {rollout.index} of {prompt.id}; "
                    f"check its manifest, or set lambda_adv to 0"
                )


def utilities(groups: Sequence[Group], *, shift: float, scale: float) -> list[list[float]]:
    """log sigmoid((s - b) / tau) of every rollout, [P][K]; nan where it was not scored."""
    scores_PK = torch.tensor(
        [[math.nan if r.adversarial_score is None else r.adversarial_score for r in group] for _, group in groups]
    )
    return adversarial_utility(scores_PK, shift=shift, scale=scale).tolist()


def rollout_sequences(
    groups: Sequence[Group],
    stage: StageSpec,
    coefficients: dict[str, float],
    *,
    tokenizer: Any,
    shift: float = 0.0,
    scale: float = 1.0,
    demonstrations: dict[str, Demonstration] | None = None,
) -> list[TokenSequence]:
    """Token sequences with their advantages A and B; `coefficients` decides which terms they belong to.

    Where `demonstrations` join the groups (LUFFY), each group's last sequence is the expert's: its reward counts in the
    group's mean and std, and its term is L_off.
    """
    inside_reward, separate = stage.adversarial_as != "loss", stage.adversarial_as != "reward"
    uses_scores = coefficients["adv"] > 0
    utility_PK = torch.zeros(len(groups), stage.rollouts_per_prompt)
    if uses_scores:
        check_scores(groups)
        utility_PK = torch.tensor(utilities(groups, shift=shift, scale=scale))
    valid_PK = torch.tensor([[r.reward is not None for r in group] for _, group in groups])
    rewards_PK = torch.tensor([[r.reward or 0.0 for r in group] for _, group in groups])
    if uses_scores and inside_reward:
        rewards_PK = rewards_PK + coefficients["adv"] * utility_PK
    if demonstrations is not None:
        shown = [demonstrations[prompt.id] for prompt, _ in groups]
        expert_P1 = torch.tensor([[float(all(d.followed))] for d in shown])
        rewards_PK = torch.cat([rewards_PK, expert_P1], dim=1)
        valid_PK = torch.cat([valid_PK, torch.ones_like(expert_P1, dtype=torch.bool)], dim=1)
    advantages_PK = group_advantages(rewards_PK, valid_PK, scale_by_std=stage.scale_rewards == "group")
    adversarial_PK = adversarial_advantages(utility_PK, scale_by_std=stage.adversarial_scale == "group")
    terms = {term for term in ("grpo", "kl") if coefficients[term] > 0}
    if uses_scores and separate:
        terms.add("adv")
    sequences = []
    for p, (prompt, group) in enumerate(groups):
        prompt_ids = chat.prompt_ids(tokenizer, prompt.text)
        for k, rollout in enumerate(group):
            sequences.append(
                TokenSequence(
                    prompt_ids=prompt_ids,
                    completion_ids=rollout.sample.token_ids,
                    terms=frozenset(terms),
                    advantage=float(advantages_PK[p, k]),
                    adversarial_advantage=float(adversarial_PK[p, k]) if "adv" in terms else 0.0,
                    sampler_logprobs=rollout.sample.logprobs,
                )
            )
        if demonstrations is not None:
            answer = chat.completion_ids(tokenizer, demonstrations[prompt.id].text)
            last = float(advantages_PK[p, -1])
            sequences.append(TokenSequence(prompt_ids, answer, frozenset({"off_policy"}), advantage=last))
    return sequences


def demonstration_sequences(
    demonstrations: Sequence[Demonstration], prompts: dict[str, Prompt], *, tokenizer: Any
) -> list[TokenSequence]:
    """Token sequences of demonstrations, for L_sft."""
    return [
        TokenSequence(
            prompt_ids=chat.prompt_ids(tokenizer, prompts[d.prompt_id].text),
            completion_ids=chat.completion_ids(tokenizer, d.text),
            terms=frozenset({"sft"}),
        )
        for d in demonstrations
    ]


def summarize(groups: Sequence[Group], *, shift: float, scale: float) -> dict[str, float | None]:
    """What the log says of a step's rollouts; `shift` and `scale` are the discriminator's."""
    rollouts = [r for _, group in groups for r in group]
    if not rollouts:
        return {"tokens__generated": 0}
    rewards = [r.reward for r in rollouts if r.reward is not None]
    fractions = [r.fraction for r in rollouts if r.fraction is not None]
    spread = [len({r.reward for r in group}) > 1 for _, group in groups]
    scores = [r.adversarial_score for r in rollouts if r.adversarial_score is not None]
    said: dict[str, float | None] = {
        "reward__mean": mean(rewards),
        "reward__fraction": mean(fractions),
        "reward__status_not_ok": mean([float(r.status != "ok") for r in rollouts]),
        "groups__flat_share": 1 - sum(spread) / len(spread),
        "length__mean_tokens": mean([float(len(r.sample.token_ids)) for r in rollouts]),
        "length__truncated_share": mean([float(r.sample.finish_reason == "length") for r in rollouts]),
        "diversity__distinct_2": mean([d for _, group in groups if (d := distinct_bigrams(group)) is not None]),
        "tokens__generated": sum(len(r.sample.token_ids) for r in rollouts),
    }
    if scores:
        utility_PK = utilities(groups, shift=shift, scale=scale)
        said["adv__score_mean"] = mean(scores)
        said["adv__utility_mean"] = mean([u for group in utility_PK for u in group])
    return said


def distinct_bigrams(group: Sequence[Rollout]) -> float | None:
    """Distinct bigrams as a share of all (distinct-2, Li et al., 1510.03055) of a prompt's rollouts; None without any.

    Of the first tokens alone, since the share falls with the number of tokens and lengths differ between methods.
    """
    heads = [r.sample.token_ids[:DISTINCT_TOKENS] for r in group]
    bigrams = [pair for ids in heads for pair in pairwise(ids)]
    return len(set(bigrams)) / len(bigrams) if bigrams else None


def mean(values: list[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return sum(values) / len(values) if values else None


def kept_rollouts(step: int, groups: Iterable[Group]) -> list[dict[str, Any]]:
    """Rows for reading: the first rollouts of a step with their reward breakdown."""
    rows = [
        {
            "step": step, "prompt_id": prompt.id, "index": r.index, "text": r.text, "reward": r.reward,
            "status": r.status, "fraction": r.fraction,
            "followed": [None if f is None else bool(f) for f in r.followed],
            "adversarial_score": r.adversarial_score, "num_tokens": len(r.sample.token_ids),
            "truncated": r.sample.finish_reason == "length",
        }
        for prompt, group in groups
        for r in group
    ]  # fmt: skip
    return rows[:KEPT_ROLLOUTS]
