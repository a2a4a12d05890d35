"""The prompt sets."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from uniapl.config.base import Count, Fraction, Positive, Spec


class DataSpec(Spec):
    """The prompt sets. Reward is binary, one verification function per instruction (reviews)."""

    seed: int = Field(0, description="Seed of the prompt generator.")
    max_new_tokens: Positive = Field(description="Cap on an answer, shared by teacher, training and evaluation; ours.")
    kinds: Literal["study", "coin_flip"] = Field(
        "study", description="Constraint kinds: the study's, or those random text meets about half the time (smoke)."
    )
    num_train: Positive = Field(description="Training prompts generated.")
    num_development: Positive = Field(description="Development prompts: the only ones that choices are made on.")
    num_heldout: Positive = Field(
        description="Held-out prompts, half of them with constraint kinds unseen in training."
    )
    num_ifbench: Count = Field(294, description="IFBench prompts from the package, the first n (transfer test).")
    max_constraints: int = Field(3, ge=1, le=3, description="Most constraints a prompt carries.")
    num_policy: Positive = Field(description="Training prompts that get a demonstration and train the policies.")
    num_discriminator: Positive = Field(description="Training prompts that only train the discriminator's head.")
    num_discriminator_test: Positive = Field(description="Training prompts that only measure the discriminator's AUC.")

    @model_validator(mode="after")
    def _enough(self) -> DataSpec:
        used = self.num_policy + self.num_discriminator + self.num_discriminator_test
        if used > self.num_train:
            raise ValueError(
                f"num_policy + num_discriminator + num_discriminator_test = {used} "
                f"is more than num_train = {self.num_train}"
            )
        return self


class AutoIFSpec(Spec):
    """AutoIF's pipeline (arXiv 2406.13542); the paper trains on its data, how much and how made is not stated."""

    augmentations: Positive = Field(20, description="Requests for 50 new instructions each; ours.")
    functions_per_instruction: Positive = Field(8, description="K verification functions asked for; ours.")
    min_functions: Positive = Field(3, description="Different functions that an instruction needs; the authors'.")
    min_cases: Positive = Field(10, description="Different test cases that an instruction needs; the authors'.")
    agreement: Fraction = Field(0.8, description="Share of the kept cases that a function must pass; the authors'.")
    queries_per_instruction: Positive = Field(16, description="Queries that an instruction is put to; the authors'.")
    answers_per_prompt: Positive = Field(4, description="Answers asked for, of which one must pass; ours.")
    min_score: Count = Field(8, le=10, description="An answer's score must be above it; the authors'.")
    max_prompts: Positive = Field(20000, description="Most prompts that are kept; ours.")
    seed: int = Field(0, description="Seed of orders and requests.")
