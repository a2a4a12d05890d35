"""Every cell of every table leads to the files that it was computed from."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from uniapl.analysis.collect import Study, read_study
from uniapl.analysis.render import Table
from uniapl.analysis.sources import NAMES, STUDY_INDEX
from uniapl.analysis.tables import all_tables
from uniapl.analysis.trace import Cell, chain, find_cell, trace
from uniapl.cli import app

Builder = Callable[..., dict[str, Any]]
PROJECT = Path(__file__).resolve().parents[2]
LAPTOP = PROJECT / "results" / "released" / "laptop"


def shown(tree: object) -> str:
    console = Console(width=2000, highlight=False)  # no line is broken
    with console.capture() as captured:
        console.print(tree)
    return captured.get()


def measured(cell: Cell) -> bool:
    """Anything but a name of the row, and but what says that there is nothing."""
    return cell.column not in NAMES and cell.shown not in ("empty", "nan", "not run", "—")


@pytest.fixture(scope="module")
def released() -> Study:
    if not LAPTOP.exists():
        pytest.skip("no laptop study has been released")
    return read_study(LAPTOP)


@pytest.fixture(scope="module")
def released_tables(released: Study) -> list[Table]:
    return all_tables(released)


def test_50_measured_cells_drawn_from_the_released_tables_lead_to_manifests_with_config_commit_and_environment(
    released: Study, released_tables: list[Table]
):
    rng = random.Random(20261126)
    for table in rng.sample(released_tables * (50 // len(released_tables) + 1), 50):
        with open(LAPTOP / "tables" / f"table{table.number}.csv", encoding="utf-8", newline="") as file:
            committed = list(csv.DictReader(file))
        places = [(row, column) for row in range(len(committed)) for column in table.columns]
        cells = (
            (row, find_cell(released_tables, table.number, str(row + 1), column))
            for row, column in rng.sample(places, len(places))
        )
        row, cell = next((row, cell) for row, cell in cells if measured(cell))
        assert [committed[row][cell.column]] == next(csv.reader([cell.shown]))
        text = shown(chain(released, cell))
        assert f"Table {table.number}, {cell.column} = {cell.shown}" in text
        for part in (
            r"manifest\.json: config [0-9a-f]{8}, commit [0-9a-f]{12}",
            r", Python 3\.\d+",
            r" \d+ cores of \w",
        ):
            assert re.search(part, text), text


def test_a_name_or_an_empty_cell_leads_to_its_row(released: Study, released_tables: list[Table]):
    for table in released_tables:
        for column in table.columns:
            cell = find_cell(released_tables, table.number, "1", column)
            if not measured(cell):
                text = shown(chain(released, cell))
                assert f"Table {table.number}, {column} = {cell.shown}" in text
                assert "study.json" in text or "manifest.json" in text, text


@pytest.mark.skipif(not LAPTOP.exists(), reason="no laptop study has been released")
def test_the_chain_of_a_score_names_records_run_config_commit_and_what_the_run_started_from():
    row = "method=sft.grpo,task=heldout,group=all"
    text = shown(trace(LAPTOP, 1, row, "prompt_strict_minus_grpo"))
    assert "difference of prompt_strict, paired by prompt: value" in text
    for part in ("evaluations/smollm2_135m/sft.grpo", "evaluations/smollm2_135m/grpo/"):
        assert f"{part}" in text
    assert "heldout.jsonl (200 records)" in text
    for part in (
        "run:",
        "goes on from:",
        "base model:",
        "demonstrations:",
        "discriminator:",
        "prompts:",
        "config.json",
    ):
        assert part in text, part
    assert "fields: prompt_strict" in text


def test_the_experts_row_leads_to_the_demonstrations_and_a_published_score_to_the_index(
    tmp_path: Path, study_builder: Builder
):
    published = {"task": "heldout", "metrics": ["prompt_strict"], "score": 30.0, "source": "a paper", "no_check": ""}
    study_builder(tmp_path, methods=("grpo",), references={"smollm2_135m": [published]})
    study = read_study(tmp_path)
    text = shown(chain(study, find_cell(all_tables(study), 4, "method=expert", "mean_tokens")))
    assert "demonstrations/smollm2_135m-00000000/manifest.json: config" in text
    assert find_cell(all_tables(study), 7, "1", "published").source is STUDY_INDEX


def test_the_value_is_the_tables(tmp_path: Path, study_builder: Builder):
    study_builder(tmp_path, methods=("grpo", "uniapl"), seeds=(0, 1), variants={"lambda_adv.5": 10})
    study = read_study(tmp_path)
    tables = all_tables(study)
    for table in tables:
        for number, record in enumerate(table.records, start=1):
            for column in table.columns:
                cell = find_cell(tables, table.number, str(number), column)
                assert cell.record is record
                assert cell.shown
                inputs = list(cell.source.inputs())
                assert all(
                    (tmp_path / d / name).is_file() for one in inputs for d in one.directories for name in one.files
                )
                if measured(cell):
                    assert inputs, (table.number, column)
                    assert cell.source is not STUDY_INDEX, (table.number, column)


def test_what_was_corrected_and_decided_leads_to_every_test_of_the_table(tmp_path: Path, study_builder: Builder):
    """Holm's p of one claim depends on the others' records, and so does its verdict."""
    study_builder(tmp_path, methods=("grpo", "uniapl"), variants={"lambda_adv.5": 2})
    tables = all_tables(read_study(tmp_path))
    for column in ("p_holm", "verdict"):
        cell = find_cell(tables, 2, "claim=C5", column)
        read = {(name, one.selection) for one in cell.source.inputs() for name in one.files}
        assert ("expert.jsonl", "num_tokens") in read  # C5's own
        assert any(name == "heldout.jsonl" and selection == "prompt_strict" for name, selection in read)  # C1's, C8's
        assert any("lambda_adv.5" in directory for one in cell.source.inputs() for directory in one.directories)


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ("1", "prompt", "--column prompt: not in table1.csv; it has model, method"),
        ("99", "label", "no rows of table1.csv match; give its number from 1 to"),
        ("method=grpo", "label", "rows of table1.csv match; give its number .*of task, group"),
        ("methods=grpo", "label", "methods: no column of table1.csv"),
    ],
)
def test_what_is_not_there_is_one_line_with_what_there_is(
    tmp_path: Path, study_builder: Builder, row: str, column: str, reason: str
):
    study_builder(tmp_path, methods=("grpo",))
    with pytest.raises(ValueError, match=reason):
        trace(tmp_path, 1, row, column)
    with pytest.raises(ValueError, match="table 12: not in this study; it has 1, 2"):
        trace(tmp_path, 12, "1", "label")


def test_an_evaluation_of_another_run_is_an_error(tmp_path: Path, study_builder: Builder):
    index = study_builder(tmp_path, methods=("grpo",))
    evaluation, run = index["evaluations"][1], index["runs"][0]
    evaluation["run"] = run["directory"]
    (tmp_path / "study.json").write_text(json.dumps(index))
    (tmp_path / run["directory"] / "config.json").write_text("{}")
    (tmp_path / evaluation["directory"] / "config.json").write_text('{"of": "another"}')
    with pytest.raises(ValueError, match=r"was edited|evaluated run another"):
        trace(tmp_path, 1, "method=grpo,task=heldout,group=all", "prompt_strict")


def test_the_command_prints_the_chain_and_a_mistake_in_one_line(tmp_path: Path, study_builder: Builder):
    index = study_builder(tmp_path, methods=("grpo",))
    (tmp_path / index["runs"][0]["directory"] / "config.json").unlink()  # the built study's directories are no hashes
    words = ["trace", "1", "--row", "2", "--column", "seconds", "--root", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "cost of all stages of the path" in done.output
    failed = CliRunner().invoke(app, [*words[:-2], "--root", str(tmp_path / "nothing")])
    assert failed.exit_code != 0
