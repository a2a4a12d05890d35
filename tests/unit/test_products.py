"""bfloat16 products by float32's kernels, held against torch's own and against exact sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional

from bench import products as bench
from uniapl import products


@pytest.fixture(autouse=True)
def as_torch_multiplies() -> Iterator[None]:
    """Before and after each test: another one of this process may have started an engine."""
    put_back()
    yield
    put_back()


def put_back() -> None:
    while products._replaced:
        products._replaced.pop()._destroy()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The types of what is multiplied by replaced products, one a call."""
    found: list[torch.dtype] = []
    product = products._product

    def counted(*made_of: Any) -> Callable[..., torch.Tensor]:
        function = product(*made_of)

        def multiply(*operands: torch.Tensor, **factors: float) -> torch.Tensor:
            found.append(operands[-1].dtype)
            return function(*operands, **factors)

        return multiply

    monkeypatch.setattr(products, "_product", counted)
    return found


@pytest.fixture
def replaced(calls: list[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    monkeypatch.setattr(products, "resolve_compute", lambda wanted: "float32")
    products.prepare("float32")
    assert not products._replaced
    products.prepare("bfloat16")
    products.prepare("bfloat16")  # once is enough
    assert len(products._replaced) == 1
    return calls


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact(*factors: torch.Tensor) -> torch.Tensor:
    """Summed in float64 and rounded once."""
    a, b = (f.double() for f in factors)
    return (a @ b).to(torch.bfloat16)


def test_where_the_processor_is_fast_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "resolve_compute", lambda wanted: "bfloat16")
    products.prepare("bfloat16")
    assert not products._replaced


def off_by(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference in units of the larger one's last place (8 bits)."""
    return float(((a - b).float().abs() / torch.maximum(a.abs(), b.abs()).float().clamp(min=1e-3)).max()) * 2**8


@pytest.mark.usefixtures("replaced")
def test_operands_of_two_types_are_refused_as_before() -> None:
    a, b = numbers(2, 3), numbers(3, 4, dtype=torch.float32)
    for operands in ((a, b), (b.T, a.T)):
        with pytest.raises(RuntimeError, match="dtype"):
            torch.mm(*operands)
    with pytest.raises(RuntimeError):
        torch.addmm(numbers(4, dtype=torch.float32), a, numbers(3, 4))


@pytest.mark.usefixtures("replaced")
def test_a_bias_is_added_once_and_one_that_does_not_count_may_be_anything() -> None:
    rows, weight, bias = numbers(5, 64), numbers(7, 64, seed=1), numbers(7, seed=2)
    sums = (rows.double() @ weight.double().T + bias.double()).to(torch.bfloat16)
    assert off_by(functional.linear(rows, weight, bias), sums) <= 2
    ignored = torch.full((7,), torch.nan, dtype=torch.bfloat16)
    assert torch.equal(torch.addmm(ignored, rows, weight.T, beta=0), rows @ weight.T)


@pytest.mark.usefixtures("replaced")
@pytest.mark.parametrize("shape", [(5, 64, 7), (1, 576, 1), (33, 0, 4)])
def test_each_product_is_the_exact_one_rounded_once(shape: tuple[int, int, int]) -> None:
    n, k, m = shape
    a, b, c = numbers(n, k), numbers(k, m, seed=1), numbers(n, m, seed=2)
    assert torch.mm(a, b).dtype == torch.bfloat16
    assert off_by(torch.mm(a, b), exact(a, b)) <= 2
    assert off_by(torch.bmm(a[None], b[None])[0], exact(a, b)) <= 2
    sums = (c.double() * 0.5 + 2 * a.double() @ b.double()).to(torch.bfloat16)
    assert off_by(torch.addmm(c, a, b, beta=0.5, alpha=2), sums) <= 2
    assert off_by(torch.baddbmm(c[None], a[None], b[None], beta=0.5, alpha=2)[0], sums) <= 2


def test_float32_products_and_their_gradients_stay_what_they_were(replaced: list[torch.dtype]) -> None:
    a, b = numbers(6, 9, dtype=torch.float32), numbers(9, 4, seed=1, dtype=torch.float32).requires_grad_()
    (a @ b).sum().backward()
    assert torch.allclose(a @ b, (a[:, :, None] * b).sum(1), atol=1e-5)
    assert torch.allclose(b.grad, a.sum(0)[:, None].expand(9, 4))
    assert set(replaced) == {torch.float32}


def test_layers_and_their_gradients_are_multiplied_by_it(replaced: list[torch.dtype]) -> None:
    weight, bias = numbers(8, 16, seed=1).requires_grad_(), numbers(8, seed=2).requires_grad_()
    rows = numbers(3, 5, 16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = functional.linear(rows.float(), weight.float(), bias.float())
    assert out.dtype == torch.bfloat16
    up = numbers(3, 5, 8, seed=3)
    out.backward(up)
    assert replaced == [torch.bfloat16] * 3, "forward, and a gradient each for rows and weight"
    flat, of_out = rows.detach().flatten(0, 1), up.flatten(0, 1)
    assert off_by(weight.grad, exact(of_out.T, flat)) <= 2
    assert off_by(rows.grad.flatten(0, 1), exact(of_out, weight.detach())) <= 2


def test_the_bench_times_the_processors_own_products_and_then_ours(
    calls: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "ROWS", {"decoding": 1})
    found = bench.measure()
    assert list(found) == ["float32", "bfloat16", "bfloat16 by float32"]
    assert all(kind["decoding"] > 0 for kind in found.values())
    assert set(calls) == {torch.bfloat16}, "only the last kind is ours"
