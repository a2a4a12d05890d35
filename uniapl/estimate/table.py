"""What `uniapl estimate` prints of memory: a table of one rank's, by part, and what it assumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from uniapl.config import ConfigError, ControlSpec, FeaturesSpec, ModelSpec
from uniapl.estimate.batches import PROMPT_TOKENS
from uniapl.estimate.memory import (
    GPU_RESERVE,
    HOST_SHARE,
    VLLM_GPU_SHARE,
    Memory,
    gib,
    largest_need,
    remedies,
)
from uniapl.layers import COMMAND_LINE, load_study, merge
from uniapl.plan import Plan, make_plan
from uniapl.workflow import gpu_memories

PARTS = (
    "model", "ranks", "weights", "gradients", "optimizer", "reference", "copies", "activations", "logits",
    "sampler weights", "KV cache", "discriminator", "total", "fits",
)  # fmt: skip
GPU_COUNTS = (1, 2, 4, 8)
NARROWEST = 146  # characters in which the table's columns stay whole


@dataclass(frozen=True)
class Row:
    """One line of the table: a model on so many ranks."""

    model: ModelSpec
    plan: Plan
    stage: str
    memory: Memory
    available: int  # bytes for one rank
    on_gpu: bool

    @property
    def fits(self) -> bool:
        """True where one rank's need is met."""
        return self.memory.needed <= self.available


def show_model(model: str, *, gpus: int | None, gpu_memory_gib: float, overrides: Mapping[str, Any]) -> None:
    """Print the table of a model on 1, 2, 4 and 8 GPUs, or on so many. Raise ConfigError where it fits none."""
    counts = GPU_COUNTS if gpus is None else (gpus,)
    rows = [on_gpus(model, ranks=count, gpu_bytes=int(gpu_memory_gib * 2**30), overrides=overrides) for count in counts]
    print_table(f"{rows[0].model.title}: GiB on each GPU of {gpu_memory_gib:g} GiB", rows)
    if not any(row.fits for row in rows):
        refuse(rows, on_gpu=True)


def refuse(rows: Sequence[Row], *, on_gpu: bool) -> None:
    """Raise ConfigError for the row that lacks the least, where one does not fit."""
    lacking = [row for row in rows if not row.fits]
    if lacking:
        nearest = min(lacking, key=lambda row: row.memory.needed)
        raise ConfigError(
            f"{nearest.model.name} needs {gib(nearest.memory.needed)} GiB, {gib(nearest.available)} GiB can be used; "
            f"{remedies(nearest.plan.study, nearest.memory, on_gpu=on_gpu)}"
        )


def on_gpus(name: str, *, ranks: int, gpu_bytes: int, overrides: Mapping[str, Any]) -> Row:
    """A model trained by UniAPL on so many GPUs as scale paper says. Raise ConfigError where its shape is not known."""
    settings = {"methods": ["uniapl"]} | merge(dict(overrides), {"models": [name], "machine": {"ranks": ranks}})
    study = load_study("paper", settings)
    plan = make_plan(study, Path("results"), sampler="vllm", compute="bfloat16")
    return _row(plan, study.models[0], gpu_bytes=gpu_bytes, available=gpu_bytes - GPU_RESERVE)


def rows_of(plan: Plan, *, gpu_bytes: int | None) -> list[Row]:
    """The models of a plan on GPUs of so much memory, or, without, on this machine's GPUs or its CPU."""
    smallest = gpu_bytes or min(gpu_memories(), default=None)
    host = int(HOST_SHARE * psutil.virtual_memory().total) // plan.study.machine.ranks
    available = host if smallest is None else smallest - GPU_RESERVE
    return [_row(plan, model, gpu_bytes=smallest, available=available) for model in plan.study.models]


def _row(plan: Plan, model: ModelSpec, *, gpu_bytes: int | None, available: int) -> Row:
    need = largest_need(plan, model, gpu_bytes=gpu_bytes)
    if need is None:
        raise ConfigError(
            f"{COMMAND_LINE}: the shape of {model.name} is not known: it has no config.json of a Qwen3 or Llama model "
            f"here; fetch the model, or give a folder"
        )
    return Row(model, plan, *need, available, gpu_bytes is not None)


def print_table(heading: str, rows: Sequence[Row]) -> None:
    """The table, and below it what it assumes."""
    console = Console()
    if console.width < NARROWEST:
        console = Console(width=NARROWEST)
    table = Table(title=heading, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for name in PARTS:
        table.add_column(name, justify="left" if name in ("model", "fits") else "right")
    for row in rows:
        m = row.memory
        sizes = (
            m.weights, m.gradients, m.optimizer, m.reference, m.copies, m.activations, m.logits, m.sampler.weights,
            m.sampler.kv_cache, m.discriminator.weights, m.total,
        )  # fmt: skip
        ranks = str(row.plan.study.machine.ranks)
        table.add_row(row.model.name, ranks, *map(gib, sizes), "yes" if row.fits else "no")
    console.print(table)
    for line in assumptions(rows[0]):
        console.print(f"- {line}", highlight=False, markup=False)


def assumptions(row: Row) -> list[str]:
    """What the figures of a table rest on, a line each."""
    study, machine, config = row.plan.study, row.plan.study.machine, row.plan.runs[0].config
    kind = config["sampler"]["kind"]
    lines = [
        f"{config['compute']} compute; float32 weights, gradients and AdamW; FSDP2 over the ranks; activation "
        f"checkpointing {'on' if machine.activation_checkpointing else 'off'}",
        f"stage {row.stage}; micro-batches of {machine.micro_batch_tokens} tokens, answers of "
        f"{study.data.max_new_tokens}, prompts of at most {PROMPT_TOKENS}; every position predicts a token",
        f"sampler {kind}"
        + (f" with {study.sampler.kv_cache_gib:g} GiB of KV cache" if kind == "vllm" and not row.on_gpu else "")
        + (f" with {VLLM_GPU_SHARE:.0%} of a GPU, asleep during the update" if kind == "vllm" and row.on_gpu else ""),
        describe_discriminator(row),
        "total: the most at any time, sampling or updating, so not the sum where the sampler sleeps",
    ]
    if row.on_gpu:
        lines.append(
            f"{gib(GPU_RESERVE)} GiB of a GPU are kept for CUDA, NCCL and work spaces (assumed). Of a GPU "
            f"only the update on one H200 has been measured (docs/memory.md)"
        )
    return lines


def describe_discriminator(row: Row) -> str:
    """What the discriminator's column counts."""
    spec, machine, memory = row.plan.study.discriminator, row.plan.study.machine, row.memory.discriminator
    if isinstance(spec, FeaturesSpec):
        first = f"first {spec.layer}" if spec.layer else "first half of the"
        return f"discriminator: the {first} layers of the base model, whole on every rank"
    if isinstance(spec, ControlSpec):
        return "discriminator: a control that reads no model's states"
    if machine.discriminator_engine == "servers":
        return f"discriminator: {spec.location} on servers of its own, which are not counted"
    if not memory.weights:
        return f"discriminator: {spec.location} is not here, and its size is not known: not counted"
    return (
        f"discriminator: {spec.location} in {spec.dtype} through {machine.discriminator_engine}, whole on every rank, "
        f"and {gib(memory.scoring)} GiB more while it scores {spec.micro_batch_tokens} tokens"
    )
