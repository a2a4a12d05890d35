"""Collecting, judging and scoring rollouts, and what each term gets of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from uniapl import rollouts
from uniapl.batch import needs_gradient, term_counts
from uniapl.config import StageSpec
from uniapl.constraints import Verdict
from uniapl.records import Demonstration, Prompt, Rollout, Sample
from uniapl.rollouts import Group, collect, demonstration_sequences, judge, rollout_sequences, score
from uniapl.update import coefficients_at


class Letters:
    """A tokenizer whose tokens are characters; 0 ends."""

    eos_token_id = 0

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return f"<{messages[-1]['content']}>"

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(chr(i) for i in ids if i)


class SeedSampler:
    """Answers with its seed, so that a test sees who was asked with what."""

    def generate(
        self, prompts: Sequence[list[int]], *, seeds: Sequence[int], max_new_tokens: int, temperature: float
    ) -> list[Sample]:
        self.prompts, self.seeds = list(prompts), list(seeds)
        return [Sample([97 + seed % 26, 0], [-1.0, -2.0], "stop") for seed in seeds]


PROMPTS = [Prompt(f"p{i}", "train", f"question {i}", ()) for i in range(2)]


def stage_spec(**changes: Any) -> StageSpec:
    values: dict[str, Any] = {"name": "uniapl", "title": "UniAPL", "steps": 1, "mu": 0.1, "lambda_adv": 0.5}
    values |= {"learning_rate": 0.1, "rollouts_per_prompt": 2, "scale_rewards": "none"}
    return StageSpec(**(values | changes))


def groups_with(rewards_PK: list[list[float | None]], scores_PK: list[list[float]]) -> list[Group]:
    return [
        (
            prompt,
            [
                Rollout(prompt.id, k, Sample([97 + k, 0], [-1.0, -2.0], "stop"), "x", reward=r, adversarial_score=s)
                for k, (r, s) in enumerate(zip(rewards, scores, strict=True))
            ],
        )
        for prompt, rewards, scores in zip(PROMPTS, rewards_PK, scores_PK, strict=True)
    ]


def collected(step: int, sampler: SeedSampler | None = None) -> list[Group]:
    return collect(
        sampler or SeedSampler(), PROMPTS, tokenizer=Letters(), num_rollouts=3, seed_parts=(0, 0, step),
        max_new_tokens=4, temperature=1.0,
    )  # fmt: skip


def test_every_rollout_has_a_seed_of_its_own_that_hangs_on_step_prompt_and_index() -> None:
    sampler = SeedSampler()
    groups = collected(0, sampler)
    assert [(prompt.id, [r.index for r in group]) for prompt, group in groups] == [("p0", [0, 1, 2]), ("p1", [0, 1, 2])]
    assert len(set(sampler.seeds)) == 6
    assert sampler.prompts[0] == sampler.prompts[2] == [ord(c) for c in "<question 0>"]
    again, later = SeedSampler(), SeedSampler()
    collected(0, again)
    collected(1, later)
    assert again.seeds == sampler.seeds
    assert not set(later.seeds) & set(sampler.seeds)
    assert all(len(r.text) == 1 for _, group in groups for r in group)  # the end token is no text


def test_a_reward_that_cannot_be_computed_is_a_status_and_never_0(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = [Verdict("ok", (True, True)), Verdict("ok", (True, False)), Verdict("unavailable: POS tagger", (None,))]
    monkeypatch.setattr(rollouts, "verify_all", lambda answers: verdicts)
    groups = collected(0)[:1]
    judge(groups)
    judged = groups[0][1]
    assert [r.reward for r in judged] == [1.0, 0.0, None]
    assert [r.status for r in judged] == ["ok", "ok", "unavailable: POS tagger"]
    assert [r.fraction for r in judged] == [1.0, 0.5, None]


def test_scores_compare_each_rollout_with_its_own_prompts_demonstration() -> None:
    demonstrations = {p.id: Demonstration(p.id, "train", 0, f"expert {p.id}", "", (), (True,), 3) for p in PROMPTS}
    seen: list[tuple[str, str, str]] = []

    class Recorder:
        shift, scale = 0.0, 1.0

        def score(self, prompts: list[str], references: list[str], candidates: list[str]) -> list[float]:
            seen.extend(zip(prompts, references, candidates, strict=True))
            return [float(i) for i in range(len(prompts))]

    groups = groups_with([[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]])
    score(groups, Recorder(), demonstrations)
    assert seen[0] == ("question 0", "expert p0", "x")
    assert seen[2] == ("question 1", "expert p1", "x")
    assert [r.adversarial_score for _, group in groups for r in group] == [0.0, 1.0, 2.0, 3.0]


def test_the_separate_loss_gets_centred_utilities_and_leaves_the_reward_alone() -> None:
    # Scores 0 and log 3: utilities log 1/2 and log 3/4, mean apart by half of log 1.5 = 0.2027.
    groups = groups_with([[1.0, 0.0], [0.0, 0.0]], [[0.0, math.log(3)], [0.0, 0.0]])
    stage = stage_spec()
    made = rollout_sequences(groups, stage, coefficients_at(stage, 0), tokenizer=Letters())
    assert [s.advantage for s in made] == [0.5, -0.5, 0.0, 0.0]
    half = math.log(1.5) / 2
    assert [s.adversarial_advantage for s in made] == pytest.approx([-half, half, 0.0, 0.0], abs=1e-6)
    assert {s.terms for s in made} == {frozenset({"grpo", "adv"})}
    assert made[1].completion_ids == [98, 0]
    assert made[1].sampler_logprobs == [-1.0, -2.0]


def test_inside_the_reward_the_utility_is_added_with_its_coefficient_and_there_is_no_separate_term() -> None:
    # Rewards 1 + 0.5 log 1/2 and 0 + 0.5 log 3/4: apart by 1 - 0.5 log 1.5 = 0.7973; half of it each way.
    groups = groups_with([[1.0, 0.0], [0.0, 0.0]], [[0.0, math.log(3)], [0.0, 0.0]])
    stage = stage_spec(adversarial_as="reward")
    made = rollout_sequences(groups, stage, coefficients_at(stage, 0), tokenizer=Letters())
    half = (1 - 0.5 * math.log(1.5)) / 2
    assert [s.advantage for s in made] == pytest.approx([half, -half, 0.0, 0.0], abs=1e-6)
    assert {s.terms for s in made} == {frozenset({"grpo"})}
    assert {s.adversarial_advantage for s in made} == {0.0}


def test_distinct_bigrams_are_counted_over_a_prompts_rollouts_and_their_first_tokens() -> None:
    def rollout(ids: list[int]) -> Rollout:
        return Rollout("p", 0, Sample(ids, [0.0] * len(ids), "stop"), "x")

    # (1,2) (2,3) and (1,2) (2,4): 3 different ones of 4
    assert rollouts.distinct_bigrams([rollout([1, 2, 3]), rollout([1, 2, 4])]) == 0.75
    assert rollouts.distinct_bigrams([rollout([*range(16), 7, 7, 7, 7])]) == 1.0  # what comes later does not count
    assert rollouts.distinct_bigrams([rollout([5]), rollout([])]) is None


def test_both_ways_at_once_use_the_same_coefficient_in_reward_and_loss() -> None:
    groups = groups_with([[1.0, 0.0], [0.0, 0.0]], [[0.0, math.log(3)], [0.0, 0.0]])
    made = {}
    for way in ("loss", "reward", "both"):
        stage = stage_spec(adversarial_as=way)
        made[way] = rollout_sequences(groups, stage, coefficients_at(stage, 0), tokenizer=Letters())
    assert [s.advantage for s in made["both"]] == [s.advantage for s in made["reward"]]
    assert [s.adversarial_advantage for s in made["both"]] == [s.adversarial_advantage for s in made["loss"]]
    assert {s.terms for s in made["both"]} == {frozenset({"grpo", "adv"})}


def test_the_experts_answer_joins_its_group_and_its_reward_the_groups_mean() -> None:
    # Rewards 1, 0 and the expert's 1: mean 2/3. Rewards 0, 0 and an expert's answer that fails too: no spread.
    right, wrong = (Demonstration(p.id, "train", 0, "ab", "", (), (p is PROMPTS[0],), 3) for p in PROMPTS)
    groups = groups_with([[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]])
    stage = stage_spec(mu=0.0, lambda_adv=0.0, expert_in_groups=True)
    made = rollout_sequences(
        groups, stage, coefficients_at(stage, 0), tokenizer=Letters(), demonstrations={"p0": right, "p1": wrong}
    )
    assert [s.advantage for s in made] == pytest.approx([1 / 3, -2 / 3, 1 / 3, 0.0, 0.0, 0.0])
    assert [sorted(s.terms) for s in made] == 2 * [["grpo"], ["grpo"], ["off_policy"]]
    assert made[2].completion_ids == [97, 98, 0]
    assert made[2].prompt_ids == made[0].prompt_ids
    needed = [needs_gradient(s, coefficients_at(stage, 0)) for s in made]
    assert needed == [True, True, True, False, False, False]
    # N_grpo counts the expert's answers: 4 rollouts of 2 tokens, 2 demonstrations of 3 tokens.
    assert term_counts(made, normalization="dapo") == {"sft": 0, "grpo": 14, "off_policy": 14, "adv": 8, "kl": 8}
    assert term_counts(made, normalization="dr_grpo")["off_policy"] == 6


def test_a_rollout_without_a_reward_still_has_its_adversarial_advantage() -> None:
    groups = groups_with([[None, 0.0], [0.0, 0.0]], [[0.0, math.log(3)], [0.0, 0.0]])
    stage = stage_spec()
    made = rollout_sequences(groups, stage, coefficients_at(stage, 0), tokenizer=Letters())
    assert [s.advantage for s in made[:2]] == [0.0, 0.0]
    assert made[0].adversarial_advantage < 0 < made[1].adversarial_advantage


def test_a_score_that_is_not_finite_stops_a_step_that_trains_on_it_and_no_other() -> None:
    groups = groups_with([[1.0, 0.0], [0.0, 0.0]], [[0.0, math.nan], [0.0, 0.0]])
    stage = stage_spec()
    with pytest.raises(ValueError, match="the discriminator gave nan for rollout 1 of p0"):
        rollout_sequences(groups, stage, coefficients_at(stage, 0), tokenizer=Letters())
    off = stage_spec(lambda_adv=0.0)
    made = rollout_sequences(groups, off, coefficients_at(off, 0), tokenizer=Letters())
    assert [s.advantage for s in made] == [0.5, -0.5, 0.0, 0.0]


def test_a_demonstration_is_rendered_like_a_rollouts_prompt_and_ends_with_the_end_token() -> None:
    shown = demonstration_sequences(
        [Demonstration("p1", "train", 0, "ok", "", (), (True,), 2)], {p.id: p for p in PROMPTS}, tokenizer=Letters()
    )
    sampler = SeedSampler()
    collected(0, sampler)
    assert shown[0].prompt_ids == sampler.prompts[3]
    assert shown[0].completion_ids == [ord("o"), ord("k"), 0]
    assert shown[0].terms == frozenset({"sft"})
