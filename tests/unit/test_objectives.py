"""Every term by hand, its gradient where the formula says that something is detached, and their weighted sum."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from uniapl.objectives import (
    clipped_surrogate_loss,
    kl_loss,
    off_policy_loss,
    sampler_correction,
    sft_loss,
    weighted_sum,
)

LOG2 = math.log(2.0)


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, requires_grad=True)


def gradient(loss: Tensor, of: Tensor) -> list[float]:
    return torch.autograd.grad(loss, of)[0].tolist()


def test_sft_is_the_negative_sum_of_weighted_logprobs() -> None:
    # -(1 x (-1) + 0 x (-2) + 1 x (-3)) = 4; the gradient is minus the weights.
    logprobs_T = leaf(-1.0, -2.0, -3.0)
    loss = sft_loss(logprobs_T, torch.tensor([1.0, 0.0, 1.0]), weighting="none")
    assert loss.item() == 4.0
    assert gradient(loss, logprobs_T) == [-1.0, 0.0, -1.0]


def test_phi_weighs_by_p_1_minus_p_without_gradient_through_the_weight() -> None:
    # p = 1/2: weight 1/4, -1/4 log 1/2 = 0.17329. p = 1/4: weight 3/16, -3/16 log 1/4 = 0.25993.
    logprobs_T = leaf(-LOG2, -2 * LOG2)
    loss = sft_loss(logprobs_T, torch.ones(2), weighting="phi")
    assert loss.item() == pytest.approx(0.25 * LOG2 + 0.1875 * 2 * LOG2)
    assert gradient(loss, logprobs_T) == pytest.approx(
        [-0.25, -0.1875]
    )  # with gradient through phi: -0.25 + 0 and more


def test_dft_weighs_by_p_without_gradient_through_the_weight() -> None:
    # p = 1/2: -1/2 log 1/2; p = 1/4: -1/4 log 1/4; through p the gradient would be -(1/2)(1 + log 1/2) and so on
    logprobs_T = leaf(-LOG2, -2 * LOG2)
    loss = sft_loss(logprobs_T, torch.ones(2), weighting="dft")
    assert loss.item() == pytest.approx(0.5 * LOG2 + 0.25 * 2 * LOG2)
    assert gradient(loss, logprobs_T) == pytest.approx([-0.5, -0.25])


def test_luffys_loss_reshapes_p_and_its_gradient_flows_through() -> None:
    # p = 1/2, A = 2: -2 x 0.5 / 0.6 = -1.66667; p = 1/10, A = -1, weight 1/2: 0.5 x 0.1 / 0.2 = 0.25.
    logprobs_T = leaf(math.log(0.5), math.log(0.1))
    loss = off_policy_loss(logprobs_T, torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.5]), gamma=0.1)
    assert loss.item() == pytest.approx(-2 * 0.5 / 0.6 + 0.25)
    # -A w gamma p / (p + gamma)^2: -2 x 0.05 / 0.36 and 0.5 x 0.01 / 0.04
    assert gradient(loss, logprobs_T) == pytest.approx([-2 * 0.05 / 0.36, 0.5 * 0.01 / 0.04])


def test_every_gradient_is_the_finite_difference_of_its_loss_with_what_is_detached_held_fixed() -> None:
    generator = torch.Generator().manual_seed(0)
    point_T = (-3 * torch.rand(6, generator=generator, dtype=torch.float64) - 0.05).requires_grad_(True)
    advantages_T = torch.randn(6, generator=generator, dtype=torch.float64)
    weights_T, ones_T = torch.rand(6, generator=generator, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    near_T = point_T.detach() + 0.05 * torch.randn(6, generator=generator, dtype=torch.float64)  # inside the clip
    p_T = point_T.detach().exp()
    losses = {
        "off_policy": lambda x: off_policy_loss(x, advantages_T, weights_T, gamma=0.1),
        "kl": lambda x: kl_loss(x, near_T, weights_T),
        "surrogate": lambda x: clipped_surrogate_loss(
            x, near_T, advantages_T, ones_T, weights_T, clip_low=0.2, clip_high=0.2
        ),
        "none": lambda x: sft_loss(x, weights_T, weighting="none"),
    }
    assert all(torch.autograd.gradcheck(loss, (point_T,)) for loss in losses.values())
    # weights without gradient: differences of the loss whose weights stay what they are at this point
    for weighting, fixed_T in (("phi", p_T * (1 - p_T)), ("dft", p_T)):
        loss = sft_loss(point_T, weights_T, weighting=weighting)
        frozen = [
            [sft_loss(point_T.detach() + side, weights_T * fixed_T, weighting="none") for side in (0, away_T, -away_T)]
            for away_T in 1e-4 * torch.eye(6, dtype=torch.float64)
        ]
        assert all(here.item() == pytest.approx(loss.item()) for here, _, _ in frozen)
        differences = [((above - below) / 2e-4).item() for _, above, below in frozen]
        assert gradient(loss, point_T) == pytest.approx(differences, rel=1e-6)


def test_the_sampler_correction_is_truncated_at_c_only_above_and_detached() -> None:
    # pi_old / pi_sampler = 4 -> 2; 1.5 -> 1.5; 0.1 -> 0.1 (no lower bound).
    old_T = leaf(math.log(0.4), math.log(0.3), math.log(0.05))
    sampler_T = torch.tensor([0.1, 0.2, 0.5]).log()
    correction_T = sampler_correction(old_T, sampler_T, clip=2.0)
    assert correction_T.tolist() == pytest.approx([2.0, 1.5, 0.1], rel=1e-5)
    assert not correction_T.requires_grad


@pytest.mark.parametrize(
    ("rho", "advantage", "surrogate", "has_gradient"),
    [
        (1.5, 1.0, 1.3, False),  # A > 0, above 1 + 0.3: clipped
        (0.5, 1.0, 0.5, True),  # A > 0, below: min takes the unclipped 0.5, not 0.8
        (0.5, -2.0, -1.6, False),  # A < 0, below 1 - 0.2: clipped at 0.8 x -2
        (1.5, -2.0, -3.0, True),  # A < 0, above: min takes the unclipped 1.5 x -2, not 1.3 x -2
        (1.1, 1.0, 1.1, True),  # inside on both signs
        (1.1, -2.0, -2.2, True),
    ],
)
def test_the_surrogate_clips_on_the_side_that_would_gain(
    rho: float, advantage: float, surrogate: float, has_gradient: bool
) -> None:
    old_T = torch.tensor([-2.0])
    logprobs_T = leaf(-2.0 + math.log(rho))
    loss = clipped_surrogate_loss(
        logprobs_T, old_T, torch.tensor([advantage]), torch.ones(1), torch.ones(1), clip_low=0.2, clip_high=0.3
    )
    assert loss.item() == pytest.approx(-surrogate, rel=1e-6)
    # d(-rho A) / d log pi = -rho A where it is not clipped
    assert gradient(loss, logprobs_T) == pytest.approx([-rho * advantage if has_gradient else 0.0], rel=1e-6)


def test_the_surrogate_weighs_by_correction_and_normalisation_and_ignores_old_gradients() -> None:
    # rho = 1: -(0.5 x 2 x 1 + 0.25 x 1.5 x (-2)) = -(1 - 0.75) = -0.25; gradient the same per token.
    logprobs_T = leaf(-1.0, -3.0)
    loss = clipped_surrogate_loss(
        logprobs_T, logprobs_T, torch.tensor([1.0, -2.0]), torch.tensor([2.0, 1.5]), torch.tensor([0.5, 0.25]),
        clip_low=0.2, clip_high=0.2,
    )  # fmt: skip
    assert loss.item() == pytest.approx(-0.25)
    assert gradient(loss, logprobs_T) == pytest.approx([-1.0, 0.75])


def test_k3_is_zero_at_equality_and_exp_d_minus_d_minus_1_elsewhere() -> None:
    # d = log pi_start - log pi: log 2 -> 2 - log 2 - 1 = 0.30685; -log 2 -> 0.5 + log 2 - 1 = 0.19315.
    logprobs_T = leaf(-1.0, -1.0 - LOG2, -1.0 + LOG2)
    start_T = leaf(-1.0, -1.0, -1.0)
    loss = kl_loss(logprobs_T, start_T, torch.tensor([1.0, 1.0, 2.0]))
    assert loss.item() == pytest.approx(0.30685 + 2 * 0.19315, abs=1e-4)
    # d k3 / d log pi = 1 - exp(d): 0, 1 - 2, 2 (1 - 1/2); nothing flows to the start model.
    assert gradient(loss, logprobs_T) == pytest.approx([0.0, -1.0, 1.0], abs=1e-6)
    with pytest.raises(RuntimeError, match=r"does not require grad|not have been used"):
        torch.autograd.grad(kl_loss(logprobs_T.detach(), start_T, torch.ones(3)), start_T)


def test_the_weighted_sum_divides_each_term_once_by_its_count() -> None:
    # 0.9 x 6 / 3 + 0.1 x 8 / 4 + 0.5 x 2 / 5 = 1.8 + 0.2 + 0.2 = 2.2
    sums = {"grpo": torch.tensor(6.0), "sft": torch.tensor(8.0), "adv": torch.tensor(2.0)}
    coefficients = {"grpo": 0.9, "sft": 0.1, "adv": 0.5, "kl": 0.3}
    counts = {"grpo": 3.0, "sft": 4.0, "adv": 5.0, "kl": 3.0}
    total = weighted_sum(sums, coefficients, counts)
    assert total is not None
    assert total.item() == pytest.approx(2.2)


def test_a_term_with_coefficient_0_is_left_out_and_not_multiplied() -> None:
    sums = {"grpo": torch.tensor(6.0), "sft": torch.tensor(math.nan), "adv": torch.tensor(math.inf)}
    counts = {"grpo": 3.0, "sft": 0.0, "adv": 0.0}
    total = weighted_sum(sums, {"grpo": 1.0, "sft": 0.0, "adv": 0.0}, counts)
    assert total is not None
    assert total.item() == 2.0


def test_no_term_at_all_gives_none() -> None:
    assert weighted_sum({}, {"grpo": 1.0}, {"grpo": 1.0}) is None
    assert weighted_sum({"sft": torch.tensor(1.0)}, {"sft": 0.0, "grpo": 1.0}, {"sft": 1.0, "grpo": 1.0}) is None
