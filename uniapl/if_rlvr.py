"""IFBench's training set (IF-RLVR, arXiv 2507.02833): up to five constraints a prompt, IFEval's kinds and 29 others.

Data: allenai/IF_multi_constraints_upto5 on the hub (95,373 rows, ODC-BY). A row's `ground_truth` is a Python literal,
one object with the lists `instruction_id` and `kwargs`. A row with a kind that no verifier here covers is counted and
left out, never judged by a guess; so is one whose parameters do not decide the verdict.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from uniapl.config import IFRLVRSpec
from uniapl.constraints import known_kinds
from uniapl.constraints.verify import undecided
from uniapl.layers import CONFIG
from uniapl.records import Constraint, Prompt
from uniapl.shapes import snapshot_folder

LICENCE = "ODC-BY"
TEXT_CHARACTERS = 20_000  # of a prompt
LITERAL_CHARACTERS = 20_000  # of a ground truth
MOST_CONSTRAINTS = 8


def folder_of(spec: IFRLVRSpec) -> Path:
    """Where the data lie: a folder that the config names, or the hub's cache. Raise ValueError where neither is."""
    folder = (
        CONFIG.parent / spec.location if spec.location else snapshot_folder(spec.hub, spec.revision, kind="dataset")
    )
    if not folder.is_dir():
        remedy = "mend data.if_rlvr.location" if spec.location else "run: uniapl fetch --scale paper"
        raise ValueError(f"IF-RLVR's training set is not at {folder}; {remedy}, or set data.if_rlvr to null")
    return folder


def files_of(folder: Path) -> list[Path]:
    """Its parquet files."""
    return sorted(folder.glob("**/*.parquet"))


def rows_of(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of the parquet files below a folder. Raise ValueError where there are none or a column is missing."""
    from pyarrow import ArrowInvalid, parquet

    files = files_of(folder)
    if not files:
        raise ValueError(f"{folder}: no parquet file of IF-RLVR's training set; run: uniapl fetch --scale paper")
    for file in files:
        try:
            table = parquet.ParquetFile(file)
            missing = {"key", "messages", "ground_truth"} - set(table.schema_arrow.names)
            if missing:
                raise ValueError(f"{file}: column '{min(missing)}' is missing; this is not IF-RLVR's training set")
            for batch in table.iter_batches(batch_size=1024, columns=["key", "messages", "ground_truth"]):
                yield from batch.to_pylist()
        except ArrowInvalid as error:
            raise ValueError(f"{file}: no parquet file ({str(error).splitlines()[0]}); fetch it again") from None


def prompt_of(row: dict[str, Any]) -> Prompt | str:
    """A row's prompt; or why it is left out."""
    messages = row["messages"]
    if not isinstance(messages, list) or [m.get("role") for m in messages] != ["user"]:
        return "not one user message"
    text, truth = messages[0].get("content"), row["ground_truth"]
    if not isinstance(text, str) or not 0 < len(text) <= TEXT_CHARACTERS:
        return "empty or too long"
    pairs = _parse(truth) if isinstance(truth, str) and len(truth) <= LITERAL_CHARACTERS else None
    if not pairs:
        return "ground truth cannot be read"
    constraints = tuple(Constraint(kind, kwargs) for kind, kwargs in pairs)
    for constraint in constraints:
        if constraint.kind not in known_kinds():
            return f"no verifier for {constraint.kind}"
        if undecided(constraint) is not None:
            return f"parameters of {constraint.kind} do not decide the verdict"
    return Prompt(f"if-rlvr-{row['key']}", "train", text, constraints)


def _parse(literal: str) -> list[tuple[str, dict[str, Any]]] | None:
    """Kinds and parameters out of the literal; None where it has another form."""
    try:
        value = ast.literal_eval(literal)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(value, dict):
        return None
    kinds, kwargs = value.get("instruction_id"), value.get("kwargs")
    if not isinstance(kinds, list) or not isinstance(kwargs, list) or not 0 < len(kinds) <= MOST_CONSTRAINTS:
        return None
    if len(kinds) != len(kwargs) or not all(isinstance(kind, str) for kind in kinds):
        return None
    if not all(one is None or isinstance(one, dict) for one in kwargs):
        return None
    given = [{k: v for k, v in (one or {}).items() if v is not None} for one in kwargs]
    return list(zip(kinds, given, strict=True))


def load(rows: Iterable[dict[str, Any]]) -> tuple[list[Prompt], dict[str, Any]]:
    """The prompts that can be judged, and the data card's counts of those that were left out, by reason."""
    prompts: list[Prompt] = []
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    total = 0
    for row in rows:
        total += 1
        made = prompt_of(row)
        if isinstance(made, Prompt) and made.id in seen:
            made = "key came before"
        if isinstance(made, Prompt):
            seen.add(made.id)
            prompts.append(made)
        else:
            left_out[made] += 1
    return prompts, {"rows": total, "kept": len(prompts), "left_out": dict(left_out.most_common())}
