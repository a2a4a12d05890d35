"""bfloat16 matrix products on processors without fast instructions for them: float32's kernels, rounded as bfloat16.

Results that were released are bfloat16's, and what is trained beside them must be as well, on any processor. torch's
own loop takes several times as long as the same product in float32 (docs/performance.md). What stands in its place
rounds alike: operands are bfloat16, sums are float32, and the result is rounded once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from uniapl.sampler import resolve_compute

# What matrix products of layers and attention come down to, in forward and backward.
OPERATORS = ("mm", "addmm", "bmm", "baddbmm")

_replaced: list[Library] = []  # what it registers is gone when a Library is


def prepare(compute: str) -> None:
    """`replace` where `compute` is bfloat16 and the processor is slow at it."""
    if compute == "bfloat16" and resolve_compute("auto") != "bfloat16":
        replace()


def replace() -> None:
    """From now on this process multiplies bfloat16 on the CPU by float32's kernels."""
    if _replaced:
        return
    library = Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a kernel is replaced, which is the purpose
        for name in OPERATORS:
            library.impl(name, _product(getattr(torch.ops.aten, name).out), "CPU")
    _replaced.append(library)


def _product(into: Any) -> Callable[..., Tensor]:
    """The operator by its own variant that writes into a given tensor, whose kernel stays what it was."""

    def product(*operands: Tensor, **factors: float) -> Tensor:
        kind = operands[-1].dtype
        if all(operand.dtype == torch.bfloat16 for operand in operands):  # others are refused by the kernel
            operands = tuple(operand.float() for operand in operands)
        left, right = operands[-2:]
        out = right.new_empty(left.shape[:-1] + right.shape[-1:])
        into(*operands, **factors, out=out)
        return out.to(kind)

    return product
