"""Where a number of a table comes from: the statistic, and the records that it was computed from.

Every number of a table's csv is a `Traced` float; what is said of a row beside its numbers, as a verdict, comes from
all of them. `uniapl trace` (`analysis.trace`) prints it. A csv knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

SOURCE = "_source"  # key of a record: where its cells come from that say nothing themselves; no column


@dataclass(frozen=True)
class Source:
    """A statistic in words, and its inputs: `files` in each of `directories`, relative to the study's root.

    `of`: other statistics that it is computed from, as an adjusted p-value is from all p-values of its family.
    """

    statistic: str
    directories: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    selection: str = ""  # which rows or keys of the files
    of: tuple[Source, ...] = ()

    def inputs(self) -> Iterator[Source]:
        """Itself where it has files, and everything that it is computed from."""
        if self.directories:
            yield self
        for source in self.of:
            yield from source.inputs()


STUDY_INDEX = Source("stated in the study's index", ("",), ("study.json",))
# Columns that name a row, or state what the study was asked to do; they are no results.
NAMES = frozenset((
    "model", "method", "label", "variant", "task", "group", "kind", "seen", "expert", "equal", "part", "name", "claim",
    "statement", "source", "unit", "margin", "tolerance", "reason", "num_seeds", "published", "tolerance_points",
    "metrics", "other", "without",
))  # fmt: skip


class Traced(float):
    """A float that knows its source."""

    source: Source

    def __new__(cls, value: float, source: Source) -> Traced:
        made = super().__new__(cls, value)
        made.source = source
        return made


def joined(statistic: str, sources: Iterable[Source | None]) -> Source:
    """A statistic that is computed from others, each once."""
    return Source(statistic, of=tuple(dict.fromkeys(source for source in sources if source is not None)))


def with_row_source(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the source of its row, all that its numbers come from, where it does not say another."""
    numbers = [value.source for value in record.values() if isinstance(value, Traced)]
    plain = (replace(source, statistic="") for source in numbers)  # the parts of an estimate are one input
    return {SOURCE: joined("said of the row, from what its numbers are computed from", plain)} | dict(record)


def source_of(record: Mapping[str, Any], column: str) -> Source:
    """Where a cell comes from: its own source, the index for what names the row, else what the row's numbers are from.

    A row in which nothing was measured has only the index.
    """
    value = record.get(column)
    if isinstance(value, Traced):
        return value.source
    row = record.get(SOURCE, STUDY_INDEX)
    return STUDY_INDEX if column in NAMES or not any(row.inputs()) else row
