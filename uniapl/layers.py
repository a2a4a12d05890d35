"""Resolve YAML layers to a Study: one error, naming file, key, value and remedy, for anything that does not fit."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from uniapl.config import (
    DISCRIMINATOR_KINDS,
    ConfigError,
    DiscriminatorSpec,
    ModelSpec,
    Spec,
    StageSpec,
    Study,
    TeacherSpec,
)

CONFIG = Path(__file__).resolve().parent.parent / "config"
COMMAND_LINE = "--config"
SHORTHANDS = ("models", "methods", "ablations", "seeds")  # lists that the command line may give as `a,b`

Layer = tuple[str, dict[str, Any]]


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
        return f"{origin}: {key} = {first['input']!r}: unknown key; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{origin}: {key + ': ' if key else ''}{message}"
    return f"{origin}: {key} = {first['input']!r}: {message[0].lower() + message[1:]}; change this value"


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


def load_model(name: str, where: str) -> ModelSpec:
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
        f"{where}: models = {name!r}: unknown; known: {', '.join(available('models'))}, a folder, or a hub id"
    )


def load_discriminator_spec(layers: list[Layer]) -> DiscriminatorSpec:
    """The discriminator that the last `discriminator.name` chose: its file, then what the layers from there on say.

    Where another one is chosen, keys that earlier layers gave the former one do not count.
    """
    name, own = "features", list[Layer]()
    for origin, values in layers:
        given = values.get("discriminator") or {}
        if not isinstance(given, dict):
            raise ConfigError(f"{origin}: discriminator = {given!r}: expected keys and values, such as name")
        chosen = str(given.get("name", name))
        path = CONFIG / "discriminators" / f"{chosen}.yaml"
        if not path.exists():
            raise ConfigError(
                f"{origin}: discriminator.name = {chosen!r}: unknown; known: {available('discriminators')}"
            )
        if chosen != name or not own:
            name, own = chosen, [(shown(path), read_yaml(path))]
        own.append((origin, {key: value for key, value in given.items() if key != "name"}))
    kind = next((str(values["kind"]) for _, values in reversed(own) if "kind" in values), "")
    if kind not in DISCRIMINATOR_KINDS:
        raise ConfigError(
            f"{own[0][0]}: discriminator.kind = {kind!r}: unknown; known: {', '.join(DISCRIMINATOR_KINDS)}"
        )
    spec: DiscriminatorSpec = validate(DISCRIMINATOR_KINDS[kind], own, ("discriminator",))
    return spec


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

    where = {key: _origin(layers, (key,)) for key in ("models", "methods", "teacher", "ablations")}
    methods = [str(m) for m in _listed(merged.get("methods") or [])]
    ablations = [str(a) for a in _listed(merged.get("ablations") or [])]
    paths = [method.split(".") for method in methods]
    for name in ablations:
        paths.append(load_ablation(name, where["ablations"])["method"].split("."))
    names = sorted({stage for path in paths for stage in path})
    resolved = {
        "scale": scale,
        "models": [load_model(str(m), where["models"]).model_dump() for m in _listed(merged.get("models") or [])],
        "stages": {name: load_stage(name, layers, where["methods"]).model_dump() for name in names},
    }
    teacher = merged.get("teacher") or {}
    if isinstance(teacher, dict):
        path = CONFIG / "teachers" / f"{teacher.get('name', 'editor')}.yaml"
        if not path.exists():
            raise ConfigError(
                f"{where['teacher']}: teacher.name = {path.stem!r}: unknown; known: {available('teachers')}"
            )
        teacher_layers = [(shown(path), read_yaml(path)), (where["teacher"], teacher)]
        resolved["teacher"] = validate(TeacherSpec, teacher_layers, ("teacher",)).model_dump()
    resolved["discriminator"] = load_discriminator_spec(layers).model_dump()
    unknown = set(merged.get("stages") or {}) - set(available("methods"))
    if unknown:
        origin, name = _origin(layers, ("stages",)), min(unknown)
        raise ConfigError(f"{origin}: stages.{name}: unknown stage; known: {', '.join(available('methods'))}")
    study: Study = validate(Study, _with_resolved(layers, resolved))
    for path, override in study.paths.items():
        last = path.split(".")[-1]
        base = load_stage(last, layers, _origin(layers, ("paths", path))).model_dump()
        validate(StageSpec, [(f"stage {last}", base), (_origin(layers, ("paths", path)), override)], ("paths", path))
    return study


def _with_resolved(layers: list[Layer], resolved: dict[str, Any]) -> list[Layer]:
    """The layers with references (models, stages, teacher) replaced by what they resolve to."""
    stripped = [(name, {k: v for k, v in values.items() if k not in resolved}) for name, values in layers]
    return [("resolved references", resolved), *stripped]


def load_ablation(name: str, where: str) -> dict[str, Any]:
    """One ablation: {title, method, variants: {name: overrides of the method's last stage}}."""
    path = CONFIG / "ablations" / f"{name}.yaml"
    if not path.exists():
        raise ConfigError(f"{where}: ablations = {name!r}: unknown; known: {', '.join(available('ablations'))}")
    ablation = read_yaml(path)
    if set(ablation) != {"title", "method", "variants"}:
        raise ConfigError(f"{shown(path)}: expected exactly the keys title, method, variants; found {sorted(ablation)}")
    return ablation
