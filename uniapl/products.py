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

# Every matrix product of layers and attention comes down to one of these, in forward and backward: the names of the
# operators, and the shape of what they return from that of their two last tensors.
OPERATORS: dict[str, Callable[[Tensor, Tensor], tuple[int, ...]]] = {
    "mm": lambda a, b: (a.shape[0], b.shape[1]),
    "addmm": lambda a, b: (a.shape[0], b.shape[1]),
    "bmm": lambda a, b: (a.shape[0], a.shape[1], b.shape[2]),
    "baddbmm": lambda a, b: (a.shape[0], a.shape[1], b.shape[2]),
}


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
        for name, shape in OPERATORS.items():
            library.impl(name, _product(getattr(torch.ops.aten, name).out, shape), "CPU")
    _replaced.append(library)


def _product(into: Any, shape: Callable[[Tensor, Tensor], tuple[int, ...]]) -> Callable[..., Tensor]:
    """The operator by its own variant that writes into a given tensor, whose kernel stays what it was."""

    def product(*operands: Tensor, **factors: float) -> Tensor:
        kind = operands[-1].dtype
        if kind == torch.bfloat16:
            operands = tuple(operand.float() for operand in operands)
        out = operands[-1].new_empty(shape(*operands[-2:]))
        into(*operands, **factors, out=out)
        return out.to(kind)

    return product
