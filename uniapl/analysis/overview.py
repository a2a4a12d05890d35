"""Table 10: one row a method in the order of the paper's tables, one column an evaluation, best and ties by test.
Table 12: each method with the adversarial term against the same without it."""

from __future__ import annotations

import math
from typing import Any

from uniapl.analysis import comparisons, stats
from uniapl.analysis.cells import (
    NO_CELL,
    NOT_RUN,
    adjusted,
    fields,
    holm_note,
    interval_note,
    make_table,
    model_cell,
    model_column,
    percent,
    points_by_holm,
    seeds_of,
)
from uniapl.analysis.collect import Study
from uniapl.analysis.comparisons import Evaluation
from uniapl.analysis.labels import BASE, method_order
from uniapl.analysis.outputs import without_term
from uniapl.analysis.render import BOLD, Block, Table

# As the reviews on OpenReview tell of the paper's tables; how their columns are laid out is not stated.
SECTIONS = {
    "Single terms and staged pipelines, the paper's Table 2": (
        "sft", "grpo", "a_sft", "a_grpo", "sft.grpo", "sft.a_grpo", "a_sft.a_grpo",
    ),
    "One stage, the paper's Table 3 (CHORD and A-CHORD)": ("chord_mu", "chord_phi", "uniapl"),
}  # fmt: skip
BEFORE, OTHERS = "Before training", "Other baselines, ours"
BEST, TIE = "best", "tie"


def section_of(method: str) -> str:
    """Under which heading a method stands."""
    if method == BASE:
        return BEFORE
    return next((heading for heading, methods in SECTIONS.items() if method in methods), OTHERS)


def marks(
    study: Study, model: str, of: Evaluation, accuracies: dict[str, stats.Estimate]
) -> dict[str, tuple[str, stats.Estimate, float]]:
    """For each method: `best`, `tie` where the test against the best finds no difference, else nothing; with the
    paired difference to the best and its p, by Holm over the column."""
    known = [method for method, estimate in accuracies.items() if math.isfinite(estimate.value)]
    if not known:
        return {}
    best = max(known, key=lambda method: accuracies[method].value)
    others = [m for m in known if m != best]
    gaps = [comparisons.difference(study, model, m, best, of, "prompt_strict") for m in others]
    by_holm = stats.holm(gaps, confidence=study.claims.confidence)
    found = {best: (BEST, stats.EMPTY, stats.NAN)}
    for method, gap, p in zip(others, gaps, by_holm, strict=True):
        found[method] = (TIE if p >= 1 - study.claims.confidence else "", gap, adjusted(p, gap, gaps))
    return found


def table10(study: Study) -> Table:
    """Methods in the order of the paper's tables."""
    evaluations = comparisons.evaluations(study)
    records: list[dict[str, Any]] = []
    sections = []
    for model, title in study.models.items():
        accuracies = {
            of: {m: comparisons.accuracy(study, model, m, of, "prompt_strict") for m in study.methods(model)}
            for of in evaluations
        }
        marked = {of: marks(study, model, of, accuracies[of]) for of in evaluations}
        rows: dict[str, list[tuple[str, ...]]] = {heading: [] for heading in (BEFORE, *SECTIONS, OTHERS)}
        for method in study.methods(model):
            cells = []
            for of in evaluations:
                estimate = accuracies[of][method]
                mark, gap, p = marked[of].get(method, ("", stats.EMPTY, stats.NAN))
                cells.append(f"{BOLD}{percent(estimate)}{BOLD}" if mark else percent(estimate))
                records.append(
                    {"model": model, "method": method, "label": study.label(method), "task": of.task, "group": of.group}
                    | {"num_seeds": len(study.evaluations(model, method)), "num_prompts": estimate.n}
                    | fields(estimate, "prompt_strict")
                    | {"mark": mark}
                    | fields(gap, "minus_best")
                    | {"minus_best_p_holm": p}
                )
            seeds = seeds_of(study, model, method) if method != BASE else NO_CELL
            rows[section_of(method)].append((study.label(method), seeds, *cells))
        for method in study.methods_not_run(model):
            dashes = [NO_CELL] * (len(evaluations) - 1)
            rows[section_of(method)].append((study.label(method), seeds_of(study, model, method), NOT_RUN, *dashes))
        prefix = f"{title}: " if len(study.models) > 1 else ""
        sections += [(f"{prefix}{heading}", tuple(found)) for heading, found in rows.items() if found]
    columns = ("Method", "Seeds", *(f"{of.title}, %" for of in evaluations))
    notes = (
        interval_note(study),
        f"Prompt strict accuracy. Bold: the best of a column, and all that a paired test against it does not tell apart"
        f" (Holm over the column at {study.claims.confidence:.0%}).",
        *holm_note(study),
    )
    blocks = [Block(columns, tuple(sections))]
    return make_table(10, "Methods in the order of the paper's tables", blocks, records, notes)


def table12(study: Study) -> Table:
    """Each method with the adversarial term minus the same pipeline without it."""
    evaluations = [of for of in comparisons.evaluations(study) if of.group == "all"]
    records: list[dict[str, Any]] = []
    rows = []
    for model in study.models:
        there, left = study.methods(model), study.methods_not_run(model)
        pairs = [(m, without_term(m)) for m in there if without_term(m) in there]
        gaps = {
            (method, of): comparisons.difference(study, model, method, without, of, "prompt_strict")
            for method, without in pairs
            for of in evaluations
        }
        by_holm = stats.holm(list(gaps.values()), confidence=study.claims.confidence)
        told = dict(zip(gaps, by_holm, strict=True))
        for method, without in pairs:
            cells = []
            for of in evaluations:
                gap = gaps[method, of]
                p = adjusted(told[method, of], gap, list(gaps.values()))
                cells.append(points_by_holm(gap, p))
                records.append(
                    {"model": model, "method": method, "without": without, "task": of.task, "num_prompts": gap.n}
                    | fields(gap, "prompt_strict_minus_without")
                    | {"prompt_strict_minus_without_p_holm": p}
                )
            rows.append((*model_cell(study, model), study.label(method), study.label(without), *cells))
        for method in method_order([*there, *left]):
            without = without_term(method)
            if without in (*there, *left) and {method, without} & {*left}:
                names = (*model_cell(study, model), study.label(method), study.label(without))
                rows.append((*names, *[NOT_RUN] * len(evaluations)))
    columns = (*model_column(study), "Method", "Without the term", *(f"{of.title}, points" for of in evaluations))
    notes = (
        interval_note(study),
        "Prompt strict, paired, over the seeds that both have; Holm over all cells of a model. The main runs' weight of"
        " the term; other weights and other discriminators stand in Table 6.",
        *holm_note(study),
    )
    return make_table(12, "What the adversarial term adds", [Block(columns, (("", tuple(rows)),))], records, notes)
