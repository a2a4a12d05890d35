"""RMS norms by torch's one kernel instead of transformers' six, for GPUs (docs/performance.md)."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

FUSED = ("LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")  # weight * x / rms(x); other families' differ


def fuse_norms(model: Any) -> None:
    """Let the RMS norms of a transformers model be computed by the fused kernel; results are of the same type.

    What differs is rounding: a bfloat16 norm's result is rounded once, not twice. Norms of other families stay.
    """
    for module in model.modules():
        if type(module).__name__ in FUSED:
            module.forward = MethodType(_rms_norm, module)


def _rms_norm(module: Any, hidden_states: Tensor) -> Tensor:
    weight, eps = module.weight, module.variance_epsilon
    kind = torch.promote_types(hidden_states.dtype, weight.dtype)
    # Autocast may compute, and return, float32.
    return functional.rms_norm(hidden_states.to(kind), weight.shape, weight.to(kind), eps).to(kind)
