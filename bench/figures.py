"""The bench's figures as SVG: seconds of a step by part and side, and cost against size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH_INCHES = 7.0
BAR_INCHES = 0.26
STYLE: dict[str, Any] = {
    "font.size": 8, "axes.titlesize": 8, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "svg.hashsalt": "bench", "svg.fonttype": "path",
}  # fmt: skip
COLOURS = {"sample": "#0072b2", "score": "#cc79a7", "update": "#e69f00", "push": "#009e73", "other": "#999999"}
LABELS = {
    "ours": "GRPO, ours", "ours_uniapl": "UniAPL, ours", "ours_sft": "SFT, ours", "trl": "TRL", "trl_vllm": "TRL, vLLM",
    "trl_no_checkpointing": "TRL, no checkpointing", "trl_large_batch": "TRL, 32 a batch, no checkpointing",
    "trl_continuous_batching": "TRL, 32 a batch, continuous batching",
    "trl_sft": "TRL, packing", "trl_sft_no_checkpointing": "TRL, packing, no checkpointing",
}  # fmt: skip


def write_steps(cases: dict[str, Any], file: Path) -> None:
    """A panel for each case: a bar for each side, seconds by part (medians), the ratio of the whole step behind it."""
    with plt.rc_context(STYLE):
        heights = [1.5 + sum("seconds" in side for side in case["sides"].values()) for case in cases.values()]
        figure, axes = plt.subplots(
            len(cases), 1, figsize=(WIDTH_INCHES, BAR_INCHES * sum(heights) + 0.7), squeeze=False,
            height_ratios=heights, layout="constrained",
        )  # fmt: skip
        for ax, case in zip(axes[:, 0], cases.values(), strict=True):
            _bars(ax, case)
        axes[-1, 0].set_xlabel("Seconds of a step")
        handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
        figure.legend(handles, COLOURS, loc="outside upper center", ncols=len(COLOURS))
        _save(figure, file)


def _bars(ax: Axes, case: dict[str, Any]) -> None:
    sides = [(name, side) for name, side in case["sides"].items() if "seconds" in side]
    for row, (_, side) in enumerate(sides):
        medians = {part: seconds["seconds_median"] for part, seconds in side["seconds"].items()}
        whole = medians.pop("step")
        end = 0.0
        for part, seconds in (medians | {"other": max(0.0, whole - sum(medians.values()))}).items():
            ax.barh(row, seconds, left=end, height=0.7, color=COLOURS[part])
            end += seconds
        times = f", {side['ratios']['step']:.2f} ×" if "ratios" in side else ""
        ax.text(end, row, f" {whole:.1f} s{times}", va="center")
    ax.set_yticks(range(len(sides)), [LABELS.get(name, name) for name, _ in sides])
    ax.set_ylim(len(sides) - 0.4, -0.6)
    ax.set_xlim(0, 1.2 * max((side["seconds"]["step"]["seconds_median"] for _, side in sides), default=1.0))
    ax.set_title(case["title"], loc="left")


def write_scale(series: dict[str, Any], resident: list[list[float]], file: Path) -> None:
    """A panel for each series with its line and R², and one for resident memory against steps."""
    with plt.rc_context(STYLE):
        count = len(series) + 1
        figure, axes = plt.subplots(
            -(-count // 3), 3, figsize=(WIDTH_INCHES, 1.9 * -(-count // 3)), squeeze=False, layout="constrained"
        )
        for ax in axes.flat[count:]:
            ax.axis("off")
        for ax, one in zip(axes.flat, series.values(), strict=False):
            x, y = one["x"], one["seconds"]
            ax.plot(x, y, "o", color=COLOURS["sample"], markersize=4)
            ends = [min(x), max(x)]
            ax.plot(ends, [one["intercept"] + one["slope"] * value for value in ends], color=COLOURS["update"])
            ax.set_title(f"R² = {one['r_squared']:.3f}", loc="left")
            ax.set(xlabel=one["label"], ylabel="Seconds", ylim=(0, 1.1 * max(y)))
        ax = axes.flat[count - 1]
        steps, megabytes = zip(*resident, strict=True)
        ax.plot(steps, [value / 1e6 for value in megabytes], color=COLOURS["push"])
        ax.set(xlabel="Steps", ylabel="Resident, MB", ylim=(0, 1.15 * max(megabytes) / 1e6))
        _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
