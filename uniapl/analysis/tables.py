"""All tables of a study, each as .csv (every number), .md and .tex, byte for byte the same from the same records.

    python -m uniapl.analysis.tables ROOT --output DIR

ROOT holds study.json (results/<scale>, or results/released/<scale>). Table 1 methods x evaluations and their cost,
2 the paper's claims, 3 constraint kinds, 4 distributions against the expert, 5 data, teacher and discriminator,
6 ablations where the study has some, 7 base models against their published scores where there are such, 8 general
capability where such tasks were evaluated, 9 what other experts cost where some were tried, 10 methods in the order of
the paper's tables with the best marked, 11 UniAPL against GRPO at equal steps, tokens and seconds, 12 each method with
the adversarial term against the same without it, 13 every method against every other.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from uniapl.analysis import comparisons, stats
from uniapl.analysis.ablations import table6, table9
from uniapl.analysis.capability import table8
from uniapl.analysis.cells import (
    NO_CELL,
    NOT_RUN,
    POWER_OF_FEW,
    adjusted,
    amount,
    fields,
    holm_note,
    interval_note,
    make_table,
    methods_of,
    model_cell,
    model_column,
    not_run_note,
    percent,
    points,
    processors_note,
    traced,
)
from uniapl.analysis.claims import findings
from uniapl.analysis.collect import MAIN, Study, read_study
from uniapl.analysis.comparisons import COLUMNS, Evaluation
from uniapl.analysis.costs import path_costs, table11
from uniapl.analysis.crossed import POWER
from uniapl.analysis.facts import table5
from uniapl.analysis.kinds import table3
from uniapl.analysis.labels import BASE, BASELINE, p_value, plain_number, with_interval
from uniapl.analysis.outputs import (
    ADVERSARIAL_AS,
    LAMBDA,
    OTHER_EXPERTS,
    general_tasks,
    has_ablations,
    has_comparison,
    has_references,
    has_term,
    has_variants,
)
from uniapl.analysis.overview import table10, table12
from uniapl.analysis.pairs import table13
from uniapl.analysis.references import table7
from uniapl.analysis.render import Block, Table, write_table
from uniapl.entry import run_guarded

METRICS = ("prompt_strict", "inst_strict", "prompt_loose", "inst_loose")


def table1(study: Study) -> Table:
    """Methods x evaluations, paired differences to base and to GRPO, and what each method cost."""
    records, sections = [], []
    not_run = [(model, method) for model in study.models for method in study.methods_not_run(model)]
    for of in comparisons.evaluations(study):
        rows, sizes = [], []
        for model, method in methods_of(study):
            record, row = _table1_row(study, model, method, of)
            records.append(record)
            rows.append((*model_cell(study, model), study.label(method), *row))
            sizes.append(record["num_prompts"])
        for model, method in not_run:
            rows.append((*model_cell(study, model), study.label(method), NOT_RUN, *[NO_CELL] * 5))
        sections.append((f"{of.title} ({_sizes(study, of, sizes)})", tuple(rows)))
    heads = ("− base, points", "− GRPO, points")
    columns = (*model_column(study), "Method", "Prompt strict, %", *heads, "Instruction strict, %", *heads)
    cost_rows = []
    for model, method in methods_of(study):
        cost = path_costs(study, model, method)
        shown = tuple(amount(cost.get(c)) for c in ("steps", "tokens_trained", "tokens_generated", "seconds"))
        cost_rows.append((*model_cell(study, model), study.label(method), *shown))
    cost_rows += [(*model_cell(study, model), study.label(m), NOT_RUN, *[NO_CELL] * 3) for model, m in not_run]
    cost_columns = (*model_column(study), "Method", "Steps", "Tokens trained", "Tokens generated", "Seconds")
    blocks = [
        Block(columns, tuple(sections)),
        Block(cost_columns, (("", tuple(cost_rows)),), title="Cost of each method, stages before it included"),
    ]
    return make_table(1, "Methods and evaluations", blocks, records, (interval_note(study), _table1_note()))


def _sizes(study: Study, of: Evaluation, judged: list[int]) -> str:
    """How many prompts stand behind a section, and how many could not be judged."""
    frame = study.answers[["task", "variant", "group", "prompt_id"]]
    rows = {tuple(row) for row in frame.itertuples(index=False, name=None)}
    asked = len({p for t, v, g, p in rows if (t, v) == (of.task, MAIN) and of.group in ("all", g)})
    fewest = min((size for size in judged if size), default=0)
    return f"{asked} prompts" + (f", {asked - fewest} of them not computed" if fewest < asked else "")


def _table1_row(study: Study, model: str, method: str, of: Evaluation) -> tuple[dict[str, Any], tuple[str, ...]]:
    seeds = len(study.evaluations(model, method))
    record: dict[str, Any] = {
        "model": model,
        "method": method,
        "label": study.label(method),
        "task": of.task,
        "group": of.group,
    }
    record |= {"num_seeds": seeds, "num_prompts": 0}
    cells: list[str] = []
    for metric in METRICS:
        estimate = comparisons.accuracy(study, model, method, of, metric)
        if metric == "prompt_strict":  # a prompt of which one instruction alone was judged has no verdict
            record["num_prompts"] = estimate.n
        record |= fields(estimate, metric)
        if metric.endswith("strict"):
            cells.append(percent(estimate))
        for other in (BASE, BASELINE):
            compared = other != method and other in study.methods(model)
            gap = (
                comparisons.difference(study, model, method, other, of, metric)
                if compared and metric.endswith("strict")
                else stats.EMPTY
            )
            if metric.endswith("strict"):
                empty = {f"{metric}_minus_{other}_p": None, f"{metric}_minus_{other}_test": None}
                record |= empty | fields(gap, f"{metric}_minus_{other}")
                cells.append(points(gap))
    return record | path_costs(study, model, method), tuple(cells)


def _table1_note() -> str:
    return (
        "Differences are paired by prompt, over the seeds that both have, in percentage points; p by McNemar's exact"
        " test (one seed, prompts), by exchanging the two systems within prompts (one seed, instructions) or by the"
        " two-way t test (several seeds). They are not adjusted for the number of comparisons; Table 2's are. Prompts"
        " whose verdict could not be computed are left out, never counted as failed. Loose accuracies stand in the csv."
        " Seconds are those of training's steps without probes."
    )


def table2(study: Study) -> Table:
    """The paper's claims: what was measured here, the tolerance fixed beforehand, the verdict."""
    records, rows = [], []
    found = findings(study)
    family = [row.quantity for row in found]
    for row in found:
        judged = f"; Holm {p_value(row.p_holm)}" if math.isfinite(row.p_holm) else ""
        if math.isfinite(row.smallest_seen):
            seen = plain_number(row.smallest_seen, 3 if row.unit == "nats" else 1)
            judged += f"; {POWER:.0%} power from {seen} {row.unit} on"
        title = study.models.get(row.model, row.model)
        scale = study.index["scale"]
        where = f" at {scale} scale" if scale != "paper" and row.verdict != NOT_RUN else ""
        shown = row.verdict + where + (f": {row.reason}" if row.reason else "")
        rows.append(
            (
                row.claim,
                *((title,) if len(study.models) > 1 else ()),
                f"{row.statement} {row.source}",
                shown,
                row.measured + judged + (f". Beside it: {row.beside}" if row.beside else ""),
                row.tolerance,
            )
        )
        records.append(
            {
                "claim": row.claim,
                "model": row.model,
                "statement": row.statement,
                "source": row.source,
                "measured": row.measured,
                "beside": row.beside,
                "unit": row.unit,
                **fields(row.quantity, "quantity"),
                "quantity_p": traced(row.quantity.p, row.quantity, "_p"),
                "smallest_seen": traced(row.smallest_seen, row.quantity, "_supported"),
                "p_holm": adjusted(row.p_holm, row.quantity, family),
                "margin": row.margin,
                "tolerance": row.tolerance,
                "verdict": row.verdict,
                "reason": row.reason,
            }
        )
    columns = (
        "Claim",
        *model_column(study),
        "Statement",
        "Verdict",
        "Measured here",
        "Tolerance, fixed before the run",
    )
    widths = (0.06, *((0.10,) if len(study.models) > 1 else ()), 0.24, 0.16, 0.28, 0.14)
    notes = (
        (
            "[A] the abstract on arXiv (2509.25148), [O] the abstract and public reviews on OpenReview (KxSBc0ESFU)."
            " Supported: the whole interval lies above the tolerance and Holm's adjusted p is small enough; not"
            " supported: the whole interval lies below it; inconclusive: neither; not run: not measured in this study."
            f" {POWER:.0%} power: from this true value on a study like this one says supported four times in five,"
            f" Holm's correction at its strictest and the tolerance included; {POWER_OF_FEW}."
            " Tolerances are the section `claims` of the"
            " configuration; docs/paper_map.md dates them. Beside it: outside of Holm's correction, and no verdict"
            " rests on it. Of what length does not explain: log-probs less a line over the logarithm of the answer's"
            " length, which is fitted to the expert's answers. The crossed bootstrap's intervals stand in the csv."
        ),
        *holm_note(study),
        *processors_note(study, [ADVERSARIAL_AS, LAMBDA]),
    )
    return make_table(2, "Claims of the paper", [Block(columns, (("", tuple(rows)),), widths=widths)], records, notes)


def table4(study: Study) -> Table:
    """Length and log-prob of the held-out answers, and their distance to the expert's."""
    records, summary, apart = [], [], []
    for model in study.models:
        if len(study.models) >= 1 and study.methods(model):
            summary.append(_expert_row(study, model, records))
        for method in study.methods(model):
            record: dict[str, Any] = {"model": model, "method": method, "label": study.label(method)}
            length = comparisons.mean(study, model, method, "num_tokens")
            cut = comparisons.mean(study, model, method, "truncated")
            logprobs = [comparisons.mean(study, model, method, c) for c in ("logprob_base", "logprob_trained")]
            record |= {"num_prompts": length.n} | fields(length, "mean_tokens") | fields(cut, "truncated_share")
            record |= fields(logprobs[0], "mean_logprob_base") | fields(logprobs[1], "mean_logprob_trained")
            label = (*model_cell(study, model), study.label(method))
            shown = (with_interval(e.value, e.low, e.high, 3) or NO_CELL for e in logprobs)
            summary.append(
                (*label, with_interval(length.value, length.low, length.high, 1) or NO_CELL, percent(cut), *shown)
            )
            cells: list[str] = []
            for column in COLUMNS:
                wasserstein, ks = comparisons.distances(study, model, method, column)
                record |= fields(wasserstein, f"wasserstein_{column}") | fields(ks, f"ks_{column}")
                digits = 1 if column == "num_tokens" else 3
                cells.append(with_interval(wasserstein.value, wasserstein.low, wasserstein.high, digits) or NO_CELL)
                cells.append(with_interval(ks.value, ks.low, ks.high, 2) or NO_CELL)
            records.append(record)
            apart.append((*label, *cells))
    name = (*model_column(study), "Method")
    blocks = [
        Block(
            (
                *name,
                "Mean length, tokens",
                "Cut at the cap, %",
                "Log-prob under base, nats",
                "Log-prob under trained, nats",
            ),
            (("", tuple(summary)),),
            title="Held-out answers",
        ),
        Block(
            (*name, "Length: W, tokens", "KS", "Log-prob under base: W, nats", "KS", "Under trained: W, nats", "KS"),
            (("", tuple(apart)),),
            title="Distance to the expert's distribution",
        ),
    ]
    notes = (
        (
            f"Answers are capped at {study.index['max_new_tokens']} new tokens. Log-probs are means over the tokens of"
            " an answer. W: Wasserstein-1 distance; KS: Kolmogorov-Smirnov distance; over prompts that have a"
            " demonstration. Several seeds: two-way t intervals of the distances' terms; one seed: prompts resampled,"
            " at each end the wider of percentile and basic bootstrap, since resampling overstates small distances."
        ),
        *not_run_note(study),
    )
    return make_table(4, "Distributions against the expert's, held-out prompts", blocks, records, notes)


def _expert_row(study: Study, model: str, records: list[dict[str, Any]]) -> tuple[str, ...]:
    method = BASE if BASE in study.methods(model) else study.methods(model)[0]
    length = comparisons.expert_mean(study, model, method, "num_tokens")
    logprob = comparisons.expert_mean(study, model, method, "logprob_base")
    records.append(
        {"model": model, "method": "expert", "label": "Expert", "num_prompts": length.n}
        | fields(length, "mean_tokens")
        | fields(logprob, "mean_logprob_base")
    )
    shown = with_interval(length.value, length.low, length.high, 1) or NO_CELL
    return (
        *model_cell(study, model),
        "Expert",
        shown,
        NO_CELL,
        with_interval(logprob.value, logprob.low, logprob.high, 3) or NO_CELL,
        NO_CELL,
    )


def all_tables(study: Study) -> list[Table]:
    """Every table of the study in order."""
    tables = [table1(study), table2(study), table3(study), table4(study), table5(study)]
    tables += [table6(study)] if has_ablations(study.index) else []
    tables += [table7(study)] if has_references(study.index) else []
    tables += [table8(study)] if general_tasks(study.index) else []
    tables += [table9(study)] if has_variants(study.index, OTHER_EXPERTS) else []
    tables += [table10(study)]
    tables += [table11(study)] if has_comparison(study.index) else []
    tables += [table12(study)] if has_term(study.index) else []
    return [*tables, table13(study)]


def main(root: Path, output: Path) -> None:
    """Read the study below `root` and write its tables into `output`."""
    for table in all_tables(read_study(root)):
        write_table(table, output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write all tables of a study.")
    parser.add_argument("root", type=Path, help="folder with study.json")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables")
    arguments = parser.parse_args()
    run_guarded(lambda: main(arguments.root, arguments.output))
