"""How much disk a study takes, from the shapes of its models: what `uniapl doctor` holds against the free space.

Imports nothing heavy. Not counted: benchmarks of the hub, the environment, and Snakemake's own records.
"""

from __future__ import annotations

from dataclasses import dataclass

from uniapl.config import ModelSpec, VLLMSpec
from uniapl.estimate.work import MIXTURES
from uniapl.plan import Plan
from uniapl.shapes import find_polar_shape, find_shape

RUN_BYTES_PER_PARAMETER = 4  # an exported run, float32
CHECKPOINT_BYTES_PER_PARAMETER = 12  # weights and AdamW's moments; the one before stays until a new one is whole
STORED_BYTES_PER_PARAMETER = 2  # bfloat16 on the hub; a base model's copy has the type of its source
TEXT_BYTES_PER_TOKEN = 4  # of English, about
SPARE_BYTES = 2 * 2**30  # logs, verdicts and scores beside the texts


@dataclass(frozen=True)
class Disk:
    """Bytes at the moment when most is there: the last of the runs is being trained."""

    base_models: int
    runs: int
    checkpoints: int
    texts: int  # answers, demonstrations, rollouts that are kept
    hub: int  # the hub's cache: models, POLAR, a local teacher

    @property
    def results(self) -> int:
        """Below results/<scale>, with something to spare."""
        return self.base_models + self.runs + self.checkpoints + self.texts + SPARE_BYTES


def parameters_of(model: ModelSpec) -> int:
    """Parameters of a model, also of a mixture of experts; 0 where its shape is not known."""
    if str(model.location) in MIXTURES:
        return MIXTURES[str(model.location)].parameters
    shape = find_shape(model)
    return shape.parameters if shape else 0


def disk_of(plan: Plan, *, runs_at_once: int, text_tokens: float = 0) -> Disk:
    """The parts of what a plan makes. `text_tokens` are those of all demonstrations and answers that are kept."""
    study, runs = plan.study, list(filter(plan.makes, plan.runs))
    sizes = {model.name: parameters_of(model) for model in study.models}
    models = [model for model in study.models if plan.makes(plan.models[model.name])]
    stored = {m.name: STORED_BYTES_PER_PARAMETER if m.source == "hub" else 4 for m in models}
    hub = sum(STORED_BYTES_PER_PARAMETER * sizes[m.name] for m in models if m.source == "hub")
    if study.discriminator.kind == "polar" and study.discriminator.source == "hub":
        polar = find_polar_shape(study.discriminator)
        hub += STORED_BYTES_PER_PARAMETER * polar.parameters if polar else 0
    if isinstance(study.teacher, VLLMSpec) and study.teacher.model.source == "hub":
        hub += STORED_BYTES_PER_PARAMETER * parameters_of(study.teacher.model)
    kept = (1 + study.machine.checkpoints_kept) * min(runs_at_once, len(runs))
    return Disk(
        base_models=sum(size * sizes[name] for name, size in stored.items()),
        runs=sum(RUN_BYTES_PER_PARAMETER * sizes[run.model] for run in runs),
        checkpoints=kept * CHECKPOINT_BYTES_PER_PARAMETER * max(sizes.values()),
        texts=int(TEXT_BYTES_PER_TOKEN * text_tokens),
        hub=hub,
    )
