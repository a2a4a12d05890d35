"""Where the seconds of a whole study went: `python -m bench.study results/laptop [--output FILE]`.

By rule and by part of training, from a finished study's own records (uniapl/analysis/timing.py), so nothing is run.
FILE is JSON with the machine's description, to be held beside another study's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.step import machine
from uniapl.analysis.timing import read_costs, table, training_seconds, training_table
from uniapl.entry import run_guarded
from uniapl.provenance import write_whole


def study_times(root: Path) -> dict[str, Any]:
    """Seconds of each rule's jobs and of each run's parts. Raise ValueError where the study was not measured."""
    rules = {
        cost.rule: {"jobs": len(cost.seconds), "seconds": sum(cost.seconds), "longest_seconds": max(cost.seconds),
                    "peak_mib": cost.peak_mib}
        for cost in read_costs(root)
    }  # fmt: skip
    return {"rules": rules, "training": training_seconds(root)}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Say where a study's seconds went.")
    parser.add_argument("root", type=Path, help="results/<scale>")
    parser.add_argument("--output", type=Path, help="JSON file for the same")
    options = parser.parse_args()

    def action() -> None:
        found = study_times(options.root)
        print(table(read_costs(options.root)), training_table(found["training"]), sep="\n", end="")
        if options.output:
            write_whole(options.output, json.dumps(found | {"machine": machine()}, indent=1) + "\n")

    run_guarded(action)


if __name__ == "__main__":
    main()
