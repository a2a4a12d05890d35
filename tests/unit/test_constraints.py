"""Verdicts per kind worked out by hand, their determinism, and which constraints are drawn together."""

from __future__ import annotations

import json
import logging.config
import random
import subprocess
import sys
from itertools import combinations

import pytest

from uniapl.config import DataSpec
from uniapl.constraints import KINDS, draw_constraints, functions, known_kinds, verify, verify_all
from uniapl.constraints.drawing import kinds_conflict, kinds_of, parameters_conflict
from uniapl.constraints.verify import Verdict, loose_variants
from uniapl.records import Constraint

SIZES = {"train": 10, "development": 2, "heldout": 2, "policy": 4, "discriminator": 3, "discriminator_test": 3}
SPEC = DataSpec.model_validate({"max_new_tokens": 96} | {f"num_{name}": size for name, size in SIZES.items()})

# kind, parameters, an answer that follows, one that does not
EXAMPLES = [
    ("keywords:existence", {"keywords": ["bee", "honey"]}, "A Bee makes honey.", "A bee makes wax."),
    ("keywords:forbidden_words", {"forbidden_words": ["wax"]}, "Waxing is not the word.", "A bee makes WAX."),
    ("keywords:frequency", {"keyword": "bee", "frequency": 2, "relation": "at least"}, "Bee to bee.", "One bee."),
    ("keywords:frequency", {"keyword": "bee", "frequency": 1, "relation": "less than"}, "A wasp.", "A bee."),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 3, "let_relation": "at least"}, "Bee hEm", "Bee"),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 2, "let_relation": "less than"}, "An egg", "Bee"),
    ("length_constraints:number_words", {"num_words": 4, "relation": "at least"}, "A b c d", "A b c"),
    ("length_constraints:number_words", {"num_words": 4, "relation": "less than"}, "A b c", "A b c d"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "It rains. I go.", "It."),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "It rains.", "It. I go."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One.\n***\nTwo.", "One.\n\nTwo."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "Dear [name] of [place].", "Dear [name]."),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Hello.\nP.S. Call me.", "Hello. PS call me."),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Hello.\nP.P.S. Call.", "Hello.\nP.S. Call."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n* two", "* one\n* two\n- three"),
    ("detectable_format:title", {}, "<<Bees>>\nThey hum.", "<Bees>\nThey hum."),
    ("change_case:english_lowercase", {}, "the bees fly over the green garden.", "The bees fly over the green garden."),
    ("change_case:english_capital", {}, "THE DOG RAN FAST OVER THE HILL.", "The DOG RAN FAST OVER THE HILL."),
    ("punctuation:no_comma", {}, "Bees hum; wasps sting.", "Bees hum, wasps sting."),
    ("startend:end_checker", {"end_phrase": "Stay curious."}, "Bees hum. Stay curious.", "Stay curious. Bees hum."),
    ("count:numbers", {"N": 2}, "From 3 to 15 bees.", "From 3 to 15 bees in 2026."),
    ("count:numbers", {"N": 0}, "Some bees.", "Only 1 bee."),
    ("count:word_count_range", {"min_words": 2, "max_words": 3}, "Three bees hum.", "Four bees hum loudly."),
    ("count:conjunctions", {"small_n": 2}, "Bees and wasps, but no ants.", "Bees and wasps and ants."),
    ("sentence:keyword", {"word": "honey", "N": 2}, "Bees hum. They make honey.", "Bees make honey. They hum."),
    ("format:list", {"sep": "SEPARATOR"}, "SEPARATOR one\nSEPARATOR two", "SEPARATOR one\n* two"),
    ("startend:quotation", {}, '"Bees hum."', '"Bees" hum.'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "A BEE", "BEE"),
    ("change_case:capital_word_frequency", {"capital_frequency": 1, "capital_relation": "less than"}, "Bees.", "BEES."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*Bees* hum *well*.", "*Bees* hum well."),
    (
        "detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
        "Section 1\nBees.\nSection 2\nWasps.", "Section 1\nBees.\nPart 2\nWasps.",
    ),
    ("combination:two_responses", {}, "Bees hum.\n******\nWasps sting.", "Bees hum.\n******\nBees hum."),
    (
        "length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "wasps"},
        "Bees hum.\n\nWasps sting.", "Wasps sting.\n\nBees hum.",
    ),
    ("detectable_format:json_format", {}, '{"answer": "Bees hum."}', "{answer: Bees hum.}"),
    ("count:unique_word_count", {"N": 3}, "Bees hum, wasps sting.", "Bees hum, bees hum."),
    ("count:pronouns", {"N": 2}, "They know it.", "They know bees."),
    ("format:title_case", {}, "Bees Hum In Summer.", "Bees hum in Summer."),
    ("format:thesis", {}, "<i>Bees matter.</i> They hum.", "*Bees matter.* They hum."),
    ("format:output_template", {}, "My Answer: a\nMy Conclusion: b\nFuture Outlook: c", "My Answer: a"),
    ("language:response_language", {"language": "de"}, "Die Bienen summen im Garten.", "The bees hum in the garden."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Name a bee."}, "name a BEE. Maja.", "Maja. Name a bee."),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "kwargs", "good", "bad"), EXAMPLES)
def test_verdicts_worked_out_by_hand(kind, kwargs, good, bad):
    assert verify([Constraint(kind, kwargs)], good) == Verdict("ok", (True,))
    assert verify([Constraint(kind, kwargs)], bad) == Verdict("ok", (False,))


def test_every_kind_of_the_registry_has_an_example_and_a_verifier():
    assert {kind for kind, *_ in EXAMPLES} == set(KINDS)
    assert set(KINDS) <= known_kinds()
    assert len(known_kinds()) == 25 + 58


def test_registry_has_the_sizes_that_the_study_promises():
    assert set(kinds_of("seen", "ifeval")) == {name for name, kind in KINDS.items() if kind.family == "ifeval"}
    assert len(kinds_of("seen", "ifeval")) == 25
    assert not set(kinds_of("seen", "ifeval")) & set(kinds_of("unseen", "ifeval"))
    seen_ifeval = [KINDS[name] for name in kinds_of("seen", "study") if KINDS[name].family == "ifeval"]
    unseen = [k for k in KINDS.values() if not k.seen]
    assert 14 <= len(seen_ifeval) <= 16
    assert any(k.seen and k.family == "ifbench" for k in KINDS.values())
    assert len(unseen) >= 8
    assert {k.family for k in unseen} == {"ifeval", "ifbench"}


def test_family_is_the_benchmark_whose_verifier_judges():
    from if_verifiable.ifbench import INSTRUCTION_DICT as IFBENCH
    from if_verifiable.ifeval import INSTRUCTION_DICT as IFEVAL

    for name, kind in KINDS.items():
        assert name in (IFEVAL if kind.family == "ifeval" else IFBENCH)


def test_a_symbol_is_counted_and_never_replaced_by_a_random_letter():
    at_least = [
        Constraint("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"})
    ]
    less = [Constraint("keywords:letter_frequency", {"letter": "!", "let_frequency": 1, "let_relation": "less than"})]
    for seed in range(30):
        random.seed(seed)
        assert verify(at_least, "# one # two").passed is True
        assert verify(at_least, "# one, and all letters abcdefghijklmnopqrstuvwxyz twice").passed is False
        assert verify(less, "abcdefghijklmnopqrstuvwxyz").passed is True
        assert verify(less, "no!").passed is False


def test_a_parameter_of_zero_is_not_dropped():
    none_allowed = [Constraint("keywords:frequency", {"keyword": "bee", "frequency": 0, "relation": "at least"})]
    assert verify(none_allowed, "a wasp").passed is True  # 0 occurrences are at least 0
    # Words 0, 1 and 2 of the text; the package alone would start at a random word.
    span = {"prompt_to_repeat": "one two three four five", "n_start": 0, "n_end": 3}
    assert verify([Constraint("repeat:repeat_span", span)], "one two three").passed is True
    assert verify([Constraint("repeat:repeat_span", span)], "two three").passed is False


def test_missing_parameters_are_a_status_and_leave_the_global_generator_alone():
    random.seed(5)
    before = random.getstate()
    verdict = verify([Constraint("length_constraints:number_words", {"relation": "at least"})], "one two")
    assert verdict.followed == (None,)
    assert verdict.passed is None
    assert "incomplete" in verdict.status
    assert random.getstate() == before


def test_an_exception_inside_a_verifier_is_a_status_and_the_others_are_still_judged():
    broken = Constraint("keywords:existence", {"keywords": ["("]})  # not a regular expression
    verdict = verify([broken, Constraint("punctuation:no_comma", {})], "no comma")
    assert verdict.followed == (None, True)
    assert verdict.passed is None
    assert verdict.status.startswith("unavailable: keywords:existence: ")
    assert "\n" not in verdict.status


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("keywords:letter_frequency", {"letter": "ab", "let_frequency": 1, "let_relation": "at least"}),
        Constraint("length_constraints:number_words", {"num_words": 3, "relation": "about"}),
        Constraint("punctuation:no_comma", {"surplus": 1}),
        Constraint("no:such_kind", {}),
    ],
)
def test_impossible_constraints_are_a_status_never_a_failure(constraint):
    verdict = verify([constraint], "one two three")
    assert verdict.status != "ok"
    assert verdict.followed == (None,)


def test_missing_pos_tagger_is_named(monkeypatch):
    import nltk

    def missing(*_arguments, **_options):
        raise LookupError("Resource averaged_perceptron_tagger_eng not found")

    verify([Constraint("words:start_verb", {})], "Run.")  # loads the checkers before the patch
    monkeypatch.setattr(nltk, "pos_tag", missing)
    verdict = verify([Constraint("words:start_verb", {})], "Run to the hills.")
    assert verdict == Verdict("unavailable: POS tagger", (None,))


def test_empty_answer_fails_everything_as_in_lm_eval():
    constraints = [Constraint("punctuation:no_comma", {}), Constraint("detectable_format:title", {})]
    assert verify(constraints, " \n") == Verdict("ok", (False, False))
    assert verify(constraints, "", strict=False).passed is False


def test_loose_takes_any_of_eight_variants():
    json_kind = [Constraint("detectable_format:json_format", {})]
    wrapped = 'Sure, here it is:\n{"a": 1}\nAnything else?'
    assert verify(json_kind, wrapped).passed is False
    assert verify(json_kind, wrapped, strict=False).passed is True
    quoted = [Constraint("startend:quotation", {})]
    assert verify(quoted, '*"Bees"*').passed is False
    assert verify(quoted, '*"Bees"*', strict=False).passed is True
    assert loose_variants("a\n*b*\nc") == ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b"]


def test_verdicts_do_not_depend_on_what_was_judged_before():
    texts = [good for *_, good, _ in EXAMPLES]
    rows = [(Constraint(kind, kwargs), text) for kind, kwargs, *_ in EXAMPLES for text in texts]
    first = [verify([constraint], text) for constraint, text in rows]
    order = list(range(len(rows)))
    random.Random(1).shuffle(order)
    second = {index: verify([rows[index][0]], rows[index][1]) for index in order}
    assert first == [second[index] for index in range(len(rows))]


def test_language_is_detected_alike_in_every_process():
    # Mixed German, English and French: without a seed the detector's answer may change from call to call.
    text = "le chat est hier und the house was vert in der sea"
    kinds = [Constraint("language:response_language", {"language": language}) for language in ("de", "en", "fr")]
    code = (
        "import json; from uniapl.constraints import verify; from uniapl.records import Constraint\n"
        "kinds = [Constraint('language:response_language', {'language': l}) for l in ('de', 'en', 'fr')]\n"
        f"print(json.dumps(verify(kinds, {text!r}).followed))"
    )
    elsewhere = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    for _ in range(5):
        assert list(verify(kinds, text).followed) == elsewhere
    assert sum(elsewhere) <= 1


def test_no_verdict_logs_the_text_even_after_logging_was_configured_anew(caplog):
    known_kinds()
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})  # as importing vLLM does
    verify([Constraint("language:response_language", {"language": "de"})], "12345")
    assert not caplog.records


def test_no_download_is_tried():
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from uniapl.constraints import verify; from uniapl.records import Constraint\n"
        "kind = Constraint('length_constraints:number_sentences', {'num_sentences': 2, 'relation': 'at least'})\n"
        "print(verify([kind], 'It rains. I stay.').passed)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def test_importing_constraints_is_cheap():
    code = (
        "import sys, uniapl.constraints; print([m for m in ('nltk', 'if_verifiable', 'datasets') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("group", ["seen", "unseen"])
def test_drawn_constraints_are_compatible_and_of_their_group(group):
    for seed in range(1500):
        drawn = draw_constraints(random.Random(seed), SPEC, group)
        assert 1 <= len(drawn) <= 3
        assert all(KINDS[one.kind].seen == (group == "seen") for one in drawn)
        assert not any(kinds_conflict(a.kind, b.kind) for a, b in combinations(drawn, 2))
        assert not parameters_conflict([(one.kind, one.kwargs) for one in drawn], SPEC.max_new_tokens)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("change_case:english_lowercase", "change_case:english_capital"),
        ("length_constraints:number_words", "count:word_count_range"),
        ("startend:end_checker", "startend:quotation"),
        ("detectable_format:json_format", "detectable_content:postscript"),
        ("detectable_format:number_bullet_lists", "format:list"),
        ("punctuation:no_comma", "punctuation:no_comma"),
    ],
)
def test_kinds_that_cannot_hold_together_conflict_both_ways(first, second):
    assert kinds_conflict(first, second)
    assert kinds_conflict(second, first)


@pytest.mark.parametrize(
    "chosen",
    [
        [("keywords:existence", {"keywords": ["honey"]}), ("keywords:forbidden_words", {"forbidden_words": ["honey"]})],
        [
            ("keywords:existence", {"keywords": ["buzz"]}),
            ("keywords:letter_frequency", {"letter": "z", "let_frequency": 2, "let_relation": "less than"}),
        ],
        [
            ("length_constraints:number_words", {"num_words": 8, "relation": "less than"}),
            ("length_constraints:number_sentences", {"num_sentences": 4, "relation": "at least"}),
        ],
        [("startend:end_checker", {"end_phrase": "Well, well."}), ("punctuation:no_comma", {})],
        [("format:list", {"sep": "SEPARATOR"}), ("change_case:english_lowercase", {})],
    ],
)
def test_parameters_that_cannot_hold_together_conflict_in_any_order(chosen):
    assert parameters_conflict(chosen, 96)
    assert parameters_conflict(chosen[::-1], 96)
    assert not any(parameters_conflict([one], 96) for one in chosen)


def test_constraints_that_need_more_than_the_cap_are_not_drawn():
    chosen = [("length_constraints:number_words", {"num_words": 40, "relation": "at least"})]
    assert not parameters_conflict(chosen, 96)  # 40 words are about 64 tokens
    assert parameters_conflict(chosen, 64)  # no more than 80% of the cap
    small = SPEC.model_copy(update={"max_new_tokens": 48})
    for seed in range(300):
        for one in draw_constraints(random.Random(seed), small, "seen"):
            assert KINDS[one.kind].min_tokens(one.kwargs) <= 48


def test_wordings_state_every_parameter():
    for name in (*kinds_of("seen", "study"), *kinds_of("unseen", "study")):
        rng = random.Random(name)
        for _ in range(20):
            kwargs = KINDS[name].draw(rng, 96, ("hive", "honey", "swarm", "smoke"))
            for text in KINDS[name].texts(kwargs):
                for value in kwargs.values():
                    for one in value if isinstance(value, list) else [value]:
                        if value in ("at least", "less than") or (name.endswith("multiple_sections") and value == 2):
                            continue
                        assert str(one) in text


def test_an_unknown_group_is_an_error():
    with pytest.raises(ValueError, match="group 'other' is unknown"):
        draw_constraints(random.Random(0), SPEC, "other")


LOWER = ["def evaluate(r):\n    return r.islower()", "def evaluate(response):\n    return response == response.lower()"]


def written_by_a_model(*sources):
    return Constraint(functions.KIND, {"functions": list(sources)})


def test_functions_that_a_model_wrote_judge_where_they_agree():
    constraints = [written_by_a_model(*LOWER), Constraint("punctuation:no_comma", {})]
    answers = ["all low", "All, high", "", "all, low"]
    judged = verify_all([(constraints, answer) for answer in answers])
    assert [one.followed for one in judged] == [(True, True), (False, False), (False, False), (True, False)]
    assert judged == [verify(constraints, answer) for answer in answers]
    assert {one.status for one in judged} == {"ok"}


@pytest.mark.parametrize(
    ("sources", "answer", "status"),
    [
        (LOWER, "123", "unavailable: autoif:functions: its functions disagree"),
        (["def evaluate(r): return r[99]"], "a", "unavailable: autoif:functions: error: IndexError"),
        (["def evaluate(r): return 'true'"], "a", "unavailable: autoif:functions: not_bool"),
        ([LOWER[0], "def evaluate(r):\n    while True: pass"], "a", "unavailable: autoif:functions: timeout"),
    ],
)
def test_functions_without_a_verdict_are_a_status_and_never_a_failure(sources, answer, status):
    judged = verify([written_by_a_model(*sources), Constraint("punctuation:no_comma", {})], answer)
    assert judged.status.startswith(status)
    assert judged.followed == (None, True)
    assert judged.passed is None


def test_loosely_one_variant_that_follows_is_enough_for_functions_too():
    constraint = written_by_a_model(*LOWER)
    assert verify([constraint], "Sure:\nall low").followed == (False,)
    assert verify([constraint], "Sure:\nall low", strict=False).followed == (True,)
