"""Table 7, the stack check: base models' scores here beside the published ones, and what differs too much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from scipy.stats import norm

from uniapl.analysis import comparisons
from uniapl.analysis.collect import Study
from uniapl.analysis.comparisons import Evaluation
from uniapl.analysis.labels import BASE, TASKS, plain_number, with_interval
from uniapl.analysis.render import Block, Table
from uniapl.analysis.sources import SOURCE, Source
from uniapl.analysis.stats import EMPTY, Estimate

AGREES, DIFFERS, NO_CHECK, NOT_MEASURED = "agrees", "differs", "no check", "not measured"
NO_CELL = "—"
COLUMNS = (
    "model", "task", "metrics", "score", "score_low", "score_high", "published", "difference_points",
    "tolerance_points", "stack_check", "reason", "source",
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One published score beside ours. Scores in percent; `check` is one of the four words, `reason` says more."""

    model: str
    title: str
    task: str
    metrics: tuple[str, ...]
    score: Estimate
    published: float
    tolerance: float
    check: str
    reason: str
    source: str

    @property
    def difference(self) -> float:
        """Ours minus the published one, points."""
        return self.score.value - self.published


def stack_checks(study: Study) -> list[Check]:
    """All published scores of the study's base models on its tasks, judged by the tolerance."""
    references: dict[str, Any] = study.index.get("references") or {"models": {}}
    return [
        _check(study, model, row, references["tolerance_points"])
        for model, rows in references["models"].items()
        for row in rows
    ]


def _check(study: Study, model: str, row: dict[str, Any], tolerance: float) -> Check:
    score = _score(study, model, row["task"], tuple(row["metrics"]))
    limit = study.index.get("limit")
    check, reason = AGREES, ""
    if not math.isfinite(score.value):
        check = NOT_MEASURED
    elif row["no_check"] or limit:
        check, reason = NO_CHECK, row["no_check"] or f"only the first {limit} questions were asked"
    elif abs(score.value - row["score"]) > tolerance:
        check = DIFFERS
    return Check(
        model, study.models[model], row["task"], tuple(row["metrics"]), score, row["score"], tolerance, check, reason,
        row["source"],
    )  # fmt: skip


def _score(study: Study, model: str, task: str, metrics: tuple[str, ...]) -> Estimate:
    """The base model's score in percent; the mean of several metrics has no interval."""
    found = [_one(study, model, task, metric) for metric in metrics]
    if len(found) == 1:
        one = found[0]
        return Estimate(100 * one.value, 100 * one.low, 100 * one.high, one.n, one.test)
    return Estimate(100 * sum(one.value for one in found) / len(found), math.nan, math.nan, found[0].n, "")


def _one(study: Study, model: str, task: str, metric: str) -> Estimate:
    """An accuracy of records, or lm-eval's own with its standard error; EMPTY where it was not measured."""
    if task in TASKS:
        return comparisons.accuracy(study, model, BASE, Evaluation(task, "all", TASKS[task]), metric)
    for entry in study.evaluations(model, BASE):
        results = study.results[entry["directory"]].get("results", {}).get(task, {})
        value = results.get(metric)
        if isinstance(value, (int, float)):
            name, _, filter_name = metric.partition(",")
            error = results.get(f"{name}_stderr,{filter_name}")
            half = float(norm.ppf(0.5 + study.claims.confidence / 2)) * error if isinstance(error, float) else math.nan
            return Estimate(value, value - half, value + half, 0, "normal")
    return EMPTY


def table7(study: Study) -> Table:
    """Base models against published scores."""
    checks = stack_checks(study)
    rows, records = [], []
    for one in checks:
        measured = math.isfinite(one.score.value)
        here = with_interval(one.score.value, one.score.low, one.score.high, 1)
        gap = f"{one.difference:+.1f}".replace("-", "−") if measured else NO_CELL
        metrics = " and ".join(metric.replace("_", " ") for metric in one.metrics)
        name = f"{TASKS.get(one.task, one.task)}, {'mean of ' if len(one.metrics) > 1 else ''}{metrics}"
        check = f"{one.check}: {one.reason}" if one.reason else one.check
        rows.append((one.title, name, here or NO_CELL, plain_number(one.published, 1), gap, check, one.source))
        values = (
            one.model, one.task, "+".join(one.metrics), one.score.value, one.score.low, one.score.high, one.published,
            one.difference if measured else None, one.tolerance, one.check, one.reason, one.source,
        )  # fmt: skip
        directories = tuple(entry["directory"] for entry in study.evaluations(one.model, BASE))
        files = (f"{one.task}.jsonl",) if one.task in TASKS else ("results.json",)
        source = Source("score of the base model beside the published one", directories, files, "+".join(one.metrics))
        records.append(dict(zip(COLUMNS, values, strict=True)) | {SOURCE: source})
    heads = ("Base model", "Score", "Here, %", "Published, %", "Difference, points", "Stack check", "Source")
    notes = (
        f"Differs: more than {plain_number(checks[0].tolerance, 1)} points from the published score (fixed in"
        " config/references.yaml). Brackets: intervals over prompts.",
    )
    widths = (0.12, 0.16, 0.14, 0.08, 0.08, 0.14, 0.24)
    block = Block(heads, (("", tuple(rows)),), widths=widths)
    return Table(7, "Base models against published scores", (block,), COLUMNS, tuple(records), notes)


def stack_warnings(study: Study) -> list[str]:
    """A sentence for every score that is further from the published one than tolerated."""
    return [
        f"Stack check: {one.title} scores {plain_number(one.score.value, 1)}% on {TASKS.get(one.task, one.task)},"
        f" published are {plain_number(one.published, 1)}%. The difference of"
        f" {plain_number(abs(one.difference), 1)} points is above the tolerance of {plain_number(one.tolerance, 1)}."
        for one in stack_checks(study)
        if one.check == DIFFERS
    ]
