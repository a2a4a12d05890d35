"""The objectives, one pure function per equation, and their weighted sum.

    L = w_grpo (L_grpo + L_off) / N_grpo + w_sft L_sft / N_sft + w_adv L_adv / N_adv ( + w_kl L_kl / N_kl )

with w_sft = mu, w_grpo = 1 - mu, w_adv = lambda_adv; L_off only where the expert's answers join the groups (LUFFY).
Every term returns a sum over tokens; the division by global counts happens once, in `weighted_sum`. A term with
coefficient 0 is left out of the sum, not multiplied by 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

TERMS = ("sft", "grpo", "off_policy", "adv", "kl")


def sft_loss(logprobs_T: Tensor, weights_T: Tensor, *, weighting: str) -> Tensor:
    """L_sft = - sum_t w(p_t) log pi(y*_t), no gradient through w.

    `none`: w = 1; `phi`: w = p (1 - p) (CHORD-phi, 2508.11408); `dft`: w = p (DFT, 2508.05629). Never renormalised.
    """
    if weighting != "none":
        probabilities_T = logprobs_T.detach().exp()
        weights_T = weights_T * (probabilities_T if weighting == "dft" else probabilities_T * (1 - probabilities_T))
    return -(weights_T * logprobs_T).sum()


def off_policy_loss(logprobs_T: Tensor, advantages_T: Tensor, weights_T: Tensor, *, gamma: float) -> Tensor:
    """L_off = - sum_t w A p / (p + gamma), p = pi(y*_t): LUFFY's shaped objective on an expert's answer (2504.14945).

    The expert's own probability is taken as 1, so p stands for the ratio; the gradient of log p is then weighted by
    gamma p / (p + gamma)^2, the most on tokens that the policy finds unlikely.
    """
    probabilities_T = logprobs_T.exp()
    return -(weights_T * advantages_T * probabilities_T / (probabilities_T + gamma)).sum()


def sampler_correction(old_logprobs_T: Tensor, sampler_logprobs_T: Tensor, *, clip: float) -> Tensor:
    """c = min(pi_old / pi_sampler, C), detached, per token: truncated importance weights for the sampler's gap."""
    return (old_logprobs_T - sampler_logprobs_T).detach().exp().clamp(max=clip)


def clipped_surrogate_loss(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    correction_T: Tensor,
    weights_T: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """L = - sum_t w c min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A), rho = pi / pi_old (GRPO, 2402.03300).

    L_grpo with A from rewards, L_adv with B from the discriminator. `weights_T` carries the normalisation: 1 (dapo),
    1 / |o| (grpo) or 1 / L_max (dr_grpo).
    """
    rho_T = (logprobs_T - old_logprobs_T.detach()).exp()
    clipped_T = rho_T.clamp(1 - clip_low, 1 + clip_high)
    surrogate_T = torch.minimum(rho_T * advantages_T, clipped_T * advantages_T)
    return -(weights_T * correction_T * surrogate_T).sum()


def kl_loss(logprobs_T: Tensor, start_logprobs_T: Tensor, weights_T: Tensor) -> Tensor:
    """L_kl = sum_t w (exp(d) - d - 1), d = log pi_start - log pi: Schulman's k3 estimate, as in GRPO (2402.03300)."""
    difference_T = start_logprobs_T.detach() - logprobs_T
    return (weights_T * (difference_T.exp() - difference_T - 1)).sum()


def weighted_sum(
    sums: Mapping[str, Tensor], coefficients: Mapping[str, float], counts: Mapping[str, float]
) -> Tensor | None:
    """Sum of coefficient x sum / count over the terms present with a coefficient above 0; None if there is none.

    `counts` are global: N_sft, N_grpo (that of `off_policy` too), N_adv and N_kl of the whole step over all ranks.
    """
    total: Tensor | None = None
    for term in TERMS:
        if term not in sums or coefficients.get(term, 0.0) == 0:
            continue
        part = sums[term] * (coefficients[term] / counts[term])
        total = part if total is None else total + part
    return total
