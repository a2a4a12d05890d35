"""Hold the memory model of `uniapl estimate` against measured tensor bytes: `python -m bench.estimate`.

Makes real updates of real models on CPU, every case in processes of its own, and writes bench/estimate.json;
`--table` prints that file as docs/memory.md shows it. Measured are the storages of weights, gradients, optimizer and
reference, and the peak of the allocator during an update above its start (median of 3, after one that fills the
optimizer); beside it the process's resident memory above its imports, which no estimate is held against.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from bench.memory import peak_bytes
from uniapl import distributed, models
from uniapl.config import KEPT_LOGITS_BYTES, MachineSpec, ModelSpec, StageSpec, TrainSpec
from uniapl.distributed import ALONE, Ranks
from uniapl.estimate.batches import Batch
from uniapl.estimate.memory import DiscriminatorMemory, Memory, SamplerMemory, rank_memory
from uniapl.layers import load_model
from uniapl.provenance import code_version, hardware
from uniapl.records import TokenSequence
from uniapl.shapes import find_shape
from uniapl.train import open_policy
from uniapl.update import coefficients_at, update

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "bench" / "estimate.json"
PROMPT_TOKENS, ANSWER_TOKENS = 40, 39
NUMBER = 2  # micro-batches of a rank's step
LOGITS_BYTES = 32 * 2**20  # so that the largest vocabulary takes several blocks
REPEATS = 3
RANDOM: dict[str, dict[str, Any]] = {
    "random_30m": {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 6, "num_attention_heads": 6},
    "random_60m": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 8},
}


@dataclass(frozen=True)
class Case:
    """One setting that is measured."""

    model: str
    compute: str = "float32"
    activation_checkpointing: bool = False
    packing: bool = True
    micro_batch_tokens: int = 512
    ranks: int = 1
    answer_tokens: int = ANSWER_TOKENS
    kept_logits_bytes: int = KEPT_LOGITS_BYTES


CASES = [
    Case(model, compute, checkpointing)
    for model in ("tiny_qwen3", "small_qwen3", *RANDOM, "smollm2_135m")
    for compute in ("float32", "bfloat16")
    for checkpointing in (False, True)
] + [
    Case("random_30m", packing=False),
    Case("random_60m", micro_batch_tokens=1536),
    Case("random_60m", activation_checkpointing=True, micro_batch_tokens=1536),
    # A layer's scores take 26 MB, and 75 MB, which a fused kernel computes.
    Case("random_30m", micro_batch_tokens=2048, answer_tokens=500),
    Case("random_30m", "bfloat16", True, micro_batch_tokens=2048, answer_tokens=500),
    Case("random_30m", "bfloat16", micro_batch_tokens=3072, answer_tokens=1000),
    Case("smollm2_135m", kept_logits_bytes=0),
    Case("smollm2_135m", "bfloat16", kept_logits_bytes=0),
    Case("random_30m", ranks=2),
    Case("random_30m", "bfloat16", ranks=2),
    Case("random_30m", "bfloat16", True, ranks=2),
]


def model_spec(name: str) -> ModelSpec:
    """A model of config/models, or one of the random ones in between."""
    if name not in RANDOM:
        return load_model(name, "bench")
    tiny = load_model("tiny_qwen3", "bench")
    sizes = RANDOM[name] | {"head_dim": 64, "num_key_value_heads": RANDOM[name]["num_attention_heads"] // 2}
    return tiny.model_copy(update={"name": name, "architecture": tiny.architecture | sizes})


def make_model(name: str, root: Path) -> Path:
    """The checkpoint's folder below `root`, made if it is not there."""
    directory = root / name
    if not directory.exists():
        models.save_model(*models.build_model(model_spec(name)), directory)
    return directory


def sequences_of(case: Case) -> list[TokenSequence]:
    """Random rollouts that fill every micro-batch of a step to its last position, or but for one token if padded."""
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(5, 49_000) for _ in range(count)]

    sequences = []
    answers = answers_of(case)
    for _ in range(NUMBER * case.ranks):
        prompt = tokens(PROMPT_TOKENS + (case.micro_batch_tokens - PROMPT_TOKENS) % case.answer_tokens)
        for number in range(answers):
            if not case.packing:
                prompt = tokens(PROMPT_TOKENS)
            length = case.answer_tokens - (0 if case.packing or number else 1)
            sequences.append(
                TokenSequence(
                    prompt, tokens(length), frozenset({"grpo", "kl"}), advantage=draw.choice([-1.0, 1.0]),
                    sampler_logprobs=[-10.0] * length,
                )
            )  # fmt: skip
    return sequences


def answers_of(case: Case) -> int:
    """Answers of a micro-batch: behind one prompt, or each in a row of its own."""
    if case.packing:
        return (case.micro_batch_tokens - PROMPT_TOKENS) // case.answer_tokens
    return case.micro_batch_tokens // (PROMPT_TOKENS + case.answer_tokens)


def estimated(case: Case) -> Memory:
    """What the memory model says of a case."""
    shape = find_shape(model_spec(case.model))
    assert shape is not None
    answers = answers_of(case)
    predicted, width = answers * case.answer_tokens, PROMPT_TOKENS + case.answer_tokens
    batch = Batch.padded(rows=answers, width=width, predicted=predicted, number=NUMBER)
    if case.packing:
        batch = Batch(
            case.micro_batch_tokens, predicted, NUMBER, answers=answers, answer_tokens=case.answer_tokens, prompts=1,
            prompt_tokens=case.micro_batch_tokens - predicted,
        )  # fmt: skip
    return rank_memory(
        shape, batch, compute=case.compute, ranks=case.ranks, activation_checkpointing=case.activation_checkpointing,
        logits_bytes=LOGITS_BYTES, kept_logits_bytes=case.kept_logits_bytes, on_gpu=False,
        sampler=SamplerMemory(), discriminator=DiscriminatorMemory(),
    )  # fmt: skip


def stored(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the tensors' storages, this rank's of sharded ones; shared storages count once."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if t is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}.values())


def measured(case: Case, directory: Path, ranks: Ranks = ALONE) -> dict[str, int]:
    """Bytes of tensors, by part, in real updates of the model in `directory`."""
    before = psutil.Process().memory_info().rss
    stage = StageSpec.model_validate(
        {"name": "grpo", "title": "", "steps": REPEATS + 1, "mu": 0.0, "w_kl": 0.1, "learning_rate": 1e-5}
    )
    settings = TrainSpec.model_validate({"sampler_gap_ceiling": 1000.0})
    machine = {
        "ranks": case.ranks, "activation_checkpointing": case.activation_checkpointing, "logits_bytes": LOGITS_BYTES,
        "micro_batch_tokens": case.micro_batch_tokens, "packing": case.packing,
        "kept_logits_bytes": case.kept_logits_bytes,
    }  # fmt: skip
    policy = open_policy(
        directory, directory, settings, stage, max_new_tokens=case.answer_tokens, compute=case.compute, ranks=ranks,
        machine=MachineSpec.model_validate(machine),
    )  # fmt: skip
    sequences, coefficients = sequences_of(case), coefficients_at(stage, 0)
    assert len(policy.split(sequences)) == NUMBER
    update(policy, sequences, coefficients, step=0)
    peaks = []
    for step in range(1, REPEATS + 1):
        if case.ranks > 1:
            policy.start.reshard()  # else what the reference keeps gathered would not be above the start
        peaks.append(peak_bytes(lambda step=step: update(policy, sequences, coefficients, step=step)))
    if case.ranks > 1:
        policy.start.reshard()
    parameters = list(policy.model.parameters())
    return {
        "weights": stored(parameters),
        "gradients": stored(p.grad for p in parameters),
        "optimizer": stored(value for state in policy.optimizer.state.values() for value in state.values()),
        "reference": stored(policy.start.parameters()),
        "peak": int(statistics.median(peaks)),
        "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
    }


def in_its_own_process(case: Case, directory: Path) -> dict[str, int]:
    """Measure a case on as many processes as it has ranks; the first one's bytes."""
    words = ["--ranks", str(case.ranks), "-m", "bench.estimate", "--case", json.dumps(asdict(case))]
    command = [sys.executable, "-m", "uniapl.launch", *words, "--model", str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def run_rank(case: Case, directory: Path) -> None:
    """What every process of a case does."""
    ranks = distributed.start(timeout_seconds=300, lease=directory / "lease")
    result = measured(case, directory, ranks)
    if ranks.first:
        print(json.dumps(result), flush=True)
    distributed.stop(ranks)


def row_of(case: Case, bytes_measured: dict[str, int]) -> dict[str, Any]:
    """A case, what was measured, and what is estimated."""
    total = sum(value for part, value in bytes_measured.items() if part != "resident")
    return asdict(case) | {"measured": bytes_measured | {"total": total}, "estimated": estimated(case).update}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as Markdown; 1 MB is a million bytes."""
    lines = [
        "| model | compute | checkpointing | layout | ranks | measured, MB | estimated, MB | off | resident, MB |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        total, estimate = row["measured"]["total"], row["estimated"]
        layout = f"{'packed' if row['packing'] else 'padded'}, {row['micro_batch_tokens']}"
        layout += f", answers of {row['answer_tokens']}" if row["answer_tokens"] != ANSWER_TOKENS else ""
        layout += "" if row["kept_logits_bytes"] else ", no logits kept"
        cells = [
            row["model"], row["compute"], "yes" if row["activation_checkpointing"] else "no", layout, row["ranks"],
            f"{total / 1e6:,.0f}", f"{estimate / 1e6:,.0f}", f"{100 * (estimate / total - 1):+.1f}%",
            f"{row['measured']['resident'] / 1e6:,.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the memory of updates and hold the estimates against it.")
    parser.add_argument("--case", type=lambda text: Case(**json.loads(text)), help="one case, in this process")
    parser.add_argument("--model", type=Path, help="the checkpoint's folder of --case")
    parser.add_argument("--table", action="store_true", help="only print bench/estimate.json")
    options = parser.parse_args()
    if options.case:
        return run_rank(options.case, options.model)
    if not options.table:
        rows, code = [], code_version()
        with tempfile.TemporaryDirectory() as folder:
            for case in CASES:
                rows.append(row_of(case, in_its_own_process(case, make_model(case.model, Path(folder)))))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
        content = {"code": code, "hardware": hardware(), "torch": torch.__version__, "cases": rows}
        FILE.write_text(json.dumps(content, indent=1) + "\n")
    print(table(json.loads(FILE.read_text())["cases"]))


if __name__ == "__main__":
    main()
