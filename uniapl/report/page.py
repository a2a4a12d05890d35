"""What the page says: the tables' .md files as HTML, the figures inlined, and the study's provenance."""

from __future__ import annotations

import base64
import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from uniapl import __version__
from uniapl.analysis import comparisons
from uniapl.analysis.cells import NO_CELL, NOT_RUN
from uniapl.analysis.claims import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED
from uniapl.analysis.collect import Study, rows_of, run_config
from uniapl.analysis.facts import no_signal
from uniapl.analysis.labels import BASE, BASELINE, UNIAPL, p_value, processor, with_interval
from uniapl.analysis.outputs import figure_numbers, table_numbers
from uniapl.analysis.references import stack_warnings
from uniapl.analysis.render import BOLD
from uniapl.equations import LEGEND, describe_stage
from uniapl.report.explorer import as_script, curves, explorer
from uniapl.report.failures import failures, not_run
from uniapl.report.protocol import ablations, protocol, tolerances, trace_command

LIMITS = {
    "smoke": (
        (
            "This is the smoke scale: random models, a few steps, canned demonstrations. Its numbers only show that"
            " every room of the suite works; they mean nothing else."
        ),
    ),
    "laptop": (
        (
            "The model is SmolLM2-135M-Instruct, dequantised from a Q4_1 file: a small model to begin with, and not the"
            " published weights."
        ),
        (
            "The teacher is an editor, not Qwen3-235B-A22B-Instruct-2507: it takes the base model's best sample and"
            " edits it until every verifier passes. Its answers are right by construction, and close to the base"
            " model's own."
        ),
        "The discriminator is a small head over the frozen base model's states, not POLAR.",
        (
            "The prompts are generated and ask for short answers; the reward is the same kind as the paper's, binary"
            " and verified."
        ),
        (
            "Therefore the paper's Qwen3 results are not reproduced here. Claims that need Qwen3 are marked as not run;"
            " the others are tested on this model, and neither success nor failure here carries over to Qwen3 by"
            " itself."
        ),
    ),
    "paper": (
        (
            "Full text and code of the paper were not at hand: what its abstracts and reviews do not state was chosen"
            " here, in config."
        ),
    ),
}
VERDICTS = (NOT_SUPPORTED, SUPPORTED, INCONCLUSIVE, NOT_RUN)
LISTED_LOG_ROWS = 60
LOG_COLUMNS = ("time", "model", "method", "variant", "seed", "task", "prompt_strict", "commit")
LOG_CHARACTERS = 25  # a commit is known by its beginning
GIB = 1 << 30


@dataclass(frozen=True)
class Grid:
    """One table of the page: heading cells and rows; a row of one cell spans the table."""

    columns: list[Markup]
    rows: list[list[Markup]]


@dataclass(frozen=True)
class Part:
    """A table's file: its number and title, then grids and paragraphs in order."""

    number: int
    title: str
    pieces: list[Grid | str]

    def verdicts(self) -> list[tuple[str, str]]:
        """Of the claim table: each row's claim, with its model where there is a column of them, and its verdict."""
        found = []
        for grid in (piece for piece in self.pieces if isinstance(piece, Grid)):
            at = {str(column): place for place, column in enumerate(grid.columns)}
            for row in grid.rows:
                cells = {column: row[place].striptags() for column, place in at.items()}
                model = f" ({cells['Model']})" if cells.get("Model", NO_CELL) != NO_CELL else ""
                verdict = next(one for one in VERDICTS if cells["Verdict"].startswith(one))
                found.append((f"{cells['Claim']}{model}", verdict))
        return found


def render_page(study: Study, tables: Path, figures: Path) -> str:
    """The page's HTML. Raise ValueError where a table or figure is missing."""
    parts = {number: read_table(tables / f"table{number}.md", number) for number in table_numbers(study.index)}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests["grid"] = lambda piece: isinstance(piece, Grid)
    return environment.get_template("page.html.j2").render(
        version=__version__,
        scale=study.index["scale"],
        models=list(study.models.values()),
        summary=_summary(study),
        limits=_limits(study),
        parts=parts,
        figures={n: [_figure(figures, n, m) for m in study.models] for n in figure_numbers(study.index)},
        methods=methods_grid(study),
        legend=LEGEND,
        protocol=_prose(("What", "In this study"), protocol(study)),
        tolerances=_prose(("Setting", "Value", "Meaning"), tolerances(study)),
        failures=failures(study, parts[2].verdicts()),
        not_run=not_run(study),
        ablations=_prose(("Variant", "Differs from the main run in"), ablations(study)),
        traced=trace_command(study),
        signal=[s for s in (no_signal(study, m) for m in study.models) if s] + stack_warnings(study),
        kinds=_kinds(study),
        log=_log(study),
        log_count=len(study.heldout_log),
        manifests=_manifests(study),
        packages=_packages(study),
        commits=_commits(study),
        hardware=_hardware(study),
        benchmarks=_benchmarks(study.root),
        answers=Markup(as_script(found)) if (found := explorer(study)) else "",
        curves=Markup(as_script(curves(study))),
        script=Markup((Path(__file__).parent / "explorer.js").read_text(encoding="utf-8")),
    )


def read_table(path: Path, number: int) -> Part:
    """Parse what uniapl.analysis.render wrote: paragraphs and pipe tables between blank lines."""
    if not path.exists():
        raise ValueError(f"{path} is missing; run `python -m uniapl.analysis.tables` first")
    title, *blocks = path.read_text(encoding="utf-8").strip().split("\n\n")
    pieces: list[Grid | str] = []
    for block in blocks:
        lines = block.split("\n")
        if not lines[0].startswith("| "):
            pieces.append(block.strip("*"))
            continue
        columns, _, *rows = ([cell.strip().replace("\\|", "|") for cell in _cells(line)] for line in lines)
        pieces.append(Grid([escape(c) for c in columns], [_row(row) for row in rows]))
    return Part(number, title.strip("*").partition(". ")[2], pieces)


def _cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)[1:-1]


def _row(cells: list[str]) -> list[Markup]:
    """HTML cells; a row whose first cell is bold and whose others are empty is a section's heading."""
    if cells[0].startswith("**") and not any(cells[1:]):
        return [escape(cells[0].strip("*"))]
    return [_cell(cell) for cell in cells]


def _cell(text: str) -> Markup:
    """A value with its interval in grey and its p below; a verdict in its colour."""
    if text.startswith(BOLD) and text.endswith(BOLD):
        return Markup("<b>{}</b>").format(_cell(text.strip("*")))
    found = re.fullmatch(r"([+−]?[\d.]+) (\[[^]]*\])(?:, (p .*))?", text)
    if found:
        value, interval, p = found.groups()
        below = Markup('<br><span class="faint">{}</span>').format(p) if p else Markup("")
        return Markup('{}&nbsp;<span class="faint">{}</span>{}').format(value, interval, below)
    for verdict in VERDICTS:
        if text == verdict or text.startswith((f"{verdict}: ", f"{verdict} at ")):
            rest = text.removeprefix(verdict)
            return Markup('<span class="verdict {}">{}</span>{}').format(verdict.replace(" ", "-"), verdict, rest)
    return escape(text)


def _figure(figures: Path, number: int, model: str) -> dict[str, str]:
    """A figure inlined as base64, with its caption."""
    image, caption = figures / f"figure{number}_{model}.svg", figures / f"figure{number}_{model}.txt"
    for path in (image, caption):
        if not path.exists():
            raise ValueError(f"{path} is missing; run `python -m uniapl.analysis.figures` first")
    return {
        "image": base64.b64encode(image.read_bytes()).decode(),
        "caption": caption.read_text(encoding="utf-8").strip(),
    }


def _summary(study: Study) -> list[str]:
    """Whether each model learned, and whether UniAPL beat GRPO, in one sentence each."""
    of = comparisons.claimed_on(study)
    if of.task not in study.index["tasks"]:
        return []
    sentences = []
    for model, title in study.models.items():
        methods = study.methods(model)
        if BASE in methods:
            accuracy = comparisons.accuracy(study, model, BASE, of, "prompt_strict")
            sentences.append(
                f"{title} meets all constraints of {_percent(accuracy)} of {accuracy.n} {of.prompts} before training."
            )
        for method in (BASELINE, UNIAPL):
            if method in methods and BASE in methods:
                gain = comparisons.difference(study, model, method, BASE, of, "prompt_strict")
                sentences.append(
                    f"{study.label(method)} changes this by {_points(gain)}: {_direction(gain, 'above', 'below')} the"
                    " base model."
                )
        if BASELINE in methods and UNIAPL in methods:
            gain = comparisons.difference(study, model, UNIAPL, BASELINE, of, "prompt_strict")
            sentences.append(
                f"UniAPL minus GRPO is {_points(gain)}: {_direction(gain, 'better than', 'worse than')} GRPO."
            )
    return sentences


def _percent(estimate: comparisons.Estimate) -> str:
    return with_interval(estimate.value, estimate.low, estimate.high, 1, scale=100).replace(" ", "% ", 1)


def _points(estimate: comparisons.Estimate) -> str:
    return (
        f"{with_interval(estimate.value, estimate.low, estimate.high, 1, scale=100, signed=True)} points"
        f" ({p_value(estimate.p)})"
    )


def _direction(estimate: comparisons.Estimate, up: str, down: str) -> str:
    if estimate.low > 0:
        return f"the interval lies {up}" if up == "above" else up
    if estimate.high < 0:
        return f"the interval lies {down}" if down == "below" else down
    return "not told apart from"


def _limits(study: Study) -> list[str]:
    seeds = {entry["seed"] for entry in study.index["evaluations"] if entry["method"] != BASE}
    limits = list(LIMITS.get(study.index["scale"], ()))
    if limit := study.index.get("limit"):
        limits.append(f"This is a trial: only the first {limit} questions of each task were asked. It decides nothing.")
    if len(seeds) == 1:
        limits.append("There is one training seed: the intervals speak of other prompts, not of other runs.")
    return limits


def methods_grid(study: Study) -> Grid | None:
    """Each method's stages: their loss with its coefficients, steps and choices, as the configs of its runs say."""
    rows = []
    for model, title in study.models.items():
        for method in study.methods(model):
            runs = rows_of(study.runs, model, method)["directory"].tolist()
            config = run_config(study, runs[0]) if runs else {"path": ()}
            for number, stage in enumerate(config["path"]):
                told = describe_stage(stage, config)
                name = "" if number else study.label(method) + (f", {title}" if len(study.models) > 1 else "")
                schedules = [f"{key}(t): {told[key]}" for key in ("mu", "lambda_adv") if "decay" in told[key]]
                told["notes"] = "; ".join((*schedules, *told["notes"]))
                rows.append([name, *(told[key] for key in ("name", "equation", "steps", "learning_rate", "notes"))])
    heads = ("Method", "Stage", "Loss", "Steps", "Learning rate", "Choices")
    return _prose(heads, rows)


def _prose(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Grid | None:
    """Running text in columns; None where there is none."""
    return Grid([escape(c) for c in columns], [[escape(cell) for cell in row] for row in rows]) if rows else None


def _kinds(study: Study) -> Grid | None:
    """The teacher's table: base and teacher accuracy per constraint kind, as kinds.csv has it."""
    if study.kinds.empty:
        return None
    columns = [c for c in study.kinds.columns if c != "model" or len(study.models) > 1]
    rows = [[escape(_plain(value)) for value in row] for row in study.kinds[columns].itertuples(index=False)]
    return Grid([escape(c.replace("_", " ")) for c in columns], rows)


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "—"
    if isinstance(value, float):
        return f"{round(value, 9):.3f}"
    return str(value)


def _log(study: Study) -> Grid | None:
    """The held-out log's last rows."""
    rows = study.heldout_log[-LISTED_LOG_ROWS:]
    columns = [column for column in LOG_COLUMNS if any(column in row for row in rows)]
    if not columns:
        return None
    cells = [[escape(_plain(row.get(column))[:LOG_CHARACTERS]) for column in columns] for row in rows]
    return Grid([escape(column.replace("_", " ")) for column in columns], cells)


def _manifests(study: Study) -> Grid:
    columns = ["Directory", "Seconds", "Peak memory, GiB", "Commit"]
    rows = []
    for directory, manifest in study.manifests.items():
        peak = manifest.get("peak_memory_bytes")
        cells = (
            directory,
            _whole(manifest.get("seconds")),
            f"{peak / GIB:.1f}" if peak else "—",
            _commit(manifest, digits=8),
        )
        rows.append([escape(cell) for cell in cells])
    return Grid([escape(c) for c in columns], rows)


def _whole(number: Any) -> str:
    return f"{number:,.0f}" if isinstance(number, (int, float)) else "—"


def _commit(manifest: dict[str, Any], *, digits: int) -> str:
    code = manifest.get("code") or {}
    commit = (code.get("commit") or "outside git")[: max(digits, 11) if not code.get("commit") else digits]
    return f"{commit}, modified" if code.get("modified") else commit


def _commits(study: Study) -> list[str]:
    return sorted({_commit(manifest, digits=40) for manifest in study.manifests.values()})


def _hardware(study: Study) -> list[str]:
    machines = set()
    for manifest in study.manifests.values():
        found = manifest.get("hardware")
        if found:
            gpus = f", {', '.join(found['gpus'])}" if found.get("gpus") else ", no GPU"
            python = f", Python {manifest['python']}" if "python" in manifest else ""
            size = f"{found['cores']} cores, {found['memory_bytes'] / GIB:.0f} GiB"
            machines.add(f"{processor(found)}, {size}{gpus}{python}")
    return sorted(machines)


def _packages(study: Study) -> list[str]:
    versions: dict[str, set[str]] = {}
    for manifest in study.manifests.values():
        for name, version in (manifest.get("packages") or {}).items():
            versions.setdefault(name, set()).add(version)
    return [f"{name} {' / '.join(sorted(found))}" for name, found in sorted(versions.items())]


def _benchmarks(root: Path) -> Grid | None:
    """Snakemake's benchmark files below ROOT/benchmarks, slowest first."""
    found = []
    for path in sorted((root / "benchmarks").rglob("*.tsv")):
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        if rows:
            name = str(path.relative_to(root / "benchmarks").with_suffix(""))
            found.append((name, _number(rows[-1].get("s")), _number(rows[-1].get("max_rss"))))
    if not found:
        return None
    found.sort(key=lambda row: (-row[1], row[0]))
    rows = [[escape(name), escape(f"{s:,.0f}"), escape(f"{rss / 1024:.1f}" if rss else "—")] for name, s, rss in found]
    rows.append([Markup("<b>sum</b>"), escape(f"{sum(s for _, s, _ in found):,.0f}"), escape("—")])
    return Grid([escape(c) for c in ("Job", "Seconds", "Peak memory, GiB")], rows)


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
