"""Models of the true size with random weights, the rows that their speed is measured on, and what those rows cost."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from uniapl.batch import needs_gradient
from uniapl.records import TokenSequence
from uniapl.shapes import Shape, known_shape

COEFFICIENTS = {"sft": 0.0, "grpo": 1.0, "adv": 0.0, "kl": 0.0}  # of the update that is timed
ANSWERS = 7  # of a packed row, each as long as its prompt


MOST_STATE_BYTES = 40e9  # of weights, gradients and AdamW that leave a GPU of 80 GB room for 8,192 tokens' activations
SHAPES = {
    "qwen3_0_6b": known_shape("Qwen/Qwen3-0.6B"),
    "qwen3_4b": known_shape("Qwen/Qwen3-4B"),
    "tiny": Shape(
        layers=2, hidden=32, heads=4, kv_heads=2, head_dim=32, intermediate=64, vocabulary=300, tied=True,
        head_norms=True,
    ),
}  # fmt: skip


def needs_checkpointing(shape: Shape) -> bool:
    """Whether its layers have to forget their activations on 80 GB; float32 state takes 16 bytes a parameter."""
    return 16 * shape.parameters > MOST_STATE_BYTES


def random_model(shape: Shape, *, device: torch.device) -> Any:
    """A float32 model of that shape, made on the device itself."""
    config = Qwen3Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, tie_word_embeddings=True, max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def train_settings(**changes: Any) -> Any:
    """What an update reads of TrainSpec, without pydantic: the values of config/default.yaml, and no ceiling."""
    values = {
        "temperature": 1.0, "sampler_clip": 2.0, "sampler_gap_ceiling": math.inf, "max_grad_norm": 1.0,
        "adam_beta1": 0.9, "adam_beta2": 0.999, "weight_decay": 0.0,
    }  # fmt: skip
    return SimpleNamespace(**(values | changes))


def stage_settings(**changes: Any) -> Any:
    """What an update reads of StageSpec, without pydantic."""
    values = {
        "learning_rate": 1e-6, "warmup_steps": 0, "normalization": "dapo", "sft_weighting": "none", "clip_low": 0.2,
        "clip_high": 0.2,
    }  # fmt: skip
    return SimpleNamespace(**(values | changes))


def machine_settings(
    *, activation_checkpointing: bool = False, compiled: bool = False, micro_batch_tokens: int = 8192,
    packing: bool = True, kept_logits_bytes: int = 0,
) -> Any:  # fmt: skip
    """What an update reads of MachineSpec, without pydantic."""
    return SimpleNamespace(
        activation_checkpointing=activation_checkpointing, compile=compiled, logits_bytes=128 * 2**20,
        kept_logits_bytes=kept_logits_bytes, micro_batch_tokens=micro_batch_tokens, packing=packing,
    )  # fmt: skip


def random_rows(shape: Shape, *, rows: int, row_tokens: int) -> list[TokenSequence]:
    """Rollouts that packing lays into `rows` rows of `row_tokens` positions: a prompt and 7 answers of its length."""
    generator = random.Random(0)
    length = row_tokens // (ANSWERS + 1)

    def ids() -> list[int]:
        return [generator.randrange(shape.vocabulary) for _ in range(length)]

    sampler = [-math.log(shape.vocabulary)] * length
    made = []
    for _ in range(rows):
        prompt = ids()
        for answer in range(ANSWERS):
            advantage = answer - (ANSWERS - 1) / 2 + 0.5  # none is 0, or its sequence would be left out
            made.append(TokenSequence(prompt, ids(), frozenset({"grpo"}), advantage, 0.0, sampler))
    return made


def trained_flops(shape: Shape, sequences: list[TokenSequence], coefficients: dict[str, float]) -> int:
    """`update_flops` of those of a step's sequences that have a gradient."""
    return update_flops(shape, [s for s in sequences if needs_gradient(s, coefficients)])


def update_flops(shape: Shape, sequences: list[TokenSequence]) -> int:
    """Floating-point operations that an update on packed sequences needs: 3 times its forward's products.

    6 for each weight of the layers and position (a prompt is read once for its answers), 6 for each weight of the head
    and completion token, and 12 x layers x heads x head_dim for each pair of a position and one that it sees in its own
    document. The embedding is a look-up; norms, softmax, optimizer and what is computed again are not counted.
    """
    prompts = {tuple(s.prompt_ids) for s in sequences}
    answers = [(len(s.prompt_ids), len(s.completion_ids)) for s in sequences]
    completion_tokens = sum(length for _, length in answers)
    positions = sum(len(prompt) for prompt in prompts) + completion_tokens
    pairs = sum(len(prompt) * (len(prompt) + 1) // 2 for prompt in prompts)
    pairs += sum(length * before + length * (length + 1) // 2 for before, length in answers)
    layers = 6 * shape.layers * shape.matrices_of_layer * positions
    head = 6 * shape.embedding_parameters * completion_tokens
    return layers + head + 12 * shape.layers * shape.heads * shape.head_dim * pairs
