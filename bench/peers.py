"""The two sides of `bench.step`: this suite and TRL, each in a process of its own, one step when it is told.

Both start from the same checkpoint (float32 weights, AdamW, bfloat16 products where the processor has them), draw the
same prompts and sample answers of exactly `new_tokens` tokens. Rewards come by place: half of each group gets 1.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.limit import limit
from bench.shapes import update_flops
from uniapl.layers import load_model
from uniapl.shapes import Shape, find_shape


@dataclass(frozen=True)
class Work:
    """What every step of every side does."""

    model: str  # folder of the checkpoint
    texts: tuple[str, ...]  # user messages; a step takes the next `prompts` of them
    prompts: int
    rollouts: int  # of a prompt
    new_tokens: int
    compute: str
    micro_batch_tokens: int
    logits_bytes: int
    threads: int

    def texts_at(self, step: int) -> list[str]:
        """The prompts of a step, counted from 0."""
        return [self.texts[(step * self.prompts + i) % len(self.texts)] for i in range(self.prompts)]


def reward_of(place: int) -> float:
    """Of an answer by its place in its group: no group is flat."""
    return float(place % 2)


def ours(work: Work, wait: Callable[[], None], tell: Callable[[dict[str, Any]], None]) -> None:
    """Steps of this suite: vLLM in process, packed micro-batches; `wait` before each, `tell` what it took."""
    import torch

    from uniapl import sampler_vllm
    from uniapl.config import MachineSpec, SamplerSpec, StageSpec, TrainSpec
    from uniapl.records import Prompt
    from uniapl.rollouts import collect, rollout_sequences
    from uniapl.sampler import make_sampler
    from uniapl.train import open_policy
    from uniapl.update import coefficients_at, update

    torch.set_num_threads(work.threads)
    options = sampler_vllm.sampling_options
    # Every answer is as long as the other side's: the end token does not end it.
    sampler_vllm.sampling_options = lambda **given: options(**given) | {"stop_token_ids": []}
    stage = StageSpec.model_validate({
        "name": "grpo", "title": "GRPO", "steps": 1, "mu": 0.0, "learning_rate": 1e-6, "warmup_steps": 0,
        "prompts_per_step": work.prompts, "rollouts_per_prompt": work.rollouts,
    })  # fmt: skip
    settings = TrainSpec.model_validate({})
    machine = MachineSpec.model_validate(
        {"logits_bytes": work.logits_bytes, "micro_batch_tokens": work.micro_batch_tokens}
    )
    spec = SamplerSpec.model_validate({"kind": "vllm", "kv_cache_gib": 0.5})
    model = Path(work.model)
    policy = open_policy(
        model, model, settings, stage, max_new_tokens=work.new_tokens, compute=work.compute, machine=machine
    )
    sampler = make_sampler(spec, model, dtype=work.compute, machine=machine)
    coefficients, shape = coefficients_at(stage, 0), shape_of_model(work)
    step = 0
    while True:
        wait()
        began = time.perf_counter()
        prompts = [Prompt(f"{step}-{i}", "train", text, ()) for i, text in enumerate(work.texts_at(step))]
        groups = collect(
            sampler, prompts, tokenizer=policy.tokenizer, num_rollouts=work.rollouts, seed_parts=(0, step),
            max_new_tokens=work.new_tokens, temperature=settings.temperature,
        )  # fmt: skip
        sampled = time.perf_counter()
        for _, group in groups:
            for rollout in group:
                rollout.reward = reward_of(rollout.index)
        sequences = rollout_sequences(groups, stage, coefficients, tokenizer=policy.tokenizer)
        losses = update(policy, sequences, coefficients, step=step)
        updated = time.perf_counter()
        sampler.push_weights(policy.model.named_parameters())
        ended = time.perf_counter()
        tell({
            "sample": sampled - began, "update": updated - sampled, "push": ended - updated, "step": ended - began,
            "tokens_trained": losses["tokens__trained"],
            "flops": float(update_flops(shape, sequences)),
        })  # fmt: skip
        step += 1


def trl_grpo(work: Work, wait: Callable[[], None], tell: Callable[[dict[str, Any]], None], **changes: Any) -> None:
    """Steps of TRL's GRPOTrainer, as its documentation starts it; `changes` are further settings of GRPOConfig."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback

    if not changes.get("use_vllm"):  # as where vLLM is not installed, which it then neither imports nor needs
        availability = importlib.import_module("trl.import_utils")
        availability.is_vllm_available = lambda *_, **__: False  # type: ignore[attr-defined]
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(work.threads)
    steps = 1000
    seconds: dict[str, float] = {}

    class Pace(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            wait()
            seconds.update(sample=0.0, tokens=0.0, began=time.perf_counter())

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = time.perf_counter() - seconds["began"]
            tell({
                "sample": seconds["sample"], "update": step - seconds["sample"], "step": step, "push": 0.0,
                "tokens_trained": int(seconds["tokens"]),
            })  # fmt: skip

    def reward(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        seconds["tokens"] += sum(map(len, completion_ids))
        return [reward_of(place % work.rollouts) for place in range(len(completions))]

    options = {
        "output_dir": os.environ["BENCH_FOLDER"], "max_steps": steps, "num_generations": work.rollouts,
        "max_completion_length": work.new_tokens, "generation_kwargs": {"min_new_tokens": work.new_tokens},
        "gradient_accumulation_steps": work.prompts * work.rollouts // 8, "bf16": work.compute == "bfloat16",
        "learning_rate": 1e-6, "lr_scheduler_type": "constant", "report_to": [], "save_strategy": "no",
        "logging_steps": steps, "use_cpu": not torch.cuda.is_available(), "shuffle_dataset": False,
        "disable_tqdm": True, "dataloader_pin_memory": False, "adam_beta2": 0.999,
        "model_init_kwargs": {"dtype": "float32"},
    }  # fmt: skip
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in work.texts]
    trainer = GRPOTrainer(
        model=work.model, reward_funcs=reward, args=GRPOConfig(**(options | changes)),
        train_dataset=Dataset.from_list(rows), callbacks=[Pace()],
    )  # fmt: skip
    generate = trainer._generate

    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return generate(*arguments, **named)
        finally:
            seconds["sample"] += time.perf_counter() - began

    trainer._generate = timed
    trainer.train()


def measure_limit(work: Work, wait: Callable[[], None], tell: Callable[[dict[str, Any]], None]) -> None:
    """The processor's limit, at the same times as the steps beside it."""
    import torch

    torch.set_num_threads(work.threads)
    shape = shape_of_model(work)
    words = max(1, work.logits_bytes // (4 * work.micro_batch_tokens))
    while True:
        wait()
        began = time.perf_counter()
        found = limit(shape, tokens=work.micro_batch_tokens, words=words, dtype=getattr(torch, work.compute))
        tell(found | {"step": time.perf_counter() - began})


def shape_of_model(work: Work) -> Shape:
    """The sizes of the model that is trained."""
    shape = find_shape(load_model(work.model, "--model"))
    assert shape is not None
    return shape


SIDES: dict[str, Callable[..., None]] = {
    "limit": measure_limit,
    "ours": ours,
    "trl": trl_grpo,
    "trl_no_checkpointing": lambda *given: trl_grpo(*given, gradient_checkpointing=False),
    "trl_vllm": lambda *given: trl_grpo(*given, use_vllm=True, vllm_mode="colocate"),
}


def serve(name: str, work: dict[str, Any], connection: Connection) -> None:
    """What a side's process does: steps as they are asked for, until the other end closes."""

    def wait() -> None:
        try:
            connection.recv()
        except EOFError:
            os._exit(0)

    try:
        SIDES[name](Work(**work), wait, lambda took: connection.send(took))
    except Exception as error:  # a side that does not run here is a finding
        connection.send({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
