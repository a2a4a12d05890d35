"""What shares text with a benchmark is found whatever its punctuation, and nothing else is."""

from __future__ import annotations

from uniapl.decontamination import Benchmarks, decontaminated, words_of
from uniapl.records import Constraint, Prompt

QUESTION = "A farmer has 17 sheep, and all but 9 of them run away; how many sheep are left on the farm?"
BENCHMARKS = Benchmarks(
    {"gsm8k": [QUESTION], "ifeval": ["Write a poem. Your answer must contain exactly 3 bullet points."]}
)


def prompt(text: str, constraint: str = "", identity: str = "p") -> Prompt:
    return Prompt(identity, "train", text, (Constraint("kind", {}, constraint),))


def test_thirteen_words_in_a_row_are_found_through_punctuation_and_case() -> None:
    words = words_of(QUESTION)
    shared = " ".join(words[2:15]).upper().replace(" ", " -- ")
    overlap = BENCHMARKS.overlap(prompt(f"Please: {shared}!"))
    assert overlap is not None
    assert (overlap.benchmark, overlap.by) == ("gsm8k", "words")


def test_twelve_words_in_a_row_are_none() -> None:
    shared = " ".join(words_of(QUESTION)[2:14])
    assert BENCHMARKS.overlap(prompt(f"Please {shared} or what")) is None


def test_a_short_benchmark_prompt_is_found_as_a_whole_alone() -> None:
    short = Benchmarks({"humaneval": ["Add two numbers"]})
    assert short.overlap(prompt("ADD two numbers.")) is not None
    assert short.overlap(prompt("Add two numbers and print them")) is None


def test_a_constraint_in_a_benchmarks_words_is_found() -> None:
    overlap = BENCHMARKS.overlap(prompt("Describe tea.", "Your answer must contain exactly 3 bullet points!"))
    assert overlap is not None
    assert (overlap.benchmark, overlap.by) == ("ifeval", "constraint")
    assert BENCHMARKS.overlap(prompt("Describe tea.", "Your answer must contain exactly 4 bullet points!")) is None
    assert BENCHMARKS.overlap(prompt("Describe tea.", "bullet points")) is None


def test_the_report_counts_duplicates_and_what_was_left_out() -> None:
    texts = ["Describe tea.", "describe TEA", QUESTION, "Describe milk."]
    kept, report = decontaminated([prompt(text, identity=str(i)) for i, text in enumerate(texts)], BENCHMARKS)
    assert [one.id for one in kept] == ["0", "3"]
    assert (report["rows"], report["duplicates"], report["kept"]) == (4, 1, 2)
    assert report["left_out"] == [{"benchmark": "gsm8k", "by": "words", "rows": 1}]
    assert report["examples"][0]["prompt_id"] == "2"
