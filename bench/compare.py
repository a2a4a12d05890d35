"""What `bench.step` found, in numbers: medians and extremes, ratios by turn, and the goals that were set for them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.timing import spread
from bench.turns import Steps

PARTS = ("sample", "score", "update", "push", "step")
RATIOS = ("sample", "update", "step", "step_without_score")


@dataclass(frozen=True)
class Goal:
    """A bound on a number of one case; `at_least` says on which side of it is good."""

    what: str
    bound: float
    wish: float | None  # what is aimed at beyond the bound
    value: Callable[[dict[str, Any]], float | None]  # of a case's summary; None where it was not measured
    at_least: bool = True

    def judged(self, summary: dict[str, Any]) -> dict[str, Any]:
        """The value, and whether it is good enough; None where it was not measured."""
        value = self.value(summary)
        good = None if value is None else value >= self.bound if self.at_least else value <= self.bound
        return {"what": self.what, "value": value, "bound": self.bound, "wish": self.wish, "reached": good}


def ratio(side: str, part: str) -> Callable[[dict[str, Any]], float | None]:
    """A side's median ratio to the first one, of one part."""
    return lambda summary: summary["sides"].get(side, {}).get("ratios", {}).get(part)


def share_of_limit(summary: dict[str, Any]) -> float | None:
    """The update's FLOP/s as a share of the processor's at the model's own shapes."""
    return summary.get("limit", {}).get("share_of_update")


GOALS: dict[str, tuple[Goal, ...]] = {
    "grpo": (
        Goal("update of TRL / ours", 2.0, None, ratio("trl", "update")),
        Goal("whole step of TRL / ours", 3.0, 4.0, ratio("trl", "step")),
        Goal("whole step of TRL with vLLM / ours", 1.5, None, ratio("trl_vllm", "step")),
        Goal("share of the limit that our update reaches", 0.55, 0.65, share_of_limit),
    ),
    "study": (Goal("whole step of TRL / ours", 5.0, 8.0, ratio("trl", "step")),),
    "uniapl": (
        Goal(
            "UniAPL's step without scoring / GRPO's", 1.35, None, ratio("ours_uniapl", "step_without_score"),
            at_least=False,
        ),
    ),
    "sft": (Goal("update of TRL with packing / ours", 1.5, None, ratio("trl_sft", "update")),),
}  # fmt: skip


def summarize(found: Steps) -> dict[str, Any]:
    """A case's medians and extremes by side and part, ratios to the first side step by step of the same turn, limit."""
    sides = {name: dict(side) for name, side in found.items()}
    limits = sides.pop("limit", {"steps": []})["steps"]
    measured = {name: side for name, side in sides.items() if side["steps"]}
    first = next(iter(measured), None)
    for name, side in measured.items():
        steps = [step | {"step_without_score": step["step"] - step["score"]} for step in side["steps"]]
        side["steps"] = steps
        side["seconds"] = {part: spread([step[part] for step in steps]) for part in PARTS}
        counts = ("tokens_generated", "tokens_trained", "flat_share")
        side["means"] = {
            key: statistics.fmean(step[key] for step in steps) for key in counts if steps[0].get(key) is not None
        }
        if name != first:
            side["ratios"] = ratios(measured[str(first)]["steps"], steps)
    summary: dict[str, Any] = {"sides": sides}
    if limits:
        summary["limit"] = {
            key: statistics.median(one[key] for one in limits) for key in ("flops_own", "flops_square", "bytes")
        }
        own = measured[first]["steps"] if first else []
        if own and "flops" in own[0]:
            summary["limit"]["share_of_update"] = reached_share(own, limits, part="update")
        summary["limit"]["steps"] = limits
    return summary


def reached_share(steps: list[dict[str, Any]], limits: list[dict[str, Any]], *, part: str) -> float:
    """Median over the turns of a part's FLOP/s as a share of the limit at the model's own shapes."""
    pairs = zip(steps, limits, strict=False)
    return statistics.median(step["flops"] / step[part] / limit["flops_own"] for step, limit in pairs)


def ratios(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the turns of theirs / ours, of the parts that took time on our side."""
    pairs = list(zip(ours, theirs, strict=False))
    return {
        part: statistics.median(b[part] / a[part] for a, b in pairs)
        for part in RATIOS
        if all(a[part] > 0 for a, _ in pairs)
    }


def report(summary: dict[str, Any]) -> None:
    """Print a case's medians with their extremes, ratios, limit and goals."""
    if limit := summary.get("limit"):
        print(
            f"  limit: {limit['flops_own'] / 1e9:.0f} GFLOP/s at the model's shapes, "
            f"{limit['flops_square'] / 1e9:.0f} of a square product, {limit['bytes'] / 1e9:.1f} GB/s of copied memory"
        )
    for name, side in summary["sides"].items():
        if "seconds" not in side:
            continue
        parts = []
        for part, (median, least, most) in ((part, side["seconds"][part].values()) for part in PARTS):
            if most > 0:
                parts.append(f"{part} {median:.2f} s [{least:.2f}, {most:.2f}]")
        means = side["means"]
        flat = f", {means['flat_share']:.0%} of groups flat" if "flat_share" in means else ""
        sampled = f"{means['tokens_generated']:.0f} tokens sampled, " if "tokens_generated" in means else ""
        print(f"  {name}: {', '.join(parts)}; {sampled}{means['tokens_trained']:.0f} trained on{flat}")
    first = next((name for name, side in summary["sides"].items() if "seconds" in side), "")
    for name, side in summary["sides"].items():
        if "ratios" in side:
            print(f"  {name} / {first}: " + ", ".join(f"{part} {value:.2f}" for part, value in side["ratios"].items()))
    for goal in summary["goals"]:
        if goal["value"] is not None:
            wish = f", aimed at {goal['wish']}" if goal["wish"] else ""
            print(f"  {goal['what']}: {goal['value']:.2f} (bound {goal['bound']}{wish}): {said(goal)}")
        else:
            print(f"  {goal['what']}: not measured here")


def said(goal: dict[str, Any]) -> str:
    """In a word."""
    return "reached" if goal["reached"] else "MISSED"
