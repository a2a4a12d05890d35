"""Tables 6 and 9: every ablation's variants against the main run, and what other experts cost each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from uniapl.analysis import comparisons, stats
from uniapl.analysis.cells import (
    NO_CELL,
    NOT_RUN,
    POWER_OF_FEW,
    adjusted,
    fields,
    holm_note,
    interval_note,
    make_table,
    methods_of,
    model_cell,
    model_column,
    percent,
    points_by_holm,
    processors_note,
    seeds_of,
    traced,
)
from uniapl.analysis.collect import MAIN, Study, last_values, rows_of
from uniapl.analysis.comparisons import Evaluation
from uniapl.analysis.crossed import POWER
from uniapl.analysis.labels import BASE, plain_number
from uniapl.analysis.outputs import OTHER_EXPERTS
from uniapl.analysis.render import Block, Table
from uniapl.analysis.sources import Source, Traced
from uniapl.analysis.stats import Estimate

EQUAL, WORSE, BETTER, UNDECIDED, ONE_SEED = "equal", "worse", "better", "undecided", "one seed"


def against_margin(gap: Estimate, margin: float, *, significant: bool) -> str:
    """Equal, worse, better or undecided; empty where nothing was measured. `significant`: after Holm's correction."""
    if not (math.isfinite(gap.low) and math.isfinite(gap.high)):
        return ""
    if -margin <= gap.low and gap.high <= margin:
        return EQUAL
    if not significant:
        return UNDECIDED
    return WORSE if gap.high < 0 else BETTER if gap.low > 0 else UNDECIDED


@dataclass(frozen=True)
class Told:
    """A difference to the main run, with what is said of it: `p_holm` over all rows of its table."""

    gap: Estimate
    p_holm: float  # with its source
    word: str

    def fields(self, name: str) -> dict[str, object]:
        """As columns of a csv."""
        found = fields(self.gap, name) | {f"{name}_p_holm": self.p_holm}
        return found | {"against_margin": self.word}


def _told(study: Study, variants: Sequence[tuple[str, str, str]]) -> list[Told]:
    """Of each model, method and variant. One seed beside several of the main run's decides nothing."""
    gaps = [_gap(study, *variant) for variant in variants]
    tested = [
        replace(g, p=math.nan, strict_p=math.nan) if _single(study, v) else g
        for v, g in zip(variants, gaps, strict=True)
    ]
    confidence, margin = study.claims.confidence, study.claims.equivalence_points / 100
    told = []
    for variant, gap, p in zip(variants, gaps, stats.holm(tested, confidence=confidence), strict=True):
        word = against_margin(gap, margin, significant=p < 1 - confidence)
        told.append(Told(gap, adjusted(p, gap, tested), ONE_SEED if word and _single(study, variant) else word))
    return told


def _single(study: Study, variant: tuple[str, str, str]) -> bool:
    """Whether a variant shares a single seed with a main run that has several."""
    seeds = [study.seeds(*one) for one in (variant, variant[:2])]
    return len(seeds[0] & seeds[1]) == 1 < len(seeds[1])


def _gap(study: Study, model: str, method: str, variant: str) -> Estimate:
    """A variant minus the main run of the same method, on the split of choices."""
    if variant == MAIN or not study.evaluations(model, method) or not study.evaluations(model, method, variant):
        return stats.EMPTY
    of = comparisons.chosen_on(study)
    return comparisons.difference(study, model, method, method, of, "prompt_strict", variant=variant)


def table6(study: Study) -> Table:
    """Ablations: every variant against the main run of the same method."""
    of, margin = comparisons.chosen_on(study), study.claims.equivalence_points
    records, rows = [], {}
    ablated = [e for e in study.index["evaluations"] if e["variant"] != MAIN]
    pairs = {(e["model"], e["method"]) for e in ablated}
    entries = [e for e in study.index["evaluations"] if (e["model"], e["method"]) in pairs]
    asked = {(e["model"], e["method"], e["variant"]) for e in entries}
    variants = sorted(asked, key=_place)
    left = study.not_run
    for (model, method, variant), told in zip(variants, _told(study, variants), strict=True):
        accuracy = comparisons.accuracy(study, model, method, of, "prompt_strict", variant=variant)
        spread = _between_seeds(study, model, method, of, variant, accuracy)
        length = comparisons.mean(study, model, method, "num_tokens", task=of.task, variant=variant)
        cut = comparisons.mean(study, model, method, "truncated", task=of.task, variant=variant)
        last = _last_metrics(study, model, method, variant)
        single = told.word == ONE_SEED
        seen = math.nan if single else told.gap.smallest_seen(confidence=study.claims.confidence)
        records.append(
            {"model": model, "method": method, "variant": variant, "task": of.task, "num_prompts": accuracy.n}
            | {"num_seeds": len(study.evaluations(model, method, variant))}
            | fields(accuracy, "prompt_strict")
            | told.fields("prompt_strict_minus_main")
            | {"smallest_seen": traced(seen, told.gap, "_seen")}
            | fields(spread, "between_seeds_sd")
            | fields(length, "mean_tokens")
            | fields(cut, "truncated_share")
            | last
        )
        shown = (plain_number(length.value, 1) or NO_CELL, plain_number(100 * cut.value, 1) or NO_CELL)
        ends = tuple(plain_number(last[key], 3) or NO_CELL for key in ("kl/start_nats", "entropy/mean_nats"))
        rows[model, method, variant] = (
            *model_cell(study, model),
            study.label(method),
            variant,
            seeds_of(study, model, method, variant),
            percent(accuracy),
            points_by_holm(told.gap, told.p_holm),
            plain_number(100 * seen, 1) or NO_CELL,
            told.word or NO_CELL,
            percent(spread),
            *shown,
            *ends,
        )
    for model, method, variant in left.keys() - rows.keys():
        if variant != MAIN:
            name = (*model_cell(study, model), study.label(method), variant)
            rows[model, method, variant] = (*name, seeds_of(study, model, method, variant), NOT_RUN, *[NO_CELL] * 8)
    columns = (
        *model_column(study),
        "Method",
        "Variant",
        "Seeds",
        f"{of.title}, prompt strict, %",
        "− main run, points",
        f"{POWER:.0%} power from, points",
        f"Within ±{plain_number(margin, 1)}",
        "Between seeds, sd, points",
        "Mean length, tokens",
        "Cut, %",
        "KL to start, nats",
        "Entropy, nats",
    )
    notes = (
        *_interval_notes(study, variants),
        "Equal: the whole interval lies within the margin, which stood in the configuration before the runs; worse or"
        " better: it excludes 0 and Holm's p over this table is small enough; undecided: neither. With two or three"
        " seeds an interval is mostly wider than the margin, so that undecided is what to expect unless something is"
        f" far off. Power: before Holm's correction; {POWER_OF_FEW}."
        " Between seeds: the standard deviation of trainings with a chi-square interval; seeds.one_order"
        " trains with one order of the data, the main runs with an order of each"
        " seed's own. KL and entropy: last recorded value of training, mean over seeds; entropy is over the sequences"
        " in the update, which without an adversarial term leaves out groups of equal rewards.",
        *holm_note(study),
        *processors_note(study),
    )
    ordered = tuple(rows[key] for key in sorted(rows, key=_place))
    return make_table(6, "Ablations", [Block(columns, (("", ordered),))], records, notes)


def _place(one: tuple[str, str, str]) -> tuple[str, str, bool, str]:
    """Of a model, method and variant: the main run before its variants."""
    model, method, variant = one
    return model, method, variant != MAIN, variant


def _interval_notes(study: Study, variants: Sequence[tuple[str, str, str]]) -> tuple[str, ...]:
    """What intervals are over: where others have several seeds, those of a single one are over prompts alone."""
    said = (
        "Of a variant with one seed they are over prompts alone: it decides nothing, and Holm does not count its test."
    )
    single = any(_single(study, variant) for variant in variants)
    return (interval_note(study), said) if single else (interval_note(study),)


def _between_seeds(study: Study, model: str, method: str, of: Evaluation, variant: str, accuracy: Estimate) -> Estimate:
    each = comparisons.seed_accuracies(study, model, method, of, variant=variant)
    found = stats.between_seeds(list(each.values()), confidence=study.claims.confidence)
    if accuracy.source is None:
        return found
    return replace(found, source=replace(accuracy.source, statistic="standard deviation of accuracy between seeds"))


def _last_metrics(study: Study, model: str, method: str, variant: str) -> dict[str, float]:
    """The last value that training recorded, NaN where there is none."""
    ends = {k: last_values(study, model, method, k, variant=variant) for k in ("kl/start_nats", "entropy/mean_nats")}
    directories = tuple(dict.fromkeys(rows_of(study.runs, model, method, variant)["directory"]))
    source = Source("last value of training, mean over seeds", directories, ("metrics.jsonl",))
    return {
        key: Traced(fmean(by_seed.values()) if by_seed else math.nan, replace(source, selection=key))
        for key, by_seed in ends.items()
    }


def table9(study: Study) -> Table:
    """Each method taught by another expert against the same method taught by the study's own."""
    of, margin = comparisons.chosen_on(study), study.claims.equivalence_points
    entries = [e for e in study.index["evaluations"] if e["variant"].startswith(OTHER_EXPERTS)]
    asked = list(dict.fromkeys((e["model"], e["method"], e["variant"]) for e in entries))
    told = dict(zip(asked, _told(study, asked), strict=True))
    records, rows, left = [], [], study.not_run
    taught = {method for _, method, _ in asked} | {m for _, m, v in left if v.startswith(OTHER_EXPERTS)}
    every = list(dict.fromkeys(method for _, method in methods_of(study)))
    methods = [m for m in every if m in taught]
    unasked = [(model, variant) for model, _, variant in left if variant.startswith(OTHER_EXPERTS)]
    for model, variant in dict.fromkeys([*((model, variant) for model, _, variant in asked), *unasked]):
        expert, cells = variant.removeprefix(OTHER_EXPERTS), []
        for method in methods:
            one = told.get((model, method, variant))
            if one is None or not one.word:
                cells.append(NOT_RUN if left[model, method, variant] else NO_CELL)
                continue
            seeds = seeds_of(study, model, method, variant)
            part = seeds.removeprefix("1") if one.word == ONE_SEED else f" ({seeds} seeds)"
            cells.append(
                f"{points_by_holm(one.gap, one.p_holm)}, {one.word}{part if left[model, method, variant] else ''}"
            )
            records.append(
                {"model": model, "expert": expert, "method": method, "task": of.task}
                | {"num_prompts": one.gap.n, "num_seeds": len(study.evaluations(model, method, variant))}
                | one.fields("prompt_strict_minus_own_expert")
            )
        rows.append((*model_cell(study, model), expert.replace("_", " "), *cells))
    columns = (*model_column(study), "Expert", *(study.label(m) for m in methods))
    others = [study.label(m) for m in every if m not in (*methods, BASE)]
    outside = f" Not in this ablation: {', '.join(others)}." if others else ""
    notes = (
        *_interval_notes(study, asked),
        f"{of.title} prompts, prompt strict, points: a method taught by another expert minus the same method taught by"
        f" the study's own; Holm over this table. Margin ±{plain_number(margin, 1)} points, as in Table 6. An expert"
        " leaves out prompts that it has no such answer to, so that runs of one seed share no order of"
        f" prompts.{outside}",
        *holm_note(study),
        *processors_note(study, [OTHER_EXPERTS]),
    )
    return make_table(9, "What another expert costs", [Block(columns, (("", tuple(rows)),))], records, notes)
