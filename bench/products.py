"""bfloat16 products by float32's kernels (uniapl/products.py) beside the processor's own, and beside float32's.

`python -m bench.products --output FILE` writes FLOP/s of one core at the widths of SmolLM2-135M's MLP, for a batch of
decoding and for a micro-batch of training. Nothing else may run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch.nn import functional

from bench.limit import rate
from uniapl import products
from uniapl.entry import run_guarded
from uniapl.provenance import code_version, hardware, write_whole

HIDDEN, INTERMEDIATE = 576, 1536
ROWS = {"decoding": 64, "training": 2048}


def flops(rows: int, dtype: torch.dtype) -> float:
    """FLOP/s of a linear layer without bias."""
    states, weight = torch.randn(rows, HIDDEN).to(dtype), torch.randn(INTERMEDIATE, HIDDEN).to(dtype)
    return 2.0 * rows * HIDDEN * INTERMEDIATE * rate(lambda: functional.linear(states, weight))


def measure() -> dict[str, dict[str, float]]:
    """By kind of product, then by use. The last kind stays in place in this process."""
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    found = {kind: {use: flops(rows, dtype) for use, rows in ROWS.items()} for kind, dtype in kinds.items()}
    products.replace()
    return found | {"bfloat16 by float32": {use: flops(rows, torch.bfloat16) for use, rows in ROWS.items()}}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="FLOP/s of one core, by kind of product.")
    parser.add_argument("--output", type=Path, required=True, help="where the record goes")
    options = parser.parse_args()

    def action() -> None:
        torch.set_num_threads(1)
        record = {"code": code_version(), "hardware": hardware(), "torch": torch.__version__, "flops": measure()}
        write_whole(options.output, json.dumps(record, indent=2) + "\n")
        for kind, found in record["flops"].items():
            print(kind, *(f"{use} {value / 1e9:.0f} GFLOP/s" for use, value in found.items()))

    run_guarded(action)


if __name__ == "__main__":
    main()
