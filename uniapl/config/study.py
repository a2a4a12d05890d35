"""One scale, resolved."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from uniapl.config.base import ModelSpec, Positive, Spec
from uniapl.config.data import DataSpec
from uniapl.config.discriminators import DiscriminatorSpec
from uniapl.config.evaluation import ClaimSpec, EvalSpec
from uniapl.config.teachers import EditorSpec, TeacherSpec
from uniapl.config.training import MachineSpec, SamplerSpec, StageSpec, TrainSpec

TEMPLATE_TOKENS = 64  # more than a chat template puts around a message


Size = Literal["steps", "prompts_per_step", "rollouts_per_prompt", "demonstrations_per_step"]
Expert = Annotated[TeacherSpec, Field(discriminator="kind")]
Judge = Annotated[DiscriminatorSpec, Field(discriminator="kind")]


class VariantSpec(Spec):
    """What one variant of an ablation changes of the study; everything else is as in the main run."""

    stages: dict[str, dict[str, Any]] = Field({}, description="Keys of a method's stages, by the stage's name.")
    times: dict[str, dict[Size, float]] = Field({}, description="Sizes of stages, as multiples of the scale's own.")
    teacher: Expert | None = Field(None, description="A file of config/teachers, for training; never for evaluation.")
    discriminator: Judge | None = Field(None, description="A file of config/discriminators, or keys of the study's.")


class AblationSpec(Spec):
    """One ablation; a file in config/ablations/."""

    title: str
    methods: tuple[str, ...] = Field(min_length=1, description="Paths that each variant is trained on.")
    beside: tuple[str, ...] = Field((), description="Paths whose main runs its tables and figures compare with.")
    num_seeds: Positive = Field(2, description="Training seeds of its variants: the study's first ones.")
    variants: dict[str, VariantSpec] = Field(min_length=1)


class Study(Spec):
    """One scale, resolved: everything that `snakemake --cores all` will do."""

    scale: Literal["smoke", "laptop", "paper"]
    models: tuple[ModelSpec, ...] = Field(min_length=1)
    methods: tuple[str, ...] = Field(min_length=1, description="Paths of stages, written with dots.")
    ablations: dict[str, AblationSpec] = Field({}, description="Files of config/ablations, with their variants.")
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    more_seeds: dict[str, tuple[int, ...]] = Field({}, description="Further training seeds of single methods.")
    stages: dict[str, StageSpec] = Field(description="By name; steps and sizes may be set by the scale.")
    paths: dict[str, dict[str, Any]] = Field({}, description="Overrides of the last stage of one path.")
    data: DataSpec
    teacher: Expert
    discriminator: Judge
    sampler: SamplerSpec
    compute: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="Type of matrix products (weights stay float32); auto: bfloat16 where it is faster, or that of the "
        "released runs that are taken.",
    )
    train: TrainSpec
    evaluation: EvalSpec
    machine: MachineSpec = MachineSpec()
    claims: ClaimSpec
    cost: str = Field(description="One line: minutes, disk and memory of the whole scale, measured.")

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """The training seeds of a method's main run, each once."""
        return tuple(dict.fromkeys((*self.seeds, *self.more_seeds.get(method, ()))))

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
