"""The rollout engine behind one protocol: vLLM in process, vLLM servers, or a decode loop over transformers.

All sample with top_p 1 and no top_k, so that the log-probs they return are those of the distribution they drew from
(at the sampling temperature), and take one seed per request. `resolve_kind` is cheap: it imports no engine.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from uniapl.config import MachineSpec, SamplerSpec
from uniapl.provenance import cpu_flags
from uniapl.records import Sample

if TYPE_CHECKING:
    from torch import Tensor

    from uniapl.distributed import Ranks


class Sampler(Protocol):
    """What every engine offers. Token ids in, token ids and log-probs out; texts are the caller's."""

    name: str

    def generate(
        self, prompts: Sequence[list[int]], *, seeds: Sequence[int], max_new_tokens: int, temperature: float
    ) -> list[Sample]:
        """One sample per prompt, in order. Temperature 0 is greedy. The end token is kept where it came."""
        ...

    def push_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> float:
        """Replace the weights (Hugging Face names, any float type); return the seconds it took."""
        ...

    def sleep(self) -> None:
        """Give the accelerator's memory back until `wake` (vLLM; transformers' weights stay); nothing to do on CPU."""
        ...

    def wake(self) -> None:
        """Undo `sleep`. Weights must be pushed before the next `generate`."""
        ...

    def close(self) -> None:
        """Free the engine. The sampler cannot be used afterwards."""
        ...


def _gpu_visible() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*"))


@functools.cache
def resolve_compute(wanted: str) -> str:
    """The type that `auto` stands for: bfloat16 where it is the faster one, else float32.

    On CPU: AMX, Arm's bf16, and AVX512-BF16 on AMD. Intel's AVX512-BF16 without AMX multiplies at half of float32's
    rate (84 against 158 GFLOP/s a core, Sapphire Rapids, oneDNN 3.12). Where bfloat16 is wanted all the same, as beside
    released runs of it, see `uniapl.products`.
    """
    if wanted != "auto":
        return wanted
    has = cpu_flags()
    faster = bool(has & {"amx_bf16", "bf16"}) or {"avx512_bf16", "AuthenticAMD"} <= has
    return "bfloat16" if _gpu_visible() or faster else "float32"


@functools.cache
def explain_fallback() -> str | None:
    """Why vLLM is not used here, in one line; None where it can be used."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed: sampling with transformers, which is slower (README says how)"
    if _gpu_visible():
        return None
    if platform.system() != "Linux":
        return f"vLLM on CPU needs Linux, this is {platform.system()}: sampling with transformers, which is slower"
    needed = {"x86_64": "avx2", "aarch64": "asimd"}.get(platform.machine())
    if needed is None or needed not in cpu_flags():
        what = needed or "x86-64 or 64-bit Arm"
        return f"this CPU lacks what vLLM needs ({what}): sampling with transformers, which is slower"
    return None


def resolve_kind(spec: SamplerSpec, machine: MachineSpec) -> str:
    """The engine that `auto` stands for here: vllm or hf. Raise ValueError where one is asked for in vain."""
    kind = spec.kind
    if kind == "auto":
        kind = "hf" if explain_fallback() else "vllm"
    if spec.kind == "vllm" and (reason := explain_fallback()):
        raise ValueError(f"sampler.kind = 'vllm': {reason.split(':')[0]}; set sampler.kind to auto or hf")
    if kind == "server" and not machine.servers:
        raise ValueError(
            "sampler.kind = 'server', but machine.servers is empty; start one (python -m uniapl.serve) and give its URL"
        )
    if kind != "vllm" and machine.tensor_parallel > 1:
        raise ValueError(
            f"machine.tensor_parallel = {machine.tensor_parallel} is of vLLM alone, not of {kind}; set it to 1"
        )
    return kind


def make_sampler(
    spec: SamplerSpec, model_directory: Path, *, dtype: str, machine: MachineSpec, ranks: Ranks | None = None
) -> Sampler:
    """Start the engine of `spec.kind` on a checkpoint folder. `dtype` is float32 or bfloat16.

    `ranks` are those that call `generate` and `push_weights` together (None: this process alone, which shares no
    engine and so has no tensor parallelism). Raise ValueError where a server cannot be used.
    """
    from uniapl import products
    from uniapl.distributed import ALONE

    products.prepare(dtype)  # in a process of its own, too
    ranks = ranks or ALONE
    kind = resolve_kind(spec, machine)
    if kind == "vllm":
        from uniapl.sampler_vllm import VLLMSampler

        sharing = machine.tensor_parallel if ranks.size > 1 else 1
        return VLLMSampler(model_directory, spec=spec, dtype=dtype, ranks=ranks, tensor_parallel=sharing)
    if kind == "server":
        from uniapl.sampler_server import ServerSampler

        return ServerSampler(model_directory, spec=spec, dtype=dtype, machine=machine, ranks=ranks)
    from uniapl.sampler_hf import HFSampler

    return HFSampler(model_directory, max_sequences=spec.max_sequences, dtype=dtype)
