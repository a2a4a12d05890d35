"""Figures 8 and 9: the weight of the adversarial term, and when a staged pipeline should switch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from uniapl.analysis import comparisons
from uniapl.analysis.cells import processors_note
from uniapl.analysis.claims import lambda_variants
from uniapl.analysis.collect import MAIN, Study, last_values, rows_of, run_config
from uniapl.analysis.drawing import WIDTH_INCHES, finish
from uniapl.analysis.labels import CHORD, UNIAPL, colour
from uniapl.analysis.outputs import LAMBDA, SWITCH

STAGED = "sft.grpo"
Side = tuple[str, str]  # method and variant
BySeed = dict[int, float]
SEED_DOTS = {"marker": "o", "linestyle": "", "markersize": 3.0, "markerfacecolor": "white", "zorder": 3}


def figure8(study: Study, model: str) -> tuple[Figure, str]:
    """Accuracy, entropy, diversity and length by the weight of the adversarial term."""
    sides: dict[float, Side] = {}
    if study.evaluations(model, CHORD):
        sides[0.0] = (CHORD, MAIN)
    for run in rows_of(study.runs, model, UNIAPL)["directory"][:1]:
        weight = run_config(study, run)["path"][-1]["lambda_adv"]
        if isinstance(weight, (int, float)):  # no schedule
            sides[float(weight)] = (UNIAPL, MAIN)
    sides |= {weight: (UNIAPL, variant) for weight, variant in lambda_variants(study, model).items()}
    sides = dict(sorted(sides.items()))
    of = comparisons.chosen_on(study)
    accuracies = [_accuracies(study, model, side) for side in sides.values()]
    shown = {
        f"{of.title}, prompt strict, %": accuracies,
        "Entropy at the end, nats per token": [_last(study, model, s, "entropy/mean_nats") for s in sides.values()],
        "Distinct bigrams at the end": [_last(study, model, s, "diversity/distinct_2") for s in sides.values()],
        "Mean length, tokens": [_lengths(study, model, side) for side in sides.values()],
    }
    figure, grid = plt.subplots(2, 2, figsize=(WIDTH_INCHES, 3.8), sharex=True, layout="constrained")
    for ax, (title, numbers) in zip(grid.ravel(), shown.items(), strict=True):
        _by_seed(ax, numbers, colour(UNIAPL, study.methods(model)), title)
        ax.set_xticks(range(len(sides)), [_weight(weight, side) for weight, side in sides.items()])
    for ax in grid[1]:
        ax.set_xlabel("Weight of the adversarial term")
    caption = (
        f"Figure 8. The weight lambda_adv of the adversarial term ({study.models[model]}; places are equally far apart,"
        f" weights are not): circles, seeds; line, {_joined(accuracies)}. In brackets the main run's;"
        f" 0, where it is there, is CHORD-mu. Accuracy and length: {of.title.lower()} prompts; entropy and distinct"
        " bigrams (a share of all, in the rollouts of a prompt): last step of training. Entropy is over the sequences"
        " in the update: with a weight above 0 all rollouts, with 0 those of groups whose rewards differ."
    )
    return figure, " ".join((caption, *processors_note(study, [LAMBDA])))


def _weight(weight: float, side: Side) -> str:
    return f"({weight:g})" if side == (UNIAPL, MAIN) else f"{weight:g}"


def figure9(study: Study, model: str) -> tuple[Figure, str]:
    """Accuracy of SFT -> GRPO by the share of steps that SFT had."""
    tried = dict.fromkeys(e["variant"] for e in study.index["evaluations"])
    variants = [MAIN, *(variant for variant in tried if variant.startswith(SWITCH))]
    shares = {_switch_share(study, model, variant): variant for variant in variants}
    shares = dict(sorted((share, variant) for share, variant in shares.items() if math.isfinite(share)))
    of = comparisons.chosen_on(study)
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH_INCHES, 2.3), layout="constrained")
    line = colour(STAGED, study.methods(model))
    sides = [(STAGED, variant) for variant in shares.values()]
    accuracies = [_accuracies(study, model, side) for side in sides]
    lengths = [_lengths(study, model, side) for side in sides]
    titles = (f"{of.title}, prompt strict, %", "Mean length, tokens")
    for ax, found, title in zip(axes, (accuracies, lengths), titles, strict=True):
        _by_seed(ax, found, line, title)
        ax.set_xticks(range(len(shares)), [f"{100 * share:.0f}%" for share in shares])
        ax.set_xlabel("Share of the steps before the switch")
    steps = rows_of(study.runs, model, STAGED)["steps"]
    caption = (
        f"Figure 9. When SFT -> GRPO switches ({study.models[model]}, {max(steps, default=0)} steps in all): circles,"
        f" seeds; line, {_joined(accuracies)}. {of.title} prompts."
    )
    return figure, " ".join((caption, *processors_note(study, [SWITCH])))


def _switch_share(study: Study, model: str, variant: str) -> float:
    """Steps of the first stage as a share of all."""
    for run in rows_of(study.runs, model, STAGED, variant).to_dict("records"):
        parent = study.runs.loc[study.runs["directory"] == run["parent"], "steps"]
        if len(parent):
            return float(parent.iloc[0]) / float(run["steps"])
    return math.nan


def _accuracies(study: Study, model: str, side: Side) -> BySeed:
    """Percent, by seed."""
    method, variant = side
    found = comparisons.seed_accuracies(study, model, method, comparisons.chosen_on(study), variant=variant)
    return {seed: 100 * accuracy for seed, accuracy in found.items()}


def _lengths(study: Study, model: str, side: Side) -> BySeed:
    task = comparisons.chosen_on(study).task
    return comparisons.seed_values(study, model, side[0], "num_tokens", task=task, variant=side[1])


def _last(study: Study, model: str, side: Side, metric: str) -> BySeed:
    method, variant = side
    return last_values(study, model, method, metric, variant=variant)


def _shared(numbers: Sequence[BySeed]) -> set[int]:
    """The seeds that all have, of those that have any."""
    return set.intersection(*(set(found) for found in numbers if found)) if any(numbers) else set()


def _joined(numbers: Sequence[BySeed]) -> str:
    """What the line of `_by_seed` joins, in words."""
    shared = sorted(_shared(numbers))
    return f"mean over the seeds that all have ({', '.join(map(str, shared))})" if shared else "none, no seed is common"


def _by_seed(ax: Axes, numbers: Sequence[BySeed], shown: str, title: str) -> None:
    """Seeds as circles at each place; the means of those that all places have are joined."""
    places, shared = [i for i, found in enumerate(numbers) if found], _shared(numbers)
    if shared:
        ax.plot(places, [fmean(numbers[i][seed] for seed in shared) for i in places], color=shown)
    for i in places:
        ax.plot([i] * len(numbers[i]), list(numbers[i].values()), color=shown, **SEED_DOTS)
    ax.set_xlim(-0.4, len(numbers) - 0.6)
    finish(ax, title, axis="y")
