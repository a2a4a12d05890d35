"""What a method is called and drawn like, the same in every table and figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

BASE = "base"
BASELINE = "grpo"  # the method that UniAPL is compared with
UNIAPL = "uniapl"
CHORD = "chord_mu"  # UniAPL with a weight of 0
EQUAL_COMPUTE = "grpo.grpo"
EXPERT_COLOUR = "#9a9a9a"

# Okabe and Ito's palette, told apart with any colour vision; base is dark grey.
COLOURS = {
    BASE: "#4d4d4d",
    "sft": "#0072B2",
    BASELINE: "#E69F00",
    "sft.grpo": "#009E73",
    UNIAPL: "#D55E00",
    EQUAL_COMPUTE: "#CC79A7",
}
MARKERS = {BASE: "o", "sft": "s", BASELINE: "^", "sft.grpo": "D", UNIAPL: "*", EQUAL_COMPUTE: "v"}
OTHER_COLOURS = ("#56B4E9", "#8C6D31", "#6A3D9A", "#B2182B", "#1B7837", "#000000", "#44AA99", "#DD66AA")
OTHER_MARKERS = ("P", "X", "<", ">", "h", "p", "d", "8")
# Lines of the page's curves, as SVG writes them: lengths of strokes and gaps, solid where there are none.
DASHES = {UNIAPL: "", BASELINE: "9 4", "sft": "2 3", "sft.grpo": "9 3 2 3", EQUAL_COMPUTE: "9 3 2 3 2 3"}
OTHER_DASHES = ("", "9 4", "2 3", "9 3 2 3", "16 4", "5 3", "16 3 2 3", "5 3 2 3")
MOST_COLOURED = 7  # methods whose lines can be told apart in one panel

GROUPS = {"all": "Held-out", "seen": "Held-out, seen kinds", "unseen": "Held-out, unseen kinds"}
TASKS = {"heldout": "Held-out", "development": "Development", "ifbench": "IFBench", "ifeval": "IFEval"}
GENERAL = {"mmlu": "MMLU", "gsm8k": "GSM8K", "humaneval": "HumanEval", "ceval-valid": "C-Eval"}


def method_label(method: str, stages: Mapping[str, str]) -> str:
    """A method's name in tables: titles of its stages joined by arrows; the row at equal compute says what it is."""
    if method == BASE:
        return "Base"
    if method == EQUAL_COMPUTE:
        return "GRPO at UniAPL's compute"
    return " → ".join(stages.get(stage, stage) for stage in method.split("."))


def short_label(method: str, stages: Mapping[str, str]) -> str:
    """The same, short enough for a figure's panel."""
    return "GRPO, equal compute" if method == EQUAL_COMPUTE else method_label(method, stages)


def method_order(methods: Sequence[str]) -> list[str]:
    """Base first, the row at equal compute right after the baseline, otherwise the study's order."""
    ordered = [m for m in dict.fromkeys(methods) if m not in (BASE, EQUAL_COMPUTE)]
    if EQUAL_COMPUTE in methods:
        place = ordered.index(BASELINE) + 1 if BASELINE in ordered else len(ordered)
        ordered.insert(place, EQUAL_COMPUTE)
    return [BASE, *ordered] if BASE in methods else ordered


def colour(method: str, methods: Sequence[str]) -> str:
    """A method's colour; methods outside the usual set take the next free ones in the study's order."""
    return COLOURS.get(method) or OTHER_COLOURS[_place(method, methods, COLOURS) % len(OTHER_COLOURS)]


def prominent(methods: Sequence[str]) -> list[str]:
    """Those drawn in colour where all share a panel: all of a few, else those that the claims compare."""
    return [m for m in methods if m in COLOURS or len(methods) <= MOST_COLOURED]


def marker(method: str, methods: Sequence[str]) -> str:
    """A method's marker, so that figures are read without colour too."""
    return MARKERS.get(method) or OTHER_MARKERS[_place(method, methods, MARKERS) % len(OTHER_MARKERS)]


def dashes(method: str, methods: Sequence[str]) -> str:
    """The strokes of a method's line, so that curves without markers are read without colour too."""
    found = DASHES.get(method)
    return OTHER_DASHES[_place(method, methods, COLOURS) % len(OTHER_DASHES)] if found is None else found


def marker_size(method: str, methods: Sequence[str]) -> float:
    """Points; a star needs more to look as large as the others."""
    return 8.0 if marker(method, methods) == "*" else 5.0


def _place(method: str, methods: Sequence[str], taken: Mapping[str, str]) -> int:
    others = [m for m in dict.fromkeys(methods) if m not in taken]
    return others.index(method) if method in others else 0


def plain_number(value: float, digits: int) -> str:
    """Fixed decimals with a true minus sign; empty for NaN. Noise of the last bits is rounded away first."""
    if not math.isfinite(value):
        return ""
    text = f"{round(value, 9):.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", "−")


def with_interval(
    value: float, low: float, high: float, digits: int, *, scale: float = 1.0, signed: bool = False
) -> str:
    """`41.5 [34.9, 48.4]`; empty for NaN."""
    if not math.isfinite(value):
        return ""
    text = plain_number(value * scale, digits)
    if signed and not text.startswith("−") and float(text) != 0:
        text = f"+{text}"
    if not (math.isfinite(low) and math.isfinite(high)):
        return text
    return f"{text} [{plain_number(low * scale, digits)}, {plain_number(high * scale, digits)}]"


def processor(hardware: Mapping[str, Any]) -> str:
    """`AMD EPYC (avx2)`: a manifest's processor with its instructions, which early ones do not name."""
    named = ", ".join(hardware.get("instructions", ["instructions not recorded"]))
    return f"{hardware.get('cpu', '?')}{f' ({named})' if named else ''}"


def processors(hardware: Mapping[str, Any]) -> str:
    """The processor and the GPUs of a manifest."""
    return ", ".join([processor(hardware), *hardware.get("gpus", [])])


def p_value(p: float) -> str:
    """`p = 0.031`, `p < 0.001`; empty for NaN."""
    if not math.isfinite(p):
        return ""
    return "p < 0.001" if p < 0.0005 else f"p = {round(p, 9):.3f}"
