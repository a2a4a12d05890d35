"""A real step at the tests' scale: tiny random Qwen3, HF sampler, prompts met by random text half the time."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from uniapl import models, train
from uniapl.config import MachineSpec, ModelSpec, StageSpec, TrainSpec
from uniapl.generate import generate_split
from uniapl.layers import load_stage, load_study
from uniapl.models import weights_directory
from uniapl.provenance import content_hash, read_manifest
from uniapl.records import Demonstration, Prompt, write_jsonl
from uniapl.runlog import TIMES, read_rows
from uniapl.sampler_hf import HFSampler
from uniapl.train import Expert, Loop, open_policy
from uniapl.update import Policy

MAX_NEW_TOKENS = 12
LAYOUT = ("micro_batch_tokens", "packing")
Row = dict[str, Any]


class HashDiscriminator:
    """Scores between -2 and 2 that are a function of the texts; higher means nothing here."""

    shift, scale = 0.1, 0.7

    def score(self, prompts: list[str], references: list[str], candidates: list[str]) -> list[float]:
        texts = ["\n".join(three) for three in zip(prompts, references, candidates, strict=True)]
        return [int(hashlib.sha256(t.encode()).hexdigest()[:8], 16) / 2**30 - 2 for t in texts]


class NanDiscriminator:
    """A discriminator that is broken, but whose term is switched off."""

    shift, scale = math.nan, math.nan

    def score(self, prompts: list[str], references: list[str], candidates: list[str]) -> list[float]:
        return [math.nan] * len(candidates)


@dataclass
class Setting:
    """Model, prompts and demonstrations that the steps use; everything that a run changes is made anew from it."""

    model_directory: Path
    prompts: list[Prompt]
    demonstrations: list[Demonstration]
    of_discriminator: list[Prompt]

    def policy(self, stage: StageSpec, *, machine: MachineSpec | None = None, **settings: Any) -> Policy:
        """`settings` are of TrainSpec, but for what says how micro-batches are laid out, which is the machine's."""
        weights = weights_directory(self.model_directory)
        of_train, layout = parted(settings)
        return open_policy(
            weights, weights, train_spec(**of_train), stage, max_new_tokens=MAX_NEW_TOKENS, compute="float32",
            machine=(machine or MachineSpec()).model_copy(update=layout),
        )  # fmt: skip

    def loop(self, directory: Path, stage: StageSpec, discriminator: Any, *, seed: int = 0, **settings: Any) -> Loop:
        sampler = HFSampler(weights_directory(self.model_directory), max_sequences=64, dtype="float32")
        expert = Expert({p.id: p for p in self.prompts}, {d.prompt_id: d for d in self.demonstrations})
        return Loop(directory, stage, (seed, 0), self.policy(stage, **settings), sampler, discriminator, expert)


def make_setting(directory: Path) -> Setting:
    """The smoke study's tiny model, made in a directory, and prompts with an answer."""
    models.main(directory, {"model": tiny_model().model_dump()})
    data = load_study("smoke").data.model_copy(update={"max_new_tokens": MAX_NEW_TOKENS})
    *prompts, head, test = generate_split(data, "train", 18)
    demonstrations = [
        Demonstration(p.id, p.split, 0, f"Here is {p.topic}, in {i + 3} plain words.", "", (), (True,), 10)
        for i, p in enumerate(prompts)
    ]
    return Setting(directory, prompts, demonstrations, [head, test])


def tiny_model() -> ModelSpec:
    """The smoke study's smaller model."""
    return next(model for model in load_study("smoke").models if model.name == "tiny_qwen3")


class Run:
    """A run directory with its inputs on disk, trained by the command's own main function; settings as of a policy."""

    def __init__(
        self, root: Path, setting: Setting, stage: StageSpec, *, config: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        prompts = len(setting.prompts)
        of_train, self.layout = parted(settings)
        data = {
            "max_new_tokens": MAX_NEW_TOKENS, "kinds": "coin_flip", "num_train": prompts + 2, "num_development": 1,
            "num_heldout": 1, "num_policy": prompts, "num_discriminator": 1, "num_discriminator_test": 1,
        }  # fmt: skip
        self.config = {
            "path": [stage.model_dump(exclude={"title"})], "train": train_spec(**of_train).model_dump(), "data": data,
            "sampler": {"kind": "hf"}, "seed": 0, "compute": "float32", "discriminator": {"layer": 1}, "scale": "smoke",
            "model": tiny_model().model_dump(), "teacher": {"kind": "editor", "drafts": "canned"},
        } | (config or {})  # fmt: skip
        self.root, self.model_directory = root, setting.model_directory
        write_jsonl(root / "train.jsonl", [*setting.prompts, *setting.of_discriminator])
        write_jsonl(root / "demonstrations.jsonl", setting.demonstrations)
        self.directory = root / f"main-{content_hash(self.config)}" / "seed0"
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "config.json").write_text(json.dumps(self.config))

    def inputs(self) -> dict[str, Path]:
        """What the command reads, by the name of its option."""
        return {
            "model": self.model_directory, "data": self.root, "demonstrations": self.root, "discriminator": self.root,
        }  # fmt: skip

    def train(self, machine: MachineSpec | None = None) -> None:
        """What `python -m uniapl.train` calls."""
        machine = (machine or MachineSpec()).model_copy(update=self.layout)
        train.main(self.directory, self.config, **self.inputs(), machine=machine)

    def outcome(self) -> tuple[list[Row], str, dict[str, Any]]:
        """Rows without times, the weights' hash, and the kept rollouts."""
        rows = read_rows(self.directory / "metrics.jsonl")
        rollouts = pd.read_parquet(self.directory / "rollouts.parquet")
        return timeless(rows), read_manifest(self.directory)["weight_sha256"], rollouts.to_dict()


def train_spec(**changes: Any) -> TrainSpec:
    values: dict[str, Any] = {"checkpoint_every": 2, "probe_every": 2}
    return TrainSpec(**(values | changes))


def parted(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of TrainSpec, and those of MachineSpec that say how micro-batches are laid out."""
    layout = {"micro_batch_tokens": 1024} | {k: settings[k] for k in LAYOUT if k in settings}
    return {k: v for k, v in settings.items() if k not in LAYOUT}, layout


# Of the tests' stages; the learning rate visibly moves the weights.
SIZES: dict[str, Any] = {
    "steps": 5, "learning_rate": 1e-3, "prompts_per_step": 3, "rollouts_per_prompt": 4, "demonstrations_per_step": 4,
}  # fmt: skip


def stage_spec(name: str, **changes: Any) -> StageSpec:
    """A stage of these sizes, of GRPO where nothing else is said."""
    return StageSpec(**({"name": name, "title": name, "mu": 0.0} | SIZES | changes))


def stage_of_file(name: str, **changes: Any) -> StageSpec:
    """A stage as its file in config/methods says, but for the sizes and what is changed."""
    return load_stage(name, [("the tests", {"stages": {name: SIZES | changes}})], "the tests")


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def run_loop(loop: Loop, *, steps: int = 5) -> list[Row]:
    """Rows of the first steps, checked not to be vacuous: groups have spread, gradients and moved weights."""
    before = weights_of(loop.policy.model)
    rows = [loop.step(step)[0] for step in range(steps)]
    assert_not_vacuous(rows)
    assert not same_bits(before, weights_of(loop.policy.model))
    return rows


def assert_not_vacuous(rows: Sequence[Row]) -> None:
    flat = [row["groups/flat_share"] for row in rows]
    assert sum(flat) / len(flat) <= 0.5, f"more than half of the groups have no spread: {flat}"
    assert all(row["grad/norm"] > 1e-3 for row in rows)


def without(row: Row, names: Sequence[str]) -> Row:
    return {name: value for name, value in row.items() if name not in names}


def timeless(rows: Sequence[Row]) -> list[Row]:
    """Rows without the fields that hold times."""
    return [without(row, TIMES) for row in rows]
