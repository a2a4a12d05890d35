"""What a discriminator's scores are worth: AUC with and without length, and the fixed b and tau.

Everything is measured within comparisons that training makes: candidates of one prompt against one reference. Lengths
of drafts and demonstrations differ, so a score could be length in disguise. AUC without length is the AUC of what
length does not explain (our choice): scores and length figures (tokens, tokens squared, characters, cut or not) are
centred per prompt and reference, the scores are regressed on the figures by least squares over all test texts, and the
residuals are ranked. The labels are not in the regression, so what length and label share counts as length: a cautious
figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MATCH_TOLERANCE = 0.1  # texts are of matched length where tokens differ by at most this share and none or both were cut
NUM_RESAMPLES = 999


@dataclass(frozen=True)
class Item:
    """One text and its length figures."""

    text: str
    num_tokens: int
    truncated: bool

    @property
    def length_figures(self) -> list[float]:
        return [float(self.num_tokens), float(self.num_tokens) ** 2, float(len(self.text)), float(self.truncated)]


@dataclass(frozen=True)
class Group:
    """Scores of one prompt's texts against one reference: the other demonstration first, then raw drafts.

    No scores where only the lengths are wanted.
    """

    prompt_id: str
    items: tuple[Item, ...]
    scores: tuple[float, ...]

    @property
    def lengths(self) -> np.ndarray:
        """Length figures, one row a text."""
        return np.array([item.length_figures for item in self.items])


def ranked_right(values: np.ndarray) -> list[float]:
    """1 where the first value (the demonstration's) is above another, 0.5 for a tie, 0 where it is below."""
    return [1.0 if values[0] > other else 0.5 if values[0] == other else 0.0 for other in values[1:]]


def auc(values: Sequence[np.ndarray]) -> float:
    """Share of pairs (demonstration, draft) of one group that are ranked right; ties count half. NaN without a pair."""
    pairs = [right for group in values for right in ranked_right(group)]
    return float(np.mean(pairs)) if pairs else float("nan")


def auc_interval(groups: Sequence[Group], values: Sequence[np.ndarray], *, seed: int) -> list[float]:
    """95% percentile bootstrap interval of the AUC over prompts, since the pairs of one prompt are not independent."""
    sums: dict[str, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        right = ranked_right(value)
        total = sums.setdefault(group.prompt_id, [0.0, 0.0])
        total[0], total[1] = total[0] + sum(right), total[1] + len(right)
    table = np.array(list(sums.values()))
    chosen = np.random.default_rng(seed).integers(len(table), size=(NUM_RESAMPLES, len(table)))
    resampled = table[chosen].sum(1)
    return [round(float(bound), 4) for bound in np.quantile(resampled[:, 0] / resampled[:, 1], (0.025, 0.975))]


def without_length(groups: Sequence[Group]) -> list[np.ndarray]:
    """Scores less what length explains: residuals of least squares on the length figures, all centred per group."""
    scores = np.concatenate([_centred(np.array(group.scores)) for group in groups])
    figures = np.concatenate([_centred(group.lengths) for group in groups])
    figures = figures / np.maximum(figures.std(0), 1e-12)
    slopes, *_ = np.linalg.lstsq(figures, scores, rcond=1e-8)
    residuals = scores - figures @ slopes
    return np.split(residuals, np.cumsum([len(group.items) for group in groups])[:-1])


def length_direction(groups: Sequence[Group]) -> np.ndarray:
    """Weights of the length figures that best tell demonstrations from drafts on these groups (linear discriminant)."""
    figures = np.concatenate([_centred(group.lengths) for group in groups])
    positive = np.concatenate([np.arange(len(group.items)) == 0 for group in groups])
    spread = figures.std(0)
    figures = figures / np.maximum(spread, 1e-12)
    ridge = 1e-3 * np.eye(figures.shape[1])
    gap = figures[positive].mean(0) - figures[~positive].mean(0)
    return np.linalg.solve(np.cov(figures.T) + ridge, gap) / np.maximum(spread, 1e-12)


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(0)


def matched_values(groups: Sequence[Group]) -> list[np.ndarray]:
    """Scores of each group with only the drafts of the demonstration's length kept."""
    kept = []
    for group in groups:
        first = group.items[0]
        near = [
            score
            for item, score in zip(group.items[1:], group.scores[1:], strict=True)
            if item.truncated == first.truncated
            and abs(item.num_tokens - first.num_tokens) <= MATCH_TOLERANCE * max(item.num_tokens, first.num_tokens)
        ]
        kept.append(np.array([group.scores[0], *near]))
    return kept


def measure(train: Sequence[Group], test: Sequence[Group], *, seed: int) -> dict[str, Any]:
    """All figures of the discriminator's manifest. AUCs are on `test`; `train` fits the length-only comparison.

    The AUC on `train` is None where its groups have no scores: nothing was trained on them.
    """
    scores = [np.array(group.scores) for group in test]
    residuals, direction, matched = without_length(test), length_direction(train), matched_values(test)
    return {
        "auc": round(auc(scores), 4),
        "auc_interval": auc_interval(test, scores, seed=seed),
        "auc_without_length": round(auc(residuals), 4),
        "auc_without_length_interval": auc_interval(test, residuals, seed=seed),
        "auc_length_only": round(auc([group.lengths @ direction for group in test]), 4),
        "auc_length_matched": _number(auc(matched)),
        "num_pairs_length_matched": sum(len(values) - 1 for values in matched),
        "auc_train": _number(auc([np.array(group.scores) for group in train if group.scores])),
        "score_mean_demonstrations": round(float(np.mean([group.scores[0] for group in test])), 5),
        "score_mean_base": round(float(np.mean([score for group in test for score in group.scores[1:]])), 5),
    }


def _number(value: float) -> float | None:
    """JSON has no NaN: None where there was no pair."""
    return None if np.isnan(value) else round(value, 4)


def shift_and_scale(groups: Sequence[Group]) -> tuple[float, float]:
    """b and tau, fixed once (our choice): the midpoint of the mean scores of demonstrations and drafts, and the root
    of the mean of their variances, on prompts that trained neither the head nor a policy."""
    demonstrations = np.array([group.scores[0] for group in groups])
    drafts = np.array([score for group in groups for score in group.scores[1:]])
    shift = (demonstrations.mean() + drafts.mean()) / 2
    scale = np.sqrt((demonstrations.var() + drafts.var()) / 2)
    return float(shift), float(scale) if scale > 1e-6 else 1.0
