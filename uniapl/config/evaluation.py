"""Benchmarks, published references, and the tolerances of the claims."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from uniapl.config.base import Count, Positive, Spec, later


class BenchmarkSpec(Spec):
    """A benchmark; a file in config/evals/. Its source is pinned: a package, or a commit of the hub."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$", description="lm-eval's name of the task.")
    title: str = Field(description="Name in tables and messages.")
    package: str | None = Field(None, description="Python package that ships the data.")
    hub: str | None = Field(None, description="Data set on the hub.")
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$", description="Its pinned commit.")
    location: str | None = Field(
        None, description="Folder or zip archive that is read instead; relative to the project's folder."
    )
    files: dict[str, str] = Field(
        min_length=1,
        description="File of each split, in there: .jsonl, .csv, .parquet or .gz; * and {subject} stand open.",
    )
    question: str = Field(
        "", pattern=r"^(\w+\.\w+)?$", description="SPLIT.COLUMN of its questions, which nothing is to be trained on."
    )
    columns: tuple[str, ...] = Field((), description="Names of a csv file's columns, where it has no header.")
    num_fewshot: Count | None = Field(None, description="Examples before a question; None: lm-eval's own number.")
    max_new_tokens: Positive | None = Field(None, description="Cap on an answer; None: lm-eval's own.")
    known: dict[str, str] = Field({}, description="What files are by their sha256; others are used with a warning.")

    @model_validator(mode="after")
    def _pinned(self) -> BenchmarkSpec:
        if not self.location and not self.package and not (self.hub and self.revision):
            raise ValueError(f"benchmark {self.name} needs 'package', 'hub' with 'revision', or 'location'")
        return self


class EvalSpec(Spec):
    """Evaluation through lm-eval, greedy. `development` is for choices; the others are held out."""

    tasks: tuple[str, ...] = Field(
        ("heldout", "ifbench"), description="Tasks of uniapl/tasks or any lm-eval task name."
    )
    variant_tasks: tuple[str, ...] | None = later(None, description="Those of an ablation's variants; all, if none.")
    ifbench_max_new_tokens: Positive = Field(128, description="IFBench's own cap.")
    limit: Positive | None = Field(None, description="Only the first n questions of each task, for trials.")
    benchmarks: dict[str, BenchmarkSpec] = Field(
        {}, description="Where the data of evaluated benchmarks lie: config/evals, and what a study changes of it."
    )

    def of(self, variant: str) -> EvalSpec:
        """What is asked of a main run (`main`) or of an ablation's variant."""
        fewer = variant != "main" and self.variant_tasks is not None
        return self.model_copy(update={"tasks": self.variant_tasks if fewer else self.tasks, "variant_tasks": None})


class ReferenceSpec(Spec):
    """A published score of a base model."""

    task: str = Field(description="lm-eval's name of the task.")
    metrics: tuple[str, ...] = Field(min_length=1, description="Accuracies of ours whose mean is what was published.")
    score: float = Field(ge=0, le=100, description="Percent.")
    source: str = Field(min_length=1, description="Where it was published, and the set-up.")
    no_check: str = Field("", description="Why a difference would say nothing of this stack.")


class ComparedSpec(Spec):
    """A published score of a model that a claim compares with and that no study evaluates itself."""

    claim: Literal["C3", "C4"]
    title: str = Field(min_length=1, description="Name in the claim table.")
    teacher: str | None = Field(None, description="Hub id; the comparison is made only where it is the study's expert.")
    task: str = Field(description="lm-eval's name of the task.")
    score: float = Field(ge=0, le=100, description="Prompt strict accuracy, percent.")
    source: str = Field(min_length=1, description="Where it was published, and the set-up.")


class ReferencesSpec(Spec):
    """config/references.yaml: published scores by model, and how far ours may be off."""

    tolerance_points: float = Field(gt=0, description="Largest difference that needs no explanation.")
    models: dict[str, tuple[ReferenceSpec, ...]]
    compared: tuple[ComparedSpec, ...] = Field((), description="What claims C3 and C4 compare with.")


class ClaimSpec(Spec):
    """Tolerances of the claim table: config/default.yaml states them, docs/paper_map.md says since when.

    Points are percentage points of prompt-strict accuracy.
    """

    confidence: float = Field(0.95, gt=0.5, lt=1, description="Of every interval; a p must be below 1 less this.")
    evaluation: Literal["heldout", "ifbench", "ifeval"] = Field(
        "heldout", description="C1 to C4 are judged on it; the paper's is IFEval, which scale paper evaluates."
    )
    gain_points: float = later(0.0, ge=0, description="C1, C2, C4, C7: a gain counts if its interval is above.")
    match_margin_points: float = Field(
        ge=0, description="C3: a score lower by up to this counts as a match (lower end of interval); ours."
    )
    kept_margin_points: float = Field(ge=0, description="C9: a loss up to this counts as kept (lower end of interval).")
    distance_margin: float = Field(ge=0, description="C5, C6: least reduction of Wasserstein distance that counts.")
    degrade_points: float = Field(ge=0, description="C8: least loss that counts as degradation.")
    equivalence_points: float = Field(
        gt=0, description="Controls: an interval within this of 0 on both sides is called equal; ours."
    )
    num_resamples: Positive = Field(9999, description="Bootstrap and permutation draws.")
    seed: int = Field(0, description="Of these draws; every statistic has a stream of its own.")
