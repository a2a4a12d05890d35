"""Log-probs of uniapl/logprobs.py beside the naive computation and PyTorch's fused one: memory, seconds, differences.

`python -m bench.logprobs --sizes 384x49152x576 8192x151936x1024 --dtypes bfloat16 float32 --output FILE` (tokens x
vocabulary x hidden width) adds a run to FILE. The head is float32, as in training, the hidden states have the dtype
given. Memory is the peak of the forward alone, or that of forward and backward less the two gradients that are
returned, whichever is larger. The loss's gradient is 0 except at CHECKED tokens, so that a float64 computation on those
alone gives all that is compared; it changes neither time nor memory. Where others use the processor too, compare its
seconds (CPU s, of all threads) with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.memory import peak_bytes
from uniapl.config import LOGITS_BYTES
from uniapl.entry import run_guarded
from uniapl.logprobs import chunked_logprobs
from uniapl.provenance import code_version, hardware, write_whole

CHECKED = 64
PART = 8192  # words whose exact gradient exists at once
Method = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden_TD, head_VD, targets_T -> logprobs_T


@dataclass(frozen=True)
class Row:
    """One method at one size. Differences are the largest from float64: nats, and shares of the largest gradient."""

    method: str
    tokens: int
    vocabulary: int
    width: int
    dtype: str
    extra_megabytes: float
    seconds: float
    cpu_seconds: float
    logprob_difference_nats: float
    hidden_gradient_difference: float
    head_gradient_difference: float


def naive(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> Tensor:
    logits_TV = (hidden_TD @ head_VD.to(hidden_TD.dtype).T).float()
    return logits_TV.log_softmax(-1).gather(1, targets_T[:, None])[:, 0]


def fused(logits_bytes: int) -> Method:
    """torch.nn.functional.linear_cross_entropy, chunked over tokens: neither entropy nor temperature."""

    def method(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> Tensor:
        chunk = max(1, logits_bytes // (4 * len(head_VD)))  # its own default is a few tokens, several times slower
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
        head_VD = head_VD.to(hidden_TD.dtype)
        return -torch.nn.functional.linear_cross_entropy(
            hidden_TD, head_VD, targets_T, reduction="none", options=options
        )

    return method


def ours(logits_bytes: int) -> Method:
    return lambda hidden_TD, head_VD, targets_T: chunked_logprobs(
        hidden_TD, head_VD, targets_T, logits_bytes=logits_bytes, temperature=1.0
    )[0]


def measure(
    name: str, method: Method, *, size: tuple[int, int, int], dtype: torch.dtype, device: str, repeats: int
) -> Row:
    """Largest memory and median times of `repeats` calls of forward and backward."""
    generator = torch.Generator().manual_seed(0)
    tokens, vocabulary, width = size
    hidden_TD = torch.randn(tokens, width, generator=generator).to(device, dtype).requires_grad_()
    head_VD = (torch.randn(vocabulary, width, generator=generator) * 3 / width**0.5).to(device).requires_grad_()
    targets_T = torch.randint(vocabulary, (tokens,), generator=generator).to(device)
    checked = torch.linspace(0, tokens - 1, min(CHECKED, tokens)).long().to(device)
    upstream_T = torch.zeros(tokens, device=device)
    upstream_T[checked] = torch.randn(len(checked), generator=generator).to(device)
    walls, cpus = [], []
    logprobs_T = torch.empty(0)

    def forward_and_backward() -> None:
        nonlocal logprobs_T
        wall, cpu = time.perf_counter(), time.process_time()
        logprobs_T = method(hidden_TD, head_VD, targets_T)
        logprobs_T.backward(upstream_T.to(logprobs_T.dtype))
        if device != "cpu":
            torch.cuda.synchronize(device)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)

    extra = peak_bytes(lambda: method(hidden_TD, head_VD, targets_T), device=device)
    for _ in range(repeats):
        hidden_TD.grad = head_VD.grad = None
        peak = peak_bytes(forward_and_backward, device=device)
        extra = max(extra, peak - hidden_TD.nbytes - head_VD.nbytes)  # gradients are as large as what they are of
    assert hidden_TD.grad is not None
    assert head_VD.grad is not None
    differences = _differences(
        hidden_TD.detach()[checked], head_VD.detach().to(dtype), targets_T[checked], upstream_T[checked],
        logprobs_T=logprobs_T.detach()[checked], hidden_gradient_TD=hidden_TD.grad[checked],
        head_gradient_VD=head_VD.grad,
    )  # fmt: skip
    return Row(
        name, *size, str(dtype).removeprefix("torch."),
        extra_megabytes=round(extra / 1e6, 1), seconds=statistics.median(walls), cpu_seconds=statistics.median(cpus),
        **differences,
    )  # fmt: skip


def _differences(
    hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, upstream_T: Tensor, *,
    logprobs_T: Tensor, hidden_gradient_TD: Tensor, head_gradient_VD: Tensor,
) -> dict[str, float]:  # fmt: skip
    """How far results are from float64 on the same inputs; the head's gradient by parts, since a whole one is large."""
    exact_TD, starts = hidden_TD.double(), range(0, len(head_VD), PART)
    logits_TV = torch.cat([exact_TD @ part_VD.double().T for part_VD in head_VD.split(PART)], dim=1).requires_grad_()
    exact_T = logits_TV.log_softmax(-1).gather(1, targets_T[:, None])[:, 0]
    (gradient_TV,) = torch.autograd.grad(exact_T, logits_TV, upstream_T.double())
    exact_gradient_TD = torch.zeros_like(exact_TD)
    largest = difference = 0.0
    for i in starts:
        part = slice(i, i + PART)
        exact_gradient_TD += gradient_TV[:, part] @ head_VD[part].double()
        exact_VD = gradient_TV[:, part].T @ exact_TD
        largest = max(largest, _largest(exact_VD))
        difference = max(difference, _largest(head_gradient_VD[part] - exact_VD))
    return {
        "logprob_difference_nats": _largest(logprobs_T - exact_T.detach()),
        "hidden_gradient_difference": _largest(hidden_gradient_TD - exact_gradient_TD) / _largest(exact_gradient_TD),
        "head_gradient_difference": difference / largest,
    }


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


def methods(names: list[str], logits_mebibytes: list[int]) -> dict[str, Method]:
    """The methods asked for that this torch has, by the name of their rows."""
    found: dict[str, Method] = {}
    bounded = {"ours": ours, "linear_cross_entropy": fused}
    if "linear_cross_entropy" in names and "linear_cross_entropy" not in dir(torch.nn.functional):
        print(f"linear_cross_entropy: not in torch {torch.__version__}")
        del bounded["linear_cross_entropy"]
    for name, method in bounded.items():
        if name in names:
            found |= {f"{name}, {size} MiB of logits": method(size * 2**20) for size in logits_mebibytes}
    if "naive" in names:
        found["naive"] = naive
    return found


def _size(text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"--sizes {text}: give tokens x vocabulary x hidden width, as 384x49152x576")
    tokens, vocabulary, width = map(int, parts)
    return tokens, vocabulary, width


def _table(rows: list[Row]) -> str:
    lines = ["| method | tokens x words x width | dtype | extra MB | s | CPU s | nats off | dh off | dW off |"]
    lines += ["|---|---|---|---:|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {r.method} | {r.tokens} x {r.vocabulary} x {r.width} | {r.dtype} | {r.extra_megabytes:.0f} "
        f"| {r.seconds:.2f} | {r.cpu_seconds:.2f} | {r.logprob_difference_nats:.1e} "
        f"| {r.hidden_gradient_difference:.1e} | {r.head_gradient_difference:.1e} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, and add the run to the output file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["384x49152x576"])
    parser.add_argument("--dtypes", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    parser.add_argument("--methods", nargs="+", choices=["ours", "naive", "linear_cross_entropy"], default=["ours"])
    parser.add_argument("--logits-mebibytes", nargs="+", type=int, default=[LOGITS_BYTES // 2**20])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON list of runs, to which this one is added")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for size in map(_size, options.sizes):
        for dtype in options.dtypes:
            for name, method in methods(options.methods, options.logits_mebibytes).items():
                settings = {"size": size, "dtype": getattr(torch, dtype), "device": device}
                rows.append(measure(name, method, repeats=options.repeats, **settings))
                print(_table(rows[-1:]).splitlines()[-1], flush=True)
    print(_table(rows))
    if options.output:
        runs = json.loads(options.output.read_text()) if options.output.exists() else []
        run = {"code": code_version(), "hardware": hardware(), "torch": torch.__version__}
        run |= {"threads": torch.get_num_threads(), "repeats": options.repeats, "rows": [asdict(row) for row in rows]}
        write_whole(options.output, json.dumps([*runs, run], indent=2) + "\n")


if __name__ == "__main__":
    run_guarded(main)
