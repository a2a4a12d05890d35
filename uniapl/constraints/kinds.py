"""The registry of constraint kinds that prompts are made of: how parameters are drawn, worded and kept compatible.

Names and parameters are IFEval's (arXiv 2311.07911) and IFBench's (arXiv 2507.02833), so that their verifiers can
judge them. `seen` kinds may stand in training prompts; the others only in half of the held-out ones. Sizes are drawn
so that an answer fits the cap on new tokens; every kind can be met by editing a text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Kwargs = dict[str, Any]
TOKENS_PER_WORD = 1.6  # SmolLM2's tokenizer on plain English, rounded up
END_PHRASES = (
    "That is all.", "Thank you for reading.", "See you soon.", "I hope this helps.", "Have a nice day.",
    "That is the whole story.", "Let me know what you think.", "Stay curious.", "Now it is your turn.",
    "Keep it simple.",
)  # fmt: skip
SEPARATORS = ("...", "SEPARATOR", "!?!?", "-")


@dataclass(frozen=True)
class Kind:
    """One constraint kind.

    `draw(rng, cap, words)` gives the verifier's parameters (cap: most new tokens of an answer; words: the topic's).
    Kinds that share a group exclude each other. `fixed(kwargs)` is text that every answer must hold; `least_words`
    and `most_words` bound its length; `extra_tokens` is what the format itself costs. `coin_flip` draws parameters
    that random text of `cap` tokens meets about half the time (None: the kind is not used at smoke scale).
    """

    name: str
    family: str  # ifeval | ifbench
    seen: bool
    draw: Callable[[random.Random, int, Sequence[str]], Kwargs]
    texts: Callable[[Kwargs], Sequence[str]]
    groups: frozenset[str] = frozenset()
    fixed: Callable[[Kwargs], str] = lambda kwargs: ""
    least_words: Callable[[Kwargs], int] = lambda kwargs: 5
    most_words: Callable[[Kwargs], int | None] = lambda kwargs: None
    extra_tokens: int = 0
    coin_flip: Callable[[random.Random, int], Kwargs] | None = None

    def describe(self, kwargs: Kwargs, rng: random.Random) -> str:
        """One of the kind's wordings with the parameters filled in."""
        return rng.choice(self.texts(kwargs))

    def min_tokens(self, kwargs: Kwargs) -> int:
        """Tokens that the shortest natural answer meeting this constraint needs, about."""
        words = max(self.least_words(kwargs), len(self.fixed(kwargs).split()) + 3)
        return round(words * TOKENS_PER_WORD) + self.extra_tokens


def _nothing(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    return {}


def _fixed_texts(*texts: str) -> Callable[[Kwargs], Sequence[str]]:
    return lambda kwargs: texts


def _listed(words: Sequence[str]) -> str:
    quoted = [f'"{word}"' for word in words]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " and " + quoted[-1]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _by_relation(
    key: str, at_least: Callable[[Kwargs], Sequence[str]], less_than: Callable[[Kwargs], Sequence[str]]
) -> Callable[[Kwargs], Sequence[str]]:
    return lambda kwargs: at_least(kwargs) if kwargs[key] == "at least" else less_than(kwargs)


# ---- drawing of parameters; comments give what bounds them


def _draw_keywords(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    return {"keywords": sorted(rng.sample(list(words), rng.choice((1, 2, 2))))}


def _draw_forbidden(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    return {"forbidden_words": sorted(rng.sample(list(words), rng.choice((1, 2, 3))))}


def _draw_frequency(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    if rng.random() < 0.75:
        return {"keyword": rng.choice(list(words)), "frequency": rng.choice((2, 2, 3)), "relation": "at least"}
    return {"keyword": rng.choice(list(words)), "frequency": rng.choice((1, 2)), "relation": "less than"}


def _draw_letters(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    if rng.random() < 0.6:
        if rng.random() < 0.7:
            letter, count = rng.choice("eaotins"), rng.randint(6, 14)
        else:
            letter, count = rng.choice("bkpvwyfg"), rng.randint(2, 5)
        return {"letter": letter, "let_frequency": count, "let_relation": "at least"}
    return {"letter": rng.choice("bkpvwyfgmcu"), "let_frequency": rng.randint(2, 5), "let_relation": "less than"}


def _most_words(cap: int) -> int:
    return max(8, int(cap * 0.45))  # leaves room for long words and the format


def _draw_words(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    if rng.random() < 0.5:
        return {"num_words": rng.randint(10, _most_words(cap)), "relation": "at least"}
    return {"num_words": rng.randint(8, _most_words(cap)), "relation": "less than"}


def _draw_word_range(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    least = rng.randint(6, max(7, _most_words(cap) - 8))
    return {"min_words": least, "max_words": least + rng.randint(5, 12)}


def _draw_sentences(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    if rng.random() < 0.6:
        return {"num_sentences": rng.choice((2, 3, 4) if cap >= 64 else (2,)), "relation": "at least"}
    return {"num_sentences": rng.choice((2, 3)), "relation": "less than"}


def _draw_capitals(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    if rng.random() < 0.7:
        return {"capital_frequency": rng.randint(1, 4), "capital_relation": "at least"}
    return {"capital_frequency": rng.randint(1, 3), "capital_relation": "less than"}


def _draw_sections(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    return {"section_spliter": rng.choice(("Section", "SECTION")), "num_sections": 2}


def _draw_nth_paragraph(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    return {"num_paragraphs": 2, "nth_paragraph": rng.choice((1, 2)), "first_word": rng.choice(list(words))}


def _draw_sentence_keyword(rng: random.Random, cap: int, words: Sequence[str]) -> Kwargs:
    return {"word": rng.choice(list(words)), "N": rng.choice((1, 1, 2))}


def _choice(key: str, *values: Any) -> Callable[[random.Random, int, Sequence[str]], Kwargs]:
    return lambda rng, cap, words: {key: rng.choice(values)}


# ---- draws that random text of `cap` subword tokens meets about half the time: medians measured at 24 tokens

_LETTER_MEDIANS = {"e": 16, "a": 12, "i": 12, "s": 11, "n": 10, "r": 10, "t": 10, "o": 9}
_FRAGMENTS = ("on", "re", "at", "ed", "al", "st", "ing")  # occur about twice


def _flip(rng: random.Random, cap: int, *, median: int) -> tuple[int, str]:
    relation = rng.choice(("at least", "less than"))
    return max(1, round((median + rng.choice((0, 1) if relation == "less than" else (-1, 0))) * cap / 24)), relation


def _flip_words(rng: random.Random, cap: int) -> Kwargs:
    count, relation = _flip(rng, cap, median=17)
    return {"num_words": count, "relation": relation}


def _flip_letters(rng: random.Random, cap: int) -> Kwargs:
    letter = rng.choice(sorted(_LETTER_MEDIANS))
    count, relation = _flip(rng, cap, median=_LETTER_MEDIANS[letter])
    return {"letter": letter, "let_frequency": count, "let_relation": relation}


def _flip_fragments(rng: random.Random, cap: int) -> Kwargs:
    count = max(1, round(2 * cap / 24))
    return {"keyword": rng.choice(_FRAGMENTS), "frequency": count, "relation": rng.choice(("at least", "less than"))}


KINDS: dict[str, Kind] = {}


def _add(name: str, family: str, seen: bool, draw: Any, texts: Any, **more: Any) -> None:
    more["groups"] = frozenset(more.get("groups", ()))
    KINDS[name] = Kind(name, family, seen, draw, texts, **more)


# Groups: kinds of one group never stand in one prompt.
SHAPE = "shape"  # the answer's outer form, or a count of its sentences
LENGTH = "length"
CASE = "case"
ENDING = "ending"  # the last words or characters are prescribed

_add(
    "keywords:existence", "ifeval", True, _draw_keywords,
    lambda k: (
        f"Include {_listed(k['keywords'])} in your answer.",
        f"Use the word{'s' * (len(k['keywords']) > 1)} {_listed(k['keywords'])}.",
        f"Your answer must contain {_listed(k['keywords'])}.",
    ),
    fixed=lambda k: " ".join(k["keywords"]),
)  # fmt: skip
_add(
    "keywords:forbidden_words", "ifeval", True, _draw_forbidden,
    lambda k: (
        f"Do not use the word{'s' * (len(k['forbidden_words']) > 1)} {_listed(k['forbidden_words'])}.",
        f"Avoid {_listed(k['forbidden_words'])} in your answer.",
        f"Write it without {_listed(k['forbidden_words'])}.",
    ),
)  # fmt: skip
_add(
    "keywords:frequency", "ifeval", True, _draw_frequency,
    _by_relation(
        "relation",
        lambda k: (
            f'Use the word "{k["keyword"]}" at least {k["frequency"]} times.',
            f'The word "{k["keyword"]}" should appear at least {k["frequency"]} times.',
        ),
        lambda k: (
            f'Use the word "{k["keyword"]}" less than {_plural(k["frequency"], "time")}.',
            f'The word "{k["keyword"]}" should appear less than {_plural(k["frequency"], "time")}.',
        ),
    ),
    fixed=lambda k: " ".join([k["keyword"]] * k["frequency"]) if k["relation"] == "at least" else "",
    coin_flip=_flip_fragments,
)  # fmt: skip
_add(
    "keywords:letter_frequency", "ifeval", True, _draw_letters,
    lambda k: (
        f"The letter {k['letter']} should appear {k['let_relation']} {k['let_frequency']} times.",
        f"Use the letter {k['letter']} {k['let_relation']} {k['let_frequency']} times.",
        f"Let the letter {k['letter']} occur {k['let_relation']} {k['let_frequency']} times.",
    ),
    least_words=lambda k: k["let_frequency"] * 2 if k["let_relation"] == "at least" else 5,
    most_words=lambda k: k["let_frequency"] * 10 if k["let_relation"] == "less than" else None,
    coin_flip=_flip_letters,
)  # fmt: skip
_add(
    "length_constraints:number_words", "ifeval", True, _draw_words,
    _by_relation(
        "relation",
        lambda k: (
            f"Use at least {k['num_words']} words.",
            f"Answer with at least {k['num_words']} words.",
            f"Your answer should have {k['num_words']} words or more.",
        ),
        lambda k: (
            f"Use less than {k['num_words']} words.",
            f"Answer with less than {k['num_words']} words.",
            f"Stay below {k['num_words']} words.",
        ),
    ),
    groups=[LENGTH],
    least_words=lambda k: k["num_words"] if k["relation"] == "at least" else 5,
    most_words=lambda k: k["num_words"] - 1 if k["relation"] == "less than" else None,
    coin_flip=_flip_words,
)  # fmt: skip
_add(
    "length_constraints:number_sentences", "ifeval", True, _draw_sentences,
    lambda k: (
        f"Your answer should contain {k['relation']} {k['num_sentences']} sentences.",
        f"Write {k['relation']} {k['num_sentences']} sentences.",
        f"Use {k['relation']} {k['num_sentences']} sentences.",
    ),
    groups=[SHAPE],
    least_words=lambda k: k["num_sentences"] * 5 if k["relation"] == "at least" else 5,
)  # fmt: skip
_add(
    "length_constraints:number_paragraphs", "ifeval", True, _choice("num_paragraphs", 2),
    lambda k: (
        f"Write {k['num_paragraphs']} very short paragraphs separated by the markdown divider: ***",
        f"There should be {k['num_paragraphs']} short paragraphs. Separate them with the markdown divider: ***",
        f"Split your answer into {k['num_paragraphs']} short paragraphs with *** between them.",
    ),
    groups=[SHAPE], least_words=lambda k: 6 * k["num_paragraphs"], extra_tokens=8,
)  # fmt: skip
_add(
    "detectable_content:number_placeholders", "ifeval", True, _choice("num_placeholders", 1, 2, 3),
    lambda k: (
        f"Include {_plural(k['num_placeholders'], 'placeholder')} or more in square brackets, such as [name].",
        f"Use at least {_plural(k['num_placeholders'], 'placeholder')} in square brackets, such as [address].",
        f"The answer must contain at least {_plural(k['num_placeholders'], 'placeholder')} like [date].",
    ),
    extra_tokens=12,
)  # fmt: skip
_add(
    "detectable_content:postscript", "ifeval", True, _choice("postscript_marker", "P.S.", "P.P.S"),
    lambda k: (
        f"At the end, add a postscript starting with {k['postscript_marker']}",
        f"Finish with a postscript that starts with {k['postscript_marker']}",
        f"Add a short postscript beginning with {k['postscript_marker']} at the end of your answer.",
    ),
    groups=[ENDING], fixed=lambda k: k["postscript_marker"], extra_tokens=16,
)  # fmt: skip
_add(
    "detectable_format:number_bullet_lists", "ifeval", True, _choice("num_bullets", 2, 3),
    lambda k: (
        f"Your answer must contain exactly {k['num_bullets']} short bullet points. Start each with * as in markdown.",
        f"Give exactly {k['num_bullets']} short markdown bullet points, such as: * This is a point.",
        f"Use exactly {k['num_bullets']} short bullet points, each on its own line and starting with *",
    ),
    groups=[SHAPE], least_words=lambda k: 4 * k["num_bullets"], extra_tokens=8,
)  # fmt: skip
_add(
    "detectable_format:title", "ifeval", True, _nothing,
    _fixed_texts(
        "Add a title wrapped in double angular brackets, such as <<a title>>.",
        "Your answer must contain a title in double angular brackets, i.e. <<title>>.",
        "Begin with a title in double angular brackets, like <<my title>>.",
    ),
    extra_tokens=10,
)  # fmt: skip
_add(
    "change_case:english_lowercase", "ifeval", True, _nothing,
    _fixed_texts(
        "Use only lowercase letters.",
        "Your entire answer should be in English and in all lowercase letters.",
        "No capital letters are allowed. Write in English.",
    ),
    groups=[CASE],
)  # fmt: skip
_add(
    "change_case:english_capital", "ifeval", True, _nothing,
    _fixed_texts(
        "Use only capital letters.",
        "Your entire answer should be in English and in all capital letters.",
        "Write everything in capital letters.",
    ),
    groups=[CASE], extra_tokens=20,
)  # fmt: skip
_add(
    "punctuation:no_comma", "ifeval", True, _nothing,
    _fixed_texts("Do not use any commas.", "Refrain from the use of commas.", "Write it without a single comma."),
)  # fmt: skip
_add(
    "startend:end_checker", "ifeval", True, _choice("end_phrase", *END_PHRASES),
    lambda k: (
        f"Finish your answer with this exact phrase: {k['end_phrase']}",
        f'The very last words must be "{k["end_phrase"]}"',
        f'End with the exact phrase "{k["end_phrase"]}" and nothing after it.',
    ),
    groups=[ENDING], fixed=lambda k: k["end_phrase"],
)  # fmt: skip

# ---- seen, IFBench's
_add(
    "count:numbers", "ifbench", True, _choice("N", 1, 2, 3),
    lambda k: (
        f"Include exactly {_plural(k['N'], 'number')}, written in digits.",
        f"Your answer should contain exactly {_plural(k['N'], 'number')} in digits.",
    ),
)  # fmt: skip
_add(
    "count:word_count_range", "ifbench", True, _draw_word_range,
    lambda k: (
        f"Use between {k['min_words']} and {k['max_words']} words.",
        f"Your answer must contain between {k['min_words']} and {k['max_words']} words.",
        f"Write {k['min_words']} to {k['max_words']} words.",
    ),
    groups=[LENGTH], least_words=lambda k: k["min_words"], most_words=lambda k: k["max_words"],
)  # fmt: skip
_add(
    "count:conjunctions", "ifbench", True, _choice("small_n", 2, 2, 3),
    lambda k: (
        f"Use at least {k['small_n']} different coordinating conjunctions.",
        f"Include at least {k['small_n']} different coordinating conjunctions, such as and, but, or.",
    ),
    least_words=lambda k: 4 * k["small_n"],
)  # fmt: skip
_add(
    "sentence:keyword", "ifbench", True, _draw_sentence_keyword,
    lambda k: (
        f'Include the keyword "{k["word"]}" in sentence number {k["N"]}.',
        f'Sentence {k["N"]} of your answer must include the word "{k["word"]}".',
    ),
    groups=[SHAPE], fixed=lambda k: k["word"], least_words=lambda k: 6 * k["N"],
)  # fmt: skip
_add(
    "format:list", "ifbench", True, _choice("sep", *SEPARATORS),
    lambda k: (
        f"Answer with a list of two or three short items; instead of bullet points use {k['sep']}",
        f"Give a list of two short items. Start each with {k['sep']} instead of a bullet point.",
    ),
    groups=[SHAPE], fixed=lambda k: f"{k['sep']} {k['sep']}", least_words=lambda k: 8, extra_tokens=6,
)  # fmt: skip

# ---- unseen in training, IFEval's
_add(
    "startend:quotation", "ifeval", False, _nothing,
    _fixed_texts(
        "Wrap your entire answer in double quotation marks.",
        "Put your whole answer inside double quotation marks.",
    ),
    groups=[ENDING],
)  # fmt: skip
_add(
    "change_case:capital_word_frequency", "ifeval", False, _draw_capitals,
    lambda k: (
        f"Words in all capitals should appear {k['capital_relation']} {_plural(k['capital_frequency'], 'time')}.",
        f"Use {k['capital_relation']} {_plural(k['capital_frequency'], 'word')} in all capital letters.",
    ),
    groups=[CASE], extra_tokens=8,
    coin_flip=lambda rng, cap: {"capital_frequency": 1, "capital_relation": rng.choice(("at least", "less than"))},
)  # fmt: skip
_add(
    "detectable_format:number_highlighted_sections", "ifeval", False, _choice("num_highlights", 1, 2, 2),
    lambda k: (
        f"Highlight at least {_plural(k['num_highlights'], 'part')} with markdown, i.e. *highlighted part*.",
        f"Mark at least {_plural(k['num_highlights'], 'phrase')} with markdown asterisks, such as *this phrase*.",
    ),
    extra_tokens=6,
)  # fmt: skip
_add(
    "detectable_format:multiple_sections", "ifeval", False, _draw_sections,
    lambda k: (
        (
            f"Your answer must have {k['num_sections']} sections. Mark each with {k['section_spliter']} X, "
            f"such as: {k['section_spliter']} 1"
        ),
        f"Write two short sections that begin with {k['section_spliter']} 1 and {k['section_spliter']} 2.",
    ),
    groups=[SHAPE], fixed=lambda k: f"{k['section_spliter']} 1 {k['section_spliter']} 2",
    least_words=lambda k: 14, extra_tokens=6,
)  # fmt: skip
_add(
    "combination:two_responses", "ifeval", False, _nothing,
    _fixed_texts(
        "Give two different answers, separated by 6 asterisk symbols: ******",
        "Write two different short answers with ****** between them.",
    ),
    groups=[SHAPE, ENDING], least_words=lambda k: 14, extra_tokens=4,
)  # fmt: skip
_add(
    "length_constraints:nth_paragraph_first_word", "ifeval", False, _draw_nth_paragraph,
    lambda k: (
        (
            f"Write {k['num_paragraphs']} paragraphs separated by a blank line. "
            f'Paragraph {k["nth_paragraph"]} must start with the word "{k["first_word"]}".'
        ),
        (
            f"There should be {k['num_paragraphs']} short paragraphs with a blank line between them, and "
            f'paragraph {k["nth_paragraph"]} must begin with "{k["first_word"]}".'
        ),
    ),
    groups=[SHAPE], fixed=lambda k: k["first_word"], least_words=lambda k: 14, extra_tokens=4,
)  # fmt: skip
_add(
    "detectable_format:json_format", "ifeval", False, _nothing,
    _fixed_texts("Your entire output should be in JSON format.", "Answer with nothing but one valid JSON object."),
    groups=[SHAPE, ENDING, LENGTH, CASE], extra_tokens=12,
)  # fmt: skip

# ---- unseen in training, IFBench's
_add(
    "count:unique_word_count", "ifbench", False,
    lambda rng, cap, words: {"N": rng.randint(10, max(10, _most_words(cap) * 3 // 4))},
    lambda k: (f"Use at least {k['N']} unique words.", f"Your answer should have at least {k['N']} different words."),
    least_words=lambda k: round(k["N"] * 1.3),
    coin_flip=lambda rng, cap: {"N": max(1, round(rng.choice((15, 16, 17)) * cap / 24))},
)  # fmt: skip
_add(
    "count:pronouns", "ifbench", False, _choice("N", 2, 3, 4),
    lambda k: (
        f"Include at least {k['N']} pronouns.",
        f"Use at least {k['N']} pronouns, such as you, it, they.",
    ),
    least_words=lambda k: 4 * k["N"],
)  # fmt: skip
_add(
    "format:title_case", "ifbench", False, _nothing,
    _fixed_texts(
        "Write the entire answer in title case (capitalize the first letter of every word).",
        "Capitalize The First Letter Of Every Word In Your Answer.",
    ),
    groups=[CASE],
)  # fmt: skip
_add(
    "format:thesis", "ifbench", False, _nothing,
    _fixed_texts(
        "Begin with a thesis statement in HTML italics, such as <i>statement</i>, then go on in plain text.",
        "Put your first sentence in italics with HTML (<i> and </i>) and follow it with plain text.",
    ),
    groups=[SHAPE, CASE], least_words=lambda k: 10, extra_tokens=8,
)  # fmt: skip
_add(
    "format:output_template", "ifbench", False, _nothing,
    _fixed_texts(
        "Use this exact template: My Answer: [answer] My Conclusion: [conclusion] Future Outlook: [outlook]",
        "Your answer must have three parts that begin with My Answer: and My Conclusion: and Future Outlook:",
    ),
    groups=[SHAPE, ENDING, CASE], fixed=lambda k: "My Answer: My Conclusion: Future Outlook:", least_words=lambda k: 18,
)  # fmt: skip
