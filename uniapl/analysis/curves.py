"""Figure 3: what training did, step by step; stages of a path are laid end to end."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from uniapl.analysis.collect import MAIN, Study
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
    frame = study.metrics[(study.metrics["model"] == model) & (study.metrics["variant"] == MAIN)]
    figure, grid = plt.subplots(2, 3, figsize=(WIDTH_INCHES, 3.9), layout="constrained", sharex=True)
    drawn: dict[str, plt.Line2D] = {}
    for ax, (metric, title) in zip(grid.ravel(), CURVES.items(), strict=True):
        for method in methods:
            curve = _mean_over_seeds(frame[frame["method"] == method], metric)
            if curve.empty:
                continue
            shown, symbol = colour(method, methods), marker(method, methods)
            size = 0.7 * marker_size(method, methods)
            _draw(ax, curve, _first_step(study, model, method), shown, symbol, size)
            drawn[method] = plt.Line2D([], [], color=shown, marker=symbol, markersize=size)
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
    chosen = study.runs[
        (study.runs["model"] == model) & (study.runs["method"] == method) & (study.runs["variant"] == MAIN)
    ]
    parents = study.runs[study.runs["directory"].isin(chosen["parent"].dropna())]
    return int(parents["steps"].max()) if len(parents) else 0


def _mean_over_seeds(frame: pd.DataFrame, metric: str) -> pd.Series:
    """Values by step where every seed has one; steps of the stage, from 1."""
    if metric not in frame or frame.empty:
        return pd.Series(dtype=float)
    known = frame[frame[metric].notna()]
    return known.groupby(known["step"].astype(int))[metric].apply(lambda column: column.astype(float).mean())


def _draw(ax: Axes, curve: pd.Series, offset: int, shown: str, symbol: str, size: float) -> None:
    """Draw one curve: smoothed where most steps have a value, else its points."""
    steps, heights = curve.index.to_numpy() + offset, curve.to_numpy(dtype=float)
    often = len(steps) > MEASURED_OFTEN * (curve.index.max() - curve.index.min() + 1)
    if often and len(steps) > SMOOTHED_STEPS:
        ax.plot(steps, heights, color=shown, alpha=0.28, linewidth=0.8)
        smooth = pd.Series(heights).rolling(SMOOTHED_STEPS, center=True, min_periods=1).mean()
        ax.plot(steps, smooth, color=shown)
    else:
        ax.plot(steps, heights, color=shown, marker=symbol, markersize=size, linewidth=0.9)
