"""The prompt sets."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from uniapl.config.base import Count, Fraction, Positive, Spec
from uniapl.config.evaluation import BenchmarkSpec


class AutoIFSpec(Spec):
    """AutoIF's pipeline (arXiv 2406.13542); the paper trains on its data, how much and how made is not stated."""

    augmentations: Positive = Field(20, description="Requests for 50 new instructions each; ours.")
    functions_per_instruction: int = Field(8, ge=1, le=16, description="K verification functions asked for; ours.")
    min_functions: Positive = Field(3, description="Different functions that an instruction needs; the authors'.")
    min_cases: Positive = Field(10, description="Different test cases that an instruction needs; the authors'.")
    agreement: Fraction = Field(0.8, description="Share of the kept cases that a function must pass; the authors'.")
    queries_per_instruction: Positive = Field(16, description="Queries that an instruction is put to; the authors'.")
    answers_per_prompt: Count = Field(
        4, description="Answers asked for, of which one must pass; 0: prompts are kept without trying; ours."
    )
    min_score: Count = Field(8, le=10, description="An answer's score must be above it; the authors'.")
    max_prompts: Positive = Field(20000, description="Most prompts that are kept; ours.")
    seed: int = Field(0, description="Seed of orders and requests.")
    max_reply_tokens: Positive = Field(2048, description="Cap on a reply of the teacher; ours.")
    items: str | None = Field(
        None,
        description="File of items made before, like the authors' query_rft.jsonl, relative to the project's folder; "
        "no teacher is asked then.",
    )


class IFRLVRSpec(Spec):
    """IFBench's training set (IF-RLVR, arXiv 2507.02833; ODC-BY); how much of it the paper uses is not stated."""

    hub: str = Field("allenai/IF_multi_constraints_upto5", description="Data set on the hub.")
    revision: str = Field("main", description="Its commit; `uniapl fetch` names the one to pin.")
    location: str | None = Field(
        None, description="Folder with its parquet files that is read instead; relative to the project's folder."
    )
    max_prompts: Positive = Field(20000, description="Most prompts that are kept, drawn by data.seed; ours.")


class DataSpec(Spec):
    """The prompt sets. Reward is binary, one verification function per instruction (reviews)."""

    seed: int = Field(0, description="Seed of the prompt generator.")
    max_new_tokens: Positive = Field(description="Cap on an answer, shared by teacher, training and evaluation; ours.")
    kinds: Literal["study", "coin_flip", "ifeval"] = Field(
        "study",
        description="Constraint kinds: the study's, those that random text meets half the time (smoke), IFEval's 25.",
    )
    num_train: Positive = Field(description="Training prompts generated; other sources come beside them.")
    num_development: Positive = Field(description="Development prompts: the only ones that choices are made on.")
    num_heldout: Positive = Field(
        description="Held-out prompts, half of them with constraint kinds unseen in training."
    )
    num_ifbench: Count = Field(294, description="IFBench prompts from the package, the first n (transfer test).")
    max_constraints: int = Field(3, ge=1, le=3, description="Most constraints a prompt carries.")
    num_policy: Positive = Field(
        description="Training prompts that get a demonstration and train the policies; fewer where filters left fewer."
    )
    num_discriminator: Positive = Field(description="Training prompts that only train the discriminator's head.")
    num_discriminator_test: Positive = Field(description="Training prompts that only measure the discriminator's AUC.")

    max_prompt_bytes: Positive | None = Field(
        None, description="Longest prompt of AutoIF and IF-RLVR, UTF-8; a token has at least one byte; null: any."
    )
    autoif: AutoIFSpec | None = Field(None, description="AutoIF's prompts beside the generated ones; null: none.")
    if_rlvr: IFRLVRSpec | None = Field(None, description="IFBench's training set beside them; null: none.")
    decontaminate_against: tuple[str, ...] = Field(
        (), description="Benchmarks (files of config/evals); a training prompt that shares text with one is left out."
    )
    benchmarks: dict[str, BenchmarkSpec] = Field({}, description="Where the data of those lie; filled in.")

    def policies_among(self, num_prompts: int) -> int:
        """How many of so many training prompts train the policies: `num_policy`, or what the discriminator leaves.

        Raise ValueError where it leaves none.
        """
        judged = self.num_discriminator + self.num_discriminator_test
        if num_prompts <= judged:
            raise ValueError(
                f"only {num_prompts} training prompts are left, of which {judged} are the discriminator's; "
                f"raise data.num_train, or lower data.num_discriminator"
            )
        return min(self.num_policy, num_prompts - judged)

    @model_serializer(mode="wrap")
    def _of_what_is_used(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What a study does not use stands in no config.json, so that a source more renames no directory."""
        optional = ("max_prompt_bytes", "autoif", "if_rlvr", "decontaminate_against", "benchmarks")
        return {key: value for key, value in dump(self).items() if value or key not in optional}

    @model_validator(mode="after")
    def _enough(self) -> DataSpec:
        used = self.num_policy + self.num_discriminator + self.num_discriminator_test
        others = [one.max_prompts for one in (self.autoif, self.if_rlvr) if one]
        if used > self.num_train + sum(others):
            beside = f" and max_prompts of the other sources ({' + '.join(map(str, others))})" if others else ""
            raise ValueError(
                f"num_policy + num_discriminator + num_discriminator_test = {used} "
                f"is more than num_train = {self.num_train}{beside}"
            )
        return self
