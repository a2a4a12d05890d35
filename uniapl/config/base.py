"""What every config section is built from, and the student models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
LOGITS_BYTES = 128 * 2**20  # keeps a GPU busy; 4,096 words for 8,192 tokens
KEPT_LOGITS_BYTES = 2**28  # spares small models the product; 883 tokens of Qwen3's vocabulary in bfloat16


class ConfigError(ValueError):
    """A user's mistake in a config file: one line that names file, key, value and remedy."""


class Spec(BaseModel):
    """Base of every config section: unknown keys are errors, values are never changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def later(default: Any, **said: Any) -> Any:
    """A field that came after studies were released: at its default it is in no dump, so their hashes stay."""
    return Field(default, exclude_if=lambda value: value == default, **said)


class ModelSpec(Spec):
    """One student model; a file in config/models/."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="Name in directories and tables.")
    title: str = Field(description="Name in figures and reports.")
    source: Literal["package_gguf", "random", "path", "hub"] = Field(description="Where the weights come from.")
    package: str | None = Field(None, description="Python package that ships the GGUF file (source: package_gguf).")
    file: str | None = Field(None, description="File inside that package (source: package_gguf).")
    location: str | None = Field(None, description="Folder or hub id (sources path and hub).")
    revision: str | None = Field(None, description="Pinned commit on the hub (source: hub).")
    architecture: dict[str, Any] = Field({}, description="Fields of the model's transformers config (source: random).")
    seed: int = Field(0, description="Seed of random weights (source: random).")

    @model_validator(mode="after")
    def _complete(self) -> ModelSpec:
        needed = {"package_gguf": ("package", "file"), "random": ("architecture", "package", "file")}
        needed |= {"path": ("location",), "hub": ("location", "revision")}
        for key in needed[self.source]:
            if not getattr(self, key):
                raise ValueError(f"source {self.source} needs '{key}'")
        return self
