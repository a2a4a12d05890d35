"""What figures share: style, panels, the marks of a distribution against the expert's, and how they are saved."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from scipy import stats as distributions

from uniapl.analysis.labels import EXPERT_COLOUR
from uniapl.provenance import write_whole

WIDTH_INCHES = 7.0  # text width of a two-column paper
PANELS_PER_ROW = 3
BAND_ALPHA = 0.22  # of what lies between seeds
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
    "svg.hashsalt": "uniapl",  # names of clip paths in the file
    "savefig.dpi": 300,
    "figure.dpi": 100,
    "legend.frameon": False,
}


def panels(count: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """`count` small panels in rows of three with common axes, `height` inches each."""
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


def panel_title(ax: Axes, name: str, detail: str, shown: str, *, size: float = 8.0) -> None:
    """The name above in its colour, `size` points; a number in the upper right corner."""
    ax.set_title(name, loc="left", color=shown, fontweight="bold", fontsize=size)
    ax.text(0.98, 0.97, detail, transform=ax.transAxes, ha="right", va="top", fontsize=7, color="#333333")


def histogram(ax: Axes, values_SP: np.ndarray, edges: np.ndarray, shown: str, *, filled: bool) -> None:
    """Shares of all seeds' values; behind the line, from the smallest to the largest share that a seed has."""
    if not values_SP.size:
        return
    clipped_SP = np.clip(values_SP, edges[0], edges[-1])
    heights_SB = np.array([np.histogram(row, edges)[0] / row.size for row in clipped_SP])
    if filled:
        ax.stairs(heights_SB.mean(axis=0), edges, fill=True, color=shown, alpha=0.45, linewidth=0)
        return
    _band(ax, edges, *(np.append(ends, ends[-1]) for ends in (heights_SB.min(axis=0), heights_SB.max(axis=0))), shown)
    ax.stairs(heights_SB.mean(axis=0), edges, color=shown, linewidth=1.3)


def density(ax: Axes, values_SP: np.ndarray, points: np.ndarray, shown: str, *, filled: bool) -> None:
    """The mean of the seeds' kernel densities, and the band of them; one bar where all numbers are the same."""
    if not values_SP.size:
        return
    if values_SP.size < 2 or np.ptp(values_SP) == 0:
        ax.axvline(float(values_SP.flat[0]), color=shown, linewidth=1.3)
        return
    apart = [row for row in values_SP if np.ptp(row) > 0] or [values_SP.ravel()]
    each = np.array([distributions.gaussian_kde(row)(points) for row in apart])
    if filled:
        ax.fill_between(points, each.mean(axis=0), color=shown, alpha=0.45, linewidth=0)
        return
    ax.plot(points, each.mean(axis=0), color=shown)
    ax.fill_between(points, each.min(axis=0), each.max(axis=0), color=shown, alpha=BAND_ALPHA, linewidth=0)


def _band(ax: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, shown: str) -> None:
    """From the lowest to the highest seed, as steps; nothing where there is one."""
    if (high > low).any():
        ax.fill_between(x, low, high, step="post", color=shown, alpha=BAND_ALPHA, linewidth=0)


def finish(ax: Axes, title: str = "", *, axis: Literal["both", "x", "y"] = "both") -> None:
    """A panel's title and faint grid; said where nothing was drawn."""
    ax.set_title(title, loc="left")
    ax.grid(axis=axis, color="#eeeeee", linewidth=0.5)
    ax.set_axisbelow(True)
    if not ax.lines:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color="#777777")


def same_height(axes: Sequence[Axes]) -> None:
    """Room above the tallest bar, so that the text at the top hides nothing."""
    top = max((ax.get_ylim()[1] for ax in axes), default=1.0)
    for ax in axes:
        ax.set_ylim(0, top * 1.22)


def same_reach(axes: Sequence[Axes]) -> None:
    """One horizontal scale for panels that are compared with each other."""
    right = max((ax.get_xlim()[1] for ax in axes), default=1.0)
    for ax in axes:
        ax.set_xlim(right=right)


def outer_labels(axes: Sequence[Axes], x: str, y: str) -> None:
    """Labels at the left and the lower edge of a grid of panels."""
    for i, ax in enumerate(axes):
        if i + PANELS_PER_ROW >= len(axes):
            ax.set_xlabel(x)
            ax.tick_params(labelbottom=True)
        if i % PANELS_PER_ROW == 0:
            ax.set_ylabel(y)


def expert_legend(figure: Figure) -> None:
    """What grey and line are."""
    handles = [
        Rectangle((0, 0), 1, 1, color=EXPERT_COLOUR, alpha=0.45, linewidth=0),
        Line2D([], [], color="#222222"),
    ]
    figure.legend(handles, ["expert", "method"], loc="outside upper right", ncols=2, borderaxespad=0.2)


def save(figure: Figure, caption: str, stem: Path) -> None:
    """Write stem.pdf, .svg and .png, and the caption as .txt, without dates or names of programs."""
    for suffix, metadata in (
        ("pdf", {"CreationDate": None, "Producer": None, "Creator": None}),
        ("svg", {"Date": None, "Creator": None}),
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
