"""Table 13: every method against every other, on what the claims are judged on."""

from __future__ import annotations

import itertools
from typing import Any

from uniapl.analysis import comparisons, stats
from uniapl.analysis.cells import (
    NO_CELL,
    POWER_OF_FEW,
    adjusted,
    fields,
    holm_note,
    interval_note,
    make_table,
    not_run_note,
    traced,
)
from uniapl.analysis.collect import Study
from uniapl.analysis.crossed import POWER
from uniapl.analysis.labels import BASE, short_label, with_interval
from uniapl.analysis.render import BOLD, Block, Table


def table13(study: Study) -> Table:
    """A triangle a model: the method of the row minus that of the column, paired; bold where Holm's p is small."""
    of, confidence = comparisons.claimed_on(study), study.claims.confidence
    records: list[dict[str, Any]] = []
    blocks = []
    for model, title in study.models.items():
        methods = study.methods(model)
        gaps = {
            (a, b): comparisons.difference(study, model, a, b, of, "prompt_strict")
            for b, a in itertools.combinations(methods, 2)
        }
        by_holm = stats.holm(list(gaps.values()), confidence=confidence)
        cells = {}
        for (method, other), p in zip(gaps, by_holm, strict=True):
            gap = gaps[method, other]
            shown = with_interval(gap.value, gap.low, gap.high, 1, scale=100, signed=True) or NO_CELL
            cells[method, other] = f"{BOLD}{shown}{BOLD}" if p < 1 - confidence else shown
            seeds = study.seeds(model, method)
            shared = seeds if other == BASE else seeds & study.seeds(model, other)  # base goes with every seed
            records.append(
                {"model": model, "method": method, "other": other, "task": of.task, "num_prompts": gap.n}
                | {"num_seeds": len(shared)}
                | fields(gap, "prompt_strict_gain")
                | {"prompt_strict_gain_p_holm": adjusted(p, gap, list(gaps.values()))}
                | {"smallest_seen": traced(gap.smallest_seen(confidence=confidence), gap, "_seen")}
            )
        rows = [
            (study.label(method), *(cells[method, other] for other in methods[:i]), *[""] * (len(methods) - 1 - i))
            for i, method in enumerate(methods)
            if i
        ]
        heads = (short_label(m, study.index["stages"]) for m in methods[:-1])
        name = title if len(study.models) > 1 else ""
        blocks.append(Block(("Method − column", *heads), (("", tuple(rows)),), title=name))
    notes = (
        interval_note(study),
        f"{of.title} prompts, prompt strict, paired, over the seeds that both have, in percentage points. Bold: Holm's"
        f" p over all pairs of a model is below {1 - confidence:.2f}. p, Holm's p and the smallest true difference that"
        f" is found {POWER:.0%} of the time (before Holm's correction; {POWER_OF_FEW}) stand in the csv.",
        *holm_note(study),
        *not_run_note(study),
    )
    return make_table(13, "Every pair of methods", blocks, records, notes)
