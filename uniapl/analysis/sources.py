"""Where a number of a table comes from: the statistic, and the records that it was computed from.

Every number of a table's csv is a `Traced` float, or its record has a default source under SOURCE; `uniapl trace`
(`analysis.trace`) prints what they say. A csv knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SOURCE = "_source"  # key of a record: where its cells come from that say nothing themselves; no column


@dataclass(frozen=True)
class Source:
    """A statistic in words, and its inputs: `files` in each of `directories`, relative to the study's root."""

    statistic: str
    directories: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    selection: str = ""  # which rows or keys of the files


STUDY_INDEX = Source("stated in the study's index", ("",), ("study.json",))


class Traced(float):
    """A float that knows its source."""

    source: Source

    def __new__(cls, value: float, source: Source) -> Traced:
        made = super().__new__(cls, value)
        made.source = source
        return made


def source_of(record: Mapping[str, Any], column: str) -> Source:
    """Where a cell comes from: its own source, the record's, or the study's index for names and labels."""
    value = record.get(column)
    return value.source if isinstance(value, Traced) else record.get(SOURCE, STUDY_INDEX)
