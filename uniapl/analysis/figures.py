"""All figures of a study, each as .pdf, .png (300 dpi) and .txt (its caption), one file a model.

    python -m uniapl.analysis.figures ROOT --output DIR

1 response length and 2 mean token log-prob, each against the expert's; 3 training curves; 4 accuracies with
intervals. A method has one colour and one marker everywhere. The bytes depend on the records alone.
"""

from __future__ import annotations

import argparse
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from scipy import stats as distributions

from uniapl.analysis import comparisons
from uniapl.analysis.collect import Study, common, expert_values, read_study, values
from uniapl.analysis.curves import figure3
from uniapl.analysis.labels import BASE, EXPERT_COLOUR, colour, marker, marker_size, plain_number, short_label
from uniapl.entry import run_guarded
from uniapl.provenance import write_whole

WIDTH_INCHES = 7.0  # text width of a two-column paper
PANELS_PER_ROW = 3
DENSITY_POINTS = 256
LENGTH_BINS = 16
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
    "figure.dpi": 100,
    "legend.frameon": False,
}


def figure1(study: Study, model: str) -> tuple[Figure, str]:
    """Response length of every method against the expert's, and where the cap cut."""
    methods = study.methods(model)
    cap = int(study.index["max_new_tokens"])
    edges = np.linspace(0, cap, min(LENGTH_BINS, cap) + 1)
    figure, axes = _panels(len(methods), height=1.55)
    for ax, method in zip(axes, methods, strict=True):
        answers = values(study, model, method, task="heldout", column="num_tokens")
        answers, expert = common(answers, expert_values(study, model, method, column="num_tokens"))
        shown = colour(method, methods)
        _histogram(ax, expert.hits_SP.ravel(), edges, EXPERT_COLOUR, filled=True)
        _histogram(ax, answers.hits_SP.ravel(), edges, shown, filled=False)
        wasserstein, _ = comparisons.distances(study, model, method, "num_tokens")
        _panel_title(ax, short_label(method, study.index["stages"]), _distance_text(wasserstein, 1), shown)
        ax.set_xlim(0, cap * 1.02)
    _same_height(axes)
    _outer_labels(axes, "Response length, tokens", "Share of answers")
    _expert_legend(figure)
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
        " demonstrations for the same prompts. W: Wasserstein-1 distance to the expert in tokens with its"
        f" {study.claims.confidence:.0%} interval (prompts resampled). Answers are cut at {cap} tokens; share cut:"
        f" {', '.join(cut)}."
    )


def figure2(study: Study, model: str) -> tuple[Figure, str]:
    """Mean token log-prob of the answers, under the base and under the trained model, against the expert's."""
    methods = study.methods(model)
    figure, grid = plt.subplots(
        2, len(methods), figsize=(WIDTH_INCHES, 3.1), sharex="row", sharey="row", squeeze=False, layout="constrained"
    )
    for axes, column in zip(grid, ("logprob_base", "logprob_trained"), strict=True):
        found = []
        for method in methods:
            answers = values(study, model, method, task="heldout", column=column)
            found.append(common(answers, expert_values(study, model, method, column=column)))
        pooled = np.concatenate([part.hits_SP.ravel() for pair in found for part in pair] or [np.zeros(0)])
        low, high = np.quantile(pooled, (0.002, 0.998)) if pooled.size else (-1.0, 0.0)
        margin = 0.06 * (high - low) or 0.5
        points = np.linspace(low - margin, min(high + margin, 0.0), DENSITY_POINTS)  # log-probs are never above 0
        for ax, method, (answers, expert) in zip(axes, methods, found, strict=True):
            shown = colour(method, methods)
            _density(ax, expert.hits_SP.ravel(), points, EXPERT_COLOUR, filled=True)
            _density(ax, answers.hits_SP.ravel(), points, shown, filled=False)
            wasserstein, _ = comparisons.distances(study, model, method, column)
            title = short_label(method, study.index["stages"]).replace(", ", ",\n") if column == "logprob_base" else ""
            detail = f"W = {plain_number(wasserstein.value, 2)}" if math.isfinite(wasserstein.value) else ""
            _panel_title(ax, title, detail, shown)
            ax.set_xlim(points[0], points[-1])
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
            ax.xaxis.set_major_locator(MaxNLocator(3))
        axes[0].set_ylabel("under the\nbase model" if column == "logprob_base" else "under the\ntrained model")
        _same_height(axes)
    figure.supxlabel("Mean token log-prob of an answer, nats", fontsize=8)
    _expert_legend(figure)
    caption = (
        f"Figure 2. Mean token log-prob of the held-out answers ({study.models[model]}), above under the base model,"
        " below under the model that gave the answers; grey: the expert's demonstrations for the same prompts under"
        " the same model. Kernel density estimates. W: Wasserstein-1 distance in nats; its intervals stand in Table 4."
    )
    return figure, caption


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
    _same_reach([ax for ax, of in zip(axes[0], evaluations, strict=False) if of.task == "heldout"])
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


FIGURES = {1: figure1, 2: figure2, 3: figure3, 4: figure4}


def _panels(count: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """Small panels in rows of three with common axes."""
    columns = min(PANELS_PER_ROW, max(count, 1))
    rows = math.ceil(max(count, 1) / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(WIDTH_INCHES, height * rows + 0.45),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    axes = list(grid.ravel())
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _panel_title(ax: Axes, name: str, detail: str, shown: str) -> None:
    ax.set_title(name, loc="left", color=shown, fontweight="bold")
    ax.text(0.98, 0.97, detail, transform=ax.transAxes, ha="right", va="top", fontsize=7, color="#333333")


def _distance_text(estimate: comparisons.Estimate, digits: int) -> str:
    if not math.isfinite(estimate.value):
        return "no answers"
    interval = f"[{plain_number(estimate.low, digits)}, {plain_number(estimate.high, digits)}]"
    return f"W = {plain_number(estimate.value, digits)} {interval}"


def _histogram(ax: Axes, numbers: np.ndarray, edges: np.ndarray, shown: str, *, filled: bool) -> None:
    if not numbers.size:
        return
    weights = np.full(numbers.size, 1 / numbers.size)
    clipped = np.clip(numbers, edges[0], edges[-1])
    if filled:
        ax.hist(clipped, list(edges), weights=weights, color=shown, alpha=0.45, linewidth=0)
    else:
        ax.hist(clipped, list(edges), weights=weights, histtype="step", color=shown, linewidth=1.3)


def _density(ax: Axes, numbers: np.ndarray, points: np.ndarray, shown: str, *, filled: bool) -> None:
    """A kernel density; one bar where all numbers are the same."""
    if not numbers.size:
        return
    if numbers.size < 2 or np.ptp(numbers) == 0:
        ax.axvline(float(numbers[0]), color=shown, linewidth=1.3)
        return
    height = distributions.gaussian_kde(numbers)(points)
    if filled:
        ax.fill_between(points, height, color=shown, alpha=0.45, linewidth=0)
    else:
        ax.plot(points, height, color=shown)


def _same_height(axes: Sequence[Axes]) -> None:
    """Room above the tallest bar, so that the text at the top hides nothing."""
    top = max((ax.get_ylim()[1] for ax in axes), default=1.0)
    for ax in axes:
        ax.set_ylim(0, top * 1.22)


def _same_reach(axes: Sequence[Axes]) -> None:
    """One horizontal scale for panels that are compared with each other."""
    right = max((ax.get_xlim()[1] for ax in axes), default=1.0)
    for ax in axes:
        ax.set_xlim(right=right)


def _outer_labels(axes: Sequence[Axes], x: str, y: str) -> None:
    for i, ax in enumerate(axes):
        if i + PANELS_PER_ROW >= len(axes):
            ax.set_xlabel(x)
            ax.tick_params(labelbottom=True)
        if i % PANELS_PER_ROW == 0:
            ax.set_ylabel(y)


def _expert_legend(figure: Figure) -> None:
    handles = [
        Rectangle((0, 0), 1, 1, color=EXPERT_COLOUR, alpha=0.45, linewidth=0),
        Line2D([], [], color="#222222"),
    ]
    figure.legend(handles, ["expert", "method"], loc="outside upper right", ncols=2, borderaxespad=0.2)


def save(figure: Figure, caption: str, stem: Path) -> None:
    """Write stem.pdf, stem.png and stem.txt without dates or names of programs."""
    for suffix, metadata in (
        ("pdf", {"CreationDate": None, "Producer": None, "Creator": None}),
        ("png", {"Software": None}),
    ):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, metadata=metadata)
        temporary = stem.with_name(f".{stem.name}.{suffix}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(buffer.getvalue())
            temporary.replace(stem.with_name(f"{stem.name}.{suffix}"))
        finally:
            temporary.unlink(missing_ok=True)
    write_whole(stem.with_name(f"{stem.name}.txt"), caption + "\n")
    plt.close(figure)


def main(root: Path, output: Path) -> None:
    """Read the study below `root` and write its figures into `output`."""
    study = read_study(root)
    output.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for model in study.models:
            for number, draw in FIGURES.items():
                figure, caption = draw(study, model)
                save(figure, caption, output / f"figure{number}_{model}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw all figures of a study.")
    parser.add_argument("root", type=Path, help="folder with study.json")
    parser.add_argument("--output", type=Path, required=True, help="folder for the figures")
    arguments = parser.parse_args()
    run_guarded(lambda: main(arguments.root, arguments.output))
