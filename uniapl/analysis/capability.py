"""Table 8, general capability: lm-eval's accuracies on tasks such as MMLU, on which claim C9 rests."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from uniapl.analysis.collect import Study
from uniapl.analysis.labels import GENERAL, with_interval
from uniapl.analysis.outputs import general_tasks
from uniapl.analysis.render import Block, Table
from uniapl.analysis.sources import SOURCE, Source
from uniapl.analysis.stats import wilson

METRICS = ("acc,none", "exact_match,strict-match", "exact_match,none", "pass@1,create_test", "pass@1,none")
COLUMNS = (
    "model",
    "method",
    "label",
    "task",
    "metric",
    "num_seeds",
    "num_questions",
    "score",
    "score_low",
    "score_high",
)
NO_CELL = "—"


@dataclass(frozen=True)
class Score:
    """An accuracy of lm-eval, mean over seeds; `variance` is lm-eval's own, `num_questions` those of one seed.

    `seed_variance`: of the mean, as its seeds vary; 0 of one seed.
    """

    metric: str
    value: float
    variance: float
    seed_variance: float
    num_questions: int
    num_seeds: int


def general_score(study: Study, model: str, method: str, task: str) -> Score | None:
    """A method's accuracy on a task; None where lm-eval gave none with a standard error."""
    entries = [study.results[e["directory"]].get("results", {}).get(task, {}) for e in study.evaluations(model, method)]
    metric = next((m for m in METRICS if entries and all(m in entry for entry in entries)), None)
    if metric is None:
        return None
    name, _, filter_name = metric.partition(",")
    errors = [entry.get(f"{name}_stderr,{filter_name}") for entry in entries]
    if not all(isinstance(error, (int, float)) for error in errors):
        return None
    value = sum(entry[metric] for entry in entries) / len(entries)
    variance = sum(error**2 for error in errors) / len(entries)
    spread = statistics.variance(entry[metric] for entry in entries) / len(entries) if len(entries) > 1 else 0.0
    return Score(metric, value, variance, spread, int(entries[0].get("sample_len") or 0), len(entries))


def table8(study: Study) -> Table:
    """Methods x general tasks. The interval is Wilson's over a task's questions, whatever the number of seeds."""
    tasks, several = general_tasks(study.index), len(study.models) > 1
    rows, records, sizes = [], [], dict.fromkeys(tasks, 0)
    for model in study.models:
        for method in study.methods(model):
            cells = []
            for task in tasks:
                score = general_score(study, model, method, task)
                if score is None:
                    cells.append(NO_CELL)
                    continue
                low, high = math.nan, math.nan
                if n := score.num_questions:
                    low, high = wilson(round(score.value * n), n, confidence=study.claims.confidence)
                sizes[task] = max(sizes[task], n)
                cells.append(with_interval(score.value, low, high, 1, scale=100))
                values = (
                    model, method, study.label(method), task, score.metric, score.num_seeds, n, score.value, low, high,
                )  # fmt: skip
                directories = tuple(entry["directory"] for entry in study.evaluations(model, method))
                source = Source("lm-eval's accuracy, mean over seeds", directories, ("results.json",), task)
                records.append(dict(zip(COLUMNS, values, strict=True)) | {SOURCE: source})
            rows.append((*((study.models[model],) if several else ()), study.label(method), *cells))
    heads = [f"{GENERAL.get(task, task)} ({sizes[task]:,} questions), %" for task in tasks]
    columns = (*(("Model",) if several else ()), "Method", *heads)
    notes = ("lm-eval's accuracies, means over seeds. Brackets: Wilson's intervals over questions, not over seeds.",)
    block = Block(columns, (("", tuple(rows)),))
    return Table(8, "General capability", (block,), COLUMNS, tuple(records), notes)
