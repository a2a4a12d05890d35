"""Figures 5 and 6: accuracy against cost, and a heat map of constraint kinds."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from uniapl.analysis import comparisons
from uniapl.analysis.collect import Study
from uniapl.analysis.costs import AXES, GENERATED_OPERATIONS, TRAINED_OPERATIONS, axis_costs
from uniapl.analysis.drawing import WIDTH_INCHES, finish
from uniapl.analysis.kinds import SEEN, kinds_of
from uniapl.analysis.labels import BASE, colour, marker, marker_size, short_label

DARK = 0.55  # share of instructions followed from which numbers are written in black


def figure5(study: Study, model: str) -> tuple[Figure, str]:
    """Accuracy against cost, one point a method."""
    of = comparisons.claimed_on(study)
    methods = study.methods(model)
    figure, axes = plt.subplots(1, len(AXES), figsize=(WIDTH_INCHES, 3.0), sharey=True, layout="constrained")
    for method in methods:
        reached = comparisons.accuracy(study, model, method, of, "prompt_strict")
        spent = axis_costs(study, model, method)
        for ax, key in zip(axes, AXES, strict=True):
            if method == BASE:
                ax.axhline(100 * reached.value, color=colour(BASE, methods), linewidth=0.8, linestyle=":")
            elif math.isfinite(reached.value) and math.isfinite(spent[key]):
                shown = colour(method, methods)
                ends = [100 * reached.low, 100 * reached.high]
                ax.plot([spent[key]] * 2, ends, color=shown, linewidth=0.9, alpha=0.6)
                size = marker_size(method, methods)
                ax.plot(spent[key], 100 * reached.value, marker(method, methods), color=shown, markersize=size)
    for ax, title in zip(axes, AXES.values(), strict=True):
        ax.set_xlabel(title)
        ax.margins(x=0.1)
        ax.set_xlim(left=0)
        finish(ax)
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))  # k, M, G, T
        ax.xaxis.set_major_locator(MaxNLocator(4))
    axes[0].set_ylabel(f"{of.title}, prompt strict, %")
    trained = [method for method in methods if method != BASE]
    handles = [
        Line2D([], [], linestyle="", marker=marker(m, methods), color=colour(m, methods), markersize=5) for m in trained
    ]
    if handles:
        names = [short_label(m, study.index["stages"]) for m in trained]
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(handles), 5))
    caption = (
        f"Figure 5. Accuracy on the {of.title.lower()} prompts against what the whole path cost ({study.models[model]},"
        f" mean over seeds, {study.claims.confidence:.0%} intervals; dotted: base). Operations: {TRAINED_OPERATIONS}"
        f" for each weight and token trained, {GENERATED_OPERATIONS} for each token generated; reading prompts and"
        " scoring answers are in the seconds only, probes in none."
    )
    return figure, caption


def figure6(study: Study, model: str) -> tuple[Figure, str]:
    """Heat map of kinds and methods."""
    methods, kinds = study.methods(model), kinds_of(study, model)
    shares = np.array(
        [[kind.accuracy(study, model, m, kind.scores(study, model, m)).value for m in methods] for kind in kinds]
    )
    figure, ax = plt.subplots(figsize=(WIDTH_INCHES, 1.2 + 0.19 * max(len(kinds), 2)), layout="constrained")
    if not kinds:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color="#777777")
        ax.set_axis_off()
    else:
        image = ax.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for row, column in np.ndindex(*shares.shape):
            share = shares[row, column]
            text = f"{100 * share:.0f}" if math.isfinite(share) else ""
            ax.text(column, row, text, ha="center", va="center", fontsize=6, color="black" if share > DARK else "white")
        names = [short_label(m, study.index["stages"]) for m in methods]
        ax.set_xticks(range(len(methods)), names, rotation=40, ha="left", rotation_mode="anchor")
        ax.xaxis.tick_top()
        ax.set_yticks(range(len(kinds)), [kind.name for kind in kinds])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        shown = sum(kind.heading == SEEN for kind in kinds)
        if 0 < shown < len(kinds):
            ax.axhline(shown - 0.5, color="white", linewidth=3)
        bar = figure.colorbar(image, ax=ax, fraction=0.03, pad=0.02, ticks=[0, 0.5, 1])
        bar.ax.set_yticklabels(["0%", "50%", "100%"])
        bar.outline.set_visible(False)
    caption = (
        f"Figure 6. Share of instructions followed by constraint kind ({study.models[model]}, held-out prompts, all"
        " seeds), %. Above the white line: kinds that training showed; below: kinds that it did not. The numbers with"
        " their intervals and how many instructions stand behind each are Table 3's."
    )
    return figure, caption
