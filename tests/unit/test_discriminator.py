"""The fixed discriminator: pairs, head, measures, scores."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from uniapl import models
from uniapl.config import ControlSpec, DataSpec, FeaturesSpec, MachineSpec
from uniapl.discriminator import (
    ControlNumbers,
    Discriminator,
    Example,
    FrozenStates,
    head_scores,
    load_discriminator,
    main,
    make_examples,
    make_triples,
    project,
    score_groups,
    train_head,
)
from uniapl.discriminator_measures import Group, Item, auc, matched_values, measure, shift_and_scale, without_length
from uniapl.layers import load_model
from uniapl.provenance import content_hash, read_manifest
from uniapl.records import Constraint, Demonstration, Prompt, write_jsonl

SPEC = FeaturesSpec.model_validate(dict(layer=2, width=16, num_components=8, epochs=20))


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    models.save_model(*models.build_model(load_model("tiny_qwen3", "test")), models.weights_directory(directory))
    return directory


@pytest.fixture(scope="module")
def states(model_directory: Path) -> FrozenStates:
    return FrozenStates(model_directory, layer=2, micro_batch_tokens=64, dtype="float32")


def prompt(name: str) -> Prompt:
    return Prompt(name, "train", f"Write about {name}.", (Constraint("punctuation:no_comma", {}),))


def demonstration(name: str, take: int, text: str, original: str = "") -> Demonstration:
    return Demonstration(name, "train", take, text, original or text, (), (True,), 5)


def sample(name: str, index: int, text: str) -> dict[str, object]:
    return {"prompt_id": name, "take": 0, "index": index, "text": text, "num_tokens": 5, "truncated": False}


EXPERT = ["flour", "dough", "yeast"]  # words of one length: nothing to learn from length
BASE = ["comet", "earth", "orbit"]


def planted(count: int, start: int) -> tuple[list[Prompt], list[Demonstration], list[dict[str, object]]]:
    """Demonstrations of one vocabulary, drafts of another, all eight words long."""
    rng = random.Random(start)

    def text(words: list[str]) -> str:
        return " ".join(rng.choices(words, k=8))

    prompts = [prompt(f"p{i}") for i in range(start, start + count)]
    demonstrations = [demonstration(p.id, take, text(EXPERT), text(BASE)) for p in prompts for take in (0, 1)]
    return prompts, demonstrations, [sample(p.id, i, text(BASE)) for p in prompts for i in range(3)]


def examples_of(count: int, start: int) -> list[Example]:
    prompts, demonstrations, samples = planted(count, start)
    return make_examples(prompts, demonstrations, samples, num_negatives=2, seed=0)


def pooled(states: FrozenStates | ControlNumbers, examples: list[Example]) -> torch.Tensor:
    items = [(e.prompt.text, item.text) for e in examples for item in e.items]
    return states.pool(*map(list, zip(*items, strict=True)))


def test_a_positive_is_never_the_reference_and_negatives_are_raw_drafts_of_the_same_prompt() -> None:
    demonstrations = [
        demonstration("a", 0, "first edited", "draft 0"), demonstration("a", 1, "second"),
        demonstration("b", 0, "same"), demonstration("b", 1, "same"),
        demonstration("c", 0, "alone"),
    ]  # fmt: skip
    samples = [sample("a", i, f"draft {i}") for i in range(3)] + [sample("a", 3, "second")]
    samples += [sample(name, 0, "draft") for name in "bc"]
    examples = make_examples([prompt(n) for n in "abc"], demonstrations, samples, num_negatives=None, seed=0)
    # b's takes are equal, c has one take; draft 0 became a demonstration, "second" equals one.
    assert [e.prompt.id for e in examples] == ["a"]
    assert [item.text for item in examples[0].items] == ["first edited", "second", "draft 1", "draft 2"]
    pairs = [(t.reference, t.positive, t.negative) for t in make_triples(examples)]
    assert pairs == [(0, 1, 2), (0, 1, 3), (1, 0, 2), (1, 0, 3)]
    assert all(t.reference != t.positive for t in make_triples(examples_of(3, 0)))


def test_rows_of_later_examples_start_after_those_of_earlier_ones() -> None:
    # Two examples of 2 demonstrations + 2 drafts: the second one's rows are 4 to 7.
    pairs = [(t.reference, t.positive, t.negative) for t in make_triples(examples_of(2, 0))]
    assert pairs[4:] == [(4, 5, 6), (4, 5, 7), (5, 4, 6), (5, 4, 7)]


def test_a_planted_signal_is_found_on_prompts_that_did_not_train_the_head(states: FrozenStates) -> None:
    train, test = examples_of(40, 0), examples_of(8, 100)
    assert not {e.prompt.id for e in train} & {e.prompt.id for e in test}
    train_states = pooled(states, train)
    head = train_head(train_states, make_triples(train), SPEC)
    groups = score_groups(head, pooled(states, test), test)
    figures = measure(score_groups(head, train_states, train), groups, seed=0)
    assert figures["auc"] > 0.9
    assert figures["auc_without_length"] > 0.9


def test_a_control_over_noise_learns_its_training_pairs_and_knows_nothing_of_others(model_directory: Path) -> None:
    spec = ControlSpec.model_validate(dict(kind="control", reads="noise", width=16))
    numbers = ControlNumbers(model_directory, spec)
    train, test = examples_of(40, 0), examples_of(60, 100)
    head = train_head(pooled(numbers, train), make_triples(train), spec)
    scores = [np.array(g.scores) for g in score_groups(head, pooled(numbers, test), test)]
    assert abs(auc(scores) - 0.5) < 0.12  # 240 pairs
    assert len({round(float(s), 6) for row in scores for s in row}) > 200, "a constant would be no control"
    assert torch.equal(pooled(numbers, test), pooled(numbers, test))


def test_a_control_over_length_sees_length_alone(model_directory: Path) -> None:
    spec = ControlSpec.model_validate(dict(kind="control", reads="length", width=16))
    numbers = ControlNumbers(model_directory, spec)
    rows = numbers.pool(["p"] * 3, ["one two three", "four five six", "one two three four five six seven"])
    assert torch.equal(rows[0], rows[1])
    assert rows[2, 0] > rows[0, 0]
    train = examples_of(40, 0)
    head = train_head(pooled(numbers, train), make_triples(train), spec)
    discriminator = Discriminator(numbers, head, shift=0.0, scale=1.0)
    same = discriminator.score(["p"] * 2, ["one two three"] * 2, ["four five six", "one two three"])
    assert same[0] == same[1]


def test_the_head_is_a_function_of_its_seed(states: FrozenStates) -> None:
    train = examples_of(4, 0)
    table = pooled(states, train)
    first, second = (train_head(table, make_triples(train), SPEC) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = train_head(table, make_triples(train), SPEC.model_copy(update={"seed": 1}))
    assert not torch.equal(first["hidden_weight"], other["hidden_weight"])


def test_pooled_states_do_not_depend_on_the_batch_but_for_rounding(states: FrozenStates) -> None:
    texts = ["short", "a much longer text that goes on for quite a few tokens more", ""]
    together = states.pool(["Write."] * 3, texts)
    alone = torch.cat([states.pool(["Write."], [text]) for text in texts])
    assert together.shape == (3, 2 * 64)
    assert torch.allclose(together, alone, atol=1e-4 * float(alone.std()))
    assert not torch.allclose(alone[0], alone[1], atol=0.05 * float(alone.std()))


def test_pooled_states_are_those_of_the_whole_sequence_in_one_forward(states: FrozenStates) -> None:
    from uniapl import chat

    before, after = chat.prompt_ids(states.tokenizer, "Write."), chat.completion_ids(states.tokenizer, "some words")
    with torch.inference_mode():
        hidden = states.model(input_ids=torch.tensor([before + after])).last_hidden_state[0, len(before) :].float()
    expected = torch.cat([hidden.mean(0), hidden[-1]])
    assert torch.allclose(states.pool(["Write."], ["some words"])[0], expected, atol=1e-4 * float(expected.std()))


def test_scores_come_in_the_callers_order_and_take_empty_candidates(states: FrozenStates) -> None:
    train = examples_of(6, 0)
    head = train_head(pooled(states, train), make_triples(train), SPEC)
    discriminator = Discriminator(states, head, shift=0.0, scale=1.0)
    prompts, references = ["Write a.", "Write b.", "Write a."], ["flour", "oven", "dough"]
    candidates = ["flour oven dough", "", "moon star comet"]
    scores = discriminator.score(prompts, references, candidates)
    assert all(np.isfinite(scores))
    for row in range(3):
        alone = discriminator.score(prompts[row : row + 1], references[row : row + 1], candidates[row : row + 1])
        assert scores[row] == pytest.approx(alone[0], abs=1e-3)
    assert discriminator.score([], [], []) == []
    with pytest.raises(ValueError, match="lists of one length"):
        discriminator.score(prompts, references, ["one"])


def test_a_score_does_not_depend_on_earlier_calls(states: FrozenStates) -> None:
    train = examples_of(6, 0)
    head = train_head(pooled(states, train), make_triples(train), SPEC)
    fresh = Discriminator(states, head, shift=0.0, scale=1.0).score(["W."], ["flour"], ["oven"])
    used = Discriminator(states, head, shift=0.0, scale=1.0)
    used.score(["W.", "W."], ["dough", "flour"], ["oven", "oven moon"])
    assert used.score(["W."], ["flour"], ["oven"]) == fresh


def test_the_head_scores_by_its_formula() -> None:
    # One component, width 1: features [c, r, |c-r|, c*r, cos] = [2, 1, 1, 2, 1]; only the first is read: gelu(2) * 3.
    head = {
        "state_mean": torch.zeros(1), "state_std": torch.ones(1), "projection": torch.ones(1, 1),
        "feature_mean": torch.zeros(5), "feature_std": torch.ones(5),
        "hidden_weight": torch.tensor([[1.0], [0.0], [0.0], [0.0], [0.0]]), "hidden_bias": torch.zeros(1),
        "output_weight": torch.tensor([3.0]),
    }  # fmt: skip
    candidate, reference = project(head, torch.tensor([[2.0]])), project(head, torch.tensor([[1.0]]))
    # gelu(2) = 2 * Phi(2) = 2 * 0.97725 = 1.9545
    assert head_scores(head, candidate, reference).item() == pytest.approx(5.8635, abs=1e-3)


def group(scores: list[float], tokens: list[int], name: str = "p") -> Group:
    return Group(name, tuple(Item("x" * 4 * n, n, False) for n in tokens), tuple(scores))


def test_auc_counts_right_pairs_within_a_group_and_ties_half() -> None:
    # (3 > 1, 3 = 3) and (0 < 1): (1 + 0.5 + 0) / 3
    assert auc([np.array([3.0, 1.0, 3.0]), np.array([0.0, 1.0])]) == pytest.approx(0.5)


def test_a_score_that_is_length_has_no_auc_without_length() -> None:
    rng = random.Random(0)
    groups = []
    for i in range(40):
        tokens = [rng.randint(10, 40) for _ in range(5)]
        tokens[0] += 10  # demonstrations are longer
        groups.append(group([0.3 * n + rng.gauss(0, 0.01) for n in tokens], tokens, f"p{i}"))
    figures = measure(groups, groups, seed=0)
    assert figures["auc"] > 0.7
    assert figures["auc_length_only"] > 0.7
    assert figures["auc_without_length"] == pytest.approx(0.5, abs=0.1)


def test_a_score_that_is_not_length_keeps_its_auc_without_length() -> None:
    rng = random.Random(0)
    groups = []
    for i in range(40):
        tokens = [rng.randint(10, 40) for _ in range(5)]
        groups.append(group([1.0 + rng.gauss(0, 0.1), *(rng.gauss(0, 0.1) for _ in range(4))], tokens, f"p{i}"))
    assert auc(without_length(groups)) > 0.95
    assert auc([g.lengths[:, 0] for g in groups]) == pytest.approx(0.5, abs=0.15)


def test_matched_lengths_keep_drafts_within_a_tenth_of_the_demonstrations_tokens() -> None:
    # 20 tokens: 18 and 22 are within 10% of the longer one (2 of 20, 2 of 22), 17 and 23 are not.
    kept = matched_values([group([5.0, 1.0, 2.0, 3.0, 4.0], [20, 18, 22, 17, 23])])
    assert kept[0].tolist() == [5.0, 1.0, 2.0]


def test_shift_is_the_midpoint_of_the_means_and_scale_the_pooled_deviation() -> None:
    # Demonstrations 4 and 6: mean 5, variance 1. Drafts 0, 2, 0, 2: mean 1, variance 1. b = 3, tau = 1.
    shift, scale = shift_and_scale([group([4.0, 0.0, 2.0], [1, 1, 1]), group([6.0, 0.0, 2.0], [1, 1, 1])])
    assert (shift, scale) == (pytest.approx(3.0), pytest.approx(1.0))
    assert shift_and_scale([group([1.0, 1.0], [1, 1])]) == (1.0, 1.0)


def test_a_layer_that_the_model_does_not_have_is_one_clear_error(model_directory: Path) -> None:
    with pytest.raises(ValueError, match="layer = 3: the model has 2 layers"):
        FrozenStates(model_directory, layer=3, micro_batch_tokens=64, dtype="float32")


def test_the_stage_writes_a_discriminator_that_loads_and_scores(model_directory: Path, tmp_path: Path) -> None:
    prompts, demonstrations, samples = planted(30, 0)
    data_spec = DataSpec.model_validate(
        dict(
            max_new_tokens=24,
            num_train=30,
            num_development=1,
            num_heldout=1,
            num_policy=2,
            num_discriminator=20,
            num_discriminator_test=8,
        )
    )
    write_jsonl(tmp_path / "data" / "train.jsonl", prompts)
    write_jsonl(tmp_path / "expert" / "demonstrations.jsonl", demonstrations)
    write_jsonl(tmp_path / "expert" / "samples.jsonl", samples)
    config = {"data": data_spec.model_dump(), "discriminator": SPEC.model_dump(), "compute": "float32"}
    directory = tmp_path / f"tiny-{content_hash(config)}"
    directory.mkdir()
    main(directory, config, model=model_directory, data=tmp_path / "data", demonstrations=tmp_path / "expert")
    manifest = read_manifest(directory)
    assert manifest["usable"] is True
    assert (manifest["num_prompts"], manifest["num_test_prompts"]) == (20, 8)
    assert manifest["num_pairs"] == 20 * 2 * 3
    assert manifest["score_mean_base"] < manifest["shift"] < manifest["score_mean_demonstrations"]
    discriminator = load_discriminator(directory, model_directory, SPEC, compute="float32", machine=MachineSpec())
    assert (discriminator.shift, discriminator.scale) == (manifest["shift"], manifest["scale"])
    user, reference = prompts[-1].text, demonstrations[-1].text
    candidates = ["yeast flour dough flour yeast dough dough flour", "earth orbit comet orbit earth comet comet orbit"]
    close, far = discriminator.score([user] * 2, [reference] * 2, candidates)
    assert close > far


def test_an_unfinished_discriminator_is_refused(model_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="never finished"):
        load_discriminator(tmp_path, model_directory, SPEC, compute="float32", machine=MachineSpec())
