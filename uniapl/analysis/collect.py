"""Read a finished study into frames: study.json, and every directory it names whose manifest closed it.

Nothing is searched for on the disk: what study.json does not name does not exist, and what it names must be finished.
Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from uniapl.analysis.labels import BASE, method_label, method_order
from uniapl.analysis.stats import Resampling
from uniapl.config import ClaimSpec
from uniapl.records import HELDOUT_LOG, read_jsonl, stored

MAIN = "main"  # the variant that is no ablation
RECORD_TASKS = (
    "development",
    "heldout",
    "ifbench",
    "ifeval",
)  # tasks with per-prompt records; others have only lm-eval's results
RECORD_KEYS = (
    "prompt_id",
    "group",
    "kinds",
    "num_tokens",
    "truncated",
    "status",
    "strict",
    "loose",
    "prompt_strict",
    "prompt_loose",
    "logprob_base",
    "logprob_trained",
)
REQUIRED_KEYS = ("prompt_id", "kinds", "num_tokens", "truncated", "strict", "loose", "prompt_strict", "prompt_loose")
EXPERT_KEYS = ("prompt_id", "num_tokens", "logprob_base", "logprob_trained")
COSTS = {  # columns of `runs`, and the manifest's keys behind `cumulative_`
    "steps": "steps",
    "tokens_generated": "tokens_generated",
    "tokens_trained": "tokens_trained",
    "seconds": "train_seconds",
}
IDENTITY = ("model", "method", "variant", "seed")


@dataclass(frozen=True)
class Study:
    """A finished study. Frames carry model, method (`sft.grpo`), variant and seed in every row.

    `answers`: one row a task, prompt and seed; `expert`: the expert's held-out answers as each model scores them;
    `metrics`: one row a training step; `runs`: one row a run, its manifest's cumulative costs, seconds less those of
    probes, which do not train; `kinds`: base and teacher accuracy per constraint kind; `parts`: `answers` by model,
    method, variant and task; `manifests` and `results` (lm-eval's) by directory relative to the root.
    """

    root: Path
    index: dict[str, Any]
    claims: ClaimSpec
    answers: pd.DataFrame
    expert: pd.DataFrame
    metrics: pd.DataFrame
    runs: pd.DataFrame
    kinds: pd.DataFrame
    manifests: dict[str, dict[str, Any]]
    results: dict[str, dict[str, Any]]
    heldout_log: list[dict[str, Any]]
    parts: dict[Any, pd.DataFrame]

    @property
    def models(self) -> dict[str, str]:
        """Titles of the models by name, in the study's order."""
        return {name: model["title"] for name, model in self.index["models"].items()}

    @property
    def resampling(self) -> Resampling:
        """Draws, seed and confidence of every interval."""
        return Resampling(self.claims.num_resamples, self.claims.seed, self.claims.confidence)

    def methods(self, model: str) -> list[str]:
        """Methods with a main evaluation of a model, in the order of tables."""
        return method_order(
            [e["method"] for e in self.index["evaluations"] if e["model"] == model and e["variant"] == MAIN]
        )

    @cached_property
    def not_run(self) -> Counter[tuple[str, str, str]]:
        """How many seeds of a model, method and variant are not run yet."""
        return Counter((e["model"], e["method"], e["variant"]) for e in self.index.get("not_run", ()))

    def methods_not_run(self, model: str) -> list[str]:
        """Methods whose main evaluation no seed has yet, in the order of tables."""
        left = [method for of, method, variant in self.not_run if (of, variant) == (model, MAIN)]
        return method_order([method for method in left if method not in self.methods(model)])

    def seeds(self, model: str, method: str, variant: str = MAIN) -> set[int]:
        """Training seeds of what was evaluated; the base model's is 0."""
        return {entry["seed"] for entry in self.evaluations(model, method, variant)}

    def label(self, method: str) -> str:
        """A method's name in tables."""
        return method_label(method, self.index["stages"])

    def answers_of(self, model: str, method: str, variant: str, task: str) -> pd.DataFrame:
        """Rows of one evaluation's task, all seeds."""
        found = self.parts.get((model, method, variant, task))
        return pd.DataFrame(columns=self.answers.columns) if found is None else found

    def evaluations(self, model: str, method: str, variant: str = MAIN) -> list[dict[str, Any]]:
        """Entries of study.json, one a seed."""
        wanted = (model, method, variant)
        return [e for e in self.index["evaluations"] if (e["model"], e["method"], e["variant"]) == wanted]


@dataclass(frozen=True)
class Scores:
    """Hits of counts for S seeds and P prompts, in the order of `prompt_ids` and `seeds`.

    `fixed`: of the base model, which has no training seed, so that its one row goes with every seed.
    """

    prompt_ids: tuple[str, ...]
    seeds: tuple[int, ...]
    hits_SP: np.ndarray
    counts_SP: np.ndarray
    fixed: bool = False

    @property
    def num_prompts(self) -> int:
        return len(self.prompt_ids)


def read_study(root: Path) -> Study:
    """Read ROOT/study.json and all it names. Raise ValueError naming what is missing and the remedy."""
    index = _read_index(root)
    manifests: dict[str, dict[str, Any]] = {}
    results: dict[str, dict[str, Any]] = {}
    answers, expert, metrics, runs = [], [], [], []
    probes: dict[str, float] = {}  # seconds in probes of a run and those before it, which the index names first
    shared = [index["data"], *index["demonstrations"].values(), *index["discriminators"].values()]
    for directory in (*shared, *(model["directory"] for model in index["models"].values())):
        manifests[directory] = _read_manifest(root, directory)
    for entry in index["runs"]:
        directory, identity = entry["directory"], _identity(entry, ".".join(entry["path"]))
        manifests[directory] = _read_manifest(root, directory)
        rows = [row for _, row in read_jsonl(_existing(root / directory / "metrics.jsonl"))]
        probes[directory] = sum(row.get("seconds/probe") or 0.0 for row in rows) + probes.get(entry["parent"], 0.0)
        runs.append(
            identity
            | {"directory": directory, "parent": entry["parent"]}
            | _costs(root, directory, manifests[directory], probed=probes[directory])
        )
        metrics += [identity | row for row in rows]
    for entry in index["evaluations"]:
        directory, identity = entry["directory"], _identity(entry, entry["method"])
        manifests[directory] = manifest = _read_manifest(root, directory)
        for task in index["tasks"]:
            if task in RECORD_TASKS and task in manifest["tasks"]:  # variants have fewer
                answers += _read_answers(root / directory / f"{task}.jsonl", manifest, task, identity)
        expert += _read_expert(root / directory / "expert.jsonl", identity)
        results_file = root / directory / "results.json"
        results[directory] = json.loads(results_file.read_text()) if results_file.exists() else {}
    frame = _frame(answers, (*IDENTITY, "task", *RECORD_KEYS))
    return Study(
        root=root,
        index=index,
        claims=ClaimSpec(**index["claims"]),
        answers=frame,
        parts=dict(iter(frame.groupby(["model", "method", "variant", "task"]))),
        expert=_frame(expert, (*IDENTITY, *EXPERT_KEYS)),
        metrics=_frame(metrics, (*IDENTITY, "step")),
        runs=_frame(runs, (*IDENTITY, "directory", "parent", "steps", "tokens_generated", "tokens_trained", "seconds")),
        kinds=_read_kinds(root, index),
        manifests=manifests,
        results=results,
        heldout_log=_read_log(root),
    )


def prompt_scores(
    study: Study,
    model: str,
    method: str,
    *,
    task: str,
    group: str = "all",
    metric: str = "prompt_strict",
    variant: str = MAIN,
    kind: str | None = None,
) -> Scores:
    """Hits per prompt and seed of prompt_strict, prompt_loose, inst_strict or inst_loose; instructions of one `kind`.

    Prompts that some seed could not judge (a status other than ok) are left out, never counted as failed.
    """
    chosen = study.answers_of(model, method, variant, task)
    if group != "all":
        chosen = chosen.loc[chosen["group"] == group]
    if kind is not None:
        chosen = chosen.loc[[kind in kinds for kinds in chosen["kinds"]]]
    level, strictness = metric.split("_")
    hits, counts = [], []
    columns = (chosen[name] for name in (f"prompt_{strictness}", "kinds", strictness))
    for judged, kinds, followed in zip(*columns, strict=True):
        known = [f for k, f in zip(kinds, followed, strict=True) if f is not None and kind in (None, k)]
        if level == "prompt":
            hits.append(float(judged) if judged is not None else np.nan)
            counts.append(1.0)
        else:
            hits.append(float(sum(known)) if known else np.nan)
            counts.append(float(len(known)))
    return _crossed(chosen, hits, counts, fixed=method == BASE)


def values(study: Study, model: str, method: str, *, task: str, column: str, variant: str = MAIN) -> Scores:
    """A number per prompt and seed (num_tokens, truncated, a log-prob); prompts without it are left out."""
    chosen = study.answers_of(model, method, variant, task)
    numbers = [np.nan if value is None else float(value) for value in chosen[column]]
    return _crossed(chosen, numbers, [1.0] * len(numbers), fixed=method == BASE)


def expert_values(study: Study, model: str, method: str, *, column: str, variant: str = MAIN) -> Scores:
    """The expert's number per prompt as an evaluation recorded it, one row a seed of that evaluation."""
    chosen = rows_of(study.expert, model, method, variant)
    numbers = [np.nan if value is None else float(value) for value in chosen[column]]
    return _crossed(chosen, numbers, [1.0] * len(numbers), fixed=method == BASE)


def rows_of(frame: pd.DataFrame, model: str, method: str, variant: str = MAIN) -> pd.DataFrame:
    """Rows of one model, method and variant, all seeds."""
    return frame.loc[(frame["model"] == model) & (frame["method"] == method) & (frame["variant"] == variant)]


def seed_curves(study: Study, model: str, method: str, metric: str, *, variant: str = MAIN) -> dict[int, list[float]]:
    """A metric by step of its stage: the value of every seed that has one there."""
    rows = rows_of(study.metrics, model, method, variant)
    found: dict[int, list[float]] = {}
    if metric in rows:
        for step, value in zip(rows["step"], rows[metric], strict=True):
            if value is not None:
                found.setdefault(int(step), []).append(float(value))
    return dict(sorted(found.items()))


def curve_of(study: Study, model: str, method: str, metric: str, *, variant: str = MAIN) -> dict[int, float]:
    """A metric by step of its stage, mean over the seeds that have a value there."""
    found = seed_curves(study, model, method, metric, variant=variant)
    return {step: sum(values) / len(values) for step, values in found.items()}


def last_values(study: Study, model: str, method: str, metric: str, *, variant: str = MAIN) -> dict[int, float]:
    """A metric's last value in the last stage, of every seed that has one."""
    rows = rows_of(study.metrics, model, method, variant)
    if metric not in rows:
        return {}
    known = rows.loc[[value is not None for value in rows[metric]]]
    return {int(seed): float(found[metric].iloc[-1]) for seed, found in known.groupby("seed")}


def run_config(study: Study, directory: str) -> dict[str, Any]:
    """A run's config.json."""
    return json.loads(_existing(study.root / directory / "config.json").read_text(encoding="utf-8"))


def common(*scores: Scores) -> tuple[Scores, ...]:
    """Restrict scores to common prompts (judged on equally many instructions) and common seeds, base on every seed."""
    trained = [s for s in scores if not s.fixed]
    first = (trained or list(scores))[0]
    seeds = [seed for seed in first.seeds if all(seed in s.seeds for s in trained)]
    counts = [dict(zip(s.prompt_ids, s.counts_SP[0], strict=True)) if s.seeds else {} for s in scores]
    kept = [p for p in scores[0].prompt_ids if all(p in c and c[p] == counts[0][p] for c in counts)]
    restricted = []
    for s in scores:
        columns = [s.prompt_ids.index(p) for p in kept]
        rows = [0 if s.fixed and trained else s.seeds.index(seed) for seed in seeds]
        cells = np.ix_(np.array(rows, dtype=int), np.array(columns, dtype=int))
        restricted.append(Scores(tuple(kept), tuple(seeds), s.hits_SP[cells], s.counts_SP[cells], s.fixed))
    return tuple(restricted)


def _crossed(chosen: pd.DataFrame, hits: list[float], counts: list[float], *, fixed: bool) -> Scores:
    """Lay one number a row out as seeds x prompts; prompts that lack one for some seed are left out."""
    cells = {(p, int(s)): (h, c) for p, s, h, c in zip(chosen["prompt_id"], chosen["seed"], hits, counts, strict=True)}
    seeds = sorted({seed for _, seed in cells})
    ids, columns = [], []
    for prompt in dict.fromkeys(chosen["prompt_id"]):
        column = [cells.get((prompt, seed), (np.nan, np.nan)) for seed in seeds]
        if all(np.isfinite(h) and c == column[0][1] for h, c in column):
            ids.append(prompt)
            columns.append(column)
    values_PS2 = np.array(columns, dtype=float).reshape(len(ids), len(seeds), 2)
    return Scores(tuple(ids), tuple(seeds), values_PS2[:, :, 0].T.copy(), values_PS2[:, :, 1].T.copy(), fixed)


def _frame(rows: list[dict[str, Any]], columns: Iterable[str]) -> pd.DataFrame:
    """A frame that keeps None, True and lists as they are, with all columns even where there are no rows."""
    names = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names})


def _identity(entry: dict[str, Any], method: str) -> dict[str, Any]:
    return {"model": entry["model"], "method": method, "variant": entry["variant"], "seed": entry["seed"]}


def _read_index(root: Path) -> dict[str, Any]:
    path = root / "study.json"
    if not path.exists():
        raise ValueError(
            f"{path} is missing: {root} holds no study; run snakemake first, or name a folder such as"
            " results/released/laptop"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error.msg}); delete it and run snakemake again") from None


def _existing(path: Path) -> Path:
    if not stored(path).exists():
        raise ValueError(
            f"{path} is missing although its directory is finished; restore it, or delete the directory and run"
            " snakemake again"
        )
    return path


def _read_manifest(root: Path, directory: str) -> dict[str, Any]:
    path = root / directory / "manifest.json"
    if not path.exists():
        raise ValueError(
            f"{path} is missing: study.json names this directory, but it was never finished; run snakemake again"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _costs(root: Path, directory: str, manifest: dict[str, Any], *, probed: float) -> dict[str, Any]:
    """Steps, tokens and seconds, less those that were `probed`, of a run with all the stages before it."""
    costs = {}
    for column, key in COSTS.items():
        if f"cumulative_{key}" not in manifest:
            raise ValueError(
                f"{root / directory / 'manifest.json'} has no cumulative_{key}; delete the run and train it again"
            )
        costs[column] = manifest[f"cumulative_{key}"]
    return costs | {"seconds": costs["seconds"] - probed}


def _read_answers(path: Path, manifest: dict[str, Any], task: str, identity: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for number, row in read_jsonl(_existing(path)):
        missing = [key for key in REQUIRED_KEYS if key not in row]
        if missing:
            raise ValueError(f"{path}:{number}: {missing[0]} is missing; delete the evaluation and run snakemake again")
        rows.append(identity | {"task": task} | {key: row.get(key) for key in RECORD_KEYS})
    expected = manifest.get("tasks", {}).get(task, {}).get("num_prompts", len(rows))
    if expected != len(rows):
        raise ValueError(
            f"{path} has {len(rows)} records, its manifest counted {expected}; restore it, or delete the evaluation and"
            " run snakemake again"
        )
    return rows


def _read_expert(path: Path, identity: dict[str, Any]) -> list[dict[str, Any]]:
    """The expert's held-out answers; an evaluation without a held-out task has none."""
    if not stored(path).exists():
        return []
    return [identity | {key: row.get(key) for key in EXPERT_KEYS} for _, row in read_jsonl(path)]


def _read_kinds(root: Path, index: dict[str, Any]) -> pd.DataFrame:
    frames = []
    for model, directory in index["demonstrations"].items():
        path = root / directory / "kinds.csv"
        if path.exists():
            frames.append(pd.read_csv(path).assign(model=model))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"model": [], "kind": []})


def _read_log(root: Path) -> list[dict[str, Any]]:
    path = root / HELDOUT_LOG
    return [row for _, row in read_jsonl(path)] if path.exists() else []
