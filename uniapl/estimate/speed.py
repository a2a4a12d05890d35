"""How fast a study's work is done on GPUs: by the rates that makers state and assumed shares of them.

A known throughput goes before an assumed one: given as an option, or out of a file of `python -m bench.gpu`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from uniapl.config import ConfigError
from uniapl.estimate.gpus import GPU
from uniapl.estimate.work import Lengths, Network, Sampling, TrainingWork

# Assumed of GPUs. Training: peers report 11 to 14% of the stated rate for RL updates of Qwen3-0.6B and 4B on H100, and
# 17 to 27% for SFT (PrimeIntellect-ai/prime-rl, benchmarks/baselines, 2026-01-15); the others are ours.
TRAINING_SHARE = 0.15
FORWARD_SHARE = 0.25
BANDWIDTH_SHARE = 0.5
LAYER_SECONDS = (
    0.4e-3  # least time of a layer in a step of decoding: the sampler's vLLM launches every kernel by itself
)
PUSH_BYTES_PER_SECOND = 20e9
START_SECONDS = 180.0
GENERATED_PROMPT_TOKENS = 61.0  # mean of 400 prompts, rendered, counted with SmolLM2's tokenizer
ASSUMED_LENGTHS = Lengths(
    prompt_tokens=100.0,  # AutoIF's and IF-RLVR's are longer than generated ones
    answer_share=0.5, evaluation_share=0.5, demonstration_share=0.5, trained_share=1.0,
)  # fmt: skip


class Speed(Protocol):
    """Seconds of one job's parts. `rule` is the workflow's; `gpus` those that share the work, none on CPU."""

    @property
    def lengths(self) -> Lengths: ...

    def start_seconds(self, rule: str) -> float: ...

    def sampling_seconds(self, rule: str, model: str, sampling: Sampling, engine: Engine) -> float: ...

    def scoring_seconds(self, rule: str, flops: float, *, gpus: int) -> float: ...

    def training_seconds(self, model: str, work: TrainingWork, *, gpus: int) -> float: ...

    def push_seconds(self, network: Network) -> float: ...

    def assumptions(self) -> list[str]: ...


@dataclass(frozen=True)
class Engine:
    """The samplers of a job: how many share its answers, and what one of them has room for."""

    number: int
    gpus_each: int
    max_sequences: int
    cache_bytes: float  # of keys and values
    size: int = 2  # bytes of an element


@dataclass(frozen=True)
class Throughput:
    """Tokens a second of one GPU that were measured, or that the user states, for one model; None: not known."""

    source: str
    training: float | None = None  # positions of the update, prompts included
    sampling: float | None = None  # tokens of answers


@dataclass(frozen=True)
class GPUSpeed:
    """GPUs of one kind. Seconds are inversely proportional to the shares."""

    gpu: GPU
    lengths: Lengths = ASSUMED_LENGTHS
    known: Mapping[str, Throughput] = field(default_factory=dict)  # by model

    def start_seconds(self, rule: str) -> float:
        """Of a job that uses a GPU: imports, weights, the engine."""
        return START_SECONDS

    def sampling_seconds(self, rule: str, model: str, sampling: Sampling, engine: Engine) -> float:
        """Prefill by operations, decoding by bytes, operations or launches, whatever takes longest; or what is known.

        The engines share the answers evenly, and each answers its own prompts.
        """
        answers = max(1.0, sampling.answers / engine.number)
        known = self.known.get(model)
        if known is not None and known.sampling is not None:
            return sampling.times * answers * sampling.answer_tokens / (known.sampling * engine.gpus_each)
        forward = FORWARD_SHARE * self.gpu.flops * engine.gpus_each
        bandwidth = BANDWIDTH_SHARE * self.gpu.bytes_per_second * engine.gpus_each
        longest = sampling.prompt_tokens + sampling.answer_tokens
        room = engine.cache_bytes / (engine.size * sampling.network.cache_width * longest)
        at_once = max(1.0, min(answers, engine.max_sequences, room))
        read = sampling.decode_bytes(answers=answers, at_once=at_once, size=engine.size) / bandwidth
        launched = sampling.decode_steps(answers=answers, at_once=at_once) * sampling.network.layers * LAYER_SECONDS
        decoding = max(read, launched, sampling.decode_flops(answers=answers) / forward)
        prefill = sampling.prefill_flops(prompts=max(1.0, sampling.prompts / engine.number)) / forward
        return sampling.times * (prefill + decoding)

    def scoring_seconds(self, rule: str, flops: float, *, gpus: int) -> float:
        """Forwards without a backward."""
        return flops / (FORWARD_SHARE * self.gpu.flops * gpus)

    def training_seconds(self, model: str, work: TrainingWork, *, gpus: int) -> float:
        """All updates of a run."""
        known = self.known.get(model)
        if known is not None and known.training is not None:
            return work.steps * work.update.positions / (known.training * gpus)
        return work.flops / (TRAINING_SHARE * self.gpu.flops * gpus)

    def push_seconds(self, network: Network) -> float:
        """Float32 weights on their way to the samplers, once a step."""
        return 4 * network.parameters / PUSH_BYTES_PER_SECOND

    def assumptions(self) -> list[str]:
        """What the hours rest on, a line each."""
        gpu, lengths = self.gpu, self.lengths
        lines = [
            f"{gpu.name}: {gpu.flops / 1e12:.0f} TFLOP/s of dense bfloat16 and {gpu.bytes_per_second / 1e12:.3g} TB/s, "
            f"as its maker states",
            f"assumed, not measured: {TRAINING_SHARE:.0%} of that rate in training, {FORWARD_SHARE:.0%} in prefill and "
            f"scoring, {BANDWIDTH_SHARE:.0%} of the bandwidth in decoding, whose steps take at least "
            f"{LAYER_SECONDS * 1e3:g} ms a layer",
            f"assumed: an answer has {lengths.answer_share:.0%} of its cap on average and one of each batch all of it; "
            f"a demonstration {lengths.demonstration_share:.0%}; a training prompt {lengths.prompt_tokens:.0f} tokens",
            "assumed: every rollout is trained on; where only rewards decide, groups of equal rewards are left out, so "
            "this is an upper bound",
            f"assumed: {START_SECONDS:.0f} s to start a job, {PUSH_BYTES_PER_SECOND / 1e9:.0f} GB/s of float32 weights "
            f"to the samplers after every step; checkpoints are written meanwhile",
        ]
        for model, known in self.known.items():
            parts = (("training", known.training), ("sampling", known.sampling))
            said = " and ".join(f"{value:,.0f} tokens/s of {name}" for name, value in parts if value is not None)
            lines.append(f"{model}: {said} on each GPU, {known.source}, in place of the assumed shares")
        return lines


def read_bench(path: Path, *, row_tokens: int) -> dict[str, Throughput]:
    """Throughputs by model in a file of `python -m bench.gpu`: of its longest rows up to `row_tokens`.

    Raise ConfigError where the file is none, or holds nothing that was measured on a GPU.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        device, updates, rollouts = content["device"], content["update"], content["rollouts"]
        on_gpu = content["memory_bytes"] is not None
        found = {}
        for model in {*updates, *rollouts}:
            rows = [row for row in updates.get(model, []) if row["status"] == "ok"]
            fitting = [row for row in rows if row["row_tokens"] <= row_tokens] or rows
            best = max(fitting, key=lambda row: row["row_tokens"], default=None)
            sampled = rollouts.get(model, {})
            found[model] = Throughput(
                f"measured by bench.gpu on {device}",
                training=best and float(best["tokens_per_second"]),
                sampling=float(sampled["sample"]["tokens_per_second"]) if sampled.get("status") == "ok" else None,
            )
    except OSError as error:
        raise ConfigError(f"--bench {path}: {error.strerror}; give a file of python -m bench.gpu") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"--bench {path}: no file of python -m bench.gpu; give one") from None
    found = {model: known for model, known in found.items() if known.training or known.sampling}
    if not on_gpu or not found:
        raise ConfigError(f"--bench {path}: holds nothing that was measured on a GPU; run python -m bench.gpu on one")
    return found
