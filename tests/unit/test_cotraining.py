"""The discriminator against the policy: its AUC on answers, one step of its head, what a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from uniapl.config import DataSpec, FeaturesSpec
from uniapl.cotraining import TRAINED, CotrainedDiscriminator, Judged, told_apart
from uniapl.discriminator import Discriminator, Triple, head_scores, project, train_head
from uniapl.records import Constraint, Demonstration, Prompt, Rollout, Sample
from uniapl.rollouts import Group

SPEC = FeaturesSpec.model_validate(
    {"layer": 1, "width": 8, "num_components": 3, "epochs": 3, "cotrained_prompts": 2, "learning_rate": 0.01}
)


class Letters:
    """States of a text: how often it has a, b and c."""

    def pool(self, prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
        return torch.tensor([[float(text.count(letter)) for letter in "abc"] for text in texts])


def prompt(name: str) -> Prompt:
    return Prompt(name, "train", f"Write {name}.", (Constraint("punctuation:no_comma", {}),))


def answered(name: str, *texts: str) -> Group:
    return prompt(name), [Rollout(name, i, Sample([1], [0.0], "stop"), text) for i, text in enumerate(texts)]


JUDGED = Judged({"p": prompt("p"), "q": prompt("q")}, {"r": prompt("r")}, {n: ("aa", "aab") for n in "pqr"})


def cotrained() -> CotrainedDiscriminator:
    texts = ["aa", "aab", "cc", "ab", "aaa", "ccb"]
    states: Any = Letters()
    head = train_head(states.pool([""] * 6, texts), [Triple(0, 1, 2), Triple(3, 4, 5)], SPEC)
    return CotrainedDiscriminator(Discriminator(states, head, shift=0.1, scale=0.5), SPEC)


def test_judged_prompts_have_two_different_demonstrations() -> None:
    values = dict(max_new_tokens=8, num_train=6, num_development=1, num_heldout=1, num_policy=1)
    spec = DataSpec.model_validate(values | dict(num_discriminator=3, num_discriminator_test=2))
    prompts = [prompt(name) for name in "pabcde"]
    texts = {"a": ("1", "2"), "b": ("same", "same"), "c": ("1", None), "d": ("1", "2"), "e": ("1", "2")}
    rows = [
        Demonstration(name, "train", take, text, "", (), (), 1)
        for name, takes in texts.items()
        for take, text in enumerate(takes)
        if text is not None
    ]
    judged = Judged.of(prompts, rows, spec)
    assert (list(judged.train), list(judged.test)) == (["a"], ["d", "e"])


def test_auc_counts_answers_that_are_scored_below_the_demonstration() -> None:
    class ByLength:
        shift, scale = 0.0, 1.0

        def score(self, prompts: list[str], references: list[str], candidates: list[str]) -> list[float]:
            return [float(len(candidate)) for candidate in candidates]

    # positives have 3 and 2 letters; answers of 2 and 4: pairs 3>2, 2=2, 3<4, 2<4 -> (1 + 0.5) / 4
    assert told_apart(ByLength(), JUDGED, [answered("p", "cc", "cccc")]) == pytest.approx(1.5 / 4)
    assert told_apart(ByLength(), JUDGED, []) is None


def test_a_step_lowers_the_loss_by_its_formula_and_moves_the_head_alone() -> None:
    discriminator, groups = cotrained(), [answered("p", "cc"), answered("q", "abc")]
    before = {name: tensor.detach().clone() for name, tensor in discriminator.head.items()}
    states: Any = discriminator.states

    def rows(texts: list[str]) -> Tensor:
        return project(discriminator.head, states.pool(texts, texts))

    references, positives = rows(["aa", "aab", "aa", "aab"]), rows(["aab", "aa", "aab", "aa"])
    negatives = rows(["cc", "cc", "abc", "abc"])
    margin = head_scores(discriminator.head, positives, references) - head_scores(
        discriminator.head, negatives, references
    )
    losses = [discriminator.learn(JUDGED, groups) for _ in range(5)]
    assert losses[0] == pytest.approx(float(-logsigmoid(margin).mean()), rel=1e-5)
    assert losses[-1] < losses[0]
    moved = {name for name, tensor in discriminator.head.items() if not torch.equal(tensor, before[name])}
    assert moved == set(TRAINED)
    assert (discriminator.shift, discriminator.scale) == (0.1, 0.5)


def test_its_state_written_into_a_fresh_one_goes_on_the_same_way() -> None:
    first, second, groups = cotrained(), cotrained(), [answered("p", "cc")]
    first.learn(JUDGED, groups)
    for name, tensor in second.state().items():
        tensor.copy_(first.state()[name])
    assert first.learn(JUDGED, groups) == second.learn(JUDGED, groups)
    assert first.score(["p"], ["aa"], ["ab"]) == second.score(["p"], ["aa"], ["ab"])


def test_another_ranks_weights_are_taken_to_the_last_bit() -> None:
    first, second = cotrained(), cotrained()
    first.learn(JUDGED, [answered("p", "cc")])
    assert first.score(["p"], ["aa"], ["ab"]) != second.score(["p"], ["aa"], ["ab"])
    second.agree(first.weights())
    assert first.score(["p"], ["aa"], ["ab"]) == second.score(["p"], ["aa"], ["ab"])
