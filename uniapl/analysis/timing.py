"""What each rule of a study cost, and each part of training, as markdown tables; bench/study.py prints them.

A study's root is results/<scale>. Rules are read from Snakemake's benchmark files, parts of training from the runs'
logs. Jobs that ran side by side both count in full, so the sum may exceed the study's wall time.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from uniapl.records import stored
from uniapl.runlog import TIMES, read_rows

HEADER = ("rule", "jobs", "seconds in all", "longest job, s", "peak memory, MiB")
WHOLE = "seconds/step"
OTHER, OUTSIDE = "other in steps", "outside of steps"  # exchange between ranks, the log; start, checkpoints, export


@dataclass(frozen=True)
class Cost:
    """All jobs of one rule: seconds of each, and the largest resident memory of any (0: too short to measure)."""

    rule: str
    seconds: tuple[float, ...]
    peak_mib: float


def read_costs(root: Path) -> list[Cost]:
    """Costs by rule in the order in which the rules first finished. Raise ValueError where nothing was measured."""
    found: dict[str, list[Path]] = {}
    for path in sorted((root / "benchmarks").glob("**/*.tsv"), key=lambda path: path.stat().st_mtime):
        found.setdefault(path.relative_to(root / "benchmarks").parts[0].removesuffix(".tsv"), []).append(path)
    if not found:
        raise ValueError(f"{root}/benchmarks holds no measurements: run snakemake first")
    costs = []
    for rule, paths in found.items():
        rows = [row for path in paths for row in csv.DictReader(path.open(encoding="utf-8"), delimiter="\t")]
        peaks = [0.0 if row["max_rss"] in ("-", "NA") else float(row["max_rss"]) for row in rows]
        costs.append(Cost(rule, tuple(float(row["s"]) for row in rows), max(peaks)))
    return costs


def table(costs: list[Cost]) -> str:
    """The costs as a markdown table with a row for their sum."""
    everything = Cost("all", tuple(s for c in costs for s in c.seconds), max(c.peak_mib for c in costs))
    rows = [
        (c.rule, str(len(c.seconds)), f"{sum(c.seconds):.0f}", f"{max(c.seconds):.0f}", f"{c.peak_mib:.0f}")
        for c in (*costs, everything)
    ]
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, ("---", *["---:"] * 4), *rows)]
    return "\n".join(lines) + "\n"


def training_seconds(root: Path) -> dict[str, dict[str, float]]:
    """Seconds of every run's job by part, by the run's name: the log's times, and what they do not cover.

    The parts add up to the job. A run that was interrupted has the benchmark of its last attempt alone, and the log of
    all steps, so that what lies outside may be below 0. Raise ValueError where no run was measured.
    """
    found = {}
    for path in sorted((root / "benchmarks" / "runs").glob("**/*.tsv")):
        name = str(path.relative_to(root / "benchmarks" / "runs").with_suffix(""))
        log = stored(root / "runs" / name / "metrics.jsonl")
        if not log.exists():
            continue
        with path.open(encoding="utf-8") as file:
            job = sum(float(row["s"]) for row in csv.DictReader(file, delimiter="\t"))
        rows = read_rows(log)
        parts = {time: sum(row.get(time) or 0.0 for row in rows) for time in TIMES}
        whole = parts.pop(WHOLE)
        within = sum(parts.values())
        parts = {name.removeprefix("seconds/"): seconds for name, seconds in parts.items()}
        found[name] = parts | {OTHER: whole - within, OUTSIDE: job - whole}
    if not found:
        raise ValueError(f"{root} holds no measured run: run snakemake first")
    return found


def training_table(runs: dict[str, dict[str, float]]) -> str:
    """Seconds of all runs by part, and their shares of the jobs, as a markdown table with a row for the sum."""
    parts = {part: sum(run[part] for run in runs.values()) for part in next(iter(runs.values()))}
    job = sum(parts.values())
    rows = [(part, f"{value:.0f}", f"{value / job:.1%}") for part, value in (*parts.items(), ("all", job))]
    lines = [
        "| " + " | ".join(row) + " |"
        for row in (("part of training", "seconds", "share"), ("---", "---:", "---:"), *rows)
    ]
    return "\n".join(lines) + "\n"
