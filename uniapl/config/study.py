"""One scale, resolved."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from uniapl.config.base import ModelSpec, Spec
from uniapl.config.data import DataSpec
from uniapl.config.discriminators import DiscriminatorSpec
from uniapl.config.evaluation import ClaimSpec, EvalSpec
from uniapl.config.teachers import EditorSpec, TeacherSpec
from uniapl.config.training import MachineSpec, SamplerSpec, StageSpec, TrainSpec

TEMPLATE_TOKENS = 64  # more than a chat template puts around a message


class Study(Spec):
    """One scale, resolved: everything that `snakemake --cores all` will do."""

    scale: Literal["smoke", "laptop", "paper"]
    models: tuple[ModelSpec, ...] = Field(min_length=1)
    methods: tuple[str, ...] = Field(min_length=1, description="Paths of stages, written with dots.")
    ablations: tuple[str, ...] = Field((), description="Files of config/ablations run by the target `ablations`.")
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    stages: dict[str, StageSpec] = Field(description="By name; steps and sizes may be set by the scale.")
    paths: dict[str, dict[str, Any]] = Field({}, description="Overrides of the last stage of one path.")
    data: DataSpec
    teacher: Annotated[TeacherSpec, Field(discriminator="kind")]
    discriminator: Annotated[DiscriminatorSpec, Field(discriminator="kind")]
    sampler: SamplerSpec
    compute: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="Type of matrix products (weights stay float32); auto: bfloat16 where it is faster."
    )
    train: TrainSpec
    evaluation: EvalSpec
    machine: MachineSpec = MachineSpec()
    claims: ClaimSpec
    cost: str = Field(description="One line: minutes, disk and memory of the whole scale, measured.")

    @model_validator(mode="after")
    def _chat_teacher(self) -> Study:
        if self.data.autoif is not None and self.data.autoif.items is None and isinstance(self.teacher, EditorSpec):
            raise ValueError(
                "data.autoif asks the teacher, and teacher 'editor' cannot be asked: name another teacher, or a file "
                "of items in data.autoif.items"
            )
        return self

    @model_validator(mode="after")
    def _room_for_prompts(self) -> Study:
        data, room = self.data, self.sampler.max_model_tokens - self.data.max_new_tokens - TEMPLATE_TOKENS
        if (data.autoif or data.if_rlvr) and (data.max_prompt_bytes is None or data.max_prompt_bytes > room):
            raise ValueError(
                f"data.max_prompt_bytes = {data.max_prompt_bytes}: with data.autoif or data.if_rlvr it must be at most "
                f"{room}, so that prompt and answer fit sampler.max_model_tokens = {self.sampler.max_model_tokens}; "
                f"lower it, or raise that"
            )
        return self
