"""What methods cost, and Table 11, UniAPL against GRPO and SFT → GRPO at equal cost."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from uniapl.analysis import comparisons, stats
from uniapl.analysis.cells import (
    NO_CELL,
    NOT_RUN,
    adjusted,
    amount,
    fields,
    holm_note,
    interval_note,
    make_table,
    model_cell,
    model_column,
    points_by_holm,
    processors_note,
)
from uniapl.analysis.collect import COSTS, MAIN, Study, rows_of
from uniapl.analysis.labels import BASELINE, EQUAL_COMPUTE, UNIAPL, plain_number
from uniapl.analysis.render import Block, Table
from uniapl.analysis.sources import Source, Traced

# A weight takes part in one product and one sum of a forward, and in twice as many of a backward.
TRAINED_OPERATIONS, GENERATED_OPERATIONS = 6, 2
AXES = {"tokens": "Tokens trained and generated", "operations": "Operations", "seconds": "Seconds"}  # of Figure 5


@dataclass(frozen=True)
class Opponent:
    """A run that UniAPL is compared with, and what of the two is about equal."""

    equal: str
    method: str
    variant: str


OPPONENTS = (
    Opponent("steps", BASELINE, MAIN), Opponent("tokens trained", BASELINE, "compute.tokens"),
    Opponent("seconds", EQUAL_COMPUTE, MAIN), Opponent("steps", "sft.grpo", "equal_steps.half"),
)  # fmt: skip


def path_costs(
    study: Study, model: str, method: str, *, variant: str = MAIN, seeds: Collection[int] | None = None
) -> dict[str, float]:
    """Mean over (those) seeds of what a method cost with all its stages; empty where nothing was trained."""
    every = rows_of(study.runs, model, method, variant).to_dict("records")
    runs = [run for run in every if seeds is None or run["seed"] in seeds]
    what = "cost of all stages of the path, mean over seeds"
    source = Source(what, tuple(run["directory"] for run in runs), ("manifest.json", "metrics.jsonl"))
    less = {"seconds": " less seconds/probe, of the stages before it too"}
    return {
        c: Traced(
            sum(float(run[c]) for run in runs) / len(runs),
            replace(source, selection=f"cumulative_{key}{less.get(c, '')}"),
        )
        for c, key in COSTS.items()
        if runs
    }


def table11(study: Study) -> Table:
    """UniAPL against GRPO at equal steps, tokens and seconds, and against SFT → GRPO at equal steps."""
    of = comparisons.claimed_on(study)
    records, rows = [], []
    for model in study.models:
        both = study.evaluations(model, UNIAPL)
        there = [one for one in OPPONENTS if both and study.evaluations(model, one.method, one.variant)]
        gaps = [
            comparisons.difference(study, model, UNIAPL, one.method, of, "prompt_strict", other_variant=one.variant)
            for one in there
        ]
        by_holm = stats.holm(gaps, confidence=study.claims.confidence)
        for one in OPPONENTS:
            against = study.label(BASELINE if one.method == EQUAL_COMPUTE else one.method)
            if one not in there:
                rows.append((*model_cell(study, model), against, one.equal, *[NOT_RUN] * (len(COSTS) + 2)))
                continue
            gap, p_holm = gaps[there.index(one)], by_holm[there.index(one)]
            sides = ((UNIAPL, MAIN), (one.method, one.variant))
            seeds = set.intersection(*(study.seeds(model, *side) for side in sides))
            ours, theirs = (path_costs(study, model, m, variant=v, seeds=seeds) for m, v in sides)
            won = stats.probability_of_improvement(
                *(list(comparisons.seed_accuracies(study, model, m, of, variant=v).values()) for m, v in sides),
                draws=study.resampling,
            )
            won = replace(won, source=replace(gap.source, statistic="share of pairs of runs in which UniAPL is better"))
            record = {
                "model": model, "equal": one.equal, "method": one.method, "variant": one.variant, "task": of.task,
                "num_prompts": gap.n,
            }  # fmt: skip
            record |= {
                f"{name}_{key}": spent.get(key, math.nan)
                for name, spent in (("uniapl", ours), ("other", theirs))
                for key in COSTS
            }
            record |= fields(gap, "prompt_strict_gain") | {"p_holm": adjusted(p_holm, gap, gaps)}
            records.append(record | fields(won, "probability_of_improvement"))
            pairs = (f"{amount(ours.get(key))} : {amount(theirs.get(key))}" for key in COSTS)
            rows.append(
                (*model_cell(study, model), against, one.equal, *pairs, points_by_holm(gap, p_holm), _share(won))
            )
    heads = ("Steps", "Tokens generated", "Tokens trained", "Seconds")
    columns = (
        *model_column(study), "Against", "Equal", *(f"{head}, UniAPL : other" for head in heads),
        f"UniAPL − other, {of.title.lower()}, points", "P(improvement)",
    )  # fmt: skip
    notes = (
        interval_note(study),
        f"{of.title} prompts, prompt strict, paired; Holm over the rows of a model. Differences and costs are"
        " means over the seeds that both have."
        " P(improvement): share of pairs of runs, one of each method, in which UniAPL's accuracy is the"
        " higher one, a tie counted half; its interval resamples runs. Seconds are those of training's steps without"
        " probes.",
        *holm_note(study),
        *processors_note(study, [one.variant for one in OPPONENTS], against=UNIAPL),
    )
    return make_table(11, "UniAPL against others at equal cost", [Block(columns, (("", tuple(rows)),))], records, notes)


def _share(estimate: stats.Estimate) -> str:
    shown = plain_number(estimate.value, 2) or NO_CELL
    interval = f" [{plain_number(estimate.low, 2)}, {plain_number(estimate.high, 2)}]"
    return shown + interval if math.isfinite(estimate.low) else shown


def axis_costs(study: Study, model: str, method: str) -> dict[str, float]:
    """What a method's path cost on each of Figure 5's axes; NaN for what no manifest says."""
    spent = path_costs(study, model, method)
    if not spent:
        return dict.fromkeys(AXES, math.nan)
    weights = study.manifests[study.index["models"][model]["directory"]].get("num_parameters", math.nan)
    operations = TRAINED_OPERATIONS * spent["tokens_trained"] + GENERATED_OPERATIONS * spent["tokens_generated"]
    tokens = spent["tokens_trained"] + spent["tokens_generated"]
    return {"tokens": tokens, "operations": weights * operations, "seconds": spent["seconds"]}
