"""TRL's sides of `bench.step`: GRPOTrainer and SFTTrainer as their documentation starts them, a step at a time."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

from bench.work import FIRST_STEP, FOREVER, LEARNING_RATE, Work, reward_by_place

DATASET_STEPS = 50  # whose prompts the data set holds, in the order of the steps
PACKED_TOKENS = 1024  # of a row; SFTConfig's default


def pace(work: Work, wait: Callable[[], Any], tell: Callable[[dict[str, Any]], None]) -> tuple[Any, dict[str, Any]]:
    """A trainer's callback that waits before each step and tells what it took; and what others may add to a step."""
    from transformers import TrainerCallback

    noted: dict[str, Any] = {}

    class Pace(TrainerCallback):
        began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            wait()
            noted.update(sample=0.0, score=0.0, push=0.0)
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = time.perf_counter() - self.began
            tell(noted | {"update": step - noted["sample"] - noted["score"], "step": step})

    return Pace(), noted


def shared_options(work: Work) -> dict[str, Any]:
    """Options of both trainers: the optimizer and types of ours, and nothing that is written."""
    import torch

    return {
        "output_dir": str(work.folder), "max_steps": FOREVER, "bf16": work.compute == "bfloat16",
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "report_to": [], "save_strategy": "no",
        "logging_steps": FOREVER, "use_cpu": not torch.cuda.is_available(), "disable_tqdm": True,
        "dataloader_pin_memory": False, "adam_beta2": work.study.train.adam_beta2,
        "model_init_kwargs": {"dtype": "float32"},
    }  # fmt: skip


def without_vllm() -> None:
    """As where vLLM is not installed, which TRL then neither imports nor needs."""
    availability = importlib.import_module("trl.import_utils")
    availability.is_vllm_available = lambda *_, **__: False  # type: ignore[attr-defined]


def trl_grpo(
    work: Work, wait: Callable[[], Any], tell: Callable[[dict[str, Any]], None], *, device_batch: int = 8,
    **changes: Any,
) -> None:  # fmt: skip
    """Steps of TRL's GRPOTrainer; `changes` are further settings of GRPOConfig, whose batch of a device is 8."""
    import torch
    from datasets import Dataset

    from uniapl.constraints import verify_all

    if not changes.get("use_vllm"):
        without_vllm()
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(work.threads)
    callback, noted = pace(work, wait, tell)
    num_prompts, num_rollouts, new_tokens = (work.sizes[name] for name in ("prompts", "rollouts", "new_tokens"))
    prompts = [prompt for step in range(DATASET_STEPS) for prompt in work.prompts_at(FIRST_STEP + step)]

    def reward(completions: list[Any], completion_ids: list[list[int]], place: list[int], **_: Any) -> list[float]:
        began = time.perf_counter()
        if work.kept:
            rewards = [reward_by_place(index % num_rollouts) for index in range(len(completions))]
        else:
            answers = [(prompts[i].constraints, one[0]["content"]) for i, one in zip(place, completions, strict=True)]
            rewards = [float(verdict.passed or 0) for verdict in verify_all(answers)]
        groups = [rewards[i : i + num_rollouts] for i in range(0, len(rewards), num_rollouts)]
        tokens = sum(map(len, completion_ids))
        noted.update(
            flat_share=sum(len(set(group)) == 1 for group in groups) / len(groups), tokens_generated=tokens,
            tokens_trained=tokens, score=time.perf_counter() - began,
        )  # fmt: skip
        return rewards

    device_batch = min(device_batch, num_prompts * num_rollouts)
    if num_prompts * num_rollouts % device_batch:
        raise ValueError(f"a step of {num_prompts * num_rollouts} answers is no multiple of a device's {device_batch}")
    options = shared_options(work) | {
        "num_generations": num_rollouts, "max_completion_length": new_tokens, "shuffle_dataset": False,
        "generation_kwargs": {"min_new_tokens": new_tokens} if work.kept else None,
        "temperature": work.study.train.temperature,
        "per_device_train_batch_size": device_batch,
        "gradient_accumulation_steps": num_prompts * num_rollouts // device_batch,
    }  # fmt: skip
    rows = [{"prompt": [{"role": "user", "content": one.text}], "place": i} for i, one in enumerate(prompts)]
    trainer = GRPOTrainer(
        model=str(work.model), reward_funcs=reward, args=GRPOConfig(**(options | changes)),
        train_dataset=Dataset.from_list(rows), callbacks=[callback],
    )  # fmt: skip
    generate = trainer._generate

    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return generate(*arguments, **named)
        finally:
            noted["sample"] += time.perf_counter() - began

    trainer._generate = timed
    trainer.train()


def trl_sft(work: Work, wait: Callable[[], Any], tell: Callable[[dict[str, Any]], None], **changes: Any) -> None:
    """Steps of TRL's SFTTrainer with packing, each on all of the work's demonstrations, loss on completions only.

    The token ids are ours, so that both sides train on the same; a device's batch is one packed row.
    """
    import torch
    from datasets import Dataset

    from uniapl import chat
    from uniapl.models import load_tokenizer

    without_vllm()
    from trl import SFTConfig, SFTTrainer, pack_dataset

    torch.set_num_threads(work.threads)
    callback, noted = pace(work, wait, tell)
    tokenizer, rows = load_tokenizer(work.model), []
    for prompt, shown in zip(work.prompts, work.demonstrations, strict=True):
        before, answer = chat.prompt_ids(tokenizer, prompt.text), chat.completion_ids(tokenizer, shown.text)
        rows.append({"input_ids": before + answer, "labels": [-100] * len(before) + answer})
    noted["tokens_trained"] = sum(label != -100 for row in rows for label in row["labels"])
    data = Dataset.from_list(rows)
    options = shared_options(work) | {
        "packing": True, "max_length": PACKED_TOKENS, "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": len(pack_dataset(data, PACKED_TOKENS)),
    }  # fmt: skip
    trainer = SFTTrainer(
        model=str(work.model), args=SFTConfig(**(options | changes)), train_dataset=data, callbacks=[callback]
    )
    trainer.train()
