"""POLAR's tokenizer and text: `prompt\\nreference<|reward|>prompt\\noutput[UNUSED_TOKEN_130]`, with its truncation.

Format, lengths and cut sides as in the client of InternLM/POLAR (src/polar/reward_func.py): texts, no chat template.
The tokenizer is InternLM2's, read from its sentencepiece file and the special tokens of tokenizer_config.json by code
of our own, so that none of a checkpoint's code runs. docs/discriminator.md lists what differs and why.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

from uniapl.records import TokenSequence

SEPARATOR = "<|reward|>"  # between the reference's trajectory and the candidate's
REWARD_TOKEN = "[UNUSED_TOKEN_130]"  # the score is the scalar head's value there
THINKING_ENDS = "</think>"
MAX_LENGTH = 16384
MAX_RESPONSE_LENGTH = 4096  # tokens of the reference, and of the output
NUM_SPECIALS = 4  # kept free of MAX_LENGTH: the separator, the reward token and two line breaks
LARGEST_JSON_BYTES = 16 * 2**20
LARGEST_TOKENIZER_BYTES = 64 * 2**20
SPACE = "\u2581"  # how sentencepiece writes a space
NOT_UTF8 = "\ufffd"


def read_json(path: Path) -> dict[str, Any]:
    """A checkpoint's JSON file. Raise ValueError where it is missing, too large or no JSON object."""
    if not path.is_file():
        raise ValueError(f"POLAR: {path} is missing; fetch the whole checkpoint again")
    if path.stat().st_size > LARGEST_JSON_BYTES:
        raise ValueError(f"POLAR: {path} has more than {LARGEST_JSON_BYTES} bytes: it is not POLAR's; fetch it again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"POLAR: {path} is not valid JSON; fetch it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"POLAR: {path} holds no JSON object; fetch it again")
    return content


class PolarTokenizer:
    """InternLM2's tokenizer: sentencepiece between special tokens, which are found in the raw text, longest first."""

    def __init__(self, directory: Path) -> None:
        """Raise ValueError where a file is missing or is not InternLM2's, or the two markers are no tokens."""
        path = directory / "tokenizer.model"
        if not path.is_file():
            raise ValueError(f"POLAR: {path} is missing; fetch the whole checkpoint again")
        if path.stat().st_size > LARGEST_TOKENIZER_BYTES:
            raise ValueError(f"POLAR: {path} has more than {LARGEST_TOKENIZER_BYTES} bytes; fetch it again")
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError):
            raise ValueError(f"POLAR: {path} is no sentencepiece model; fetch it again") from None
        added = _added_tokens(directory / "tokenizer_config.json")
        for marker in (SEPARATOR, REWARD_TOKEN):  # tokens of the vocabulary, whether or not they are listed as added
            place = self._pieces.PieceToId(marker)
            if marker not in added and self._pieces.IdToPiece(place) == marker:
                added[marker] = place
            if marker not in added:
                raise ValueError(f"POLAR: the tokenizer in {directory} has no token {marker}; it is not POLAR's")
        self.special_ids = added
        self.separator_id, self.reward_id = added[SEPARATOR], added[REWARD_TOKEN]
        self.bos_id = self._pieces.bos_id()
        self._skipped = {*added.values(), self.bos_id, self._pieces.eos_id(), self._pieces.unk_id()}
        longest_first = sorted(added, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @property
    def largest_id(self) -> int:
        """The highest token id that a text can have."""
        return max(self._pieces.GetPieceSize() - 1, *self.special_ids.values())

    def encode(self, text: str) -> list[int]:
        """Ids of a text after the start token; special tokens that the text spells out are one id each."""
        ids = [self.bos_id]
        for part in self._special.split(text):
            if part in self.special_ids:
                ids.append(self.special_ids[part])
            elif part:
                ids += self.encode_plain(part)
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text without start token, nothing in it special."""
        text = text.encode("utf-8", "replace").decode("utf-8")  # JSON may hold half a character
        return list(self._pieces.EncodeAsIds(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids without special tokens, as InternLM2's fast tokenizer decodes: one leading space goes.

        Pieces of single bytes are UTF-8 together; each byte of a run that is not becomes U+FFFD.
        """
        kept = [i for i in ids if i not in self._skipped]
        parts = []
        for of_bytes, run in itertools.groupby(kept, key=self._pieces.IsByte):
            pieces = [self._pieces.IdToPiece(i) for i in run]
            if not of_bytes:
                parts.append("".join(pieces).replace(SPACE, " "))
                continue
            raw = bytes(int(piece[3:5], 16) for piece in pieces)  # <0xE4>
            try:
                parts.append(raw.decode("utf-8"))
            except UnicodeDecodeError:
                parts.append(NOT_UTF8 * len(raw))
        return "".join(parts).removeprefix(" ")

    def head(self, ids: Sequence[int], count: int) -> Sequence[int]:
        """The first ids, at most `count`; a character that would be cut in two is left out."""
        end = count
        while 0 < end < len(ids) and self._continues(ids[end]):
            end -= 1
        return ids[:end]

    def tail(self, ids: Sequence[int], count: int) -> Sequence[int]:
        """The last ids, at most `count` (above 0); a character that would be cut in two is left out."""
        start = max(0, len(ids) - count)
        while start < len(ids) and self._continues(ids[start]):
            start += 1
        return ids[start:]

    def _continues(self, token: int) -> bool:
        """True for the piece of a byte that goes on with a character of UTF-8."""
        return self._pieces.IsByte(token) and 0x80 <= int(self._pieces.IdToPiece(token)[3:5], 16) < 0xC0

    def spells_special(self, text: str) -> bool:
        """True where a text spells out a special token."""
        return self._special.search(text) is not None


def _added_tokens(path: Path) -> dict[str, int]:
    """Added tokens and their ids, out of tokenizer_config.json; all of them count as special.

    Raise ValueError where they are not InternLM2's.
    """
    listed = read_json(path).get("added_tokens_decoder", {})
    if not isinstance(listed, dict):
        raise ValueError(f"POLAR: {path}: added_tokens_decoder is no mapping; fetch the checkpoint again")
    added = {}
    for key, token in listed.items():
        known = isinstance(token, dict) and not any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word"))
        if not (key.isdecimal() and known and token.get("content")):
            raise ValueError(f"POLAR: {path}: added token {key} is not like InternLM2's; fetch the checkpoint again")
        added[str(token["content"])] = int(key)
    return added


def without_thinking(text: str) -> str:
    """An answer without the model's thinking: what follows the last </think>, stripped; other texts as they are."""
    before, found, answer = text.rpartition(THINKING_ENDS)
    return answer.strip() if found else before + answer


@dataclass(frozen=True)
class PolarText:
    """One scored text, cut at its separator: `first` ends with the reference, `second` with the candidate."""

    first: str
    second: str

    @property
    def whole(self) -> str:
        """The text as it is documented, special tokens spelled out."""
        return f"{self.first}{SEPARATOR}{self.second}{REWARD_TOKEN}"


class PolarFormat:
    """Texts of one discriminator. `max_length` tokens at most, four of them for the specials."""

    def __init__(
        self, tokenizer: PolarTokenizer, *, max_length: int = MAX_LENGTH, max_response_length: int = MAX_RESPONSE_LENGTH
    ) -> None:
        if max_length - NUM_SPECIALS - 2 * max_response_length < 2:
            raise ValueError(
                f"POLAR: max_length = {max_length} leaves no room for a prompt beside two answers of "
                f"max_response_length = {max_response_length} tokens; raise the first or lower the second"
            )
        self.tokenizer, self.max_length, self.max_response_length = tokenizer, max_length, max_response_length
        self._encoded: dict[str, list[int]] = {}

    def texts(self, prompts: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[PolarText]:
        """The text of every candidate beside its reference, each a user text or an answer."""
        self._encoded = {}  # a prompt and its reference stand in as many rows as it has candidates
        return [self._text(*row) for row in zip(prompts, references, candidates, strict=True)]

    def sequences(self, texts: Sequence[PolarText]) -> list[TokenSequence]:
        """Token ids of texts: up to the separator as the prompt, the rest with the reward token as the completion.

        Equal to the whole text's ids, since special tokens cut a text before sentencepiece sees it.
        """
        tokenizer = self.tokenizer
        firsts = {text.first: None for text in texts}
        prompt_of = {
            first: [tokenizer.bos_id, *tokenizer.encode_plain(first), tokenizer.separator_id] for first in firsts
        }
        return [
            TokenSequence(
                prompt_of[text.first], [*tokenizer.encode_plain(text.second), tokenizer.reward_id], frozenset()
            )
            for text in texts
        ]

    def _text(self, prompt: str, reference: str, candidate: str) -> PolarText:
        prompt_ids = self._ids(prompt)
        reference_ids = self.tokenizer.head(self._ids(without_thinking(reference)), self.max_response_length)
        candidate_ids = self.tokenizer.head(self._ids(without_thinking(candidate)), self.max_response_length)
        room = (self.max_length - NUM_SPECIALS - len(reference_ids) - len(candidate_ids)) // 2
        shown, expert, answer = map(
            self._decoded, (self.tokenizer.tail(prompt_ids, room), reference_ids, candidate_ids)
        )
        return PolarText(f"{shown}\n{expert}", f"{shown}\n{answer}")

    def _ids(self, text: str) -> list[int]:
        if text not in self._encoded:
            self._encoded[text] = self.tokenizer.encode(text)
        return self._encoded[text]

    def _decoded(self, ids: Sequence[int]) -> str:
        """Text without special tokens, also without those that only come about when others are taken out."""
        text = self.tokenizer.decode(ids)
        while self.tokenizer.spells_special(text):
            text = self.tokenizer.decode(self.tokenizer.encode(text))
        return text
