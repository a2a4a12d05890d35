"""vLLM inside the trainer's process: weights are pushed every step, and the same threads train and sample.

On CPU the engine runs eagerly with a small KV cache; on GPUs the same code sleeps while the trainer updates. vLLM is
not batch-invariant: the same seeds give the same tokens only in the same batch and up to rounding. With tensor
parallelism consecutive ranks share one engine: each gives it the requests of all of them, and keeps its own samples.
"""

from __future__ import annotations

import gc
import logging
import os
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uniapl.config import SamplerSpec
from uniapl.distributed import ALONE, Ranks
from uniapl.records import Sample

ENGINE_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CONFIGURE_LOGGING": "1",
    "DO_NOT_TRACK": "1",
}
GPU_MEMORY_SHARE = 0.35  # of a GPU that the trainer shares; the rest holds weights, gradients and activations
BLOCK_TOKENS = 32  # the smallest that vLLM has on CPU, so that most of a group's prompt is computed once


class VLLMSampler:
    """See `uniapl.sampler.Sampler`."""

    name = "vllm"

    def __init__(
        self, model_directory: Path, *, spec: SamplerSpec, dtype: str, ranks: Ranks = ALONE, tensor_parallel: int = 1
    ) -> None:
        os.environ.update(ENGINE_SETTINGS)
        set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
        started = time.perf_counter()
        logging.getLogger("vllm").setLevel(logging.ERROR)
        self._on_gpu = torch.cuda.is_available()
        options: dict[str, Any] = (
            {"gpu_memory_utilization": GPU_MEMORY_SHARE, "enable_sleep_mode": True}
            if self._on_gpu
            else {"kv_cache_memory_bytes": int(spec.kv_cache_gib * 2**30), "block_size": BLOCK_TOKENS}
        )
        if tensor_parallel > 1:
            options |= {"distributed_executor_backend": "external_launcher", "tensor_parallel_size": tensor_parallel}
        self._ranks, self._tensor_parallel = ranks, tensor_parallel
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of vLLM's own imports, some of which come with the engine
            from vllm import LLM

            self._llm = LLM(
                model=str(model_directory),
                dtype=dtype,
                enforce_eager=True,
                max_model_len=spec.max_model_tokens,
                max_num_seqs=spec.max_sequences,
                max_num_batched_tokens=max(2048, spec.max_model_tokens),
                enable_prefix_caching=True,
                enable_chunked_prefill=False,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                generation_config="vllm",
                logprobs_mode="processed_logprobs",
                seed=0,
                **options,
            )
        if ranks.size > 1:  # vLLM's own end would take the trainer's process group with it
            self._llm.llm_engine.engine_core._finalizer.detach()  # type: ignore[attr-defined]
        torch.set_num_threads = set_num_threads  # vLLM replaces it by a function that does nothing
        torch.set_num_threads(num_threads)
        self._end_token_id = int(self._llm.get_tokenizer().eos_token_id)
        self._max_model_tokens = spec.max_model_tokens
        self.start_seconds = time.perf_counter() - started

    def generate(
        self, prompts: Sequence[list[int]], *, seeds: Sequence[int], max_new_tokens: int, temperature: float
    ) -> list[Sample]:
        from vllm import SamplingParams

        check_lengths(prompts, max_new_tokens=max_new_tokens, max_model_tokens=self._max_model_tokens)
        options = sampling_options(
            max_new_tokens=max_new_tokens, temperature=temperature, end_token_id=self._end_token_id
        )
        asked, own = self._of_engine(prompts, seeds)
        parameters = [SamplingParams(seed=None if temperature == 0 else seed % 2**63, **options) for _, seed in asked]
        requests: list[Any] = [{"prompt_token_ids": prompt} for prompt, _ in asked]
        outputs = self._llm.generate(requests, parameters, use_tqdm=False)
        return [_sample(output.outputs[0]) for output in outputs[own]]

    def _of_engine(
        self, prompts: Sequence[list[int]], seeds: Sequence[int]
    ) -> tuple[list[tuple[list[int], int]], slice]:
        """The requests of all ranks that share this engine, the same on each, and which of them are this rank's."""
        asked = [(list(prompt), seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        if self._tensor_parallel == 1:
            return asked, slice(None)
        of_ranks: list[list[tuple[list[int], int]]] = self._ranks.collect([asked])
        index = self._ranks.rank % self._tensor_parallel
        begin = self._ranks.rank - index
        sharing = of_ranks[begin : begin + self._tensor_parallel]
        before = sum(map(len, sharing[:index]))
        return [request for share in sharing for request in share], slice(before, before + len(asked))

    def push_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> float:
        started = time.perf_counter()
        with torch.no_grad():
            tensors = ((name, tensor.detach()) for name, tensor in named_tensors)
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})
            if not self._on_gpu:
                self._llm.collective_rpc(repack_head)
        self._llm.reset_prefix_cache()
        return time.perf_counter() - started

    def sleep(self) -> None:
        if self._on_gpu:
            self._llm.sleep(level=2)

    def wake(self) -> None:
        if self._on_gpu:
            self._llm.wake_up()

    def close(self) -> None:
        if self._ranks.size == 1:
            self._llm.llm_engine.engine_core.shutdown()
        else:
            from vllm.distributed.parallel_state import destroy_model_parallel

            destroy_model_parallel()
        del self._llm
        gc.collect()


def check_lengths(prompts: Sequence[list[int]], *, max_new_tokens: int, max_model_tokens: int) -> None:
    """Raise ValueError where a prompt and its answer are longer than the engine has room for."""
    longest = max((len(p) for p in prompts), default=0) + max_new_tokens
    if longest > max_model_tokens:
        raise ValueError(
            f"a prompt and its answer need {longest} tokens, sampler.max_model_tokens is {max_model_tokens}; raise it"
        )


def sampling_options(*, max_new_tokens: int, temperature: float, end_token_id: int) -> dict[str, Any]:
    """vLLM's parameters of a request, all but its seed: the whole distribution is sampled, the end token is kept."""
    return {
        "max_tokens": max_new_tokens, "temperature": temperature, "top_p": 1.0, "top_k": 0, "logprobs": 0,
        "detokenize": False, "ignore_eos": True, "stop_token_ids": [end_token_id],
    }  # fmt: skip


def repack_head(worker: Any) -> None:
    """Pack the output head again: on CPU vLLM's reload leaves a tied head multiplying with the old embedding."""
    head = worker.get_model().lm_head
    head.quant_method.process_weights_after_loading(head)


def _sample(output: Any) -> Sample:
    """Token ids, their log-probs and why it ended, out of one of vLLM's completions."""
    ids = list(output.token_ids)
    logprobs = [float(row[token].logprob) for row, token in zip(output.logprobs, ids, strict=True)]
    return Sample(ids, logprobs, "stop" if output.finish_reason == "stop" else "length")
