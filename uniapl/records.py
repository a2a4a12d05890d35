"""Typed records that the rooms hand to each other, and the legend of dimension suffixes.

Suffixes of tensors and ragged lists: P prompts of a step, K rollouts per prompt, B sequences,
T tokens (completion tokens laid end to end, over all sequences of a micro-batch), V vocabulary,
D hidden width. `rewards_PK`, `logprobs_T`. Units stand in the name where they are not obvious.
"""

from __future__ import annotations

import gzip
import json
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

LONGEST_LINE = 64 << 20  # bytes of a JSON line; a row of anything here is far below
HELDOUT_LOG = "heldout_log.jsonl"  # in a study's root: one line for every look at held-out prompts


@dataclass(frozen=True)
class Constraint:
    """One verifiable instruction: its kind (IFEval's or IFBench's id), parameters and the words in the prompt."""

    kind: str
    kwargs: dict[str, Any]
    text: str = ""


@dataclass(frozen=True)
class Prompt:
    """One user message with the constraints that an answer must meet.

    `split` is train, development, heldout or ifbench; `group` tells `seen` from `unseen` constraint kinds.
    """

    id: str
    split: str
    text: str
    constraints: tuple[Constraint, ...]
    topic: str = ""
    form: str = ""
    group: str = "seen"


@dataclass(frozen=True)
class Demonstration:
    """One expert answer that passed every verifier. `original` is the draft before `edits` (names of the edits)."""

    prompt_id: str
    split: str
    take: int
    text: str
    original: str
    edits: tuple[str, ...]
    followed: tuple[bool, ...]
    num_tokens: int
    truncated: bool = False


@dataclass(frozen=True)
class Sample:
    """What a sampler returns for one request: token ids (with the end token where it came) and their log-probs."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str  # "stop": the end token came; "length": cut at the cap


@dataclass
class Rollout:
    """One sampled answer of a training step and all that is known of it.

    `reward` is None where it could not be computed; `status` then says why (never 0.0 in its place).
    """

    prompt_id: str
    index: int
    sample: Sample
    text: str
    reward: float | None = None
    status: str = "ok"
    followed: tuple[bool | None, ...] = ()
    adversarial_score: float | None = None

    @classmethod
    def read(cls, row: dict[str, Any]) -> Rollout:
        """A rollout out of its fields as JSON has them."""
        return cls(**(row | {"sample": Sample(**row["sample"]), "followed": tuple(row["followed"])}))

    @property
    def fraction(self) -> float | None:
        """Share of the constraints that hold; None where one could not be judged."""
        if self.status != "ok" or not self.followed:
            return None
        return sum(bool(f) for f in self.followed) / len(self.followed)


@dataclass
class TokenSequence:
    """One sequence of a step: prompt and completion tokens, and what each term needs of it.

    `terms` names the terms that train on it (`sft`, `grpo`, `adv`, `kl`). Advantages are one number a sequence.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    terms: frozenset[str]
    advantage: float = 0.0
    adversarial_advantage: float = 0.0
    sampler_logprobs: list[float] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


Record = TypeVar("Record")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write dataclasses or dicts, one JSON object a line; the file appears whole or not at all."""
    from uniapl.provenance import write_whole

    def plain(row: Any) -> Any:
        return row if isinstance(row, dict) else asdict(row)

    write_whole(path, "".join(json.dumps(plain(r), ensure_ascii=False, sort_keys=True) + "\n" for r in rows))


def stored(path: Path) -> Path:
    """The file, or where only that is there, its gzipped copy: in a release, what variants wrote is `NAME.jsonl.gz`."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a file or its gzipped copy; blank lines and a byte order mark are skipped.

    Raise ValueError naming file and line where a line is not a JSON object in UTF-8, or longer than any of ours.
    """
    path = stored(path)
    for number, line in enumerate(read_lines(path), start=1):
        if len(line) > LONGEST_LINE:
            raise ValueError(f"{path}:{number}: longer than {LONGEST_LINE >> 20} MiB; mend or remove this line")
        if not line.strip() or (number == 1 and not line.removeprefix(BOM_UTF8).strip()):
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"{path}:{number}: not UTF-8 text; save the file as UTF-8") from None
        except RecursionError:
            raise ValueError(f"{path}:{number}: nested too deeply; mend or remove this line") from None
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise ValueError(f"{path}:{number}: not valid JSON ({reason}); mend or remove this line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected one JSON object, found {type(row).__name__}")
        yield number, row


def read_lines(path: Path) -> Iterator[bytes]:
    """Lines of a plain or gzipped file, cut where they are too long. Raise ValueError for a gzip file that is cut."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        try:
            yield from iter(lambda: file.readline(LONGEST_LINE + 1), b"")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: not a whole gzip file ({error}); restore it") from None


def read_demonstrations(path: Path) -> list[Demonstration]:
    """Read a demonstrations file. Raise ValueError naming file and line for a broken record."""
    demonstrations = []
    for number, row in read_jsonl(path):
        try:
            row["edits"], row["followed"] = tuple(row["edits"]), tuple(row["followed"])
            demonstrations.append(Demonstration(**row))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a demonstration record ({error})") from None
    return demonstrations
