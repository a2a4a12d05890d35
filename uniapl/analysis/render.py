"""A table as data and as .csv, .md and .tex, byte for byte the same from the same numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uniapl.provenance import write_whole

MINUS = "−"
BOLD = "**"  # on both sides of a cell
TEX_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    MINUS: "$-$",
    "→": r"$\rightarrow$",
    "<": "$<$",
    ">": "$>$",
    "λ": r"$\lambda$",
    "μ": r"$\mu$",
    "φ": r"$\varphi$",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "—": "---",
    "–": "--",
    "×": r"$\times$",
    "\u00a0": "~",
}


@dataclass(frozen=True)
class Block:
    """One grid of a table: rows under headings. `widths` are shares of the line for columns of running text."""

    columns: tuple[str, ...]
    sections: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]
    title: str = ""
    widths: tuple[float, ...] = ()


@dataclass(frozen=True)
class Table:
    """A numbered table: printed blocks and notes, and the full numbers for the csv."""

    number: int
    title: str
    blocks: tuple[Block, ...]
    columns: tuple[str, ...]
    records: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = field(default=())


def write_table(table: Table, directory: Path) -> None:
    """Write table<number>.csv, .md and .tex."""
    stem = directory / f"table{table.number}"
    write_whole(stem.with_suffix(".csv"), to_csv(table))
    write_whole(stem.with_suffix(".md"), to_markdown(table))
    write_whole(stem.with_suffix(".tex"), to_tex(table))


def to_csv(table: Table) -> str:
    """All numbers, six decimals, empty where there is none; quoted as RFC 4180 asks."""
    lines = [",".join(table.columns)]
    lines += [",".join(csv_field(record.get(column)) for column in table.columns) for record in table.records]
    return "\n".join(lines) + "\n"


def to_markdown(table: Table) -> str:
    """Pipe tables with the title above and the notes below."""
    parts = [f"**Table {table.number}. {table.title}**"]
    for block in table.blocks:
        if block.title:
            parts.append(f"*{block.title}*")
        lines = [_pipes(block.columns), _pipes(["---"] * len(block.columns))]
        for heading, rows in block.sections:
            if heading:
                lines.append(_pipes([f"**{heading}**", *[""] * (len(block.columns) - 1)]))
            lines += [_pipes(row) for row in rows]
        parts.append("\n".join(lines))
    parts += list(table.notes)
    return "\n\n".join(parts) + "\n"


def to_tex(table: Table) -> str:
    """A table environment; needs the packages booktabs and adjustbox."""
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        r"\small",
        rf"\caption{{{tex(table.title)}}}",
        rf"\label{{tab:table{table.number}}}",
    ]
    for block in table.blocks:
        if block.title:
            lines += [rf"\par\medskip\emph{{{tex(block.title)}}}\par\smallskip"]
        shape = "".join(f"p{{{w:.2f}\\linewidth}}" for w in block.widths) or "l" * len(block.columns)
        lines += [
            r"\begin{adjustbox}{max width=\linewidth}",
            rf"\begin{{tabular}}{{@{{}}{shape}@{{}}}}",
            r"\toprule",
            _ampersands(block.columns),
            r"\midrule",
        ]
        for i, (heading, rows) in enumerate(block.sections):
            if heading:
                lines += [r"\midrule"] if i else []
                lines.append(rf"\multicolumn{{{len(block.columns)}}}{{@{{}}l}}{{\emph{{{tex(heading)}}}}} \\")
            lines += [_ampersands(row) for row in rows]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{adjustbox}", ""]
    lines += [rf"\par\smallskip{{\footnotesize {tex(note)}}}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def tex(text: str) -> str:
    """Text with LaTeX's special characters escaped, and those outside of ASCII as commands that every engine knows."""
    return "".join(TEX_CHARACTERS.get(character, character) for character in text)


def markdown_cell(text: str) -> str:
    """Text that cannot break a pipe table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown_cell(cell) for cell in cells) + " |"


def _ampersands(cells: Sequence[str]) -> str:
    return " & ".join(_tex_cell(cell) for cell in cells) + r" \\"


def _tex_cell(text: str) -> str:
    plain = text.removeprefix(BOLD).removesuffix(BOLD)
    return tex(plain) if plain == text else rf"\textbf{{{tex(plain)}}}"


def csv_field(value: Any) -> str:
    """A value as the csv has it; empty where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float):
        if 0 < abs(value) < 1e-4:
            return f"{value:.3e}"
        text = f"{round(value, 9):.6f}"
        return text.removeprefix("-") if float(text) == 0 else text
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text
