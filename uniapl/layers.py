"""Resolve YAML layers to a Study: one error, naming file, key, value and remedy, for anything that does not fit."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from uniapl.config import (
    DISCRIMINATOR_KINDS,
    TEACHERS,
    AblationSpec,
    BenchmarkSpec,
    ConfigError,
    DiscriminatorSpec,
    ModelSpec,
    ReferencesSpec,
    Spec,
    StageSpec,
    Study,
    TeacherSpec,
    VLLMSpec,
)

CONFIG = Path(__file__).resolve().parent.parent / "config"
COMMAND_LINE = "--config"
GENERATED_WITH_DATA = ("ifbench",)  # benchmarks whose prompts the study's data hold
SHORTHANDS = ("models", "methods", "ablations", "seeds")  # lists that the command line may give as `a,b`
SECRET_WORDS = {"key", "keys", "apikey", "token", "secret", "password", "authorization", "headers"}

Layer = tuple[str, dict[str, Any]]
Kind = TypeVar("Kind", bound=Spec)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping. Raise ConfigError naming file and line for a syntax error."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ConfigError(f"{shown(path)}:{line}: not valid YAML: {error.problem}; mend this line") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{shown(path)}: expected keys and values, found {type(content).__name__}")
    return content


def read_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words, the values as YAML, as Snakemake reads its `--config`. Raise ConfigError for another form."""
    overrides: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        try:
            if not equals:
                raise ValueError
            overrides[key.strip()] = yaml.safe_load(value)
        except (ValueError, yaml.YAMLError):
            raise ConfigError(f"--config {word!r}: give key=value, the value as YAML") from None
    return overrides


def shown(path: Path) -> str:
    """A path as users know it, relative to the project where it lies inside."""
    try:
        return str(path.relative_to(CONFIG.parent))
    except ValueError:
        return str(path)


def merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key; anything else in `extra` replaces what `base` has."""
    merged = dict(base)
    for key, value in extra.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def validate(model: type[Spec], layers: list[Layer], prefix: tuple[str, ...] = ()) -> Any:
    """Merge layers and validate. Raise ConfigError in one line: file, key, value, what is wrong, remedy."""
    merged: dict[str, Any] = {}
    for _, values in layers:
        merged = merge(merged, values)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_one_line(model, error, layers, prefix)) from None


def _one_line(model: type[Spec], error: ValidationError, layers: list[Layer], prefix: tuple[str, ...]) -> str:
    first = error.errors()[0]
    location = tuple(part for part in first["loc"] if part not in ("float", "ScheduleSpec", "constrained-float"))
    key = ".".join(str(part) for part in (*prefix, *location))
    origin = _origin(layers, location)
    if first["type"] == "missing":
        return f"{origin}: {key} is missing; add it"
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(location[-1]), _known_keys(model, location[:-1]), n=1)
        hint = f"did you mean '{close[0]}'?" if close else "remove it"
        return f"{origin}: {key}{_value(location, first['input'])}: unknown key; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{origin}: {key + ': ' if key else ''}{message}"
    return f"{origin}: {key}{_value(location, first['input'])}: {message[0].lower() + message[1:]}; change this value"


def _value(location: tuple[Any, ...], value: Any) -> str:
    """` = value`, or nothing where it may be a secret that somebody wrote into a file."""
    words = {word for part in location for word in str(part).lower().split("_")}
    return "" if words & SECRET_WORDS else f" = {value!r}"


def _origin(layers: list[Layer], location: tuple[Any, ...]) -> str:
    """The last layer that holds the longest beginning of a key."""
    best, depth = layers[-1][0], -1
    for name, values in layers:
        node: Any = values
        reached = 0
        for part in location:
            if isinstance(node, dict) and part in node:
                node, reached = node[part], reached + 1
            else:
                break
        if reached >= depth and reached > 0:
            best, depth = name, reached
    return best


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
        else:
            return []
    return list(model.model_fields)


def available(folder: str) -> list[str]:
    """Names of the files in one folder of config/."""
    return sorted(path.stem for path in (CONFIG / folder).glob("*.yaml"))


def load_stage(name: str, layers: list[Layer], where: str) -> StageSpec:
    """One stage: its file, then what the layers' `stages` say of it."""
    path = CONFIG / "methods" / f"{name}.yaml"
    if not path.exists():
        raise ConfigError(
            f"{where}: unknown method '{name}'; known: {', '.join(available('methods'))} "
            f"(joined with dots, as in sft.grpo), or add config/methods/{name}.yaml"
        )
    stage_layers = [(shown(path), {"name": name} | read_yaml(path))]
    for origin, values in layers:
        stages = values.get("stages") or {}
        if not isinstance(stages, dict):
            raise ConfigError(f"{origin}: stages = {stages!r}: expected a mapping from stage to its keys")
        if isinstance(stages.get(name), dict):
            stage_layers.append((origin, stages[name]))
    return validate(StageSpec, stage_layers, ("stages", name))


def _chosen(section: str, layers: Sequence[Layer], *, default: str) -> tuple[str, list[Layer]]:
    """The file of config/<section>s that the last layer names, and what is said of it: its file, then the layers.

    A layer names it as `section: name` or `section: {name: ...}`. What earlier layers say of another one does not
    count, so that swapping it is one word.
    """
    name, named_by, said = default, COMMAND_LINE, list[Layer]()
    for origin, values in layers:
        given = values.get(section) or {}
        given = {"name": given} if isinstance(given, str) else given
        if not isinstance(given, dict):
            raise ConfigError(
                f"{origin}: {section} = {given!r}: give the name of a file in config/{section}s, or keys and values"
            )
        if given.get("name", name) != name:
            name, named_by, said = str(given["name"]), origin, []
        said.append((origin, {key: value for key, value in given.items() if key != "name"}))
    if name not in available(f"{section}s"):
        known = ", ".join(available(f"{section}s"))
        raise ConfigError(f"{named_by}: {section}.name = {name!r}: unknown; known: {known}")
    path = CONFIG / f"{section}s" / f"{name}.yaml"
    return name, [(shown(path), read_yaml(path)), *said]


def _kind(section: str, own: Sequence[Layer], kinds: Mapping[str, type[Kind]]) -> type[Kind]:
    """The model of a section's `kind`."""
    origin, kind = next(((name, values["kind"]) for name, values in reversed(own) if "kind" in values), (own[0][0], ""))
    if kind not in kinds:
        raise ConfigError(f"{origin}: {section}.kind = {kind!r}: unknown; known: {', '.join(kinds)}")
    return kinds[kind]


def load_teacher(layers: Sequence[Layer]) -> TeacherSpec:
    """The teacher that the layers choose; a model that a local one names is resolved."""
    name, own = _chosen("teacher", layers, default="editor")
    own[0] = (own[0][0], {"name": name} | own[0][1])
    spec = _kind("teacher", own, TEACHERS)
    named = next(((origin, values["model"]) for origin, values in reversed(own) if "model" in values), None)
    if spec is VLLMSpec and named is not None and isinstance(named[1], str):
        own.append((named[0], {"model": load_model(named[1], named[0], key="teacher.model").model_dump()}))
    return validate(spec, own, ("teacher",))


def load_discriminator_spec(layers: Sequence[Layer]) -> DiscriminatorSpec:
    """The discriminator that the layers choose."""
    _, own = _chosen("discriminator", layers, default="features")
    return validate(_kind("discriminator", own, DISCRIMINATOR_KINDS), own, ("discriminator",))


def load_model(name: str, where: str, *, key: str = "models") -> ModelSpec:
    """A model by the name of its file in config/models, by a folder, or by a hub id (owner/name)."""
    path = CONFIG / "models" / f"{name}.yaml"
    if path.exists():
        return validate(ModelSpec, [(shown(path), {"name": name} | read_yaml(path))])
    slug = "".join(c if c.isalnum() else "_" for c in Path(name).name.lower())
    if Path(name).is_dir():
        return ModelSpec(name=slug, title=Path(name).name, source="path", location=str(Path(name).resolve()))
    if name.count("/") == 1 and not name.startswith((".", "/")):
        owner_and_name, _, revision = name.partition("@")
        return ModelSpec(name=slug, title=slug, source="hub", location=owner_and_name, revision=revision or "main")
    raise ConfigError(
        f"{where}: {key} = {name!r}: unknown; known: {', '.join(available('models'))}, a folder, or a hub id"
    )


def load_benchmark(name: str, layers: Sequence[Layer] = ()) -> BenchmarkSpec:
    """A benchmark: its file in config/evals, then what the layers' `evaluation.benchmarks` say of it."""
    path = CONFIG / "evals" / f"{name}.yaml"
    benchmark_layers = [(shown(path), {"name": name} | read_yaml(path))]
    for origin, values in layers:
        given = _mapping(_mapping(values, "evaluation", origin), "benchmarks", origin)
        unknown = set(given) - set(available("evals"))
        if unknown:
            raise ConfigError(
                f"{origin}: evaluation.benchmarks.{min(unknown)}: unknown; known: {', '.join(available('evals'))}"
            )
        benchmark_layers.append((origin, _mapping(given, name, origin)))
    return validate(BenchmarkSpec, benchmark_layers, ("evaluation", "benchmarks", name))


def load_references() -> ReferencesSpec:
    """Published scores of base models: config/references.yaml."""
    path = CONFIG / "references.yaml"
    return validate(ReferencesSpec, [(shown(path), read_yaml(path))], ("references",))


def _mapping(values: dict[str, Any], key: str, origin: str) -> dict[str, Any]:
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{origin}: {key} = {found!r}: expected keys and values")
    return found


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def load_study(scale: str, overrides: dict[str, Any] | None = None) -> Study:
    """Resolve config/default.yaml, config/<scale>.yaml and the command line to one Study.

    Raise ConfigError (one line) for an unknown key, a wrong type or an impossible combination.
    """
    overrides = dict(overrides or {})
    if "evals" in overrides:
        overrides = merge(overrides, {"evaluation": {"tasks": _listed(overrides.pop("evals"))}})
    if "ranks" in overrides:
        overrides = merge(overrides, {"machine": {"ranks": overrides.pop("ranks")}})
    for key in SHORTHANDS:
        if key in overrides:
            overrides[key] = _listed(overrides[key])
    layers: list[Layer] = [("config/default.yaml", read_yaml(CONFIG / "default.yaml"))]
    layers += [(f"config/{scale}.yaml", read_yaml(CONFIG / f"{scale}.yaml")), (COMMAND_LINE, overrides)]
    merged: dict[str, Any] = {}
    for _, values in layers:
        merged = merge(merged, values)

    where = {key: _origin(layers, (key,)) for key in ("models", "methods", "ablations")}
    methods = [str(m) for m in _listed(merged.get("methods") or [])]
    ablations = [str(a) for a in _listed(merged.get("ablations") or [])]
    paths = [method.split(".") for method in methods]
    loaded = {name: load_ablation(name, layers, where["ablations"]) for name in ablations}
    paths += [method.split(".") for ablation in loaded.values() for method in ablation.methods]
    names = sorted({stage for path in paths for stage in path})
    resolved = {
        "scale": scale,
        "models": [load_model(str(m), where["models"]).model_dump() for m in _listed(merged.get("models") or [])],
        "stages": {name: load_stage(name, layers, where["methods"]).model_dump() for name in names},
        "teacher": load_teacher(layers).model_dump(),
        "discriminator": load_discriminator_spec(layers).model_dump(),
        "ablations": {name: ablation.model_dump() for name, ablation in loaded.items()},
    }
    tasks = _listed(_mapping(merged, "evaluation", COMMAND_LINE).get("tasks") or [])
    wanted = [str(task) for task in tasks if task in available("evals") and task not in GENERATED_WITH_DATA]
    benchmarks = {task: load_benchmark(task, layers) for task in wanted}
    shared = [str(name) for name in _listed(_mapping(merged, "data", COMMAND_LINE).get("decontaminate_against") or [])]
    for name in shared:
        if name not in available("evals"):
            origin, known = _origin(layers, ("data", "decontaminate_against")), ", ".join(available("evals"))
            raise ConfigError(f"{origin}: data.decontaminate_against = {name!r}: unknown; known: {known}")
    # How a benchmark is evaluated is no reason to make other prompts.
    evaluated = {"num_fewshot": None, "max_new_tokens": None, "known": {}}
    avoided = {name: load_benchmark(name, layers).model_copy(update=evaluated) for name in shared}
    unknown = set(merged.get("stages") or {}) - set(available("methods"))
    if unknown:
        origin, name = _origin(layers, ("stages",)), min(unknown)
        raise ConfigError(f"{origin}: stages.{name}: unknown stage; known: {', '.join(available('methods'))}")
    layers = [(origin, _without_benchmarks(values)) for origin, values in layers]
    study: Study = validate(Study, _with_resolved(layers, resolved))
    evaluation = study.evaluation.model_copy(update={"benchmarks": benchmarks})
    data = study.data.model_copy(update={"benchmarks": avoided})
    study = study.model_copy(update={"evaluation": evaluation, "data": data})
    for path, override in study.paths.items():
        last = path.split(".")[-1]
        base = load_stage(last, layers, _origin(layers, ("paths", path))).model_dump()
        validate(StageSpec, [(f"stage {last}", base), (_origin(layers, ("paths", path)), override)], ("paths", path))
    return study


def _without_benchmarks(values: dict[str, Any]) -> dict[str, Any]:
    """A layer without what `load_benchmark` read of it."""
    evaluation = values.get("evaluation")
    if not isinstance(evaluation, dict):
        return values
    return values | {"evaluation": {key: value for key, value in evaluation.items() if key != "benchmarks"}}


def _with_resolved(layers: list[Layer], resolved: dict[str, Any]) -> list[Layer]:
    """The layers with references (models, stages, teacher) replaced by what they resolve to."""
    stripped = [(name, {k: v for k, v in values.items() if k not in resolved}) for name, values in layers]
    return [("resolved references", resolved), *stripped]


def load_ablation(name: str, layers: Sequence[Layer], where: str) -> AblationSpec:
    """One ablation: its file; its variants' teachers and discriminators are resolved on top of the layers."""
    path = CONFIG / "ablations" / f"{name}.yaml"
    if not path.exists():
        raise ConfigError(f"{where}: ablations = {name!r}: unknown; known: {', '.join(available('ablations'))}")
    origin, content = shown(path), read_yaml(path)
    variants = {}
    for variant, given in _mapping(content, "variants", origin).items():
        changes = dict(_mapping({"variant": given}, "variant", f"{origin}: variants.{variant}"))
        on_top = [*layers, (f"{origin}: variants.{variant}", changes)]
        for section, load in (("teacher", load_teacher), ("discriminator", load_discriminator_spec)):
            if section in changes:
                changes[section] = load(on_top).model_dump()
        variants[str(variant)] = changes
    resolved = content | ({"variants": variants} if variants else {})
    return validate(AblationSpec, [(origin, resolved)], ("ablations", name))
