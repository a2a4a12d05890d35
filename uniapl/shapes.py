"""The sizes of a model's matrices, known before its weights are here: what memory is computed from.

Read from the transformers config of a folder, of the hub's cache, or of a random model; without any file for the
models that the study names. Qwen3, Llama and InternLM2 decoders; imports nothing heavy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uniapl.config import ModelSpec, PolarSpec

QUERY_KEY_NORMS = ("qwen3",)  # model types that normalise queries and keys of each head
DECODERS = (*QUERY_KEY_NORMS, "llama", "internlm2")
ALIGNED_WORDS = 64  # of a block of the vocabulary on a GPU
SMOLLM2: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True,
}  # fmt: skip
QWEN3: dict[str, Any] = {
    "model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
    "tie_word_embeddings": True,
}  # fmt: skip
# Their config.json, by the hub's id or the name of a GGUF file.
KNOWN: dict[str, dict[str, Any]] = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": SMOLLM2,
    "Qwen/Qwen3-0.6B": QWEN3
    | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "Qwen/Qwen3-4B": QWEN3
    | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
}
INTERNLM2: dict[str, Any] = {
    "model_type": "internlm2", "num_key_value_heads": 8, "vocab_size": 92_544, "tie_word_embeddings": True,
}  # fmt: skip
# POLAR's decoders; they have a scalar head and no output head. The larger one's from its config.json; the smaller one's
# from internlm2_5-1_8b, which its model card names as its base.
POLAR: dict[str, dict[str, Any]] = {
    "internlm/POLAR-1_8B": INTERNLM2
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16},
    "internlm/POLAR-7B": INTERNLM2
    | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32},
}


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes. Suffix-free letters of the formulas: D hidden, Q queries, K keys, F intermediate, V words."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    head_norms: bool  # queries and keys are normalised per head

    @property
    def queries(self) -> int:
        """Width of a layer's queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of a layer's keys, and of its values."""
        return self.kv_heads * self.head_dim

    @property
    def matrices_of_layer(self) -> int:
        """Weights of a layer's matrices: queries and output, keys and values, and the three of the MLP."""
        return self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.intermediate)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer: its matrices, two norms, and the norms of queries and keys."""
        return self.matrices_of_layer + 2 * self.hidden + (2 * self.head_dim if self.head_norms else 0)

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding; of the output head as well, which may be the same tensor."""
        return self.vocabulary * self.hidden

    @property
    def root_parameters(self) -> int:
        """What no layer holds: embedding, output head where it is one of its own, final norm."""
        return self.embedding_parameters * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All of them; tied ones count once."""
        return self.layers * self.layer_parameters + self.root_parameters


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape in a transformers config; None for a kind of model that the formulas do not describe."""
    if config.get("model_type") not in DECODERS:
        return None
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    return Shape(
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        intermediate=int(config["intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", False)),
        head_norms=config["model_type"] in QUERY_KEY_NORMS,
    )


def known_shape(name: str) -> Shape:
    """The shape of one of the models that the study names."""
    shape = shape_of(KNOWN[name])
    assert shape is not None
    return shape


def find_shape(model: ModelSpec) -> Shape | None:
    """A model's shape, from its config.json where one is here, else from those known; None where nothing tells it."""
    if model.source == "random":
        tokenizer = KNOWN.get(str(model.file))  # a random model has the words of that file's tokenizer
        return shape_of(model.architecture | {"vocab_size": tokenizer["vocab_size"]}) if tokenizer else None
    name = str(model.file if model.source == "package_gguf" else model.location)
    folder = Path(name) if model.source == "path" else snapshot_folder(name, str(model.revision))
    if (folder / "config.json").is_file():
        return shape_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    return known_shape(name) if name in KNOWN else None


def find_polar_shape(spec: PolarSpec) -> Shape | None:
    """POLAR's shape, from its config.json where one is here, else from those known; None where nothing tells it."""
    folder = Path(spec.location) if spec.source == "path" else snapshot_folder(spec.location, str(spec.revision))
    if (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return shape_of(config | {"tie_word_embeddings": True})  # no output head
    return shape_of(POLAR[spec.location]) if spec.location in POLAR else None


def snapshot_folder(name: str, revision: str, *, kind: str = "model") -> Path:
    """Where the hub's cache keeps a revision: under its commit, which a branch's name points to."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    repository = Path(os.environ.get("HF_HUB_CACHE", home / "hub")) / f"{kind}s--{name.replace('/', '--')}"
    pointer = repository / "refs" / revision
    commit = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else revision
    return repository / "snapshots" / commit


def words_at_once(vocabulary: int, *, tokens: int, logits_bytes: int, on_gpu: bool) -> int:
    """Words of a block of the vocabulary whose float32 logits of so many tokens take at most `logits_bytes`.

    At least one; on a GPU in whole 64s where there is room, since matrices whose rows do not begin at 16 bytes have
    only slow kernels there (docs/performance.md).
    """
    words = max(1, logits_bytes // (4 * max(1, tokens)))
    if on_gpu:
        words = words - words % ALIGNED_WORDS or words
    return min(vocabulary, words)
