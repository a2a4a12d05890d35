"""The limit that an update is measured against: time-weighted over the products that an update really makes."""

from __future__ import annotations

import pytest
import torch

from bench import limit as bench_limit
from bench.shapes import SHAPES


def test_the_rate_is_that_of_the_models_own_products_weighted_by_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = 7  # rows: a product with so few runs at a tenth of the speed
    asked: list[tuple[int, int, int]] = []

    def seconds(rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
        asked.append((rows, inner, columns))
        return 2.0 * rows * inner * columns / (1e8 if rows == slow else 1e9)

    monkeypatch.setattr(bench_limit, "product_seconds", seconds)
    shape = SHAPES["tiny"]
    even = bench_limit.limit(shape, tokens=100, words=50, dtype=torch.float32)
    assert even["flops_own"] == pytest.approx(1e9)
    assert even["flops_square"] == pytest.approx(1e9)
    assert even["bytes"] > 0
    assert len(asked) == 3 * 8 + 1  # seven matrices of a layer and the head, forward and twice backward; the square
    mixed = bench_limit.limit(shape, tokens=slow, words=50, dtype=torch.float32)
    assert 1e8 < mixed["flops_own"] < 5e8
