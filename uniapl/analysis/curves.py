"""Figures 3 and 7: what training did, step by step; stages of a path are laid end to end."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from uniapl.analysis.collect import MAIN, Study, seed_curves
from uniapl.analysis.drawing import BAND_ALPHA, WIDTH_INCHES, finish
from uniapl.analysis.labels import UNIAPL, colour, marker, marker_size, prominent, short_label
from uniapl.analysis.outputs import JUDGES

SMOOTHED_STEPS = 5  # centred moving average
MEASURED_OFTEN = 0.5  # share of steps with a value above which a curve is smoothed and drawn without markers
FAINT = "#c4c4c4"
CURVES = {
    "reward/mean": "Reward",
    "length/mean_tokens": "Mean length, tokens",
    "entropy/mean_nats": "Entropy, nats per token",
    "kl/start_nats": "KL to the start, nats per token",
    "adv/score_mean": "Discriminator score",
    "sampler/gap_nats": "Sampler gap, nats per token",
}
JUDGE_CURVES = {"adv/score_mean": "Discriminator score of the rollouts", "adv/auc": "AUC, expert against policy"}
JUDGE_STYLES = ("--", ":", "-.")


def figure3(study: Study, model: str) -> tuple[Figure, str]:
    """Training curves, one line a method."""
    methods = study.methods(model)
    shown = prominent(methods)
    figure, grid = plt.subplots(2, 3, figsize=(WIDTH_INCHES, 3.9), layout="constrained", sharex=True)
    drawn: dict[str, Line2D] = {}
    for ax, (metric, title) in zip(grid.ravel(), CURVES.items(), strict=True):
        for method in (*(m for m in methods if m not in shown), *shown):
            curve = seed_curves(study, model, method, metric)
            if not curve:
                continue
            first = _first_step(study, model, method)
            if method not in shown:
                means = [sum(values) / len(values) for values in curve.values()]
                ax.plot(np.array(list(curve)) + first, means, color=FAINT, linewidth=0.6, zorder=1)
                continue
            line, symbol = colour(method, methods), marker(method, methods)
            size = 0.7 * marker_size(method, methods)
            _draw(ax, curve, first, line, symbol=symbol, size=size)
            drawn[method] = Line2D([], [], color=line, marker=symbol, markersize=size)
        finish(ax, title)
    for ax in grid[1]:
        ax.set_xlabel("Step")
    if drawn:
        names = [short_label(method, study.index["stages"]) for method in drawn]
        figure.legend(list(drawn.values()), names, loc="outside lower center", ncols=min(len(drawn), 5))
    others = " Grey lines: the other methods, to be told apart on the page." if len(shown) < len(methods) else ""
    caption = (
        f"Figure 3. Training ({study.models[model]}): dark, mean over seeds, moving average of {SMOOTHED_STEPS} steps;"
        " light, from the lowest to the highest seed, or what the one seed measured; points joined by lines, terms that"
        " a stage does not draw and that are measured every few steps. The second stage of a path starts where the"
        " first one ended. Entropy is over the sequences in the update: all rollouts with an adversarial term, else"
        " those of groups whose rewards differ. Discriminator score: mean over the step's rollouts, higher is closer to"
        f" the expert. Sampler gap: mean |log-prob of trainer - of sampler|.{others}"
    )
    return figure, caption


def figure7(study: Study, model: str) -> tuple[Figure, str]:
    """Score and AUC of the discriminator over training: is it exploited?"""
    methods = study.methods(model)
    lines = [(method, MAIN, "-") for method in methods]
    judges = [v for v in dict.fromkeys(e["variant"] for e in study.index["evaluations"]) if v.startswith(JUDGES)]
    lines += [(UNIAPL, judge, JUDGE_STYLES[i % len(JUDGE_STYLES)]) for i, judge in enumerate(judges)]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH_INCHES, 2.6), layout="constrained", sharex=True)
    drawn: dict[str, Line2D] = {}
    for ax, (metric, title) in zip(axes, JUDGE_CURVES.items(), strict=True):
        for method, variant, style in lines:
            curve = seed_curves(study, model, method, metric, variant=variant)
            if not curve:
                continue
            line, name = colour(method, methods), short_label(method, study.index["stages"])
            first = _first_step(study, model, method) if variant == MAIN else 0
            _draw(ax, curve, first, line, symbol=marker(method, methods), size=4.0, style=style)
            name += "" if variant == MAIN else f", {variant.removeprefix(JUDGES)}"
            drawn[name] = Line2D([], [], color=line, linestyle=style, marker=marker(method, methods), markersize=4.0)
        finish(ax, title)
        if metric == "adv/auc":
            ax.axhline(0.5, color="#b0b0b0", linewidth=0.7, linestyle=":")
        ax.set_xlabel("Step")
    if drawn:
        figure.legend(list(drawn.values()), list(drawn), loc="outside lower center", ncols=min(len(drawn), 4))
    caption = (
        f"Figure 7. The discriminator over training ({study.models[model]}): left, its mean score of the rollouts;"
        " right, the share of pairs, a demonstration and the policy's answer to the same prompt, that it ranks right,"
        " on prompts that it was not trained on (0.5: it cannot tell them apart). Light: from the lowest to the highest"
        " seed, or what the one seed measured. A fixed discriminator whose AUC falls while accuracy does not rise is"
        " being exploited. Broken lines: other discriminators, each judged by its own scores."
    )
    return figure, caption


def _first_step(study: Study, model: str, method: str) -> int:
    """Steps that the stages before the last one took."""
    runs = study.runs.to_dict("records")
    parents = {r["parent"] for r in runs if (r["model"], r["method"], r["variant"]) == (model, method, MAIN)}
    return max((int(r["steps"]) for r in runs if r["directory"] in parents), default=0)


def _draw(
    ax: Axes, curve: dict[int, list[float]], offset: int, shown: str, *, symbol: str, size: float, style: str = "-"
) -> None:
    """Draw one curve: smoothed where most steps have a value, else its points; the seeds' range behind it."""
    steps = np.array(list(curve)) + offset
    means, lows, highs = (np.array([f(values) for values in curve.values()]) for f in (np.mean, np.min, np.max))
    often = len(steps) > MEASURED_OFTEN * (steps[-1] - steps[0] + 1)
    smoothed = often and len(steps) > SMOOTHED_STEPS
    mean, low, high = (_smooth(heights) if smoothed else heights for heights in (means, lows, highs))
    if max(map(len, curve.values())) > 1:
        ax.fill_between(steps, low, high, color=shown, alpha=BAND_ALPHA, linewidth=0)
    elif smoothed:
        ax.plot(steps, means, color=shown, alpha=0.28, linewidth=0.8)
    if smoothed:
        ax.plot(steps, mean, color=shown, linestyle=style)
    else:
        ax.plot(steps, mean, color=shown, linestyle=style, marker=symbol, markersize=size, linewidth=0.9)


def _smooth(heights: np.ndarray) -> np.ndarray:
    half = SMOOTHED_STEPS // 2
    return np.array([heights[max(0, i - half) : i + half + 1].mean() for i in range(len(heights))])
