"""From a Study to directories: every artefact's config.json, its hash, and what depends on what.

The Snakefile builds a Plan when it is parsed. A directory is named by the hash of the config that can change its
content, so a changed config is another directory and runs with the same beginning share it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from uniapl.config import ConfigError, EditorSpec, EndpointSpec, ModelSpec, StageSpec, Study, TeacherSpec
from uniapl.layers import load_ablation, load_references, validate
from uniapl.provenance import content_hash, read_config, write_whole

Item = TypeVar("Item")


@dataclass(frozen=True)
class Artifact:
    """A directory with config.json (before) and manifest.json (after)."""

    directory: Path
    config: dict[str, Any]

    @property
    def manifest(self) -> Path:
        return self.directory / "manifest.json"

    @property
    def config_file(self) -> Path:
        return self.directory / "config.json"


@dataclass(frozen=True)
class Run(Artifact):
    """One stage of one path: trained from its parent's weights, or from the base model's."""

    model: str
    path: tuple[str, ...]
    variant: str
    seed: int
    parent: Run | None


@dataclass(frozen=True)
class Evaluation(Artifact):
    """All tasks on one model: a run's, or the base model's (`run` is None)."""

    model: str
    run: Run | None
    label: str
    variant: str
    seed: int


@dataclass
class Plan:
    """Everything one study will make. `runs` is ordered so that parents come first."""

    study: Study
    root: Path
    data: Artifact
    autoif: Artifact | None = None
    models: dict[str, Artifact] = field(default_factory=dict)
    demonstrations: dict[str, Artifact] = field(default_factory=dict)
    discriminators: dict[str, Artifact] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def study_file(self) -> Path:
        return self.root / "study.json"

    def artifacts(self) -> list[Artifact]:
        """All directories that get a config.json."""
        shared = [
            self.data,
            *([self.autoif] if self.autoif else []),
            *self.models.values(),
            *self.demonstrations.values(),
            *self.discriminators.values(),
        ]
        return [*shared, *self.runs, *self.evaluations]

    def run_by_directory(self, directory: str | Path) -> Run:
        """The run that lives in a directory."""
        return next(run for run in self.runs if run.directory == Path(directory))


def _artifact(root: Path, kind: str, name: str, config: dict[str, Any]) -> Artifact:
    stem = f"{name}-{content_hash(config)}" if name else content_hash(config)
    return Artifact(root / kind / stem, config)


def stage_of_path(study: Study, path: tuple[str, ...], overrides: dict[str, Any] | None = None) -> StageSpec:
    """The last stage of a path, with the study's overrides for that path and a variant's."""
    layers = [("stage", study.stages[path[-1]].model_dump())]
    layers.append((f"paths.{'.'.join(path)}", study.paths.get(".".join(path), {})))
    layers.append(("variant", overrides or {}))
    return validate(StageSpec, layers, ("stages", path[-1]))


def make_plan(study: Study, results: Path, *, sampler: str, compute: str) -> Plan:
    """Lay out a study below `results/<scale>`. `sampler` and `compute` are what `auto` resolved to on this machine."""
    root = results / study.scale
    expert = {"teacher": study.teacher.model_dump(exclude={"access"})}
    autoif = None
    if study.data.autoif is not None:
        asked = expert if study.data.autoif.items is None else {}
        autoif = _artifact(root, "autoif", "", {"autoif": study.data.autoif.model_dump()} | asked)
    prompts = data_config({"data": study.data.model_dump()} | expert)
    plan = Plan(study, root, _artifact(root, "data", "", prompts), autoif)
    engine = study.sampler.model_dump() | {"kind": sampler}
    for model in study.models:
        shared = {
            "scale": study.scale,
            "model": model.model_dump(),
            "data": study.data.model_dump(),
            "sampler": engine,
            "compute": compute,
        }
        plan.models[model.name] = _artifact(root, "models", model.name, {"model": model.model_dump()})
        teacher = shared | expert
        plan.demonstrations[model.name] = _artifact(root, "demonstrations", model.name, teacher)
        judged = teacher | {"discriminator": study.discriminator.model_dump()}
        plan.discriminators[model.name] = _artifact(root, "discriminator", model.name, judged)
        common = judged | {"train": study.train.model_dump()}
        _add_evaluation(plan, model, shared, teacher, None, "base", "main", 0)
        for seed in study.seeds:
            for method in study.methods:
                run = _add_run(plan, model, common, tuple(method.split(".")), "main", seed, {})
                _add_evaluation(plan, model, shared, teacher, run, method, "main", seed)
            for name in study.ablations:
                ablation = load_ablation(name, "ablations")
                for variant, overrides in ablation["variants"].items():
                    path = tuple(ablation["method"].split("."))
                    run = _add_run(plan, model, common, path, f"{name}.{variant}", seed, overrides)
                    _add_evaluation(plan, model, shared, teacher, run, ablation["method"], f"{name}.{variant}", seed)
    return plan


def data_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the prompts that a run's config names; the teacher is part of it where it makes AutoIF's."""
    autoif = config["data"].get("autoif")
    keys = ("data", "teacher") if autoif and autoif["items"] is None else ("data",)
    return {key: config[key] for key in keys}


def _add_run(
    plan: Plan, model: ModelSpec, common: dict[str, Any], path: tuple[str, ...], variant: str, seed: int,
    overrides: dict[str, Any],
) -> Run:  # fmt: skip
    parent = _add_run(plan, model, common, path[:-1], "main", seed, {}) if len(path) > 1 else None
    stage = stage_of_path(plan.study, path, overrides).model_dump()
    for cosmetic in ("title",):
        stage.pop(cosmetic)
    stages = [*(parent.config["path"] if parent else []), stage]
    config = common | {"path": stages, "seed": seed}
    directory = plan.root / "runs" / model.name / ".".join(path) / f"{variant}-{content_hash(config)}" / f"seed{seed}"
    run = Run(directory, config, model.name, path, variant, seed, parent)
    if run not in plan.runs:
        plan.runs.append(run)
    return run


def _add_evaluation(
    plan: Plan, model: ModelSpec, shared: dict[str, Any], teacher: dict[str, Any], run: Run | None, label: str,
    variant: str, seed: int,
) -> None:  # fmt: skip
    identity = content_hash(run.config) if run else plan.models[model.name].directory.name
    config = teacher | {"evaluation": plan.study.evaluation.model_dump(mode="json"), "of": identity}
    directory = plan.root / "evaluations" / model.name / label / f"{variant}-{content_hash(config)}" / f"seed{seed}"
    evaluation = Evaluation(directory, config, model.name, run, label, variant, seed)
    if evaluation not in plan.evaluations:
        plan.evaluations.append(evaluation)


def in_share(items: Sequence[Item], share: str) -> Sequence[Item]:
    """Share `1of2`: every second item from the first on. Raise ValueError for another form."""
    number, _, count = share.partition("of")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ValueError(f"share = {share!r} is not like 1of2")
    return items[int(number) - 1 :: int(count)]


def check_configs(plan: Plan) -> None:
    """Raise ConfigError where a config.json of this study was edited by hand."""
    for artifact in plan.artifacts():
        if artifact.config_file.exists():
            try:
                read_config(artifact.directory)
            except ValueError as error:
                raise ConfigError(str(error)) from None


def write_configs(plan: Plan) -> None:
    """Write every missing config.json and the study's index. Raise ConfigError for one that was edited by hand."""
    check_configs(plan)
    for artifact in plan.artifacts():
        if not artifact.config_file.exists():
            text = json.dumps(artifact.config, indent=2, sort_keys=True, ensure_ascii=False)
            write_whole(artifact.config_file, text + "\n")
    index = json.dumps(study_index(plan), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if not plan.study_file.exists() or plan.study_file.read_text() != index:
        write_whole(plan.study_file, index)


def references_of(study: Study) -> dict[str, Any]:
    """Published scores of the study's models on its tasks, and the tolerance of the stack check."""
    spec = load_references()
    found = {
        model.name: [one.model_dump() for one in spec.models.get(model.name, ()) if one.task in study.evaluation.tasks]
        for model in study.models
    }
    compared = [
        one.model_dump() for one in spec.compared
        if one.task in study.evaluation.tasks and one.teacher in (None, teacher_model(study.teacher))
    ]  # fmt: skip
    models = {name: rows for name, rows in found.items() if rows}
    return {"tolerance_points": spec.tolerance_points, "models": models, "compared": compared}


def teacher_model(teacher: TeacherSpec) -> str | None:
    """Hub id or folder of the model that is the expert; None for the editor."""
    if isinstance(teacher, EditorSpec):
        return None
    return teacher.model if isinstance(teacher, EndpointSpec) else teacher.model.location


def study_index(plan: Plan) -> dict[str, Any]:
    """What the analysis reads: the resolved study, and where each run and evaluation lies, relative to the root."""

    def relative(artifact: Artifact) -> str:
        return str(artifact.directory.relative_to(plan.root))

    return {
        "scale": plan.study.scale,
        "claims": plan.study.claims.model_dump(),
        "tasks": list(plan.study.evaluation.tasks),
        "max_new_tokens": plan.study.data.max_new_tokens,
        "ifbench_max_new_tokens": plan.study.evaluation.ifbench_max_new_tokens,
        "limit": plan.study.evaluation.limit,
        "references": references_of(plan.study),
        "models": {m.name: {"title": m.title, "directory": relative(plan.models[m.name])} for m in plan.study.models},
        "data": relative(plan.data),
        "demonstrations": {name: relative(a) for name, a in plan.demonstrations.items()},
        "discriminators": {name: relative(a) for name, a in plan.discriminators.items()},
        "stages": {name: stage.title for name, stage in plan.study.stages.items()},
        "evaluations": [
            {
                "model": e.model, "method": e.label, "variant": e.variant, "seed": e.seed, "directory": relative(e),
                "run": relative(e.run) if e.run else None,
            }
            for e in plan.evaluations
        ],
        "runs": [
            {
                "model": r.model, "path": list(r.path), "variant": r.variant, "seed": r.seed, "directory": relative(r),
                "parent": relative(r.parent) if r.parent else None,
            }
            for r in plan.runs
        ],
    }  # fmt: skip
