"""Figure 3: what training did, step by step; stages of a path are laid end to end."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from uniapl.analysis.collect import MAIN, Study, curve_of
from uniapl.analysis.labels import colour, marker, marker_size, short_label

WIDTH_INCHES = 7.0
SMOOTHED_STEPS = 5  # centred moving average
MEASURED_OFTEN = 0.5  # share of steps with a value above which a curve is smoothed and drawn without markers
CURVES = {
    "reward/mean": "Reward",
    "length/mean_tokens": "Mean length, tokens",
    "entropy/mean_nats": "Entropy, nats per token",
    "kl/start_nats": "KL to the start, nats per token",
    "adv/score_mean": "Discriminator score",
    "sampler/gap_nats": "Sampler gap, nats per token",
}


def figure3(study: Study, model: str) -> tuple[Figure, str]:
    """Training curves, one line a method: mean over seeds, light as measured, dark smoothed."""
    methods = study.methods(model)
    figure, grid = plt.subplots(2, 3, figsize=(WIDTH_INCHES, 3.9), layout="constrained", sharex=True)
    drawn: dict[str, Line2D] = {}
    for ax, (metric, title) in zip(grid.ravel(), CURVES.items(), strict=True):
        for method in methods:
            curve = curve_of(study, model, method, metric)
            if not curve:
                continue
            shown, symbol = colour(method, methods), marker(method, methods)
            size = 0.7 * marker_size(method, methods)
            _draw(ax, curve, _first_step(study, model, method), shown, symbol, size)
            drawn[method] = Line2D([], [], color=shown, marker=symbol, markersize=size)
        ax.set_title(title, loc="left")
        ax.grid(color="#eeeeee", linewidth=0.5)
        ax.set_axisbelow(True)
        if not ax.lines:
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color="#777777")
    for ax in grid[1]:
        ax.set_xlabel("Step")
    if drawn:
        names = [short_label(method, study.index["stages"]) for method in drawn]
        figure.legend(list(drawn.values()), names, loc="outside lower center", ncols=min(len(drawn), 5))
    caption = (
        f"Figure 3. Training ({study.models[model]}): light, as measured (mean over seeds); dark, moving average of"
        f" {SMOOTHED_STEPS} steps; points joined by lines, terms that a stage does not draw and that are measured every"
        " few steps. The second stage of a path starts where the first one ended. Discriminator score: mean over the"
        " step's rollouts, higher is closer to the expert. Sampler gap: mean |log-prob of trainer - of sampler|."
    )
    return figure, caption


def _first_step(study: Study, model: str, method: str) -> int:
    """Steps that the stages before the last one took."""
    runs = study.runs.to_dict("records")
    parents = {r["parent"] for r in runs if (r["model"], r["method"], r["variant"]) == (model, method, MAIN)}
    return max((int(r["steps"]) for r in runs if r["directory"] in parents), default=0)


def _draw(ax: Axes, curve: dict[int, float], offset: int, shown: str, symbol: str, size: float) -> None:
    """Draw one curve: smoothed where most steps have a value, else its points."""
    steps, heights = np.array(list(curve)) + offset, np.array(list(curve.values()))
    often = len(steps) > MEASURED_OFTEN * (steps[-1] - steps[0] + 1)
    if often and len(steps) > SMOOTHED_STEPS:
        ax.plot(steps, heights, color=shown, alpha=0.28, linewidth=0.8)
        half = SMOOTHED_STEPS // 2
        smooth = [heights[max(0, i - half) : i + half + 1].mean() for i in range(len(heights))]
        ax.plot(steps, smooth, color=shown)
    else:
        ax.plot(steps, heights, color=shown, marker=symbol, markersize=size, linewidth=0.9)
