"""POLAR in vLLM's pooling runner, inside this process: vLLM's own InternLM2 reads the checkpoint as it is published.

Token ids go in, so vLLM loads no tokenizer; the config class is registered here, so none of the checkpoint's code runs.
vLLM pools all tokens of a reward model and by default puts a sigmoid behind it: both are undone, for scores are logits.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, LlamaConfig

from uniapl.config import PolarSpec
from uniapl.estimate.memory import REENCODED_TOKENS, polar_cache_bytes
from uniapl.polar.checkpoint import MODEL_TYPE, PolarConfig, weight_files
from uniapl.records import TokenSequence
from uniapl.sampler_vllm import ENGINE_SETTINGS

RESERVE_BYTES = 2**30  # work space on a GPU beside weights and cache; assumed, not measured


class InternLM2Config(LlamaConfig):
    """InternLM2's config.json, whose fields are Llama's."""

    model_type = MODEL_TYPE


def register_config() -> None:
    """Let transformers, and so vLLM, know InternLM2's config in this process."""
    AutoConfig.register(MODEL_TYPE, InternLM2Config, exist_ok=True)


class VLLMEngine:
    """See `uniapl.polar.discriminator.PolarEngine`."""

    def __init__(self, directory: Path, config: PolarConfig, spec: PolarSpec) -> None:
        os.environ.update(ENGINE_SETTINGS)
        set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
        logging.getLogger("vllm").setLevel(logging.ERROR)
        register_config()
        weight_files(directory)  # refuses other formats
        longest = min(spec.max_length + REENCODED_TOKENS, config.llama.max_position_embeddings)
        cache = polar_cache_bytes(config.shape, spec)
        options: dict[str, Any] = {"kv_cache_memory_bytes": cache}
        if torch.cuda.is_available():
            weights = sum(file.stat().st_size for file in weight_files(directory))
            _, whole = torch.cuda.mem_get_info()
            options["gpu_memory_utilization"] = (weights + cache + RESERVE_BYTES) / whole
        borrowed = torch.distributed.is_initialized()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            from vllm import LLM, PoolingParams

            self._llm = LLM(
                model=str(directory), runner="pooling", skip_tokenizer_init=True, trust_remote_code=False,
                load_format="safetensors", dtype=spec.dtype, enforce_eager=True, max_model_len=longest,
                max_num_batched_tokens=max(longest, spec.micro_batch_tokens), enable_prefix_caching=False,
                enable_chunked_prefill=False, disable_log_stats=True, use_tqdm_on_load=False, seed=0, **options,
            )  # fmt: skip
        if borrowed:  # by the ranks or by the sampler's vLLM; this one's end would take their process group with it
            self._llm.llm_engine.engine_core._finalizer.detach()  # type: ignore[attr-defined]
        torch.set_num_threads = set_num_threads  # vLLM replaces it by a function that does nothing
        torch.set_num_threads(num_threads)
        self._parameters = PoolingParams(task="token_classify", use_activation=False)
        self._longest = longest

    def scores(self, sequences: Sequence[TokenSequence]) -> list[float]:
        if too_long := max((s.num_tokens for s in sequences if s.num_tokens > self._longest), default=0):
            raise ValueError(
                f"POLAR: a text has {too_long} tokens, there is room for {self._longest}; lower max_length"
            )
        requests: list[Any] = [{"prompt_token_ids": s.prompt_ids + s.completion_ids} for s in sequences]
        outputs = self._llm.encode(requests, self._parameters, pooling_task="token_classify", use_tqdm=False)
        return [float(output.outputs.data[-1, 0]) for output in outputs]

    def close(self) -> None:
        """Stop the engine."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
