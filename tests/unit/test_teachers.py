"""Best of n, editing and the files of a demonstrations directory."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from uniapl.config import DataSpec, EditorSpec
from uniapl.constraints import verify
from uniapl.layers import load_study
from uniapl.provenance import content_hash
from uniapl.records import Constraint, Demonstration, Prompt, read_demonstrations, read_jsonl, write_jsonl
from uniapl.teachers import editor
from uniapl.teachers.__main__ import main
from uniapl.teachers.drafts import Draft, Drafting, Order, canned_drafts, judged, orders
from uniapl.teachers.editor import demonstrate, exchanged, ranked
from uniapl.teachers.kinds import kinds_table

EDITOR = EditorSpec.model_validate({})
NO_COMMA = Constraint("punctuation:no_comma", {})
KEYWORD = Constraint("keywords:existence", {"keywords": ["oven"]})


def draft(
    index: int, text: str = "x", *, num_tokens: int = 5, cut: bool = False, followed: tuple[bool, ...] = ()
) -> Draft:
    return Draft("p", "train", 0, index, text, num_tokens, cut, "ok", followed)


def count_tokens(text: str) -> int:
    return len(text.split()) + 1


def prompt(*constraints: Constraint, name: str = "p") -> Prompt:
    return Prompt(name, "train", f"Write something, {name}.", constraints, topic="baking bread")


def test_the_best_draft_follows_most_then_is_whole_then_is_of_median_length_then_comes_first() -> None:
    # Lengths 5, 9, 7, 7, 30: the median is 7.
    drafts = [
        draft(0, num_tokens=5, followed=(True, False)),
        draft(1, num_tokens=9, followed=(True, True), cut=True),
        draft(2, num_tokens=7, followed=(True, False)),
        draft(3, num_tokens=7, followed=(True, False)),
        draft(4, num_tokens=30, followed=(True, True)),
    ]
    assert [one.index for one in ranked(drafts)] == [4, 1, 2, 3, 0]


def test_a_demonstration_keeps_original_edits_and_verdicts() -> None:
    order = Order(prompt(NO_COMMA, KEYWORD), 1)
    drafts = judged([draft(0, "One, two."), draft(1, "No comma at all.")], {"p": order.prompt})
    assert [one.followed for one in drafts] == [(False, False), (True, False)]
    made = demonstrate(order, drafts, spec=EDITOR, max_tokens=40, count_tokens=count_tokens)
    assert isinstance(made, Demonstration)
    assert made.original == "No comma at all."
    assert made.edits == ("keywords:existence",)
    assert made.followed == (True, True)
    assert (made.take, made.num_tokens) == (1, count_tokens(made.text))


def test_the_next_best_draft_is_tried_where_the_best_cannot_be_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    order, real = Order(prompt(KEYWORD), 0), editor.mend

    def stubborn(constraints: object, text: str, **options: object) -> object:
        return None if text == "The best one." else real(constraints, text, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(editor, "mend", stubborn)
    drafts = judged([draft(0, "The best one."), draft(1, "Another one.")], {"p": order.prompt})
    made = demonstrate(order, drafts, spec=EDITOR, max_tokens=40, count_tokens=count_tokens)
    assert isinstance(made, Demonstration)
    assert made.original == "Another one."


def test_what_cannot_be_mended_or_judged_is_dropped_with_a_reason() -> None:
    forbidden = Constraint("keywords:forbidden_words", {"forbidden_words": ["oven"]})
    order = Order(prompt(KEYWORD, forbidden), 0)
    drafts = judged([draft(0, "Hot oven.")], {"p": order.prompt})
    made = demonstrate(order, drafts, spec=EDITOR, max_tokens=40, count_tokens=count_tokens)
    assert made == "no draft of 1 could be mended"
    order = Order(prompt(Constraint("words:nonsense", {})), 0)
    drafts = judged([draft(0, "Hot oven.")], {"p": order.prompt})
    reason = demonstrate(order, drafts, spec=EDITOR, max_tokens=40, count_tokens=count_tokens)
    assert isinstance(reason, str)
    assert reason.startswith("unavailable: unknown constraint kind")


def test_the_other_experts_answer_with_the_best_or_worst_draft_as_it_is() -> None:
    order = Order(prompt(NO_COMMA, KEYWORD), 0)
    texts = ["One, two, three.", "No comma at all.", "An oven, hot."]
    drafts = judged([draft(i, text) for i, text in enumerate(texts)], {"p": order.prompt})

    def answer(answers: str, among: list[Draft] = drafts) -> Demonstration | str:
        spec = EditorSpec.model_validate({"answers": answers})
        return demonstrate(order, among, spec=spec, max_tokens=40, count_tokens=count_tokens)

    best, worst = answer("best"), answer("violating")
    assert isinstance(best, Demonstration)
    assert isinstance(worst, Demonstration)
    assert (best.text, best.edits, best.followed) == ("No comma at all.", (), (True, False))
    assert (worst.text, worst.edits, worst.followed) == ("One, two, three.", (), (False, False))
    right = judged([draft(0, "Hot is the oven.")], {"p": order.prompt})
    broken = answer("violating", right)  # its first half follows all but the keyword
    assert isinstance(broken, Demonstration)
    assert (broken.text, broken.original, broken.followed) == ("Hot is", "Hot is the oven.", (True, False))
    short = judged([draft(0, "Oven")], {"p": order.prompt})
    assert "and so does its beginning" in str(answer("violating", short))


def test_exchanged_demonstrations_keep_their_words_and_get_the_verdict_of_the_prompt_they_are_given_to() -> None:
    prompts = {"a": prompt(NO_COMMA, name="a"), "b": prompt(KEYWORD, name="b"), "c": prompt(NO_COMMA, name="c")}
    made = [
        Demonstration(name, "train", 0, text, text, (), (True,), 3)
        for name, text in (("a", "Plain words."), ("b", "An oven, hot."), ("c", "Plain again."))
    ]
    given = exchanged([*made, Demonstration("a", "train", 1, "alone", "alone", (), (True,), 2)], prompts)
    assert [(d.prompt_id, d.take, d.text) for d in given] == [
        ("a", 0, "An oven, hot."), ("b", 0, "Plain again."), ("c", 0, "Plain words."), ("a", 1, "alone"),
    ]  # fmt: skip
    assert [d.followed for d in given[:3]] == [(False,), (False,), (True,)]


def test_discriminator_prompts_get_two_takes_and_the_others_one() -> None:
    spec = DataSpec.model_validate(
        dict(
            max_new_tokens=24,
            num_train=9,
            num_development=1,
            num_heldout=2,
            num_policy=3,
            num_discriminator=2,
            num_discriminator_test=1,
        )
    )
    prompts = [prompt(name=f"t{i}") for i in range(9)]
    todo = orders(prompts, [prompt(name="h0"), prompt(name="h1")], spec)
    assert [(order.prompt.id, order.take) for order in todo] == [
        ("t0", 0), ("t1", 0), ("t2", 0), ("h0", 0), ("h1", 0),
        ("t3", 0), ("t3", 1), ("t4", 0), ("t4", 1), ("t5", 0), ("t5", 1),
    ]  # fmt: skip


def test_takes_draw_independent_drafts_and_long_ones_are_cut_and_flagged() -> None:
    drafting = Drafting("canned", num=3, temperature=1.0, seed=0)
    todo = [Order(prompt(), 0), Order(prompt(), 1)]

    def drafts() -> list[Draft]:
        return canned_drafts(
            todo, drafting, max_tokens=30, encode=lambda text: [ord(c) for c in text] + [0],
            decode=lambda ids: "".join(chr(i) for i in ids if i),
        )  # fmt: skip

    made = drafts()
    assert made == drafts()
    assert [one.take for one in made] == [0, 0, 0, 1, 1, 1]
    assert [one.text for one in made[:3]] != [one.text for one in made[3:]]
    assert all(one.truncated == (len(one.text) == 30) for one in made)
    assert any(one.truncated for one in made)


@pytest.mark.slow
def test_the_stage_writes_verified_demonstrations_and_one_row_per_kind(tmp_path: Path) -> None:
    from uniapl import models
    from uniapl.generate import generate_split

    study = load_study("smoke")
    model_directory = tmp_path / "model"
    models.save_model(*models.build_model(study.models[0]), models.weights_directory(model_directory))
    data = tmp_path / "data"
    for split, count in (("train", 40), ("heldout", 8)):
        write_jsonl(data / f"{split}.jsonl", generate_split(study.data, split, count))
    config = {
        "teacher": study.teacher.model_dump(),
        "data": study.data.model_dump(),
        "sampler": {"kind": "hf"},
        "compute": "float32",
    }
    directory = tmp_path / f"tiny-{content_hash(config)}"
    directory.mkdir()
    main(directory, config, model=model_directory, data=data)

    prompts = {
        p.id: p
        for split in ("train", "heldout")
        for p in generate_split(study.data, split, 40 if split == "train" else 8)
    }
    demonstrations = read_demonstrations(directory / "demonstrations.jsonl")
    manifest = json.loads((directory / "manifest.json").read_text())
    # 24 policy prompts and 8 held-out ones once, 8 + 8 of the discriminator's twice: 64 orders of 4 drafts.
    assert manifest["num_orders"] == 64
    assert sum(1 for _ in read_jsonl(directory / "samples.jsonl")) == 256
    assert len(demonstrations) == manifest["num_demonstrations"] >= 58
    assert len(demonstrations) + manifest["dropped"] == 64
    for one in demonstrations:
        assert verify(prompts[one.prompt_id].constraints, one.text).passed is True
        assert one.num_tokens <= 24
    rows = list(csv.DictReader((directory / "kinds.csv").open()))
    assert {row["kind"] for row in rows} == {c.kind for d in demonstrations for c in prompts[d.prompt_id].constraints}
    assert all(float(row["teacher_accuracy"]) == 1.0 for row in rows)


def test_a_kind_that_lost_all_its_demonstrations_stays_in_the_table() -> None:
    prompts = {"p": prompt(NO_COMMA), "q": prompt(KEYWORD, name="q")}
    kept = [Demonstration("p", "train", 0, "None here.", "", (), (True,), 4)]
    rows = kinds_table([], kept, prompts, Counter({KEYWORD.kind: 2}))
    assert [(row["kind"], row["num_demonstrations"], row["num_dropped"]) for row in rows] == [
        (KEYWORD.kind, 0, 2), (NO_COMMA.kind, 1, 0),
    ]  # fmt: skip
