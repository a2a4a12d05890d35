"""Group-relative advantages: A_k from verifiable rewards, B_k from the discriminator's scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

STD_EPSILON = 1e-4  # added to the group's std, as TRL does


def group_advantages(values_PK: Tensor, valid_PK: Tensor, *, scale_by_std: bool) -> Tensor:
    """Centre each group on its mean over valid entries, optionally divide by its (unbiased) std + 1e-4.

    A_k = (r_k - mean) / (std + eps), as in TRL's `scale_rewards`. Entries that are not valid (a reward that could
    not be computed) get 0 and do not enter mean or std. Returns float32 of shape [P, K].
    """
    values_PK = torch.where(valid_PK, values_PK.float(), torch.zeros(()))
    count_P1 = valid_PK.sum(dim=1, keepdim=True).clamp(min=1)
    mean_P1 = values_PK.sum(dim=1, keepdim=True) / count_P1
    centred_PK = torch.where(valid_PK, values_PK - mean_P1, torch.zeros(()))
    if not scale_by_std:
        return centred_PK
    variance_P1 = centred_PK.square().sum(dim=1, keepdim=True) / (count_P1 - 1).clamp(min=1)
    return centred_PK / (variance_P1.sqrt() + STD_EPSILON)


def adversarial_utility(scores_PK: Tensor, *, shift: float, scale: float) -> Tensor:
    """log sigmoid((s - b) / tau): the non-saturating generator's reward. b and tau are fixed once (our choice)."""
    return logsigmoid((scores_PK.float() - shift) / scale)


# DEVIATION-CANDIDATE: adversarial-scale: centred, by default not divided by the group's std.
def adversarial_advantages(utility_PK: Tensor, *, scale_by_std: bool) -> Tensor:
    """B_k: utility minus its group mean, by default not divided by the group's std (paper.md: our choice)."""
    return group_advantages(utility_PK, torch.ones_like(utility_PK, dtype=torch.bool), scale_by_std=scale_by_std)
