"""A tiny POLAR on disk: InternLM2's tensor names and layout, random weights, sentencepiece trained on the spot."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file

CORPUS = [
    "Write about the oven in three plain words.", "The dough rests, then flour and yeast go into the oven.",
    "A comet passes the earth on its orbit.", "What is the capital of China? Beijing.", "There are 3 letters.",
    "请用三个词写一写月亮。", "中国的首都是北京。", "月亮绕着地球转。",
] * 20  # fmt: skip
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|reward|>", "[UNUSED_TOKEN_130]")
HIDDEN, HEADS, KV_HEADS, INTERMEDIATE, LAYERS = 128, 4, 2, 192, 3


def train_tokenizer(directory: Path, *, dummy_prefix: bool = False, symbols: tuple[str, ...] = ()) -> int:
    """Write tokenizer.model, BPE with byte pieces as InternLM2's, and return its number of pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", vocab_size=420, byte_fallback=True,
        character_coverage=0.98, normalization_rule_name="identity", add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False, split_digits=True, hard_vocab_limit=False, unk_id=0, bos_id=1, eos_id=2,
        pad_id=-1, user_defined_symbols=[*symbols], minloglevel=2,
    )  # fmt: skip
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).GetPieceSize()


def write_tokenizer(directory: Path, **options: Any) -> int:
    """Write both tokenizer files, special tokens behind the pieces; return the number of tokens."""
    pieces = train_tokenizer(directory, **options)
    named = {0: "<unk>", 1: "<s>", 2: "</s>"} | {pieces + i: name for i, name in enumerate(SPECIALS)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "add_bos_token": True, "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "added_tokens_decoder": {str(i): flags | {"content": name} for i, name in named.items()},
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return pieces + len(SPECIALS)


def random_weights(vocabulary: int, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensors as InternLM2 names and shapes them, of a size at which scores differ from text to text."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * scale / columns**0.5

    size = HIDDEN // HEADS
    weights = {
        "model.tok_embeddings.weight": matrix(vocabulary, HIDDEN, 8.0),
        "model.norm.weight": 1 + 0.1 * torch.randn(HIDDEN, generator=generator),
        "v_head.weight": matrix(1, HIDDEN, 3.0),
    }
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        weights |= {
            f"{layer}.attention.wqkv.weight": matrix((HEADS + 2 * KV_HEADS) * size, HIDDEN, 1.5),
            f"{layer}.attention.wo.weight": matrix(HIDDEN, HIDDEN),
            f"{layer}.feed_forward.w1.weight": matrix(INTERMEDIATE, HIDDEN),
            f"{layer}.feed_forward.w3.weight": matrix(INTERMEDIATE, HIDDEN),
            f"{layer}.feed_forward.w2.weight": matrix(HIDDEN, INTERMEDIATE),
            f"{layer}.attention_norm.weight": 1 + 0.1 * torch.randn(HIDDEN, generator=generator),
            f"{layer}.ffn_norm.weight": 1 + 0.1 * torch.randn(HIDDEN, generator=generator),
        }
    return weights


def write_checkpoint(directory: Path, *, shards: int = 1, max_positions: int = 32768) -> Path:
    """A whole checkpoint in a new folder, as the hub has it: with an index where it is cut into several files."""
    directory.mkdir(parents=True)
    vocabulary = write_tokenizer(directory)
    config = {
        "architectures": ["InternLM2ForRewardModel"], "model_type": "internlm2", "bias": False, "hidden_act": "silu",
        "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config",
                     "AutoModel": "modeling_internlm2.InternLM2ForRewardModel"},
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": max_positions,
        "rms_norm_eps": 1e-5, "rope_theta": 1000000, "rope_scaling": {"factor": 2.0, "type": "dynamic"},
        "tie_word_embeddings": False, "torch_dtype": "float32", "vocab_size": vocabulary, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 2, "reward_token_id": vocabulary - 1,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    weights = random_weights(vocabulary)
    if shards == 1:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    names = {f"model-{i + 1:05d}-of-{shards:05d}.safetensors": sorted(weights)[i::shards] for i in range(shards)}
    for file, held in names.items():
        save_file({name: weights[name] for name in held}, directory / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in names.items() for name in held}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory
