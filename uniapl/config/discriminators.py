"""The fixed discriminators."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from uniapl.config.base import Count, Positive, Spec, later


class HeadSpec(Spec):
    """A small head that is trained to tell the expert's answers from the base model's."""

    width: Positive = Field(64, description="Width of the head's hidden layer; ours.")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW on the head; ours.")
    weight_decay: float = Field(0.1, ge=0, description="AdamW on the head; ours.")
    epochs: Positive = Field(60, description="Passes over the head's training pairs; ours.")
    num_negatives: Positive = Field(3, description="Base samples of the same prompt per pair; ours.")
    seed: int = Field(0, description="Seed of the head.")


class FeaturesSpec(HeadSpec):
    """The fixed discriminator at laptop scale: a small head over the frozen base model's states."""

    kind: Literal["features"] = Field("features", description="features: pooled hidden states and a small head.")
    layer: Positive | None = Field(
        None, description="Hidden layer whose states are pooled (counted from 1); the middle one, if none; ours."
    )
    num_components: Positive = Field(
        64, description="Principal components of the pooled states that the head reads; ours."
    )
    micro_batch_tokens: Positive = Field(4096, description="Tokens per forward of the frozen model; speed only.")
    cotrained_prompts: Count = later(
        0, description="Prompts of its own a step on whose answers by the policy the head learns on; 0: it is fixed."
    )


def pooled_layer(layer: int | None, layers: int) -> int:
    """The layer that `FeaturesSpec.layer` means in a model with so many."""
    return layer or max(1, layers // 2)


class ControlSpec(HeadSpec):
    """A control: the same head, trained alike, over what says little or nothing of the expert."""

    kind: Literal["control"] = Field(description="control: numbers of a text instead of a model's states.")
    reads: Literal["length", "noise"] = Field(description="A text's number of tokens, or noise drawn for each text.")


class PolarSpec(Spec):
    """The fixed discriminator of the paper: POLAR, as published; how the paper modified it is not stated."""

    kind: Literal["polar"] = Field("polar", description="polar: InternLM/POLAR; scores are unbounded logits.")
    source: Literal["path", "hub"] = Field("hub", description="Where the checkpoint is; hub: its local cache.")
    location: str = Field(min_length=1, description="Folder or hub id.")
    revision: str | None = Field(None, description="Pinned commit on the hub (source: hub).")
    dtype: Literal["float16", "bfloat16", "float32"] = Field(
        "float16", description="Type of the decoder; float16 as in POLAR-7B's config.json; the head is float32."
    )
    max_length: Positive = Field(16384, description="Most tokens of a scored text; POLAR's own client.")
    max_response_length: Positive = Field(
        4096, description="Most tokens of the reference, and of the candidate; their heads are kept, as in POLAR."
    )
    micro_batch_tokens: Positive = Field(16384, description="Tokens per forward, or of a request; speed only.")
    seed: int = Field(0, description="Seed of the AUC's bootstrap.")

    @model_validator(mode="after")
    def _complete(self) -> PolarSpec:
        if self.source == "hub" and not self.revision:
            raise ValueError("source hub needs 'revision'")
        return self


DiscriminatorSpec = FeaturesSpec | ControlSpec | PolarSpec
DISCRIMINATOR_KINDS: dict[str, type[FeaturesSpec] | type[ControlSpec] | type[PolarSpec]] = {
    "features": FeaturesSpec, "control": ControlSpec, "polar": PolarSpec,
}  # fmt: skip


def read_discriminator(values: dict[str, Any]) -> DiscriminatorSpec:
    """A discriminator out of a config.json."""
    return DISCRIMINATOR_KINDS[values.get("kind", "features")].model_validate(values)
