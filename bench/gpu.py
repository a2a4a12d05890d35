"""How fast the update is by sequence length, and the rollouts where vLLM is installed: `python -m bench.gpu`.

`python -m bench.gpu --output FILE [--shape qwen3_0_6b,qwen3_4b] [--tokens 1024,2048,4096,8192] [--compile]`

Weights are random and of the true size, so nothing is downloaded. The update is the suite's own (`uniapl.update`), on
packed rows of one prompt and 7 answers; it needs torch and transformers alone. The file is written after every row.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.shapes import (
    COEFFICIENTS,
    SHAPES,
    machine_settings,
    needs_checkpointing,
    random_model,
    random_rows,
    stage_settings,
    train_settings,
    update_flops,
)
from bench.timing import OUT_OF_MEMORY, WARMUPS, free, seconds_of, spread
from uniapl.distributed import device
from uniapl.estimate.gpus import peak_flops
from uniapl.provenance import code_version, hardware, write_whole
from uniapl.records import TokenSequence
from uniapl.shapes import Shape
from uniapl.update import Policy, make_policy, update


def product_rate(dtype: torch.dtype, *, repetitions: int) -> dict[str, Any]:
    """FLOP/s that one large square product reaches here, median."""
    size = 8192 if torch.cuda.is_available() else 512
    a, b = (torch.randn(size, size, device=device(), dtype=dtype) for _ in range(2))
    times = seconds_of(lambda: a @ b, repetitions=repetitions, warmups=3)
    return {"size": size, "dtype": str(dtype), "flops_per_second": 2 * size**3 / statistics.median(times)}


def open_policy(shape: Shape, *, micro_batch_tokens: int, checkpointed: bool, compiled: bool, compute: str) -> Policy:
    """The suite's policy around random weights, without the model that KL is measured to."""
    return make_policy(
        random_model(shape, device=device()), None, None, train_settings(), stage_settings(), max_new_tokens=1,
        compute=compute,
        machine=machine_settings(
            activation_checkpointing=checkpointed, compiled=compiled, micro_batch_tokens=micro_batch_tokens
        ),
    )  # fmt: skip


def time_updates(policy: Policy, sequences: list[TokenSequence], *, repetitions: int) -> dict[str, Any]:
    """Times and peak memory of the update on these sequences."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    times = seconds_of(lambda: update(policy, sequences, COEFFICIENTS, step=0), repetitions=repetitions)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return spread(times) | {"peak_memory_bytes": peak}


def update_rows(
    shape: Shape, options: argparse.Namespace, *, rates: dict[str, float | None]
) -> Iterator[dict[str, Any]]:
    """One row for each sequence length: the largest micro-batches that fit, or that none does."""
    checkpointed = {"auto": needs_checkpointing(shape), "on": True, "off": False}[options.activation_checkpointing]
    policy = None
    for row_tokens in options.tokens:
        num_rows = max(1, options.step_tokens // row_tokens)
        sequences = random_rows(shape, rows=num_rows, row_tokens=row_tokens)
        row: dict[str, Any] = {
            "row_tokens": row_tokens, "rows": num_rows, "activation_checkpointing": checkpointed,
            "compile": options.compile, "status": OUT_OF_MEMORY,
        }  # fmt: skip
        micro_batch_tokens = max(row_tokens, options.micro_batch_tokens)
        while row["status"] == OUT_OF_MEMORY and micro_batch_tokens >= row_tokens:
            try:
                policy = policy or open_policy(
                    shape, micro_batch_tokens=micro_batch_tokens, checkpointed=checkpointed, compiled=options.compile,
                    compute=options.compute,
                )  # fmt: skip
                policy.micro_batch_tokens = micro_batch_tokens
                row |= time_updates(policy, sequences, repetitions=options.repetitions)
                row |= {"status": "ok", "micro_batch_tokens": micro_batch_tokens}
            except torch.OutOfMemoryError:
                policy = None
            if row["status"] == OUT_OF_MEMORY:
                free()
                micro_batch_tokens //= 2
        if row["status"] == "ok":
            flops, seconds = update_flops(shape, sequences), row["seconds_median"]
            row |= {
                "tokens": row_tokens * num_rows, "tokens_per_second": row_tokens * num_rows / seconds, "flops": flops,
                "flops_per_second": flops / seconds,
                **{f"mfu_{name}": flops / seconds / rate if rate else None for name, rate in rates.items()},
            }  # fmt: skip
        yield row


def said(row: dict[str, Any]) -> str:
    """A row of the table."""
    if row["status"] != "ok":
        return f"{row['row_tokens']:>8} {row['status']}"
    shares = [row["mfu_stated"], row["mfu_measured"]]
    mfu = " ".join("     -" if share is None else f"{share:6.1%}" for share in shares)
    memory = "-" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**30:.1f} GiB"
    return (
        f"{row['row_tokens']:>8} {row['micro_batch_tokens']:>8} {row['tokens_per_second']:>10.0f} {mfu} "
        f"{row['seconds_median']:8.3f} [{row['seconds_least']:.3f}, {row['seconds_most']:.3f}] {memory}"
    )


HEADER = "     row    micro   tokens/s stated measured  seconds [least, most] peak memory"


def driver() -> str | None:
    """The NVIDIA driver's version; None where it cannot be asked."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None


def rollouts_refused() -> str | None:
    """Why rollouts are not timed here; None where they can be."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    from uniapl.sampler import explain_fallback

    return explain_fallback()


def arguments() -> argparse.Namespace:
    """The command line."""

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file of all that was measured")
    parser.add_argument("--shape", default="qwen3_0_6b,qwen3_4b", help=f"of {', '.join(SHAPES)}, with commas")
    parser.add_argument("--parts", default="update,rollouts", help="update, rollouts, or both with a comma")
    parser.add_argument("--tokens", type=numbers, default=[1024, 2048, 4096, 8192], help="positions of a packed row")
    parser.add_argument("--step-tokens", type=int, default=32768, help="positions of one update")
    parser.add_argument("--micro-batch-tokens", type=int, default=8192, help="at most; halved while it does not fit")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--compute", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--activation-checkpointing", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--compile", action="store_true", help="torch.compile of each layer")
    parser.add_argument("--prompts", type=int, default=16, help="of a step's rollouts")
    parser.add_argument("--answers", type=int, default=8, help="for each prompt")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=512, help="of an answer")
    options = parser.parse_args()
    for name, known in (("shape", SHAPES), ("parts", ("update", "rollouts"))):
        words = getattr(options, name).split(",")
        if unknown := [word for word in words if word not in known]:
            parser.error(f"--{name} {unknown[0]}: unknown; known: {', '.join(known)}")
        setattr(options, name, words)
    if min(options.tokens) < 8:
        parser.error(f"--tokens {min(options.tokens)}: a row holds a prompt and 7 answers; choose at least 8")
    return options


def main() -> None:
    """Measure, print and write."""
    options = arguments()
    on_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if on_gpu else hardware()["cpu"]
    product = product_rate(getattr(torch, options.compute), repetitions=options.repetitions)
    rates = {"stated": peak_flops(name) if on_gpu else None, "measured": product["flops_per_second"]}
    result: dict[str, Any] = {
        "device": name, "driver": driver() if on_gpu else None, "cuda": torch.version.cuda if on_gpu else None,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if on_gpu else None,
        "torch": torch.__version__, "transformers": metadata.version("transformers"),
        "python": platform.python_version(), "code": code_version(), "product": product, "rates": rates,
        "settings": vars(options) | {"output": str(options.output), "warmups": WARMUPS}, "update": {}, "rollouts": {},
    }  # fmt: skip

    def write() -> None:
        write_whole(options.output, json.dumps(result, indent=1) + "\n")

    print(f"{name}: {product['flops_per_second'] / 1e12:.3g} TFLOP/s in a product of {options.compute}", flush=True)
    refused = rollouts_refused()
    for shape in options.shape:
        if "update" in options.parts:
            print(f"update of {shape}, {options.step_tokens} tokens\n{HEADER}", flush=True)
            result["update"][shape] = []
            for row in update_rows(SHAPES[shape], options, rates=rates):
                print(said(row), flush=True)
                result["update"][shape].append(row)
                write()
            free()
        if "rollouts" in options.parts and refused:
            result["rollouts"][shape] = {"status": refused}
            print(f"rollouts of {shape}: {refused}", flush=True)
        elif "rollouts" in options.parts:
            from bench.rollouts import time_rollouts

            result["rollouts"][shape] = time_rollouts(SHAPES[shape], options)
            print(f"rollouts of {shape}: {json.dumps(result['rollouts'][shape])}", flush=True)
            free()
        write()


if __name__ == "__main__":
    main()
