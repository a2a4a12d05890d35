"""Cells of tables: numbers as people read them, estimates as columns of a csv with their sources."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from uniapl.analysis.collect import MAIN, Study
from uniapl.analysis.labels import p_value, processors, with_interval
from uniapl.analysis.render import Block, Table
from uniapl.analysis.sources import SOURCE, Traced, joined, with_row_source
from uniapl.analysis.stats import Estimate

NO_CELL = "—"
NOT_RUN = "not run"
POWER_OF_FEW = "not said of two seeds, rough of three (docs/statistics.md)"


def percent(estimate: Estimate) -> str:
    """`41.5 [34.9, 48.4]` in percent."""
    return with_interval(estimate.value, estimate.low, estimate.high, 1, scale=100) or NO_CELL


def points(estimate: Estimate) -> str:
    """`+3.5 [−1.0, 8.0], p = 0.210` in percentage points."""
    shown = with_interval(estimate.value, estimate.low, estimate.high, 1, scale=100, signed=True)
    return f"{shown}, {p_value(estimate.p)}" if shown else NO_CELL


def points_by_holm(estimate: Estimate, p_holm: float) -> str:
    """The same with the p that was adjusted over a table, where there is one."""
    return points(estimate) + (f"; Holm {p_value(p_holm)}" if math.isfinite(p_holm) else "")


def amount(value: Any) -> str:
    """A count with thin groups of thousands; a dash where it does not apply."""
    return NO_CELL if value is None or not math.isfinite(float(value)) else f"{float(value):,.0f}"


PARTS = {
    "": "value", "_low": "lower end of the interval", "_high": "upper end of the interval",
    "_bootstrap_low": "lower end of the crossed bootstrap", "_bootstrap_high": "upper end of the crossed bootstrap",
    "_p": "two-sided p", "_p_strict": "two-sided p with strict degrees of freedom",
    "_p_holm": "two-sided p, adjusted by Holm",
    "_seen": "smallest true difference found with 80% power",
    "_supported": "smallest true value that is supported with 80% power, by the strict p at the first of Holm's levels",
}  # fmt: skip


def fields(estimate: Estimate, name: str, *, scale: float = 1.0) -> dict[str, Any]:
    """An estimate as csv columns; the crossed bootstrap beside the interval where there are several seeds."""
    numbers = {
        "": estimate.value, "_low": estimate.low, "_high": estimate.high, "_bootstrap_low": estimate.bootstrap_low,
        "_bootstrap_high": estimate.bootstrap_high,
    }  # fmt: skip
    found: dict[str, Any] = {f"{name}{part}": traced(value * scale, estimate, part) for part, value in numbers.items()}
    if estimate.test:
        found |= {f"{name}_p": traced(estimate.p, estimate, "_p"), f"{name}_test": estimate.test}
    if math.isfinite(estimate.strict_p):
        found[f"{name}_p_strict"] = traced(estimate.strict_p, estimate, "_p_strict")
    return found


def traced(value: float, estimate: Estimate, part: str) -> float:
    """A number with the source of its estimate, and which part of it it is."""
    if estimate.source is None:
        return value
    how = estimate.test if part.startswith("_p") else estimate.method
    said = f"{estimate.source.statistic}: {PARTS[part]}" + (f" ({how})" if part else "")
    return Traced(value, replace(estimate.source, statistic=said))


def adjusted(p: float, estimate: Estimate, family: Sequence[Estimate]) -> float:
    """A p-value that Holm adjusted, with the source of every p-value that it was adjusted beside."""
    tested = [one.source for one in family if math.isfinite(one.p)]
    if estimate.source is None or not math.isfinite(p):
        return p
    how = estimate.test + ", strict degrees of freedom" * math.isfinite(estimate.strict_p)
    what = f"{estimate.source.statistic}: {PARTS['_p_holm']} over {len(tested)} tests ({how})"
    return Traced(p, joined(what, [estimate.source, *tested]))


def make_table(
    number: int, title: str, blocks: list[Block], records: list[dict[str, Any]], notes: tuple[str, ...]
) -> Table:
    """A table whose csv columns are those of its records, in order of appearance."""
    columns = tuple(dict.fromkeys(key for record in records for key in record if key != SOURCE))
    return Table(number, title, tuple(blocks), columns, tuple(map(with_row_source, records)), notes)


def model_column(study: Study) -> tuple[str, ...]:
    return ("Model",) if len(study.models) > 1 else ()


def model_cell(study: Study, model: str) -> tuple[str, ...]:
    return (study.models[model],) if len(study.models) > 1 else ()


def methods_of(study: Study) -> Iterator[tuple[str, str]]:
    """Every model with each of its methods, in the order of tables."""
    for model in study.models:
        for method in study.methods(model):
            yield model, method


def seeds_of(study: Study, model: str, method: str, variant: str = MAIN) -> str:
    """How many seeds there are: `3`, or `1 of 3` where some are not run yet."""
    there, missing = len(study.evaluations(model, method, variant)), study.not_run[model, method, variant]
    return f"{there} of {there + missing}" if missing else str(there)


def not_run_note(study: Study) -> tuple[str, ...]:
    """Which methods a table lacks; none where all were run."""
    left = [(*model_cell(study, model), study.label(m)) for model in study.models for m in study.methods_not_run(model)]
    return (f"Not run: {', '.join(' '.join(one) for one in left)}.",) if left else ()


def several_seeds(study: Study) -> bool:
    """Whether some method has more than one training seed."""
    return any(len(study.seeds(model, method)) > 1 for model, method in methods_of(study))


def holm_note(study: Study) -> tuple[str, ...]:
    """Which p Holm corrects where there are several seeds, and what that is worth."""
    if not several_seeds(study):
        return ()
    return (
        "Over several seeds Holm corrects a stricter p than the one shown (both are in the csv). It keeps its level in"
        " simulated families of 15 tests over three seeds and over five; over two that are apart, or with many more"
        " tests over three that are, a family has a false finding more often (docs/statistics.md), so that such a"
        " finding is to be tried with more seeds.",
    )


def processors_note(study: Study, beginnings: Sequence[str] = ("",), *, against: str = "") -> tuple[str, ...]:
    """Which variants with such names were trained, with the same seed, on another processor than the main run.

    That of the same method, or of `against`. What manifests say is all that is known.
    """
    parents = {entry["directory"]: entry["parent"] for entry in study.index["runs"]}
    trained: dict[tuple[str, str, str, int], set[str]] = {}
    for entry in study.index["runs"]:
        directory, machines = entry["directory"], set[str]()
        while directory in parents:
            machines.add(processors(study.manifests[directory].get("hardware", {})))
            directory = parents[directory]
        trained[entry["model"], ".".join(entry["path"]), entry["variant"], entry["seed"]] = machines
    apart, theirs, mains = set[str](), set[str](), set[str]()
    for entry in study.index["evaluations"]:  # and not of runs that are there without one
        model, method, variant, seed = (entry[key] for key in ("model", "method", "variant", "seed"))
        machines = trained.get((model, method, variant, seed), set())
        main = trained.get((model, against or method, MAIN, seed), machines)
        if variant != MAIN and variant.startswith(tuple(beginnings)) and machines != main:
            apart.add(variant)
            theirs |= machines
            mains |= main
    if not apart:
        return ()
    named, of_theirs, of_mains = (", ".join(sorted(found)) for found in (apart, theirs, mains))
    return (
        f"Not trained on the main run's processor, as manifests name them ({of_theirs}; the main run's: {of_mains}):"
        f" {named}. Processors round differently, so that the same seed trains another model there,"
        " and seconds cannot be compared.",
    )


def interval_note(study: Study) -> str:
    over_prompts = "Wilson's for prompts, BCa bootstrap over prompts for the rest"
    how = (
        f"two-way t over seeds x prompts, the crossed bootstrap's beside them in the csv; of what has one seed or none,"
        f" as the base model: {over_prompts}"
        if several_seeds(study)
        else f"one training seed, so that they say nothing of other seeds: {over_prompts}"
    )
    return f"Brackets: {study.claims.confidence:.0%} intervals ({how})."
