"""The file of answers: torn ends are mended, broken lines named, and one process at a time has it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from uniapl.answer_cache import Answer, AnswerCache


def answer(key: str, text: str = "Ein Wort – 好\n") -> Answer:
    return Answer(key, text, "stop", 3, None)


def fill(path: Path, *keys: str) -> None:
    cache = AnswerCache(path)
    for key in keys:
        cache.add(answer(key))
    cache.close()


def keys_in(path: Path) -> list[str]:
    cache = AnswerCache(path)
    try:
        return [key for key in "abcd" if cache.get(key) == answer(key)]
    finally:
        cache.close()


def test_every_cut_of_the_file_keeps_the_whole_lines_and_takes_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    fill(path, "a", "b")
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        # A line that lacks nothing but its end counts.
        expected = ["a"] * (cut >= first - 1) + ["b"] * (cut >= len(whole) - 1)
        fill(path, "c")
        assert keys_in(path) == [*expected, "c"], cut


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    fill(path, "a", "b")
    lines = path.read_text().splitlines()
    for broken in ('{"key": "a"}', "nonsense", lines[0].replace('"stop"', "7"), "[" * 100_000):
        path.write_text("\n".join([lines[0], broken, lines[1], ""]))
        with pytest.raises(ValueError, match=r"answers\.jsonl:2: not an answer's record; mend or remove this line"):
            AnswerCache(path)
    path.write_text("\n".join([*lines, ""]))
    assert keys_in(path) == ["a", "b"]  # whoever failed has let go of the file


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.jsonl"
    fill(path, "a")
    cache = AnswerCache(path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            cache.add(answer("b"))
    assert cache.get("b") is None
    cache.add(answer("c"))
    cache.close()
    assert keys_in(path) == ["a", "c"]


def test_a_second_opener_waits_and_finds_the_first_ones_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answers.jsonl"
    first = AnswerCache(path)
    found: list[str] = []
    second = threading.Thread(target=lambda: found.extend(keys_in(path)))
    second.start()
    time.sleep(0.3)
    assert not found
    first.add(answer("a"))
    first.close()
    second.join(timeout=10)
    assert found == ["a"]
    assert f"waiting for {path}: another process uses it" in capsys.readouterr().err
