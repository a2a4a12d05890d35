"""What each rule of a study cost, as a markdown table from Snakemake's benchmark files; docs/timing.md holds one.

    python -m uniapl.analysis.timing ROOT

ROOT is results/<scale>. Jobs that ran side by side both count in full, so the sum may exceed the study's wall time.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

from uniapl.entry import run_guarded

HEADER = ("rule", "jobs", "seconds in all", "longest job, s", "peak memory, MiB")


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


def main() -> None:
    """Print the table of one study."""
    parser = argparse.ArgumentParser(description="What each rule of a study cost.")
    parser.add_argument("root", type=Path, help="results/<scale>")
    root = parser.parse_args().root
    run_guarded(lambda: print(table(read_costs(root)), end=""))


if __name__ == "__main__":
    main()
