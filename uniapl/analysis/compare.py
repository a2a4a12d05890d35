"""What two runs differ in: `uniapl compare RUN_A RUN_B`, config, environment, cost, training and scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from uniapl.model_card import finished_evaluations
from uniapl.provenance import content_hash, read_config, read_manifest, root_of
from uniapl.records import read_jsonl

COSTS = ("steps", "tokens_generated", "tokens_trained", "train_seconds", "peak_memory_bytes")
METRICS = (
    "reward/mean", "length/mean_tokens", "entropy/mean_nats", "kl/start_nats", "probe/sft_nats", "adv/score_mean",
)  # fmt: skip
ENVIRONMENT = ("code", "packages", "python", "hardware", "world_size", "sampler")


def flattened(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings and lists, by dotted names."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        yield prefix, value
        return
    for key, part in items:
        yield from flattened(part, f"{prefix}.{key}" if prefix else str(key))


def differing(first: Any, second: Any) -> list[tuple[str, Any, Any]]:
    """Leaves that differ, and those that one of the two does not have (None)."""
    a, b = dict(flattened(first)), dict(flattened(second))
    return [(key, a.get(key), b.get(key)) for key in dict.fromkeys((*a, *b)) if a.get(key) != b.get(key)]


def scores_of(run: Path, config: dict[str, Any]) -> dict[str, float]:
    """Prompt-strict accuracies of the finished evaluations of a run, in percent, by task."""
    found = {}
    for evaluated in finished_evaluations(root_of(run), config["model"]["name"]):
        if evaluated.config.get("of") == content_hash(config):
            scores = {task: one.get("prompt_strict") for task, one in evaluated.manifest.get("tasks", {}).items()}
            found |= {task: 100 * score for task, score in scores.items() if score is not None}
    return found


def compare(first: Path, second: Path) -> list[Table]:
    """Tables of what differs in config and environment, and of cost, last metrics and scores side by side.

    Raise ValueError where one is no finished run.
    """
    runs = (first, second)
    configs, manifests = [read_config(run) for run in runs], [read_manifest(run) for run in runs]
    environment = [{key: manifest.get(key) for key in ENVIRONMENT} for manifest in manifests]
    ends = [{row_key: value for row_key in METRICS if (value := _last(run, row_key)) is not None} for run in runs]
    results = [
        {**{key: m.get(key) for key in COSTS}, **{f"last {k}": v for k, v in end.items()},
         **{f"{task}, prompt strict, %": v for task, v in scores_of(run, config).items()}}
        for m, end, run, config in zip(manifests, ends, runs, configs, strict=True)
    ]  # fmt: skip
    every = [(key, results[0].get(key), results[1].get(key)) for key in dict.fromkeys((*results[0], *results[1]))]
    tables = []
    for title, rows in (("config", differing(*configs)), ("environment", differing(*environment)), ("result", every)):
        table = Table(title=title if rows else f"{title}: no difference")
        for column in (title, str(first), str(second)):
            table.add_column(column, overflow="fold")
        for key, a, b in rows:
            table.add_row(key, _shown(a), _shown(b))
        tables.append(table)
    return tables


def _last(run: Path, key: str) -> float | None:
    values = [row[key] for _, row in read_jsonl(run / "metrics.jsonl") if row.get(key) is not None]
    return values[-1] if values else None


def _shown(value: Any) -> str:
    if value is None:
        return "—"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
