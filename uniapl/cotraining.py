"""The discriminator against the policy as it is now: how well it still tells the two apart, and its co-training.

Both use prompts of the discriminator alone, on which no policy is trained, with their two demonstrations: one is the
reference, the other the positive, and the negative is the policy's answer of this step. Co-training is an ablation (in
GAD, arXiv 2511.10643, the discriminator is trained in every step; the paper keeps it fixed): one step of AdamW a
training step on the same Bradley-Terry loss that the head was first trained with. b and tau stay as they were fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from uniapl.config import DataSpec, FeaturesSpec
from uniapl.data import discriminator_prompts, discriminator_test_prompts
from uniapl.discriminator import Discriminator, head_scores, project
from uniapl.discriminator_measures import auc
from uniapl.records import Demonstration, Prompt
from uniapl.rollouts import Group, Scores

TRAINED = ("hidden_weight", "hidden_bias", "output_weight")  # of the head; its projection stays


@dataclass(frozen=True)
class Judged:
    """The discriminator's own prompts that have two different demonstrations."""

    train: dict[str, Prompt]
    test: dict[str, Prompt]
    demonstrations: dict[str, tuple[str, str]]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], demonstrations: Sequence[Demonstration], spec: DataSpec) -> Judged:
        """Those among all training prompts."""
        takes = {(d.prompt_id, d.take): d.text for d in demonstrations}
        both = {p.id: (takes.get((p.id, 0)), takes.get((p.id, 1))) for p in prompts}
        known = {name: (a, b) for name, (a, b) in both.items() if a is not None and b is not None and a != b}

        train, test = (
            {p.id: p for p in some if p.id in known}
            for some in (discriminator_prompts(prompts, spec), discriminator_test_prompts(prompts, spec))
        )
        return cls(train, test, known)

    def triples(self, groups: Sequence[Group]) -> list[tuple[str, str, str, str]]:
        """(prompt, reference, positive, negative) in words, both demonstrations taking turns as the reference."""
        return [
            (prompt.text, reference, positive, rollout.text)
            for prompt, group in groups
            for rollout in group
            for reference, positive in (self.demonstrations[prompt.id], self.demonstrations[prompt.id][::-1])
        ]


def told_apart(discriminator: Scores, judged: Judged, groups: Sequence[Group]) -> float | None:
    """AUC: share of pairs in which the demonstration is scored above the policy's answer; ties count half."""
    triples = judged.triples(groups)
    if not triples:
        return None
    prompts, references, positives, negatives = (list(column) for column in zip(*triples, strict=True))
    scores = discriminator.score(prompts * 2, references * 2, positives + negatives)
    return auc([np.array(pair) for pair in zip(scores[: len(triples)], scores[len(triples) :], strict=True)])


class CotrainedDiscriminator(Discriminator):
    """A discriminator whose head learns on, from the policy's answers; its state goes into the run's checkpoints."""

    def __init__(self, fixed: Discriminator, spec: FeaturesSpec) -> None:
        super().__init__(fixed.states, dict(fixed.head), shift=fixed.shift, scale=fixed.scale)
        self.prompts_per_step = spec.cotrained_prompts
        for name in TRAINED:
            self.head[name] = self.head[name].clone().requires_grad_(True)
        weights = [self.head[name] for name in TRAINED]
        self.optimizer = torch.optim.AdamW(weights, lr=spec.learning_rate, weight_decay=spec.weight_decay)
        for weight in weights:  # now, so that a checkpoint has somewhere to be loaded into
            self.optimizer.state[weight] = {
                "step": torch.zeros(()), "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight),
            }  # fmt: skip

    def score(self, prompts: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[float]:
        """As the fixed one's, by the head as it is now."""
        with torch.no_grad():
            return super().score(prompts, references, candidates)

    def learn(self, judged: Judged, groups: Sequence[Group]) -> float:
        """One step of AdamW on the mean of -log sigmoid(s(positive) - s(negative)); returns that loss."""
        prompts, references, positives, negatives = zip(*judged.triples(groups), strict=True)
        states = self.states.pool([*prompts, *prompts, *prompts], [*references, *positives, *negatives])
        rows_NC = project(self.head, states).split(len(prompts))
        margin = head_scores(self.head, rows_NC[1], rows_NC[0]) - head_scores(self.head, rows_NC[2], rows_NC[0])
        loss = -logsigmoid(margin).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the trained tensors and AdamW's moments, which a load writes into."""
        kept = {name: self.head[name].detach() for name in TRAINED}
        for name in TRAINED:
            kept |= {f"{name}.{key}": value for key, value in self.optimizer.state[self.head[name]].items()}
        return kept

    def weights(self) -> dict[str, list[float]]:
        """The trained tensors as JSON has them, exactly."""
        return {name: self.head[name].detach().flatten().tolist() for name in TRAINED}

    def agree(self, weights: Mapping[str, Sequence[float]]) -> None:
        """Take another rank's trained tensors, so that all ranks score alike to the last bit."""
        with torch.no_grad():
            for name in TRAINED:
                self.head[name].copy_(torch.tensor(weights[name]).view_as(self.head[name]))
