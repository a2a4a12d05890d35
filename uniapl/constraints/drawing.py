"""Which constraints go together, and the drawing of 1 to 3 compatible ones for a prompt."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from uniapl.config import DataSpec
from uniapl.constraints.kinds import KINDS, LANGUAGE, REPEAT, TOKENS_PER_WORD, Kwargs
from uniapl.records import Constraint

COUNT_WEIGHTS = (0.5, 0.35, 0.15)  # of prompts with one, two and three constraints
DEFAULT_WORDS = ("morning", "garden", "friend", "story", "window", "river")

_QUOTED_START = ("detectable_format:title", "detectable_format:number_bullet_lists", "format:list")
_OWN_SENTENCES = ("length_constraints:number_sentences", "sentence:keyword")  # formats blur what a sentence is
_JSON_ALLOWS = {"keywords:existence", "keywords:forbidden_words", "keywords:letter_frequency", "punctuation:no_comma",
                "count:unique_word_count", "count:pronouns"}  # fmt: skip
# Keywords are English, and a count of letters says little of another script.
_LANGUAGE_ALLOWS = {
    "length_constraints:number_words", "length_constraints:number_paragraphs", "detectable_content:number_placeholders",
    "detectable_format:number_bullet_lists", "detectable_format:title", "detectable_format:number_highlighted_sections",
    "punctuation:no_comma", "startend:quotation", "combination:two_responses",
}  # fmt: skip
_REPEAT_ALLOWS = {  # the request that is repeated holds the words of the other constraints
    "keywords:existence", "detectable_content:number_placeholders", "detectable_format:title", "startend:end_checker",
    "detectable_format:number_highlighted_sections",
}  # fmt: skip
_PAIRS: frozenset[frozenset[str]] = frozenset(
    frozenset(pair)
    for pair in (
        *(("startend:quotation", other) for other in _QUOTED_START),
        *(("detectable_content:postscript", other) for other in _OWN_SENTENCES),
        *(("detectable_format:title", other) for other in _OWN_SENTENCES),
        ("detectable_content:postscript", "length_constraints:nth_paragraph_first_word"),
        ("detectable_content:postscript", "format:list"),  # its dots and dashes
        ("detectable_format:title", "length_constraints:nth_paragraph_first_word"),
        ("detectable_format:title", "format:thesis"),
        ("detectable_format:title", "format:output_template"),
        ("detectable_format:title", "combination:two_responses"),
        ("count:numbers", "detectable_format:multiple_sections"),
        ("detectable_format:number_highlighted_sections", "length_constraints:number_paragraphs"),
        ("detectable_format:number_highlighted_sections", "combination:two_responses"),
        ("detectable_format:number_highlighted_sections", "detectable_format:number_bullet_lists"),
        ("change_case:english_lowercase", "detectable_format:multiple_sections"),
        ("change_case:english_capital", "detectable_format:multiple_sections"),
        ("format:title_case", "detectable_format:multiple_sections"),
        *(("detectable_format:json_format", other) for other in KINDS if other not in _JSON_ALLOWS),
        *((LANGUAGE, other) for other in KINDS if other not in _LANGUAGE_ALLOWS),
        *((REPEAT, other) for other in KINDS if other not in _REPEAT_ALLOWS),
    )
)


def kinds_conflict(first: str, second: str) -> bool:
    """True where two kinds never stand in one prompt, whatever their parameters."""
    a, b = KINDS[first], KINDS[second]
    return first == second or bool(a.groups & b.groups) or frozenset((first, second)) in _PAIRS


def parameters_conflict(chosen: Sequence[tuple[str, Kwargs]], cap: int) -> bool:
    """True where no answer of at most `cap` tokens meets all of these constraints (kind, parameters) comfortably."""
    kinds = [(KINDS[name], kwargs) for name, kwargs in chosen]
    fixed = " ".join(kind.fixed(kwargs) for kind, kwargs in kinds).strip()
    least = max(max(kind.least_words(kwargs) for kind, kwargs in kinds), len(fixed.split()) + 4)
    tokens = round(least * TOKENS_PER_WORD) + sum(kind.extra_tokens for kind, _ in kinds)
    if tokens > cap * 0.8:
        return True
    for kind, kwargs in kinds:
        most = kind.most_words(kwargs)
        slack = 6 if len(kinds) > 1 else 0
        if most is not None and most < least + slack:
            return True
        if _forbids(kind.name, kwargs, fixed):
            return True
    return False


def _forbids(name: str, kwargs: Kwargs, fixed: str) -> bool:
    """True where this constraint rules out text that the others prescribe."""
    lower = fixed.lower()
    if name == "punctuation:no_comma":
        return "," in fixed
    if name == "count:numbers":
        return bool(re.search(r"\d", fixed))
    if name in ("change_case:english_lowercase", "format:title_case", "change_case:english_capital"):
        return "SEPARATOR" in fixed
    if name == "change_case:capital_word_frequency" and kwargs["capital_relation"] == "less than":
        return "SEPARATOR" in fixed or "P.S" in fixed or "P.P.S" in fixed or "SECTION" in fixed
    if name == "keywords:forbidden_words":
        return any(re.search(rf"\b{re.escape(word)}\b", lower) for word in kwargs["forbidden_words"])
    if name == "keywords:letter_frequency" and kwargs["let_relation"] == "less than":
        return lower.count(kwargs["letter"]) >= kwargs["let_frequency"] - 1
    if name == "keywords:frequency" and kwargs["relation"] == "less than":
        return kwargs["keyword"].lower() in lower
    return False


def kinds_of(group: str, chosen: str) -> list[str]:
    """Names of the kinds that prompts of this group (seen, unseen) draw from, by `DataSpec.kinds`.

    ifeval: training shows IFEval's 25 kinds, and IFBench's are unseen.
    """
    if group not in ("seen", "unseen"):
        raise ValueError(f"group {group!r} is unknown; use seen or unseen")
    if chosen == "ifeval":
        return [name for name, kind in KINDS.items() if (kind.family == "ifeval") == (group == "seen")]
    return [
        name
        for name, kind in KINDS.items()
        if kind.editable and kind.seen == (group == "seen") and (kind.coin_flip is not None or chosen == "study")
    ]


def draw_constraints(
    rng: random.Random, spec: DataSpec, group: str, *, words: Sequence[str] = DEFAULT_WORDS, first: str | None = None
) -> tuple[Constraint, ...]:
    """Draw 1 to spec.max_constraints compatible constraints of one group; `first` prescribes the first kind.

    `words` (at least 4) are the topic's vocabulary, which keyword kinds draw from. At smoke scale
    (spec.kinds coin_flip) there is one constraint.
    """
    coin_flip, cap = spec.kinds == "coin_flip", spec.max_new_tokens
    names = kinds_of(group, spec.kinds)
    most = 1 if coin_flip else spec.max_constraints
    wanted = rng.choices(range(1, most + 1), weights=COUNT_WEIGHTS[:most])[0]
    chosen: list[tuple[str, Kwargs]] = []
    for attempt in range(40):
        if len(chosen) == wanted:
            break
        name = first if first is not None and not chosen and attempt < 20 else rng.choice(names)
        kind = KINDS[name]
        if any(kinds_conflict(name, other) for other, _ in chosen):
            continue
        kwargs = kind.coin_flip(rng, cap) if coin_flip and kind.coin_flip else kind.draw(rng, cap, words)
        if coin_flip or not parameters_conflict([*chosen, (name, kwargs)], cap):
            chosen.append((name, kwargs))
    if not chosen:
        raise ValueError(f"max_new_tokens = {cap} is too few for the constraint kinds of group {group}; raise it")
    return tuple(Constraint(name, kwargs, KINDS[name].describe(kwargs, rng)) for name, kwargs in chosen)
