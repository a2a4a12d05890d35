"""All figures of a study, each as .pdf, .svg, .png (300 dpi) and .txt (its caption), one file a model.

    python -m uniapl.analysis.figures ROOT --output DIR

1 response length and 2 mean token log-prob, each against the expert's; 3 training curves; 4 accuracies with
intervals; 5 accuracy against cost; 6 constraint kinds; 7 the discriminator over training; 8 the adversarial weight
and 9 when to switch where these ablations are. A method has one colour and one marker everywhere. The bytes depend on
the records alone.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from uniapl.analysis import comparisons, stats
from uniapl.analysis.ablation_figures import figure8, figure9
from uniapl.analysis.collect import Study, common, expert_values, read_study, values
from uniapl.analysis.curves import figure3, figure7
from uniapl.analysis.drawing import (
    STYLE,
    WIDTH_INCHES,
    density,
    expert_legend,
    histogram,
    outer_labels,
    panel_title,
    panels,
    same_height,
    same_reach,
    save,
)
from uniapl.analysis.labels import BASE, EXPERT_COLOUR, colour, marker, marker_size, plain_number, short_label
from uniapl.analysis.outputs import figure_numbers
from uniapl.analysis.summary_figures import figure5, figure6
from uniapl.entry import run_guarded

DENSITY_POINTS = 256
LENGTH_BINS = 16
DENSITIES_PER_ROW = 7


def figure1(study: Study, model: str) -> tuple[Figure, str]:
    """Response length of every method against the expert's, and where the cap cut."""
    methods = study.methods(model)
    cap = int(study.index["max_new_tokens"])
    edges = np.linspace(0, cap, min(LENGTH_BINS, cap) + 1)
    figure, axes = panels(len(methods), height=1.55)
    for ax, method in zip(axes, methods, strict=True):
        answers = values(study, model, method, task="heldout", column="num_tokens")
        answers, expert = common(answers, expert_values(study, model, method, column="num_tokens"))
        shown = colour(method, methods)
        histogram(ax, expert.hits_SP, edges, EXPERT_COLOUR, filled=True)
        histogram(ax, answers.hits_SP, edges, shown, filled=False)
        wasserstein, _ = comparisons.distances(study, model, method, "num_tokens")
        panel_title(ax, short_label(method, study.index["stages"]), distance_text(wasserstein, 1), shown)
        ax.set_xlim(0, cap * 1.02)
    same_height(axes)
    outer_labels(axes, "Response length, tokens", "Share of answers")
    expert_legend(figure)
    caption = _caption1(study, model, cap)
    return figure, caption


def _caption1(study: Study, model: str, cap: int) -> str:
    cut = []
    for method in study.methods(model):
        share = comparisons.mean(study, model, method, "truncated")
        if math.isfinite(share.value):
            cut.append(f"{study.label(method)} {plain_number(100 * share.value, 1)}%")
    expert = expert_values(study, model, study.methods(model)[0], column="num_tokens")
    at_cap = float((expert.hits_SP >= cap).mean()) if expert.hits_SP.size else math.nan
    if math.isfinite(at_cap):
        cut.append(f"expert {plain_number(100 * at_cap, 1)}% (demonstrations as long as the cap)")
    return (
        f"Figure 1. Length of the answers to the held-out prompts ({study.models[model]}), grey: the expert's"
        " demonstrations for the same prompts; light: from the lowest to the highest seed. W: Wasserstein-1 distance to"
        f" the expert in tokens with its {study.claims.confidence:.0%} interval (Table 4). Answers are cut at"
        f" {cap} tokens; share cut: {', '.join(cut)}."
    )


def distance_text(estimate: comparisons.Estimate, digits: int) -> str:
    """`W = 4.8 [3.9, 5.9]`."""
    if not math.isfinite(estimate.value):
        return "no answers"
    interval = f"[{plain_number(estimate.low, digits)}, {plain_number(estimate.high, digits)}]"
    return f"W = {plain_number(estimate.value, digits)} {interval}"


def figure2(study: Study, model: str) -> tuple[Figure, str]:
    """Mean token log-prob of the answers, under the base and under the trained model, against the expert's."""
    methods = study.methods(model)
    columns = min(len(methods), DENSITIES_PER_ROW)
    pairs = math.ceil(len(methods) / columns)
    figure, grid = plt.subplots(
        2 * pairs, columns, figsize=(WIDTH_INCHES, 0.3 + 2.8 * pairs), squeeze=False, layout="constrained"
    )
    for axes, column in ((grid[::2], "logprob_base"), (grid[1::2], "logprob_trained")):
        _densities(study, model, list(axes.ravel()), column)
        for row in axes:
            row[0].set_ylabel("under the\nbase model" if column == "logprob_base" else "under the\ntrained model")
    figure.supxlabel("Mean token log-prob of an answer, nats", fontsize=8)
    expert_legend(figure)
    caption = (
        f"Figure 2. Mean token log-prob of the held-out answers ({study.models[model]}), above under the base model,"
        " below under the model that gave the answers; grey: the expert's demonstrations for the same prompts under"
        " the same model. Kernel density estimates; light: from the lowest to the highest seed. W: Wasserstein-1"
        " distance in nats; its intervals stand in Table 4."
    )
    return figure, caption


def _densities(study: Study, model: str, axes: list[Axes], column: str) -> None:
    """One panel a method, all on the same scales."""
    methods = study.methods(model)
    found = []
    for method in methods:
        answers = values(study, model, method, task="heldout", column=column)
        found.append(common(answers, expert_values(study, model, method, column=column)))
    pooled = np.concatenate([part.hits_SP.ravel() for pair in found for part in pair] or [np.zeros(0)])
    low, high = np.quantile(pooled, (0.002, 0.998)) if pooled.size else (-1.0, 0.0)
    margin = 0.06 * (high - low) or 0.5
    points = np.linspace(low - margin, min(high + margin, 0.0), DENSITY_POINTS)  # log-probs are never above 0
    for ax, method, (answers, expert) in zip(axes, methods, found, strict=False):
        shown = colour(method, methods)
        density(ax, expert.hits_SP, points, EXPERT_COLOUR, filled=True)
        density(ax, answers.hits_SP, points, shown, filled=False)
        wasserstein = stats.wasserstein(answers.hits_SP, expert.hits_SP)
        title = short_label(method, study.index["stages"]).replace(", ", ",\n").replace(" → ", " →\n")
        detail = f"W = {plain_number(wasserstein, 2)}" if math.isfinite(wasserstein) else ""
        size = 8.0 if len(methods) < DENSITIES_PER_ROW else 6.5
        panel_title(ax, title if column == "logprob_base" else "", detail, shown, size=size)
        ax.set_xlim(points[0], points[-1])
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(3))
    same_height(axes[: len(methods)])
    for unused in axes[len(methods) :]:
        unused.remove()


def figure4(study: Study, model: str) -> tuple[Figure, str]:
    """Accuracies of every method on every evaluation, prompt and instruction level, with intervals."""
    methods = study.methods(model)
    evaluations = comparisons.evaluations(study)
    figure, axes = plt.subplots(
        1,
        max(len(evaluations), 1),
        figsize=(WIDTH_INCHES, 0.75 + 0.32 * len(methods)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    rows = np.arange(len(methods))[::-1]
    for ax, of in zip(axes[0], evaluations, strict=False):
        for row, method in zip(rows, methods, strict=True):
            for metric, offset, filled in (("prompt_strict", 0.14, True), ("inst_strict", -0.14, False)):
                estimate = comparisons.accuracy(study, model, method, of, metric)
                if not math.isfinite(estimate.value):
                    continue
                shown = colour(method, methods)
                if math.isfinite(estimate.low):
                    ax.plot(
                        [100 * estimate.low, 100 * estimate.high],
                        [row + offset] * 2,
                        color=shown,
                        linewidth=1.1,
                        zorder=2,
                    )
                ax.plot(
                    100 * estimate.value,
                    row + offset,
                    marker=marker(method, methods),
                    color=shown,
                    markersize=marker_size(method, methods),
                    markerfacecolor=shown if filled else "white",
                    zorder=3,
                )
                if method == BASE and filled:
                    ax.axvline(100 * estimate.value, color="#b0b0b0", linewidth=0.7, linestyle=":", zorder=1)
        ax.set_title(of.title.replace(", ", ",\n"))
        ax.grid(axis="x", color="#e8e8e8", linewidth=0.5)
        ax.set_axisbelow(True)
    same_reach([ax for ax, of in zip(axes[0], evaluations, strict=False) if of.task == "heldout"])
    for ax in axes[0]:
        ax.set_xlim(left=0)
    axes[0][0].set_yticks(rows, [short_label(m, study.index["stages"]) for m in methods])
    axes[0][0].set_ylim(-0.6, len(methods) - 0.4)
    figure.supxlabel("Strict accuracy, %", fontsize=8)
    handles = [
        Line2D([], [], linestyle="", marker="o", color="#222222", markerfacecolor=f, markersize=5)
        for f in ("#222222", "white")
    ]
    figure.legend(handles, ["prompts", "instructions"], loc="outside lower right", ncols=2)
    caption = (
        f"Figure 4. Strict accuracy ({study.models[model]}) with {study.claims.confidence:.0%} intervals: filled,"
        " prompts whose constraints all hold; hollow, instructions that hold. Dotted: the base model's prompt"
        " accuracy. Intervals are of each accuracy; differences are paired by prompt and stand in Table 1."
    )
    return figure, caption


FIGURES = {
    1: figure1, 2: figure2, 3: figure3, 4: figure4, 5: figure5, 6: figure6, 7: figure7, 8: figure8, 9: figure9,
}  # fmt: skip


def main(root: Path, output: Path) -> None:
    """Read the study below `root` and write its figures into `output`."""
    study = read_study(root)
    output.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for model in study.models:
            for number in figure_numbers(study.index):
                figure, caption = FIGURES[number](study, model)
                save(figure, caption, output / f"figure{number}_{model}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw all figures of a study.")
    parser.add_argument("root", type=Path, help="folder with study.json")
    parser.add_argument("--output", type=Path, required=True, help="folder for the figures")
    arguments = parser.parse_args()
    run_guarded(lambda: main(arguments.root, arguments.output))
