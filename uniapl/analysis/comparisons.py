"""The study's numbers by name: an accuracy, a difference between two methods, a distance to the expert.

Tables, figures and claims ask here, so that the same number is the same everywhere, down to the bootstrap's draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from uniapl.analysis import stats
from uniapl.analysis.collect import MAIN, Scores, Study, common, expert_values, prompt_scores, values
from uniapl.analysis.labels import GROUPS, TASKS
from uniapl.analysis.sources import Source
from uniapl.analysis.stats import Estimate

COLUMNS = {
    "num_tokens": "length, tokens",
    "logprob_base": "mean token log-prob under the base model, nats",
    "logprob_trained": "mean token log-prob under the trained model, nats",
}


DISTANCES = ("Wasserstein-1 distance to the expert", "Kolmogorov-Smirnov distance to the expert")
EXPERT_FILES = ("heldout.jsonl", "expert.jsonl")


@dataclass(frozen=True)
class Evaluation:
    """A task, or the held-out prompts of one group."""

    task: str
    group: str
    title: str

    @property
    def prompts(self) -> str:
        """Its prompts in a sentence; a benchmark keeps its capital letters."""
        return f"{self.title.lower() if self.task in ('heldout', 'development') else self.title} prompts"


HELDOUT = Evaluation("heldout", "all", GROUPS["all"])


def claimed_on(study: Study) -> Evaluation:
    """What UniAPL and GRPO are compared on (C1 to C4, cost): `claims.evaluation`."""
    task = study.claims.evaluation
    return HELDOUT if task == HELDOUT.task else Evaluation(task, "all", TASKS[task])


def chosen_on(study: Study) -> Evaluation:
    """What variants are compared on: the development prompts where they were evaluated, else the first task."""
    if "development" in study.index["tasks"]:
        return Evaluation("development", "all", TASKS["development"])
    return evaluations(study)[0]


def evaluations(study: Study) -> list[Evaluation]:
    """What is tabulated: held-out (all, seen, unseen kinds), then the other tasks with records."""
    tasks = [task for task in study.index["tasks"] if task in TASKS]
    found = []
    for task in sorted(tasks, key=list(TASKS).index):
        groups = set(study.answers.loc[study.answers["task"] == task, "group"])
        if task == "heldout":
            found += [Evaluation(task, g, title) for g, title in GROUPS.items() if g == "all" or g in groups]
        else:
            found.append(Evaluation(task, "all", TASKS[task]))
    return found


def records_of(
    study: Study, statistic: str, *sides: tuple[str, str, str], files: Sequence[str], selection: str = ""
) -> Source:
    """The records of evaluations, each side a model, method and variant with all its seeds."""
    entries = [entry for side in sides for entry in study.evaluations(*side)]
    return Source(statistic, tuple(dict.fromkeys(e["directory"] for e in entries)), tuple(files), selection)


def _asked(of: Evaluation, what: str) -> str:
    return what if of.group == "all" else f"{what}; group = {of.group}"


def accuracy(study: Study, model: str, method: str, of: Evaluation, metric: str, *, variant: str = MAIN) -> Estimate:
    """An accuracy (0 to 1) with its interval."""
    scores = prompt_scores(study, model, method, task=of.task, group=of.group, metric=metric, variant=variant)
    names = (model, method, variant, of.task, of.group, metric)
    found = stats.accuracy(scores.hits_SP, scores.counts_SP, draws=study.resampling, names=names)
    source = records_of(
        study, f"accuracy, {metric}", (model, method, variant), files=[f"{of.task}.jsonl"],
        selection=_asked(of, _judged(metric)),
    )  # fmt: skip
    return replace(found, source=source)


def seed_accuracies(study: Study, model: str, method: str, of: Evaluation, *, variant: str = MAIN) -> dict[int, float]:
    """Share of prompts whose constraints all hold (0 to 1) by seed, ascending."""
    return _seed_means(prompt_scores(study, model, method, task=of.task, group=of.group, variant=variant))


def seed_values(study: Study, model: str, method: str, column: str, *, task: str, variant: str) -> dict[int, float]:
    """Mean of a number (num_tokens, truncated, a log-prob) over a task's prompts by seed, ascending."""
    return _seed_means(values(study, model, method, task=task, column=column, variant=variant))


def _seed_means(scores: Scores) -> dict[int, float]:
    means = zip(scores.seeds, scores.hits_SP, strict=True)
    return {seed: float(row.mean()) for seed, row in means} if scores.num_prompts else {}


def _judged(metric: str) -> str:
    """The fields of a record that an accuracy counts."""
    level, strictness = metric.split("_")
    return f"prompt_{strictness}" if level == "prompt" else strictness


def difference(
    study: Study,
    model: str,
    method: str,
    other: str,
    of: Evaluation,
    metric: str,
    *,
    variant: str = MAIN,
    other_variant: str = MAIN,
    other_model: str | None = None,
) -> Estimate:
    """Accuracy of a method minus another's, of the same model or `other_model`, on the same prompts and seeds."""
    a = prompt_scores(study, model, method, task=of.task, group=of.group, metric=metric, variant=variant)
    second = other_model or model
    b = prompt_scores(study, second, other, task=of.task, group=of.group, metric=metric, variant=other_variant)
    a, b = common(a, b)
    names = (model, method, variant, other, other_variant, of.task, of.group, metric)
    names += (other_model,) if other_model else ()
    found = stats.paired_difference(a.hits_SP, b.hits_SP, a.counts_SP, draws=study.resampling, names=names)
    source = records_of(
        study, f"difference of {metric}, paired by prompt", (model, method, variant), (second, other, other_variant),
        files=[f"{of.task}.jsonl"], selection=_asked(of, _judged(metric)),
    )  # fmt: skip
    return replace(found, source=source)


def mean(study: Study, model: str, method: str, column: str, *, task: str = "heldout", variant: str = MAIN) -> Estimate:
    """Mean of a number (num_tokens, truncated, a log-prob) over a task's prompts."""
    found = values(study, model, method, task=task, column=column, variant=variant)
    estimate = stats.mean(found.hits_SP, draws=study.resampling, names=(model, method, variant, task, "mean"))
    side = (model, method, variant)
    return replace(estimate, source=records_of(study, "mean", side, files=[f"{task}.jsonl"], selection=column))


def expert_mean(study: Study, model: str, method: str, column: str) -> Estimate:
    """Mean of the expert's number over the held-out prompts, as one method's evaluation recorded it."""
    found = expert_values(study, model, method, column=column)
    estimate = stats.mean(found.hits_SP[:1], draws=study.resampling, names=(model, method, "expert", column))
    side = (model, method, MAIN)
    return replace(estimate, source=records_of(study, "mean", side, files=["expert.jsonl"], selection=column))


def distances(study: Study, model: str, method: str, column: str, *, variant: str = MAIN) -> tuple[Estimate, Estimate]:
    """Wasserstein and Kolmogorov-Smirnov distance to the expert on held-out prompts that have a demonstration."""
    answers = values(study, model, method, task="heldout", column=column, variant=variant)
    expert = expert_values(study, model, method, column=column, variant=variant)
    answers, expert = common(answers, expert)
    found = stats.distances(answers.hits_SP, expert.hits_SP, draws=study.resampling)
    first, second = (
        replace(
            estimate,
            source=records_of(study, name, (model, method, variant), files=EXPERT_FILES, selection=column),
        )
        for name, estimate in zip(DISTANCES, found, strict=True)
    )
    return first, second


def reduction(
    study: Study, model: str, method: str, other: str, column: str, *, without_length: bool = False
) -> tuple[Estimate, Estimate]:
    """How much smaller a method's Wasserstein and KS distances to the expert are than another's, paired by prompt.

    `without_length`: of what is left of the numbers after `_length_line`, since longer answers have other log-probs.
    """
    found = [values(study, model, m, task="heldout", column=column) for m in (method, other)]
    found += [expert_values(study, model, m, column=column) for m in (method, other)]
    lengths = [values(study, model, m, task="heldout", column="num_tokens") for m in (method, other)]
    lengths += [expert_values(study, model, m, column="num_tokens") for m in (method, other)]
    together = common(*found, *lengths) if without_length else common(*found)
    hits = [scores.hits_SP for scores in together]
    if without_length and hits[0].size:
        line = _length_line(hits[6], hits[2])
        hits = [values_SP - line(lengths_SP) for values_SP, lengths_SP in zip(hits[:4], hits[4:], strict=True)]
    names = (model, method, other, column, *(("without length",) if without_length else ()))
    estimates = stats.distance_reduction(*hits[:4], draws=study.resampling, names=names)
    sides = ((model, method, MAIN), (model, other, MAIN))
    first, second = (
        replace(
            estimate,
            source=records_of(
                study, f"reduction of the {name}, paired by prompt", *sides, files=EXPERT_FILES, selection=column
            ),
        )
        for name, estimate in zip(DISTANCES, estimates, strict=True)
    )
    return first, second


def _length_line(lengths_SP: np.ndarray, values_SP: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The least-squares line of the expert's numbers over the logarithm of its answers' lengths in tokens."""
    logs_P, values_P = np.log(np.maximum(lengths_SP[0], 1.0)), values_SP[0]
    spread = logs_P - logs_P.mean()
    slope = float(spread @ values_P / (spread @ spread)) if spread.any() else 0.0
    return lambda lengths: slope * (np.log(np.maximum(lengths, 1.0)) - logs_P.mean()) + values_P.mean()
