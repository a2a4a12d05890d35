"""The editor: one violated example per constraint kind, and a few hundred generated prompts."""

from __future__ import annotations

import random
from typing import Any

import pytest

from uniapl.config import DataSpec
from uniapl.constraints import KINDS, verify
from uniapl.constraints.dressings import split_units
from uniapl.constraints.edits import mend
from uniapl.generate import generate_split
from uniapl.records import Constraint, Prompt
from uniapl.teachers.drafts import CANNED

DRAFT = (
    "Baking bread at home is a rewarding thing, and it fills the kitchen with a fine smell. First, mix flour with "
    "water. Then knead the dough."
)
SPEC = DataSpec.model_validate(
    dict(
        max_new_tokens=96,
        num_train=300,
        num_development=20,
        num_heldout=200,
        num_policy=200,
        num_discriminator=50,
        num_discriminator_test=50,
    )
)

# kind -> parameters and a draft that violates them
VIOLATED: dict[str, tuple[dict[str, Any], str]] = {
    "keywords:existence": ({"keywords": ["crust", "oven"]}, DRAFT),
    "keywords:forbidden_words": ({"forbidden_words": ["flour", "bread"]}, DRAFT),
    "keywords:frequency": ({"keyword": "yeast", "frequency": 3, "relation": "at least"}, DRAFT),
    "keywords:letter_frequency": ({"letter": "k", "let_frequency": 2, "let_relation": "less than"}, DRAFT),
    "length_constraints:number_words": ({"num_words": 40, "relation": "at least"}, DRAFT),
    "length_constraints:number_sentences": ({"num_sentences": 2, "relation": "less than"}, DRAFT),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 3}, DRAFT),
    "detectable_content:number_placeholders": ({"num_placeholders": 3}, DRAFT),
    "detectable_content:postscript": ({"postscript_marker": "P.P.S"}, DRAFT),
    "detectable_format:number_bullet_lists": ({"num_bullets": 4}, DRAFT),
    "detectable_format:title": ({}, DRAFT),
    "change_case:english_lowercase": ({}, DRAFT),
    "change_case:english_capital": ({}, DRAFT),
    "punctuation:no_comma": ({}, DRAFT),
    "startend:end_checker": ({"end_phrase": "Stay curious."}, DRAFT),
    "count:numbers": ({"N": 2}, "In 1999 we had 3 cats and 12 dogs. It was 1 big house."),
    "count:word_count_range": ({"min_words": 8, "max_words": 12}, DRAFT),
    "count:conjunctions": ({"small_n": 3}, "The dough rises."),
    "sentence:keyword": ({"word": "yeast", "N": 2}, DRAFT),
    "format:list": ({"sep": "SEPARATOR"}, DRAFT),
    "startend:quotation": ({}, DRAFT),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 1, "capital_relation": "less than"}, "I saw NASA. A dog.",
    ),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, DRAFT),
    "detectable_format:multiple_sections": ({"section_spliter": "Section", "num_sections": 2}, DRAFT),
    "combination:two_responses": ({}, DRAFT),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "yeast"}, DRAFT,
    ),
    "detectable_format:json_format": ({}, DRAFT),
    "count:unique_word_count": ({"N": 40}, DRAFT),
    "count:pronouns": ({"N": 3}, "The dough rises."),
    "format:title_case": ({}, "We don't stop and can't rest."),
    "format:thesis": ({}, DRAFT),
    "format:output_template": ({}, DRAFT),
}  # fmt: skip


def count_words_as_tokens(text: str) -> int:
    return len(text.split()) + 1


def mended(kind: str, kwargs: dict[str, Any], draft: str) -> tuple[str, tuple[str, ...]]:
    done = mend(
        [Constraint(kind, kwargs)], draft, rng=random.Random(0), max_tokens=70, count_tokens=count_words_as_tokens
    )
    assert done is not None
    return done.text, done.edits


@pytest.mark.parametrize("kind", sorted(name for name, one in KINDS.items() if one.editable))
def test_a_draft_that_violates_a_kind_is_mended(kind: str) -> None:
    assert kind in VIOLATED, f"{kind} is new: give it an example here"
    kwargs, draft = VIOLATED[kind]
    assert verify([Constraint(kind, kwargs)], draft).passed is False
    text, edits = mended(kind, kwargs, draft)
    assert verify([Constraint(kind, kwargs)], text).passed is True
    assert edits
    assert count_words_as_tokens(text) <= 70


def test_a_right_draft_comes_back_unchanged() -> None:
    assert mended("punctuation:no_comma", {}, "No comma here\n\n* at all") == ("No comma here\n\n* at all", ())


def test_only_the_missing_keyword_is_added_and_every_sentence_of_the_draft_is_kept() -> None:
    text, edits = mended("keywords:existence", {"keywords": ["bread", "oven"]}, DRAFT)
    assert text.startswith(DRAFT)
    added = text[len(DRAFT) :]
    assert "oven" in added
    assert "bread" not in added
    assert edits == ("keywords:existence",)


def test_a_cut_draft_loses_its_unfinished_sentence_and_no_other() -> None:
    # 16 words with the end token against a cap of 12: the unfinished 7 words go, 8 words + 1 remain.
    draft = "The oven is hot. The dough is soft. And then she went on to say"
    done = mend(
        [Constraint("punctuation:no_comma", {})], draft, rng=random.Random(0), max_tokens=12,
        count_tokens=count_words_as_tokens,
    )  # fmt: skip
    assert done is not None
    assert done.text == "The oven is hot. The dough is soft."
    assert done.edits == ("shorten",)


def test_sentences_and_what_stands_before_them_join_to_the_text() -> None:
    text = "Intro here:\n\n1. **One** is first. It stays.\n2. Two!\n* three\n\nThe end"
    units = split_units(text)
    assert "".join(unit.lead + unit.text for unit in units) == text
    assert [unit.text for unit in units] == [
        "Intro here:",
        "**One** is first.",
        "It stays.",
        "Two!",
        "three",
        "The end",
    ]


def test_what_cannot_be_met_gives_no_text() -> None:
    impossible = [
        Constraint("keywords:existence", {"keywords": ["bread"]}),
        Constraint("keywords:forbidden_words", {"forbidden_words": ["bread"]}),
    ]
    assert mend(impossible, DRAFT, rng=random.Random(0), max_tokens=70, count_tokens=count_words_as_tokens) is None


def test_an_empty_draft_is_mended_too() -> None:
    text, _ = mended("keywords:existence", {"keywords": ["oven"]}, "")
    assert "oven" in text


def test_the_same_draft_and_seed_give_the_same_text() -> None:
    assert mended("format:list", {"sep": "..."}, DRAFT) == mended("format:list", {"sep": "..."}, DRAFT)


def generated_prompts() -> list[Prompt]:
    return [*generate_split(SPEC, "train", 150), *generate_split(SPEC, "heldout", 150)]


@pytest.mark.slow
def test_nine_of_ten_generated_prompts_are_mended_and_each_kept_text_passes() -> None:
    def count_tokens(text: str) -> int:
        return round(len(text) / 3.8) + 1  # SmolLM2's tokenizer has about 4.2 characters a token on English

    prompts, kept = generated_prompts(), 0
    for prompt in prompts:
        rng = random.Random(prompt.id)
        draft = " ".join(rng.sample(CANNED, rng.randint(1, 6)))
        done = mend(prompt.constraints, draft, rng=rng, max_tokens=96, count_tokens=count_tokens, topic=prompt.topic)
        if done is not None:
            kept += 1
            assert verify(prompt.constraints, done.text).passed is True
            assert count_tokens(done.text) <= 96
    assert len({constraint.kind for prompt in prompts for constraint in prompt.constraints}) >= 25
    assert kept >= 0.9 * len(prompts)
