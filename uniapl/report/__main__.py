"""One self-contained HTML page of a study: tables, figures, claims, and how it was made.

    python -m uniapl.report ROOT --tables DIR --figures DIR --output FILE

ROOT holds study.json; the two folders are what uniapl.analysis.tables and uniapl.analysis.figures wrote. Nothing is
loaded from outside when the page is read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from uniapl.analysis.collect import read_study
from uniapl.entry import run_guarded
from uniapl.provenance import write_whole
from uniapl.report.page import render_page


def main(root: Path, tables: Path, figures: Path, output: Path) -> None:
    """Write the page."""
    write_whole(output, render_page(read_study(root), tables, figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a study as one HTML page.")
    parser.add_argument("root", type=Path, help="folder with study.json")
    parser.add_argument("--tables", type=Path, required=True, help="folder that uniapl.analysis.tables wrote")
    parser.add_argument("--figures", type=Path, required=True, help="folder that uniapl.analysis.figures wrote")
    parser.add_argument("--output", type=Path, required=True, help="the page to write")
    arguments = parser.parse_args()
    run_guarded(lambda: main(arguments.root, arguments.tables, arguments.figures, arguments.output))
