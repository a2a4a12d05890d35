"""Tables 6 and 9: every ablation's variants against the main run, and what other experts cost each method."""

from __future__ import annotations

import math
from dataclasses import replace

from uniapl.analysis import comparisons, stats
from uniapl.analysis.cells import (
    NO_CELL,
    fields,
    interval_note,
    make_table,
    model_cell,
    model_column,
    percent,
    points,
)
from uniapl.analysis.collect import MAIN, Study, last_values, rows_of
from uniapl.analysis.labels import plain_number
from uniapl.analysis.outputs import OTHER_EXPERTS
from uniapl.analysis.render import Block, Table
from uniapl.analysis.sources import Source, Traced
from uniapl.analysis.stats import Estimate

EQUAL, WORSE, BETTER, UNDECIDED = "equal", "worse", "better", "undecided"


def against_margin(gap: Estimate, margin: float) -> str:
    """Equal, worse, better or undecided; empty where nothing was measured."""
    if not (math.isfinite(gap.low) and math.isfinite(gap.high)):
        return ""
    if -margin <= gap.low and gap.high <= margin:
        return EQUAL
    return WORSE if gap.high < 0 else BETTER if gap.low > 0 else UNDECIDED


def table6(study: Study) -> Table:
    """Ablations: every variant against the main run of the same method."""
    of, margin = comparisons.chosen_on(study), study.claims.equivalence_points
    records, rows = [], []
    variants = dict.fromkeys(
        (e["model"], e["method"], e["variant"]) for e in study.index["evaluations"] if e["variant"] != MAIN
    )
    for model, method, variant in sorted(variants):
        accuracy = comparisons.accuracy(study, model, method, of, "prompt_strict", variant=variant)
        gap = stats.EMPTY
        if study.evaluations(model, method):
            gap = comparisons.difference(study, model, method, method, of, "prompt_strict", variant=variant)
        length = comparisons.mean(study, model, method, "num_tokens", task=of.task, variant=variant)
        cut = comparisons.mean(study, model, method, "truncated", task=of.task, variant=variant)
        last = _last_metrics(study, model, method, variant)
        records.append(
            {"model": model, "method": method, "variant": variant, "task": of.task, "num_prompts": accuracy.n}
            | fields(accuracy, "prompt_strict")
            | fields(gap, "prompt_strict_minus_main")
            | fields(length, "mean_tokens")
            | fields(cut, "truncated_share")
            | last
        )
        told = against_margin(gap, margin / 100)
        records[-1]["against_margin"] = told
        shown = (plain_number(length.value, 1) or NO_CELL, plain_number(100 * cut.value, 1) or NO_CELL)
        ends = tuple(plain_number(last[key], 3) or NO_CELL for key in ("kl/start_nats", "entropy/mean_nats"))
        rows.append(
            (
                *model_cell(study, model),
                study.label(method),
                variant,
                percent(accuracy),
                points(gap),
                told or NO_CELL,
                *shown,
                *ends,
            )
        )
    columns = (
        *model_column(study),
        "Method",
        "Variant",
        f"{of.title}, prompt strict, %",
        "− main run, points",
        f"Within ±{plain_number(margin, 1)}",
        "Mean length, tokens",
        "Cut, %",
        "KL to start, nats",
        "Entropy, nats",
    )
    notes = (
        interval_note(study),
        "Equal: the whole interval lies within the margin, which stood in the configuration before the runs; worse or"
        " better: it excludes 0 and is not within; undecided: neither. KL and entropy: last recorded value of training,"
        " mean over seeds.",
    )
    return make_table(6, "Ablations", [Block(columns, (("", tuple(rows)),))], records, notes)


def _last_metrics(study: Study, model: str, method: str, variant: str) -> dict[str, float]:
    """The last value that training recorded, NaN where there is none."""
    ends = {k: last_values(study, model, method, k, variant=variant) for k in ("kl/start_nats", "entropy/mean_nats")}
    directories = tuple(dict.fromkeys(rows_of(study.runs, model, method, variant)["directory"]))
    source = Source("last value of training, mean over seeds", directories, ("metrics.jsonl",))
    return {
        key: Traced(sum(values) / len(values) if values else math.nan, replace(source, selection=key))
        for key, values in ends.items()
    }


def table9(study: Study) -> Table:
    """Each method taught by another expert against the same method taught by the study's own."""
    of, margin = comparisons.chosen_on(study), study.claims.equivalence_points
    records, rows = [], []
    for model in study.models:
        entries = [
            e for e in study.index["evaluations"] if e["model"] == model and e["variant"].startswith(OTHER_EXPERTS)
        ]
        methods = [m for m in study.methods(model) if any(e["method"] == m for e in entries)]
        for variant in dict.fromkeys(e["variant"] for e in entries):
            cells = []
            for method in methods:
                gap = stats.EMPTY
                if study.evaluations(model, method, variant):
                    gap = comparisons.difference(study, model, method, method, of, "prompt_strict", variant=variant)
                told = against_margin(gap, margin / 100)
                cells.append(f"{points(gap)}, {told}" if told else NO_CELL)
                records.append(
                    {"model": model, "expert": variant.removeprefix(OTHER_EXPERTS), "method": method, "task": of.task}
                    | {"num_prompts": gap.n, "num_seeds": len(study.evaluations(model, method, variant))}
                    | fields(gap, "prompt_strict_minus_own_expert")
                    | {"against_margin": told}
                )
            rows.append((*model_cell(study, model), variant.removeprefix(OTHER_EXPERTS).replace("_", " "), *cells))
    heads = [study.label(m) for m in dict.fromkeys(r["method"] for r in records)]
    columns = (*model_column(study), "Expert", *heads)
    notes = (
        interval_note(study),
        f"{of.title} prompts, prompt strict, points: a method taught by another expert minus the same method taught by"
        f" the study's own. Margin ±{plain_number(margin, 1)} points, as in Table 6.",
    )
    return make_table(9, "What another expert costs", [Block(columns, (("", tuple(rows)),))], records, notes)
