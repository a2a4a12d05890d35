"""POLAR's checkpoint as a standard decoder: InternLM2's tensors by the names that Llama has, and its scalar head.

InternLM2 is Llama's architecture with other names and with queries, keys and values in one matrix, grouped by key head.
Only safetensors are read, one tensor at a time, and every shape is known beforehand. POLAR's dynamic rotary scaling
begins beyond max_position_embeddings, which no text of ours reaches, so positions are the plain ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from uniapl.config import PolarSpec
from uniapl.polar.text import read_json
from uniapl.shapes import Shape, shape_of

MODEL_TYPE = "internlm2"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD = "v_head.weight"
LAYER_NAMES = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
NAMES = {"model.tok_embeddings.weight": "embed_tokens.weight", "model.norm.weight": "norm.weight"}


@dataclass(frozen=True)
class PolarConfig:
    """What config.json says of POLAR, as the config of a Llama decoder."""

    llama: LlamaConfig
    shape: Shape
    reward_token_id: int


def find_checkpoint(spec: PolarSpec) -> Path:
    """The folder of a checkpoint: the location itself, or its snapshot in the hub's local cache.

    Raise ValueError where there is none; nothing is downloaded here.
    """
    if spec.source == "path":
        folder = Path(spec.location)
        if not folder.is_dir():
            raise ValueError(f"POLAR: the folder {folder} does not exist; mend discriminator.location")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(spec.location, revision=spec.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise ValueError(
            f"POLAR: {spec.location} is not in the local Hugging Face cache; "
            f"run: hf download {spec.location} --revision {spec.revision}"
        ) from None


def read_polar_config(directory: Path, *, max_length: int) -> PolarConfig:
    """Read config.json. Raise ValueError where it is not InternLM2's reward model, or has no room for `max_length`."""
    path = directory / "config.json"
    values = read_json(path)
    expected: dict[str, tuple[Any, ...]] = {
        "model_type": (MODEL_TYPE,), "architectures": (["InternLM2ForRewardModel"],), "hidden_act": ("silu",),
        "bias": (False, None),
    }  # fmt: skip
    for key, known in expected.items():
        if values.get(key) not in known:
            raise ValueError(f"POLAR: {path}: {key} is {values.get(key)!r}, {known[0]!r} is needed; it is not POLAR's")
    scaling = values.get("rope_scaling") or {}
    if scaling.get("rope_type", scaling.get("type", "default")) not in ("default", "dynamic"):
        raise ValueError(f"POLAR: {path}: rope_scaling = {scaling!r} is not known here; use a checkpoint of POLAR")
    try:
        shape = shape_of(values)
        assert shape is not None
        llama = LlamaConfig(
            vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim, rms_norm_eps=float(values["rms_norm_eps"]),
            max_position_embeddings=int(values["max_position_embeddings"]),
            rope_parameters={"rope_type": "default", "rope_theta": float(values["rope_theta"])},
            attention_bias=False, mlp_bias=False, use_cache=False,
        )  # fmt: skip
        reward = int(values["reward_token_id"])
    except KeyError as error:
        raise ValueError(f"POLAR: {path} has no {error}; it is not POLAR's") from None
    except (TypeError, ValueError, ArithmeticError):
        raise ValueError(f"POLAR: {path} has a size that is no number; fetch the checkpoint again") from None
    if llama.max_position_embeddings < max_length:
        raise ValueError(
            f"POLAR: discriminator.max_length = {max_length} is more than the checkpoint's "
            f"{llama.max_position_embeddings} positions; lower it"
        )
    return PolarConfig(llama, shape, reward)


class PolarDecoder(nn.Module):
    """The decoder and the scalar head, which multiplies in float32."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.decoder = LlamaModel(config)
        self.head = nn.Parameter(torch.empty(config.hidden_size, dtype=torch.float32))

    def scores(self, hidden_ND: Tensor) -> Tensor:
        """One score a hidden state, float32 [N]."""
        return hidden_ND.float() @ self.head


def load_decoder(directory: Path, config: PolarConfig, *, dtype: torch.dtype, device: torch.device) -> PolarDecoder:
    """The scoring model with a checkpoint's weights, on a device.

    Raise ValueError where a tensor is missing, unknown or of another shape, or the weights are no safetensors.
    """
    if config.shape.parameters > sum(file.stat().st_size for file in weight_files(directory)):
        raise ValueError(f"POLAR: {directory}: config.json speaks of more weights than the files hold; fetch it again")
    with torch.device("meta"):
        model = PolarDecoder(config.llama).to(dtype)
    model = model.to_empty(device=device)
    model.head.data = model.head.data.float()
    # Neither is in a checkpoint: positions are computed, and `to_empty` left them as they were in memory.
    model.decoder.rotary_emb = type(model.decoder.rotary_emb)(config.llama).to(device)
    missing = {name for name, _ in model.named_parameters()}
    for name, tensor in _tensors(directory):
        for own, part in llama_tensors(name, tensor, config.shape):
            if own not in missing:
                raise ValueError(f"POLAR: {directory}: {name} is in the checkpoint twice or belongs to no POLAR")
            parameter = model.get_parameter(own)
            if part.shape != parameter.shape:
                raise ValueError(f"POLAR: {directory}: {name} does not have the shape that config.json says")
            parameter.data.copy_(part)
            missing.remove(own)
    if missing:
        raise ValueError(f"POLAR: {directory} lacks weights, of {min(missing)} first; fetch the checkpoint again")
    return model.eval().requires_grad_(False)


def llama_tensors(name: str, tensor: Tensor, shape: Shape) -> list[tuple[str, Tensor]]:
    """One of InternLM2's tensors by the names of `PolarDecoder`, the fused matrix as its three parts.

    The fused matrix holds, for every key head, the rows of its query heads, then those of key and value.
    """
    if name == HEAD:
        return [("head", tensor.reshape(-1))]
    if name in NAMES:
        return [(f"decoder.{NAMES[name]}", tensor)]
    found = re.fullmatch(r"model\.layers\.(\d{1,4})\.([a-z_]+(?:\.w\w+)?)\.weight", name)
    if found and found[2] in LAYER_NAMES:
        return [(f"decoder.layers.{found[1]}.{LAYER_NAMES[found[2]]}.weight", tensor)]
    if not found or found[2] != "attention.wqkv":
        raise ValueError(f"POLAR: the checkpoint has a tensor {name[:80]!r}, which POLAR does not have")
    queries = shape.heads // shape.kv_heads
    if tensor.shape != (shape.queries + 2 * shape.keys, shape.hidden):
        raise ValueError(f"POLAR: {name} does not have the shape that config.json says")
    grouped = tensor.view(shape.kv_heads, queries + 2, shape.head_dim, shape.hidden)
    parts = grouped[:, :queries], grouped[:, queries], grouped[:, queries + 1]
    return [
        (f"decoder.layers.{found[1]}.self_attn.{letter}_proj.weight", part.reshape(-1, shape.hidden))
        for letter, part in zip("qkv", parts, strict=True)
    ]


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, of its index where it is cut into several.

    Raise ValueError where there is none, or the index names a file elsewhere.
    """
    if (directory / INDEX).is_file():
        named = read_json(directory / INDEX).get("weight_map")
        names = set(named.values()) if isinstance(named, dict) else set()
        if not names or not all(isinstance(n, str) and re.fullmatch(r"[\w.-]+\.safetensors", n) for n in names):
            raise ValueError(f"POLAR: {directory / INDEX} names no files of its folder; fetch the checkpoint again")
        files = [directory / name for name in sorted(names)]
    else:
        files = [directory / WEIGHTS]
    absent = [file.name for file in files if not file.is_file()]
    if absent and any(directory.glob("*.bin")):
        raise ValueError(
            f"POLAR: {directory} has its weights as .bin files, which run code when they are read; take a revision "
            f"with safetensors, or convert them elsewhere"
        )
    if absent:
        raise ValueError(f"POLAR: {directory} lacks {absent[0]}; fetch the whole checkpoint again")
    return files


def _tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    for file in weight_files(directory):
        try:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118  # no mapping
                    yield name, weights.get_tensor(name)
        except SafetensorError as error:
            reason = str(error).splitlines()[0][:200]
            raise ValueError(f"POLAR: {file} is no safetensors file ({reason}); fetch it again") from None
