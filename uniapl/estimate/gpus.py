"""What the makers state of GPUs: dense bfloat16 rate, memory bandwidth, memory; facts of data sheets, not measured.

Rates are without sparsity and with float32 accumulation. Sources, all NVIDIA's: H100 Tensor Core GPU data sheet (SXM,
PCIe and NVL; its rates with sparsity halved), H200 Tensor Core GPU data sheet (halved), A100 80GB data sheet (SXM),
L40S data sheet (dense column), Ada GPU architecture whitepaper, appendix A (RTX 4090). Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """A GPU as its maker states it."""

    name: str
    flops: float  # FLOP/s of dense bfloat16 products
    bytes_per_second: float  # of its memory
    memory_gib: float  # the stated GB, which drivers report as about as many GiB


# The first name found in a device's name counts, so longer ones stand before shorter ones.
GPUS = (
    GPU("H100 PCIe", 756e12, 2.0e12, 80),
    GPU("H100 NVL", 835e12, 3.9e12, 94),
    GPU("H100", 989e12, 3.35e12, 80),
    GPU("H200", 989e12, 4.8e12, 141),
    GPU("A100", 312e12, 2.039e12, 80),
    GPU("L40S", 362e12, 0.864e12, 48),
    GPU("RTX 4090", 165e12, 1.008e12, 24),
)


def peak_flops(device: str) -> float | None:
    """The stated rate of a GPU by the name that its driver gives; None where it is not known."""
    return next((gpu.flops for gpu in GPUS if gpu.name in device), None)


def find_gpu(name: str) -> GPU:
    """A GPU by a name of the list, whatever its case and spaces. Raise ValueError for an unknown one."""
    plain = {"".join(gpu.name.lower().split()): gpu for gpu in GPUS}
    wanted = "".join(name.lower().split())
    found = plain.get(wanted) or plain.get(f"rtx{wanted}")
    if found is None:
        known = ", ".join(gpu.name for gpu in GPUS)
        raise ValueError(
            f"--gpu = {name!r}: unknown; known: {known}, or take the nearest and give --tokens-per-second-train and "
            f"--tokens-per-second-rollout"
        )
    return found
