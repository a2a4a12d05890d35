"""From a Study to directories: every artefact's config.json, its hash, and what depends on what.

The Snakefile builds a Plan when it is parsed. A directory is named by the hash of the config that can change its
content, so a changed config is another directory and runs with the same beginning share it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from uniapl.config import (
    ConfigError,
    EditorSpec,
    EndpointSpec,
    ModelSpec,
    Spec,
    StageSpec,
    Study,
    TeacherSpec,
    VariantSpec,
)
from uniapl.layers import load_references, validate
from uniapl.provenance import content_hash, read_config, write_whole

Item = TypeVar("Item")


@dataclass(frozen=True)
class Artifact:
    """A directory with config.json (before) and manifest.json (after); `reads`: what its stage is given, by option."""

    directory: Path
    config: dict[str, Any]
    reads: Mapping[str, Artifact] = field(default_factory=dict, compare=False, kw_only=True)

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
    """Everything one study will make. `runs` is ordered so that parents come first.

    `others` are the demonstrations and discriminators that variants alone use.
    """

    study: Study
    root: Path
    data: Artifact
    autoif: Artifact | None = None
    models: dict[str, Artifact] = field(default_factory=dict)
    demonstrations: dict[str, Artifact] = field(default_factory=dict)
    discriminators: dict[str, Artifact] = field(default_factory=dict)
    others: list[Artifact] = field(default_factory=list)
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
            *self.others,
        ]
        return [*shared, *self.runs, *self.evaluations]

    def makes(self, artifact: Artifact) -> bool:
        """Whether a directory is this study's to fill, and not one of released results."""
        return artifact.directory.is_relative_to(self.root)

    def run_by_directory(self, directory: str | Path) -> Run:
        """The run that lives in a directory."""
        return next(run for run in self.runs if run.directory == Path(directory))


def _artifact(
    root: Path, kind: str, name: str, config: dict[str, Any], reads: Mapping[str, Artifact] | None = None
) -> Artifact:
    stem = f"{name}-{content_hash(config)}" if name else content_hash(config)
    return Artifact(root / kind / stem, config, reads=reads or {})


def stage_of_path(study: Study, path: tuple[str, ...], variant: VariantSpec | None = None) -> StageSpec:
    """The last stage of a path, with the study's overrides for that path and a variant's."""
    name = path[-1]
    layers = [("stage", study.stages[name].model_dump())]
    layers.append((f"paths.{'.'.join(path)}", study.paths.get(".".join(path), {})))
    if variant is not None:
        before = layers[0][1] | layers[1][1]
        layers.append(("variant", {key: round(before[key] * by) for key, by in variant.times.get(name, {}).items()}))
        layers.append(("variant", variant.stages.get(name, {})))
    return validate(StageSpec, layers, ("stages", name))


def make_plan(study: Study, results: Path, *, sampler: str, compute: str) -> Plan:
    """Lay out a study below `results/<scale>`. `sampler` and `compute` are what `auto` resolved to on this machine."""
    root = results / study.scale
    expert = {"teacher": study.teacher.model_dump(exclude={"access"})}
    autoif = None
    if study.data.autoif is not None:
        asked = expert if study.data.autoif.items is None else {}
        autoif = _artifact(root, "autoif", "", {"autoif": study.data.autoif.model_dump()} | asked)
    prompts = data_config({"data": study.data.model_dump()} | expert)
    plan = Plan(study, root, _artifact(root, "data", "", prompts, {"autoif": autoif} if autoif else {}), autoif)
    for model in study.models:
        plan.models[model.name] = _artifact(root, "models", model.name, {"model": model.model_dump()})
        shared = {
            "scale": study.scale,
            "model": model.model_dump(),
            "data": study.data.model_dump(),
            "sampler": study.sampler.model_dump() | {"kind": sampler},
            "compute": compute,
        }
        _add_model(plan, _Learning(plan, model, shared, VariantSpec.model_validate({})))
    return plan


@dataclass(frozen=True)
class _Learning:
    """One model, and whom it learns from: the study's teacher and discriminator, or a variant's."""

    plan: Plan
    model: ModelSpec
    shared: dict[str, Any]
    variant: VariantSpec
    label: str = "main"

    @property
    def taught(self) -> dict[str, Any]:
        """The config of the demonstrations."""
        teacher = self.variant.teacher or self.plan.study.teacher
        return self.shared | {"teacher": teacher.model_dump(exclude={"access"})}

    @property
    def judged(self) -> dict[str, Any]:
        """The config of the discriminator."""
        discriminator = self.variant.discriminator or self.plan.study.discriminator
        return self.taught | {"discriminator": discriminator.model_dump()}

    def artifacts(self) -> tuple[Artifact, Artifact]:
        """Demonstrations and discriminator."""
        plan, name = self.plan, self.model.name
        base = {"model": plan.models[name], "data": plan.data}
        demonstrations = _artifact(plan.root, "demonstrations", name, self.taught, base)
        reads = base | {"demonstrations": demonstrations}
        return demonstrations, _artifact(plan.root, "discriminator", name, self.judged, reads)


def _add_model(plan: Plan, main: _Learning) -> None:
    """Everything of one model: what it learns from, its main runs, its variants, and all evaluations."""
    study, name = plan.study, main.model.name
    plan.demonstrations[name], plan.discriminators[name] = main.artifacts()
    _add_evaluation(plan, main, None, "base", 0)
    for seed in dict.fromkeys(seed for method in study.methods for seed in study.seeds_of(method)):
        for method in study.methods:
            if seed in study.seeds_of(method):
                _add_evaluation(plan, main, _add_run(main, tuple(method.split(".")), seed), method, seed)
    for ablation_name, ablation in study.ablations.items():
        for seed in study.seeds[: ablation.num_seeds]:
            for title, variant in ablation.variants.items():
                varied = replace(main, variant=variant, label=f"{ablation_name}.{title}")
                plan.others += [a for a in varied.artifacts() if a not in plan.artifacts()]
                for method in ablation.methods:
                    run = _add_run(varied, tuple(method.split(".")), seed)
                    _add_evaluation(plan, main, run, method, seed, variant=varied.label)


def data_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the prompts that a run's config names; the teacher is part of it where it makes AutoIF's."""
    autoif = config["data"].get("autoif")
    keys = ("data", "teacher") if autoif and autoif["items"] is None else ("data",)
    return {key: config[key] for key in keys}


def _add_run(learning: _Learning, path: tuple[str, ...], seed: int) -> Run:
    """The run of a path and, before it, of the path's beginning; called main where a variant changes nothing of it."""
    plan, model = learning.plan, learning.model.name
    parent = _add_run(learning, path[:-1], seed) if len(path) > 1 else None
    demonstrations, discriminator = learning.artifacts()
    stages = [*(parent.config["path"] if parent else [])]
    stage = stage_of_path(plan.study, path, learning.variant).model_dump()
    stages.append({key: value for key, value in stage.items() if key != "title"})
    config = learning.judged | {"train": plan.study.train.model_dump(), "path": stages, "seed": seed}
    same = [run for run in plan.runs if run.config == config]
    if same:
        return same[0]
    stem = f"{learning.label}-{content_hash(config)}"
    reads: dict[str, Artifact] = {
        "model": plan.models[model], "data": plan.data, "demonstrations": demonstrations,
        "discriminator": discriminator,
    }  # fmt: skip
    reads |= {"parent": parent} if parent else {}
    directory = plan.root / "runs" / model / ".".join(path) / stem / f"seed{seed}"
    run = Run(directory, config, model, path, learning.label, seed, parent, reads=reads)
    plan.runs.append(run)
    return run


def _add_evaluation(
    plan: Plan, main: _Learning, run: Run | None, label: str, seed: int, *, variant: str = "main"
) -> None:
    """The tasks on a run, or on the base model; always held against the study's own teacher."""
    model = main.model.name
    identity = content_hash(run.config) if run else plan.models[model].directory.name
    config = main.taught | {"evaluation": plan.study.evaluation.of(variant).model_dump(mode="json"), "of": identity}
    directory = plan.root / "evaluations" / model / label / f"{variant}-{content_hash(config)}" / f"seed{seed}"
    evaluation = Evaluation(directory, config, model, run, label, variant, seed)
    if evaluation not in plan.evaluations:
        plan.evaluations.append(evaluation)


def in_share(items: Sequence[Item], share: str) -> Sequence[Item]:
    """Share `1of2`: the first half of the items. Raise ValueError for another form."""
    number, _, count = share.partition("of")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ValueError(f"share = {share!r} is not like 1of2")
    first, last = ((len(items) * n + int(count) - 1) // int(count) for n in (int(number) - 1, int(number)))
    return items[first:last]


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


def ablations_of(study: Study) -> dict[str, Any]:
    """Of each ablation of a study its title, and of each variant what it changes of the main run."""
    return {
        name: {
            "title": ablation.title,
            "variants": {title: _changes(study, ablation.methods, v) for title, v in ablation.variants.items()},
        }
        for name, ablation in study.ablations.items()
    }


def _changes(study: Study, methods: Sequence[str], variant: VariantSpec) -> list[dict[str, Any]]:
    """What a variant changes of stages (`of`: the path that ends with the stage), teacher and discriminator."""
    stages = [method.split(".") for method in methods]
    paths = dict.fromkeys(tuple(names[:end]) for names in stages for end in range(1, len(names) + 1))
    compared: list[tuple[str, Spec, Spec]] = [
        (".".join(path), stage_of_path(study, path), stage_of_path(study, path, variant)) for path in paths
    ]
    if variant.teacher is not None:
        compared.append(("teacher", study.teacher, variant.teacher))
    if variant.discriminator is not None:
        compared.append(("discriminator", study.discriminator, variant.discriminator))
    return [{"of": of} | change for of, main, varied in compared for change in _differing(main, varied)]


def _differing(main: Spec, varied: Spec) -> list[dict[str, Any]]:
    """Fields of other values; of a spec of another kind that kind, and the fields that only it has."""
    of_both = set(type(main).model_fields) & set(type(varied).model_fields)
    names = [name for name in type(varied).model_fields if name != "access"]
    if type(main) is not type(varied):
        names = [name for name in names if name == "kind" or name not in of_both]
    dumps = [spec.model_dump(mode="json") for spec in (main, varied)]
    found = []
    for name in names:  # a field that came later is in no dump at its default
        before, after = (
            dump.get(name, getattr(spec, name, None)) for spec, dump in zip((main, varied), dumps, strict=True)
        )
        if before != after:
            found.append({"key": name, "main": before, "variant": after})
    return found


def study_index(plan: Plan) -> dict[str, Any]:
    """What the analysis reads: the resolved study, and where each run and evaluation lies, relative to the root."""

    def relative(artifact: Artifact) -> str:
        return os.path.relpath(artifact.directory, plan.root)  # what is taken from released results lies beside it

    others = {"others": [relative(a) for a in plan.others]} if plan.others else {}
    autoif = {"autoif": relative(plan.autoif)} if plan.autoif else {}
    return others | autoif | {
        "scale": plan.study.scale,
        "claims": plan.study.claims.model_dump(),
        "tasks": list(plan.study.evaluation.tasks),
        "max_new_tokens": plan.study.data.max_new_tokens,
        "ifbench_max_new_tokens": plan.study.evaluation.ifbench_max_new_tokens,
        "limit": plan.study.evaluation.limit,
        "references": references_of(plan.study),
        "ablations": ablations_of(plan.study),
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
            } | {name: relative(read) for name, read in r.reads.items() if read in plan.others}
            for r in plan.runs
        ],
    }  # fmt: skip
