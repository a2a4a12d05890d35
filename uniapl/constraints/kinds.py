"""The registry of constraint kinds that prompts are made of: how parameters are drawn, worded and kept compatible.

Names and parameters are IFEval's (arXiv 2311.07911) and IFBench's (arXiv 2507.02833), so that their verifiers can
judge them. `seen` kinds may stand in training prompts; the others only in half of the held-out ones (`kinds_of` says
what a scale takes them to be). Sizes are drawn so that an answer fits the cap on new tokens; an editable kind can be
met by editing a text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from uniapl.constraints.parameters import (
    LANGUAGES,
    Kwargs,
    draw_capitals,
    draw_choice,
    draw_forbidden,
    draw_frequency,
    draw_keywords,
    draw_language,
    draw_letters,
    draw_nothing,
    draw_nth_paragraph,
    draw_sections,
    draw_sentence_keyword,
    draw_sentences,
    draw_word_range,
    draw_words,
    flip_fragments,
    flip_letters,
    flip_words,
    words_within,
)

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
    editable: bool = True

    def describe(self, kwargs: Kwargs, rng: random.Random) -> str:
        """One of the kind's wordings with the parameters filled in."""
        return rng.choice(self.texts(kwargs))

    def min_tokens(self, kwargs: Kwargs) -> int:
        """Tokens that the shortest natural answer meeting this constraint needs, about."""
        words = max(self.least_words(kwargs), len(self.fixed(kwargs).split()) + 3)
        return round(words * TOKENS_PER_WORD) + self.extra_tokens


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


KINDS: dict[str, Kind] = {}


def _add(name: str, family: str, seen: bool, draw: Any, texts: Any, **more: Any) -> None:
    more["groups"] = frozenset(more.get("groups", ()))
    KINDS[name] = Kind(name, family, seen, draw, texts, **more)


LANGUAGE = "language:response_language"
REPEAT = "combination:repeat_prompt"

# Groups: kinds of one group never stand in one prompt.
SHAPE = "shape"  # the answer's outer form, or a count of its sentences
LENGTH = "length"
CASE = "case"
ENDING = "ending"  # the last words or characters are prescribed

_add(
    "keywords:existence", "ifeval", True, draw_keywords,
    lambda k: (
        f"Include {_listed(k['keywords'])} in your answer.",
        f"Use the word{'s' * (len(k['keywords']) > 1)} {_listed(k['keywords'])}.",
        f"Your answer must contain {_listed(k['keywords'])}.",
    ),
    fixed=lambda k: " ".join(k["keywords"]),
)  # fmt: skip
_add(
    "keywords:forbidden_words", "ifeval", True, draw_forbidden,
    lambda k: (
        f"Do not use the word{'s' * (len(k['forbidden_words']) > 1)} {_listed(k['forbidden_words'])}.",
        f"Avoid {_listed(k['forbidden_words'])} in your answer.",
        f"Write it without {_listed(k['forbidden_words'])}.",
    ),
)  # fmt: skip
_add(
    "keywords:frequency", "ifeval", True, draw_frequency,
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
    coin_flip=flip_fragments,
)  # fmt: skip
_add(
    "keywords:letter_frequency", "ifeval", True, draw_letters,
    lambda k: (
        f"The letter {k['letter']} should appear {k['let_relation']} {k['let_frequency']} times.",
        f"Use the letter {k['letter']} {k['let_relation']} {k['let_frequency']} times.",
        f"Let the letter {k['letter']} occur {k['let_relation']} {k['let_frequency']} times.",
    ),
    least_words=lambda k: k["let_frequency"] * 2 if k["let_relation"] == "at least" else 5,
    most_words=lambda k: k["let_frequency"] * 10 if k["let_relation"] == "less than" else None,
    coin_flip=flip_letters,
)  # fmt: skip
_add(
    "length_constraints:number_words", "ifeval", True, draw_words,
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
    coin_flip=flip_words,
)  # fmt: skip
_add(
    "length_constraints:number_sentences", "ifeval", True, draw_sentences,
    lambda k: (
        f"Your answer should contain {k['relation']} {k['num_sentences']} sentences.",
        f"Write {k['relation']} {k['num_sentences']} sentences.",
        f"Use {k['relation']} {k['num_sentences']} sentences.",
    ),
    groups=[SHAPE],
    least_words=lambda k: k["num_sentences"] * 5 if k["relation"] == "at least" else 5,
)  # fmt: skip
_add(
    "length_constraints:number_paragraphs", "ifeval", True, draw_choice("num_paragraphs", 2),
    lambda k: (
        f"Write {k['num_paragraphs']} very short paragraphs separated by the markdown divider: ***",
        f"There should be {k['num_paragraphs']} short paragraphs. Separate them with the markdown divider: ***",
        f"Split your answer into {k['num_paragraphs']} short paragraphs with *** between them.",
    ),
    groups=[SHAPE], least_words=lambda k: 6 * k["num_paragraphs"], extra_tokens=8,
)  # fmt: skip
_add(
    "detectable_content:number_placeholders", "ifeval", True, draw_choice("num_placeholders", 1, 2, 3),
    lambda k: (
        f"Include {_plural(k['num_placeholders'], 'placeholder')} or more in square brackets, such as [name].",
        f"Use at least {_plural(k['num_placeholders'], 'placeholder')} in square brackets, such as [address].",
        f"The answer must contain at least {_plural(k['num_placeholders'], 'placeholder')} like [date].",
    ),
    extra_tokens=12,
)  # fmt: skip
_add(
    "detectable_content:postscript", "ifeval", True, draw_choice("postscript_marker", "P.S.", "P.P.S"),
    lambda k: (
        f"At the end, add a postscript starting with {k['postscript_marker']}",
        f"Finish with a postscript that starts with {k['postscript_marker']}",
        f"Add a short postscript beginning with {k['postscript_marker']} at the end of your answer.",
    ),
    groups=[ENDING], fixed=lambda k: k["postscript_marker"], extra_tokens=16,
)  # fmt: skip
_add(
    "detectable_format:number_bullet_lists", "ifeval", True, draw_choice("num_bullets", 2, 3),
    lambda k: (
        f"Your answer must contain exactly {k['num_bullets']} short bullet points. Start each with * as in markdown.",
        f"Give exactly {k['num_bullets']} short markdown bullet points, such as: * This is a point.",
        f"Use exactly {k['num_bullets']} short bullet points, each on its own line and starting with *",
    ),
    groups=[SHAPE], least_words=lambda k: 4 * k["num_bullets"], extra_tokens=8,
)  # fmt: skip
_add(
    "detectable_format:title", "ifeval", True, draw_nothing,
    _fixed_texts(
        "Add a title wrapped in double angular brackets, such as <<a title>>.",
        "Your answer must contain a title in double angular brackets, i.e. <<title>>.",
        "Begin with a title in double angular brackets, like <<my title>>.",
    ),
    extra_tokens=10,
)  # fmt: skip
_add(
    "change_case:english_lowercase", "ifeval", True, draw_nothing,
    _fixed_texts(
        "Use only lowercase letters.",
        "Your entire answer should be in English and in all lowercase letters.",
        "No capital letters are allowed. Write in English.",
    ),
    groups=[CASE],
)  # fmt: skip
_add(
    "change_case:english_capital", "ifeval", True, draw_nothing,
    _fixed_texts(
        "Use only capital letters.",
        "Your entire answer should be in English and in all capital letters.",
        "Write everything in capital letters.",
    ),
    groups=[CASE], extra_tokens=20,
)  # fmt: skip
_add(
    "punctuation:no_comma", "ifeval", True, draw_nothing,
    _fixed_texts("Do not use any commas.", "Refrain from the use of commas.", "Write it without a single comma."),
)  # fmt: skip
_add(
    "startend:end_checker", "ifeval", True, draw_choice("end_phrase", *END_PHRASES),
    lambda k: (
        f"Finish your answer with this exact phrase: {k['end_phrase']}",
        f'The very last words must be "{k["end_phrase"]}"',
        f'End with the exact phrase "{k["end_phrase"]}" and nothing after it.',
    ),
    groups=[ENDING], fixed=lambda k: k["end_phrase"],
)  # fmt: skip

# ---- seen, IFBench's
_add(
    "count:numbers", "ifbench", True, draw_choice("N", 1, 2, 3),
    lambda k: (
        f"Include exactly {_plural(k['N'], 'number')}, written in digits.",
        f"Your answer should contain exactly {_plural(k['N'], 'number')} in digits.",
    ),
)  # fmt: skip
_add(
    "count:word_count_range", "ifbench", True, draw_word_range,
    lambda k: (
        f"Use between {k['min_words']} and {k['max_words']} words.",
        f"Your answer must contain between {k['min_words']} and {k['max_words']} words.",
        f"Write {k['min_words']} to {k['max_words']} words.",
    ),
    groups=[LENGTH], least_words=lambda k: k["min_words"], most_words=lambda k: k["max_words"],
)  # fmt: skip
_add(
    "count:conjunctions", "ifbench", True, draw_choice("small_n", 2, 2, 3),
    lambda k: (
        f"Use at least {k['small_n']} different coordinating conjunctions.",
        f"Include at least {k['small_n']} different coordinating conjunctions, such as and, but, or.",
    ),
    least_words=lambda k: 4 * k["small_n"],
)  # fmt: skip
_add(
    "sentence:keyword", "ifbench", True, draw_sentence_keyword,
    lambda k: (
        f'Include the keyword "{k["word"]}" in sentence number {k["N"]}.',
        f'Sentence {k["N"]} of your answer must include the word "{k["word"]}".',
    ),
    groups=[SHAPE], fixed=lambda k: k["word"], least_words=lambda k: 6 * k["N"],
)  # fmt: skip
_add(
    "format:list", "ifbench", True, draw_choice("sep", *SEPARATORS),
    lambda k: (
        f"Answer with a list of two or three short items; instead of bullet points use {k['sep']}",
        f"Give a list of two short items. Start each with {k['sep']} instead of a bullet point.",
    ),
    groups=[SHAPE], fixed=lambda k: f"{k['sep']} {k['sep']}", least_words=lambda k: 8, extra_tokens=6,
)  # fmt: skip

# ---- unseen in training, IFEval's
_add(
    "startend:quotation", "ifeval", False, draw_nothing,
    _fixed_texts(
        "Wrap your entire answer in double quotation marks.",
        "Put your whole answer inside double quotation marks.",
    ),
    groups=[ENDING],
)  # fmt: skip
_add(
    "change_case:capital_word_frequency", "ifeval", False, draw_capitals,
    lambda k: (
        f"Words in all capitals should appear {k['capital_relation']} {_plural(k['capital_frequency'], 'time')}.",
        f"Use {k['capital_relation']} {_plural(k['capital_frequency'], 'word')} in all capital letters.",
    ),
    groups=[CASE], extra_tokens=8,
    coin_flip=lambda rng, cap: {"capital_frequency": 1, "capital_relation": rng.choice(("at least", "less than"))},
)  # fmt: skip
_add(
    "detectable_format:number_highlighted_sections", "ifeval", False, draw_choice("num_highlights", 1, 2, 2),
    lambda k: (
        f"Highlight at least {_plural(k['num_highlights'], 'part')} with markdown, i.e. *highlighted part*.",
        f"Mark at least {_plural(k['num_highlights'], 'phrase')} with markdown asterisks, such as *this phrase*.",
    ),
    extra_tokens=6,
)  # fmt: skip
_add(
    "detectable_format:multiple_sections", "ifeval", False, draw_sections,
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
    "combination:two_responses", "ifeval", False, draw_nothing,
    _fixed_texts(
        "Give two different answers, separated by 6 asterisk symbols: ******",
        "Write two different short answers with ****** between them.",
    ),
    groups=[SHAPE, ENDING], least_words=lambda k: 14, extra_tokens=4,
)  # fmt: skip
_add(
    "length_constraints:nth_paragraph_first_word", "ifeval", False, draw_nth_paragraph,
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
    "detectable_format:json_format", "ifeval", False, draw_nothing,
    _fixed_texts("Your entire output should be in JSON format.", "Answer with nothing but one valid JSON object."),
    groups=[SHAPE, ENDING, LENGTH, CASE], extra_tokens=12,
)  # fmt: skip

# ---- unseen in training, IFBench's
_add(
    "count:unique_word_count", "ifbench", False,
    lambda rng, cap, words: {"N": rng.randint(10, max(10, words_within(cap) * 3 // 4))},
    lambda k: (f"Use at least {k['N']} unique words.", f"Your answer should have at least {k['N']} different words."),
    least_words=lambda k: round(k["N"] * 1.3),
    coin_flip=lambda rng, cap: {"N": max(1, round(rng.choice((15, 16, 17)) * cap / 24))},
)  # fmt: skip
_add(
    "count:pronouns", "ifbench", False, draw_choice("N", 2, 3, 4),
    lambda k: (
        f"Include at least {k['N']} pronouns.",
        f"Use at least {k['N']} pronouns, such as you, it, they.",
    ),
    least_words=lambda k: 4 * k["N"],
)  # fmt: skip
_add(
    "format:title_case", "ifbench", False, draw_nothing,
    _fixed_texts(
        "Write the entire answer in title case (capitalize the first letter of every word).",
        "Capitalize The First Letter Of Every Word In Your Answer.",
    ),
    groups=[CASE],
)  # fmt: skip
_add(
    "format:thesis", "ifbench", False, draw_nothing,
    _fixed_texts(
        "Begin with a thesis statement in HTML italics, such as <i>statement</i>, then go on in plain text.",
        "Put your first sentence in italics with HTML (<i> and </i>) and follow it with plain text.",
    ),
    groups=[SHAPE, CASE], least_words=lambda k: 10, extra_tokens=8,
)  # fmt: skip
_add(
    "format:output_template", "ifbench", False, draw_nothing,
    _fixed_texts(
        "Use this exact template: My Answer: [answer] My Conclusion: [conclusion] Future Outlook: [outlook]",
        "Your answer must have three parts that begin with My Answer: and My Conclusion: and Future Outlook:",
    ),
    groups=[SHAPE, ENDING, CASE], fixed=lambda k: "My Answer: My Conclusion: Future Outlook:", least_words=lambda k: 18,
)  # fmt: skip

# ---- IFEval's others: a teacher that writes can meet them, an editor cannot
_add(
    LANGUAGE, "ifeval", True, draw_language,
    lambda k: (
        f"Answer in {LANGUAGES[k['language']]} alone.",
        f"Your whole answer should be in {LANGUAGES[k['language']]}, no other language is allowed.",
    ),
    groups=[CASE], editable=False,
)  # fmt: skip
_add(
    REPEAT, "ifeval", True, draw_nothing,  # the request that is repeated is known once the prompt is
    _fixed_texts(
        "Before you answer, repeat the request above word for word, and say nothing before it.",
        "First repeat everything above this sentence exactly, then give your answer.",
    ),
    groups=[SHAPE, LENGTH, CASE], least_words=lambda k: 30, editable=False,
)  # fmt: skip
_add(
    "detectable_format:constrained_response", "ifeval", True, draw_nothing,
    _fixed_texts(
        "Say whether you like it, in one of these sentences: 'My answer is yes.', 'My answer is no.', "
        "'My answer is maybe.'",
        "Somewhere say 'My answer is yes.', 'My answer is no.' or 'My answer is maybe.' of whether it is worth it.",
    ),
    groups=[CASE], fixed=lambda k: "My answer is maybe.", editable=False,
)  # fmt: skip
