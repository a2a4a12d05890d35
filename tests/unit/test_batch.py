"""Weights, counts, micro-batches and layouts, by hand on four sequences of a few tokens."""

from __future__ import annotations

import pytest
import torch

from uniapl.batch import MicroBatch, layout, needs_gradient, split, term_counts, token_weight
from uniapl.records import TokenSequence

CPU = torch.device("cpu")
OFF = {"sft": 0.0, "grpo": 0.0, "adv": 0.0, "kl": 0.0}


def sequence(prompt: list[int], completion: list[int], *terms: str, a: float = 0.0, b: float = 0.0) -> TokenSequence:
    return TokenSequence(prompt, completion, frozenset(terms), a, b, [-0.5 - t for t in range(len(completion))])


# Two rollouts of one prompt, a flat rollout of another, a demonstration.
SEQUENCES = [
    sequence([1, 2], [3, 4, 5], "grpo", "adv", a=1.0, b=0.25),
    sequence([1, 2], [6], "grpo", "adv", a=-1.0, b=-0.25),
    sequence([7, 8, 9], [10, 11], "grpo", "adv"),
    TokenSequence([1, 2], [12, 13, 14, 15], frozenset({"sft"})),
]


def lay(sequences: list[TokenSequence], *, packing: bool = False, normalization: str = "dapo") -> MicroBatch:
    return layout(sequences, packing=packing, normalization=normalization, max_new_tokens=8, device=CPU)


def test_counts_include_flat_groups_and_the_sequences_left_out() -> None:
    # 3 + 1 + 2 rollout tokens, 4 demonstration tokens; or 3 rollouts.
    rollouts = ("grpo", "off_policy", "adv", "kl")
    assert term_counts(SEQUENCES, normalization="dapo") == {"sft": 4.0} | dict.fromkeys(rollouts, 6.0)
    for normalization in ("grpo", "dr_grpo"):
        counts = term_counts(SEQUENCES, normalization=normalization)
        assert counts == {"sft": 4.0} | dict.fromkeys(rollouts, 3.0)
    assert not needs_gradient(SEQUENCES[2], OFF | {"grpo": 1.0, "adv": 1.0})


def test_token_weights_carry_the_normalisation() -> None:
    first, demonstration = SEQUENCES[0], SEQUENCES[3]
    weights = [token_weight(first, "grpo", normalization=n, max_new_tokens=8) for n in ("dapo", "grpo", "dr_grpo")]
    assert weights == [1.0, 1 / 3, 1 / 8]
    for normalization in ("dapo", "grpo", "dr_grpo"):
        assert token_weight(demonstration, "sft", normalization=normalization, max_new_tokens=8) == 1.0
        assert token_weight(demonstration, "grpo", normalization=normalization, max_new_tokens=8) == 0.0
        assert token_weight(first, "kl", normalization=normalization, max_new_tokens=8) == 0.0


@pytest.mark.parametrize(
    ("index", "coefficients", "needed"),
    [
        (0, {"grpo": 1.0}, True),
        (0, {"sft": 1.0}, False),  # not a demonstration
        (2, {"grpo": 1.0, "adv": 1.0}, False),  # flat in both
        (3, {"sft": 0.1}, True),
        (3, {"grpo": 1.0}, False),
    ],
)
def test_a_sequence_is_left_out_only_where_nothing_would_flow(
    index: int, coefficients: dict[str, float], needed: bool
) -> None:
    assert needs_gradient(SEQUENCES[index], OFF | coefficients) is needed


def test_a_group_flat_in_reward_still_has_gradient_from_the_adversarial_term_and_from_kl() -> None:
    flat_in_reward = sequence([1], [2, 3], "grpo", "adv", "kl", a=0.0, b=0.1)
    assert not needs_gradient(flat_in_reward, OFF | {"grpo": 1.0})
    assert needs_gradient(flat_in_reward, OFF | {"grpo": 1.0, "adv": 0.2})
    assert needs_gradient(flat_in_reward, OFF | {"grpo": 1.0, "kl": 0.01})


def test_padded_rows_predict_each_completion_token_from_the_position_before_it() -> None:
    micro = lay(SEQUENCES)
    assert micro.input_ids_BS.tolist() == [
        [1, 2, 3, 4, 5, 0], [1, 2, 6, 0, 0, 0], [7, 8, 9, 10, 11, 0], [1, 2, 12, 13, 14, 15],
    ]  # fmt: skip
    # Rows are 6 wide. Row 0 predicts from positions 1, 2, 3; row 1 from 1; row 2 from 2, 3; row 3 from 1 to 4.
    assert micro.predicting_T.tolist() == [1, 2, 3, 7, 14, 15, 19, 20, 21, 22]
    assert micro.targets_T.tolist() == [3, 4, 5, 6, 10, 11, 12, 13, 14, 15]
    assert micro.select("sft").tolist() == [False] * 6 + [True] * 4
    assert micro.select("grpo").tolist() == [True] * 6 + [False] * 4
    assert not micro.select("kl").any()
    assert micro.advantages_T.tolist() == [1.0] * 3 + [-1.0] + [0.0] * 6
    assert micro.adversarial_T.tolist() == [0.25] * 3 + [-0.25] + [0.0] * 6
    assert micro.sampler_logprobs_T.tolist() == [-0.5, -1.5, -2.5, -0.5, -0.5, -1.5] + [0.0] * 4


def test_packed_or_padded_every_token_is_predicted_by_its_predecessor_with_its_own_numbers() -> None:
    def seen(packing: bool) -> set[tuple[float, ...]]:
        micro = lay(SEQUENCES, packing=packing, normalization="grpo")
        before_T = micro.input_ids_BS.flatten()[micro.predicting_T]
        columns = (
            before_T, micro.targets_T, micro.advantages_T, micro.adversarial_T, micro.sampler_logprobs_T,
            micro.weights_T["sft"], micro.weights_T["grpo"], micro.weights_T["adv"],
        )  # fmt: skip
        return set(zip(*(column.tolist() for column in columns), strict=True))

    assert len(seen(False)) == 10
    assert seen(True) == seen(False)
    assert lay(SEQUENCES, packing=True).input_ids_BS.numel() < lay(SEQUENCES).input_ids_BS.numel()


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("micro_tokens", [1, 6, 12, 1000])
def test_micro_batches_hold_every_sequence_once_and_keep_the_limit(packing: bool, micro_tokens: int) -> None:
    groups = list(split(SEQUENCES, micro_tokens=micro_tokens, packing=packing))
    held = [s for group in groups for s in group]
    assert sorted(held, key=id) == sorted(SEQUENCES, key=id)
    assert len(groups) == (1 if micro_tokens == 1000 else len(groups))
    if micro_tokens == 1:
        assert len(groups) == len(SEQUENCES)
    for group in groups:
        shape = lay(group, packing=packing).input_ids_BS.shape
        assert shape.numel() <= micro_tokens or shape[0] == 1


def test_attention_is_not_padded_to_one_long_answer() -> None:
    prompt = [1, 2]
    answers = [sequence(prompt, [3] * length, "grpo", a=1.0) for length in (400, *[4] * 60)]
    groups = list(split(answers, micro_tokens=1000, packing=True))  # together they have 642 tokens
    assert len(groups) > 1
    held = [id(s) for group in groups for s in group]
    assert sorted(held) == sorted(map(id, answers))
    for group in groups:
        documents = lay(group, packing=True).documents
        assert documents is not None
        assert len(documents.positions) <= 2 * 1000


def test_nothing_gives_no_micro_batch() -> None:
    assert list(split([], micro_tokens=10, packing=False)) == []
