"""POLAR behind the discriminator's interface: texts in, unbounded scores out, through one of three engines.

The engine is the machine's matter: transformers in this process, vLLM's pooling model in this process, or servers
(`machine.discriminator_engine`). All of them get the same token ids, so they differ by rounding alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from uniapl.attention import decoder_states
from uniapl.batch import scoring_batches
from uniapl.config import MachineSpec, PolarSpec
from uniapl.distributed import device
from uniapl.polar.checkpoint import (
    PolarConfig,
    PolarDecoder,
    find_checkpoint,
    load_decoder,
    read_polar_config,
    weight_files,
)
from uniapl.polar.text import PolarFormat, PolarTokenizer, read_json
from uniapl.provenance import file_sha256, write_whole
from uniapl.records import TokenSequence

PROBE_FILE = "probe.json"
PROBE_DEVIATIONS = 0.25  # of tau: more than engines and types differ, less than what would change an advantage much


class PolarEngine(Protocol):
    """What computes the scalar head's value at the last token of every sequence."""

    def scores(self, sequences: Sequence[TokenSequence]) -> list[float]: ...


class TransformersEngine:
    """A Llama decoder in this process; the part up to the separator runs once for all of its candidates."""

    def __init__(self, model: PolarDecoder, *, micro_batch_tokens: int) -> None:
        self.model, self.micro_batch_tokens = model, micro_batch_tokens

    @torch.inference_mode()
    def scores(self, sequences: Sequence[TokenSequence]) -> list[float]:
        # One more token stands behind each: the last state that predicts is then that of the reward token.
        longer = [TokenSequence(s.prompt_ids, [*s.completion_ids, 0], frozenset()) for s in sequences]
        found = [math.nan] * len(longer)
        for indices, micro in scoring_batches(
            longer, micro_tokens=self.micro_batch_tokens, packing=True, device=self.model.head.device
        ):
            ends = torch.tensor([len(longer[i].completion_ids) for i in indices]).cumsum(0) - 1
            states_TD = decoder_states(self.model.decoder, micro)
            values = self.model.scores(states_TD[ends.to(states_TD.device)])
            for index, value in zip(indices, values.tolist(), strict=True):
                found[index] = value
        return found


class Polar:
    """POLAR without b and tau: scores of candidates against references, of a checkpoint's format and an engine."""

    def __init__(self, text_format: PolarFormat, engine: PolarEngine) -> None:
        self.text_format, self.engine = text_format, engine

    def score(self, prompts: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[float]:
        """Raw logits, higher = closer to the reference; equal texts get equal scores.

        Raise ValueError where an engine gave a score that is not finite: it never becomes 0.
        """
        if not len(prompts) == len(references) == len(candidates):
            raise ValueError(
                f"score needs lists of one length, got {len(prompts)}, {len(references)}, {len(candidates)}"
            )
        texts = self.text_format.texts(prompts, references, candidates)
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        scores = self.engine.scores(self.text_format.sequences(list(place))) if place else []
        for value in scores:
            if not math.isfinite(value):
                raise ValueError(f"POLAR gave the score {value}; set discriminator.dtype to bfloat16 or float32")
        return [scores[place[text]] for text in texts]


class PolarDiscriminator:
    """POLAR with its fixed b (`shift`) and tau (`scale`): B_k comes from log sigmoid((s_k - b) / tau)."""

    def __init__(self, polar: Polar, *, shift: float, scale: float) -> None:
        self.polar, self.shift, self.scale = polar, shift, scale

    def score(self, prompts: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[float]:
        """See `Polar.score`."""
        return self.polar.score(prompts, references, candidates)


def write_probe(directory: Path, *, prompt: str, reference: str, candidate: str, score: float) -> None:
    """Keep one scored text beside the manifest: what a POLAR that is opened later has to score alike."""
    probe = {"prompt": prompt, "reference": reference, "candidate": candidate, "score": score}
    write_whole(directory / PROBE_FILE, json.dumps(probe, ensure_ascii=False) + "\n")


def fixed_polar(polar: Polar, directory: Path, *, shift: float, scale: float) -> PolarDiscriminator:
    """POLAR with the b and tau that were fixed for it.

    Raise ValueError where it scores the kept text otherwise: other weights, another tokenizer, a server that is not
    POLAR's or gives probabilities. b and tau would not be its own.
    """
    probe = read_json(directory / PROBE_FILE)
    (found,) = polar.score([probe["prompt"]], [probe["reference"]], [probe["candidate"]])
    if not abs(found - probe["score"]) <= PROBE_DEVIATIONS * scale:
        raise ValueError(
            f"{directory}: POLAR now gives {found:.4f} where it gave {probe['score']:.4f} when b and tau were fixed; "
            f"use the same checkpoint and servers as then, or remove this directory and run snakemake again"
        )
    return PolarDiscriminator(polar, shift=shift, scale=scale)


def describe(spec: PolarSpec, machine: MachineSpec) -> dict[str, Any]:
    """What was scored with, for the manifest: the snapshot's name is the hub's commit; SHA-256 of all files read."""
    directory = find_checkpoint(spec)
    files = [directory / name for name in ("config.json", "tokenizer.model", "tokenizer_config.json")]
    if machine.discriminator_engine != "servers":  # they have weights of their own
        files += weight_files(directory)
    return {
        "location": spec.location,
        "commit": directory.name if spec.source == "hub" else None,
        "engine": machine.discriminator_engine,
        "file_sha256": {file.name: file_sha256(file) for file in files},
    }


def open_polar(spec: PolarSpec, machine: MachineSpec) -> Polar:
    """POLAR as this machine runs it. Raise ValueError where the checkpoint or a server cannot be used."""
    directory = find_checkpoint(spec)
    config = read_polar_config(directory, max_length=spec.max_length)
    tokenizer = PolarTokenizer(directory)
    if tokenizer.reward_id != config.reward_token_id:
        raise ValueError(
            f"POLAR: in {directory} the tokenizer's reward token is {tokenizer.reward_id}, config.json says "
            f"{config.reward_token_id}; the files do not belong together"
        )
    if tokenizer.largest_id >= config.llama.vocab_size:
        raise ValueError(f"POLAR: {directory}: the tokenizer has more tokens than the model; fetch it again")
    text_format = PolarFormat(tokenizer, max_length=spec.max_length, max_response_length=spec.max_response_length)
    return Polar(text_format, _engine(directory, config, spec, machine))


def _engine(directory: Path, config: PolarConfig, spec: PolarSpec, machine: MachineSpec) -> PolarEngine:
    if machine.discriminator_engine == "servers":
        from uniapl.polar.servers import ServersEngine

        return ServersEngine(machine.discriminator_servers, spec, patience_seconds=machine.hang_seconds)
    if machine.discriminator_engine == "vllm":
        from uniapl.polar.vllm import VLLMEngine

        return VLLMEngine(directory, config, spec)
    model = load_decoder(directory, config, dtype=getattr(torch, spec.dtype), device=device())
    return TransformersEngine(model, micro_batch_tokens=spec.micro_batch_tokens)
