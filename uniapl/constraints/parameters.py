"""How parameters of constraint kinds are drawn: `draw(rng, cap, words)` for a cap on new tokens and a topic's words."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

Kwargs = dict[str, Any]
# Of IFEval's languages those that have a script or words of their own, so that langdetect knows short texts.
LANGUAGES = {
    "ar": "Arabic", "de": "German", "fi": "Finnish", "fr": "French", "hi": "Hindi", "ko": "Korean", "pl": "Polish",
    "ru": "Russian", "th": "Thai", "vi": "Vietnamese",
}  # fmt: skip


def draw_nothing(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    return {}


def draw_keywords(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    return {"keywords": sorted(rng.sample(list(words), rng.choice((1, 2, 2))))}


def draw_forbidden(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    return {"forbidden_words": sorted(rng.sample(list(words), rng.choice((1, 2, 3))))}


def draw_frequency(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    if rng.random() < 0.75:
        return {"keyword": rng.choice(list(words)), "frequency": rng.choice((2, 2, 3)), "relation": "at least"}
    return {"keyword": rng.choice(list(words)), "frequency": rng.choice((1, 2)), "relation": "less than"}


def draw_letters(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    if rng.random() < 0.6:
        if rng.random() < 0.7:
            letter, count = rng.choice("eaotins"), rng.randint(6, 14)
        else:
            letter, count = rng.choice("bkpvwyfg"), rng.randint(2, 5)
        return {"letter": letter, "let_frequency": count, "let_relation": "at least"}
    return {"letter": rng.choice("bkpvwyfgmcu"), "let_frequency": rng.randint(2, 5), "let_relation": "less than"}


def words_within(cap: int) -> int:
    return max(8, int(cap * 0.45))  # leaves room for long words and the format


def draw_words(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    if rng.random() < 0.5:
        return {"num_words": rng.randint(10, words_within(cap)), "relation": "at least"}
    return {"num_words": rng.randint(8, words_within(cap)), "relation": "less than"}


def draw_word_range(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    least = rng.randint(6, max(7, words_within(cap) - 8))
    return {"min_words": least, "max_words": least + rng.randint(5, 12)}


def draw_sentences(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    if rng.random() < 0.6:
        return {"num_sentences": rng.choice((2, 3, 4) if cap >= 64 else (2,)), "relation": "at least"}
    return {"num_sentences": rng.choice((2, 3)), "relation": "less than"}


def draw_capitals(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    if rng.random() < 0.7:
        return {"capital_frequency": rng.randint(1, 4), "capital_relation": "at least"}
    return {"capital_frequency": rng.randint(1, 3), "capital_relation": "less than"}


def draw_sections(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    return {"section_spliter": rng.choice(("Section", "SECTION")), "num_sections": 2}


def draw_nth_paragraph(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    return {"num_paragraphs": 2, "nth_paragraph": rng.choice((1, 2)), "first_word": rng.choice(list(words))}


def draw_language(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    return {"language": rng.choice(list(LANGUAGES))}


def draw_sentence_keyword(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    return {"word": rng.choice(list(words)), "N": rng.choice((1, 1, 2))}


def draw_choice(key: str, *values: Any) -> Callable[[random.Random, int, Sequence[str]], Kwargs]:
    return lambda rng, cap, words: {key: rng.choice(values)}


# ---- draws that random text of `cap` subword tokens meets about half the time: medians measured at 24 tokens

_LETTER_MEDIANS = {"e": 16, "a": 12, "i": 12, "s": 11, "n": 10, "r": 10, "t": 10, "o": 9}
_FRAGMENTS = ("on", "re", "at", "ed", "al", "st", "ing")  # occur about twice


def _flip(rng: random.Random, cap: int, *, median: int) -> tuple[int, str]:
    relation = rng.choice(("at least", "less than"))
    return max(1, round((median + rng.choice((0, 1) if relation == "less than" else (-1, 0))) * cap / 24)), relation


def flip_words(rng: random.Random, cap: int) -> Kwargs:
    count, relation = _flip(rng, cap, median=17)
    return {"num_words": count, "relation": relation}


def flip_letters(rng: random.Random, cap: int) -> Kwargs:
    letter = rng.choice(sorted(_LETTER_MEDIANS))
    count, relation = _flip(rng, cap, median=_LETTER_MEDIANS[letter])
    return {"letter": letter, "let_frequency": count, "let_relation": relation}


def flip_fragments(rng: random.Random, cap: int) -> Kwargs:
    count = max(1, round(2 * cap / 24))
    return {"keyword": rng.choice(_FRAGMENTS), "frequency": count, "relation": rng.choice(("at least", "less than"))}
