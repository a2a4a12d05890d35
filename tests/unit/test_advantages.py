"""Group-relative advantages, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from uniapl.advantages import adversarial_advantages, adversarial_utility, group_advantages


def all_valid(values_PK: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(values_PK, dtype=torch.bool)


def test_advantages_are_centred_and_divided_by_the_unbiased_std() -> None:
    # Rewards 1, 0, 0, 1: mean 0.5, squared deviations 4 x 0.25 = 1, variance 1 / 3, std 0.57735.
    rewards_PK = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    expected = 0.5 / (math.sqrt(1 / 3) + 1e-4)  # 0.86588
    advantages_PK = group_advantages(rewards_PK, all_valid(rewards_PK), scale_by_std=True)
    assert advantages_PK.tolist()[0] == pytest.approx([expected, -expected, -expected, expected], rel=1e-6)
    assert expected == pytest.approx(0.86588, abs=1e-5)


def test_advantages_without_scaling_are_only_centred() -> None:
    # Mean of 1, 0, 0, 0 is 0.25.
    rewards_PK = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert group_advantages(rewards_PK, all_valid(rewards_PK), scale_by_std=False).tolist() == [
        [0.75, -0.25, -0.25, -0.25]
    ]


def test_groups_do_not_touch_each_other_and_a_flat_group_gets_exact_zeros() -> None:
    rewards_PK = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    advantages_PK = group_advantages(rewards_PK, all_valid(rewards_PK), scale_by_std=True)
    assert advantages_PK[:2].tolist() == [[0.0] * 3] * 2
    alone_PK = group_advantages(rewards_PK[2:], all_valid(rewards_PK[2:]), scale_by_std=True)
    assert torch.equal(advantages_PK[2:], alone_PK)


@pytest.mark.parametrize("hole", [0.0, 100.0, math.nan])
def test_a_reward_that_could_not_be_computed_gets_0_and_does_not_shift_the_mean(hole: float) -> None:
    # Valid: 1, 0, 0 -> mean 1/3; deviations 2/3, -1/3, -1/3, squares sum to 6/9, variance (6/9) / 2 = 1/3.
    rewards_PK = torch.tensor([[1.0, hole, 0.0, 0.0]])
    valid_PK = torch.tensor([[True, False, True, True]])
    centred = group_advantages(rewards_PK, valid_PK, scale_by_std=False).tolist()[0]
    assert centred == pytest.approx([2 / 3, 0.0, -1 / 3, -1 / 3])
    scaled = group_advantages(rewards_PK, valid_PK, scale_by_std=True).tolist()[0]
    std = math.sqrt(1 / 3) + 1e-4
    assert scaled == pytest.approx([2 / 3 / std, 0.0, -1 / 3 / std, -1 / 3 / std])


def test_a_group_without_any_valid_reward_gets_zeros() -> None:
    values_PK = torch.tensor([[math.nan, math.nan]])
    assert group_advantages(values_PK, ~all_valid(values_PK), scale_by_std=True).tolist() == [[0.0, 0.0]]


def test_utility_is_the_log_sigmoid_of_the_shifted_and_scaled_score() -> None:
    # s = b: log 1/2. s = b + tau log 3: sigmoid = 3/4. s = b - tau log 3: 1/4.
    scores_PK = torch.tensor([[0.5, 0.5 + 2 * math.log(3), 0.5 - 2 * math.log(3)]])
    utility_PK = adversarial_utility(scores_PK, shift=0.5, scale=2.0)
    assert utility_PK.tolist()[0] == pytest.approx([math.log(0.5), math.log(0.75), math.log(0.25)], rel=1e-5)


def test_adversarial_advantages_keep_the_size_of_the_differences() -> None:
    # Centred only: a difference of 1e-4 stays 1e-4; divided by the std it would become about 0.3.
    utility_PK = torch.tensor([[-1.0, -1.0001, -1.0, -1.0001]])
    assert adversarial_advantages(utility_PK, scale_by_std=False).abs().max().item() == pytest.approx(5e-5, rel=1e-2)
    assert adversarial_advantages(utility_PK, scale_by_std=True).abs().max().item() > 0.2
