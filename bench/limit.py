"""How fast this processor multiplies the matrices that an update is made of: the limit that it is measured against.

The rate is time-weighted over the products of one micro-batch's forward and backward, each at its own shape; the rate
of a square product and the bandwidth of memory, which bounds decoding, stand beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from uniapl.shapes import Shape

SQUARE = 2048
COPIED_BYTES = 256 * 2**20
LEAST_SECONDS = 0.05  # that a product is repeated for


def rate(action: Callable[[], object]) -> float:
    """Times a second that an action runs, after one that is not counted."""
    action()
    began, times = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < LEAST_SECONDS:
        action()
        times += 1
    return times / passed


def product_seconds(rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    """Seconds of a product [rows, inner] x [inner, columns]."""
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype).t()
    out = torch.empty(rows, columns, dtype=dtype)
    return 1 / rate(lambda: torch.mm(left, right, out=out))


def limit(shape: Shape, *, tokens: int, words: int, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s at the model's own shapes and of a square product, and bytes/s of a copy.

    `tokens` are those of a micro-batch, `words` how many of the vocabulary's logits exist at once.
    """
    d, f, q, k = shape.hidden, shape.intermediate, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = [(d, q), (d, k), (d, k), (q, d), (d, f), (d, f), (f, d)]
    blocks = shape.vocabulary / words
    weights = [(inner, columns, float(shape.layers)) for inner, columns in layer] + [(d, words, blocks)]
    flops = seconds = 0.0
    for inner, columns, times in weights:
        for m, n, o in ((tokens, inner, columns), (tokens, columns, inner), (inner, tokens, columns)):
            seconds += times * product_seconds(m, n, o, dtype)  # the forward, and both products of the backward
            flops += times * 2.0 * m * n * o
    square = 2.0 * SQUARE**3 / product_seconds(SQUARE, SQUARE, SQUARE, dtype)
    source = torch.zeros(COPIED_BYTES // 4)
    target = torch.empty_like(source)
    copied = 2 * COPIED_BYTES * rate(lambda: target.copy_(source))
    return {"flops_own": flops / seconds, "flops_square": square, "bytes": copied}
