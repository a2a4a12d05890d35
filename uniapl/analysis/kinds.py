"""Constraint kinds on the held-out prompts, and Table 3, how well each method follows each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from uniapl.analysis import comparisons, stats
from uniapl.analysis.cells import NO_CELL, fields, make_table, methods_of, not_run_note
from uniapl.analysis.collect import MAIN, Scores, Study, prompt_scores
from uniapl.analysis.labels import plain_number
from uniapl.analysis.render import Block, Table
from uniapl.analysis.stats import Estimate

SEEN, UNSEEN = "seen in training", "not seen in training"


@dataclass(frozen=True)
class Kind:
    """A constraint kind among the held-out prompts of a model."""

    name: str
    heading: str  # SEEN or UNSEEN

    def scores(self, study: Study, model: str, method: str) -> Scores:
        """Its instructions that were followed, strict."""
        return prompt_scores(study, model, method, task="heldout", metric="inst_strict", kind=self.name)

    def accuracy(self, study: Study, model: str, method: str, scores: Scores) -> Estimate:
        """Share of its instructions followed; `n` counts prompts."""
        found = stats.EMPTY
        if scores.seeds and scores.num_prompts:
            value, n = float(stats.ratio(scores.hits_SP.ravel(), scores.counts_SP.ravel())), scores.num_prompts
            low, high = stats.wilson(value * n, n, confidence=study.claims.confidence)
            found = stats.Estimate(value, low, high, n, "Wilson, over prompts")
        source = comparisons.records_of(
            study, "share of instructions followed", (model, method, MAIN), files=["heldout.jsonl"],
            selection=f"strict, where kinds has {self.name}",
        )  # fmt: skip
        return replace(found, source=source)


def kinds_of(study: Study, model: str) -> list[Kind]:
    """Kinds of the held-out prompts, those that training showed first."""
    found: dict[str, set[str]] = {}
    for method in study.methods(model)[:1]:
        frame = study.answers_of(model, method, MAIN, "heldout")
        for group, kinds in zip(frame["group"], frame["kinds"], strict=True):
            for kind in kinds:
                found.setdefault(kind, set()).add(group)
    made = [Kind(name, SEEN if "seen" in groups else UNSEEN) for name, groups in sorted(found.items())]
    return sorted(made, key=lambda kind: (kind.heading != SEEN, kind.name))


def table3(study: Study) -> Table:
    """Accuracy per constraint kind on the held-out prompts."""
    records, sections = [], []
    methods = list(dict.fromkeys(method for _, method in methods_of(study)))
    for model in study.models:
        rows: dict[str, list[tuple[str, ...]]] = {SEEN: [], UNSEEN: []}
        for kind in kinds_of(study, model):
            cells, count = [], 0
            for method in methods:
                scores = kind.scores(study, model, method)
                estimate = kind.accuracy(study, model, method, scores)
                asked = int(scores.counts_SP[0].sum()) if scores.seeds else 0
                count = max(count, asked)
                cells.append(plain_number(100 * estimate.value, 1) or NO_CELL)
                records.append(
                    {
                        "model": model, "kind": kind.name, "seen": kind.heading == SEEN, "method": method,
                        "num_instructions": asked, "num_seeds": len(scores.seeds),
                    } | fields(estimate, "inst_strict")
                )  # fmt: skip
            rows[kind.heading].append((kind.name, str(count), *cells))
        prefix = f"{study.models[model]}, " if len(study.models) > 1 else ""
        sections += [(f"{prefix}kinds {heading}", tuple(found)) for heading, found in rows.items() if found]
    columns = ("Constraint kind", "Instructions", *(study.label(method) for method in methods))
    notes = (
        "Share of instructions followed (strict), %, over all seeds. Few instructions stand behind a kind; Wilson's"
        " intervals over its prompts are in the csv.",
        *not_run_note(study),
    )
    blocks = [Block(columns, tuple(sections))]
    return make_table(3, "Accuracy per constraint kind, held-out prompts", blocks, records, notes)
