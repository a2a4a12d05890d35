"""How fast a study's work is done on CPU: by what a released study's manifests, logs and benchmark files measured.

Rates are medians over its main runs and their evaluations, since some of them may have shared the machine with other
work.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from uniapl.config import (
    DISCRIMINATOR_KINDS,
    TEACHERS,
    ConfigError,
    DataSpec,
    EvalSpec,
    MachineSpec,
    ModelSpec,
    Spec,
    StageSpec,
    TrainSpec,
)
from uniapl.estimate.speed import GENERATED_PROMPT_TOKENS, Engine
from uniapl.estimate.work import (
    Judge,
    Lengths,
    Network,
    Sampling,
    TrainingWork,
    discriminator_flops,
    evaluation_work,
    training_work,
)
from uniapl.layers import shown
from uniapl.shapes import find_shape

Kind = TypeVar("Kind", bound=Spec)
UNTIMED = ("models", "data", "tables", "figures", "report")  # rules whose jobs count whole, as their start


@dataclass(frozen=True)
class Rates:
    """What one rule's jobs did a second in a released study; 0 where they had nothing of it."""

    start_seconds: float  # of a job, beyond the work
    sampling: float = 0.0  # tokens of answers
    scoring: float = 0.0  # operations of forwards
    training: float = 0.0  # operations of updates
    push_seconds: float = 0.0  # of one push


@dataclass(frozen=True)
class ReleasedSpeed:
    """A released study's machine. Sampling of another model goes with its weights, the rest with its operations."""

    root: Path
    hardware: str
    lengths: Lengths
    network: Network  # the study's model
    rates: Mapping[str, Rates]  # by rule

    def start_seconds(self, rule: str) -> float:
        """Everything of a job that is not counted as work."""
        return self.rates[rule].start_seconds

    def sampling_seconds(self, rule: str, model: str, sampling: Sampling, engine: Engine) -> float:
        """Answers at the rule's measured tokens a second."""
        weights, measured = (n.read_weights + n.head_weights for n in (sampling.network, self.network))
        return weights / measured * sampling.tokens / self.rates[rule].sampling

    def scoring_seconds(self, rule: str, flops: float, *, gpus: int) -> float:
        """Forwards at the rule's measured operations a second."""
        return flops / self.rates[rule].scoring if flops else 0.0

    def training_seconds(self, model: str, work: TrainingWork, *, gpus: int) -> float:
        """Updates at the measured operations a second."""
        return work.flops / self.rates["runs"].training

    def push_seconds(self, network: Network) -> float:
        """As measured, by the number of weights."""
        return self.rates["runs"].push_seconds * network.parameters / self.network.parameters

    def assumptions(self) -> list[str]:
        """What the hours rest on, a line each."""
        runs, lengths = self.rates["runs"], self.lengths
        return [
            f"throughput of {shown(self.root)}, measured on {self.hardware}: a training job "
            f"{runs.sampling:.0f} tokens/s of sampling, {runs.training / 1e9:.0f} GFLOP/s of updates and "
            f"{runs.scoring / 1e9:.0f} of forwards; an evaluation {self.rates['evaluate'].sampling:.0f} tokens/s. "
            f"Another machine has others",
            f"lengths of that study: rollouts {lengths.answer_share:.0%} of the cap, evaluated answers "
            f"{lengths.evaluation_share:.0%}, demonstrations {lengths.demonstration_share:.0%}; where only rewards "
            f"decide, {lengths.trained_share:.0%} of the rollouts' tokens have a gradient",
            "another model's sampling goes with its weights, the rest with its operations",
        ]


@dataclass(frozen=True)
class ReleasedRun:
    """A run of a released study: its stage, its manifest, its job's seconds, and the sums of its log."""

    stage: StageSpec
    manifest: Mapping[str, Any]
    job_seconds: float
    seconds: Mapping[str, float]  # by part of a step

    @property
    def answers(self) -> int:
        """Rollouts that it drew."""
        return self.stage.steps * self.stage.prompts_per_step * self.stage.rollouts_per_prompt

    @property
    def by_rewards_alone(self) -> bool:
        """Groups of equal rewards had no gradient, and nothing but rollouts was trained on."""
        others = self.stage.demonstrations_trained or self.stage.ever(self.stage.lambda_adv) or self.stage.w_kl
        return self.stage.draws_rollouts and not others


def read_released_speed(root: Path) -> ReleasedSpeed:
    """Throughput by rule of a released study. Raise ConfigError where the folder holds none with runs."""
    index = _json(root / "study.json") if (root / "study.json").is_file() else {"runs": []}
    folders = [root / entry["directory"] for entry in index["runs"] if entry["variant"] == "main"]
    if not folders:
        raise ConfigError(
            f"{shown(root)}: no released study with runs, so no throughput of a CPU is known; give --gpus"
        )
    config = _json(folders[0] / "config.json")
    data, train = _known(DataSpec, config["data"]), _known(TrainSpec, config["train"])
    shape = find_shape(_known(ModelSpec, config["model"]))
    judged = _known(DISCRIMINATOR_KINDS[config["discriminator"]["kind"]], config["discriminator"])
    judge = Judge.of(judged, shape) if shape else None
    assert shape is not None
    assert judge is not None
    network, runs = Network.of(shape), [_read_run(root, folder) for folder in folders]
    evaluations = [root / entry["directory"] for entry in index["evaluations"] if entry["variant"] == "main"]
    lengths = _lengths(runs, evaluations, data)
    machine = MachineSpec.model_validate({})  # its rows held a prompt with all its answers, as the default's do

    def worked(run: ReleasedRun) -> TrainingWork:
        return training_work(
            network, judge, run.stage, train, machine, max_new_tokens=data.max_new_tokens, lengths=lengths
        )

    drawn = [run for run in runs if run.stage.draws_rollouts]
    in_runs = Rates(
        start_seconds=median(run.job_seconds - run.manifest["seconds"] for run in runs),
        sampling=median(run.manifest["tokens_generated"] / run.seconds["sample"] for run in drawn),
        scoring=median(worked(run).scoring_flops / (run.seconds["score"] + run.seconds["probe"]) for run in drawn),
        training=median(worked(run).flops / run.seconds["update"] for run in runs),
        push_seconds=median(run.seconds["push"] / run.stage.steps for run in drawn),
    )
    drafted, fixed = (root / index[kind][config["model"]["name"]] for kind in ("demonstrations", "discriminators"))
    demonstrations, fixing = _json(drafted / "manifest.json"), _json(fixed / "manifest.json")
    teacher = _known(TEACHERS[config["teacher"]["kind"]], config["teacher"])
    rates = {
        "runs": in_runs,
        "evaluate": _of_evaluation(root, index["evaluations"], network, data, lengths, scoring=in_runs.scoring),
        "demonstrations": Rates(
            _job_seconds(root, drafted) - demonstrations["drafting_seconds"],
            sampling=demonstrations["tokens_generated"] / demonstrations["drafting_seconds"],
        ),
        "discriminator": Rates(
            _job_seconds(root, fixed) - fixing["seconds"],
            scoring=discriminator_flops(judge, judged, teacher, data, lengths) / fixing["seconds"],
        ),
    }
    for rule in UNTIMED:
        rates[rule] = Rates(median(_seconds_of_jobs(root, rule)))
    hardware = runs[0].manifest["hardware"]
    return ReleasedSpeed(root, f"{hardware['cores']} cores of {hardware['cpu']}", lengths, network, rates)


def _lengths(runs: Sequence[ReleasedRun], evaluations: Sequence[Path], data: DataSpec) -> Lengths:
    """Mean lengths and shares in a released study."""
    drawn = [run for run in runs if run.stage.draws_rollouts]
    sft = [run for run in runs if run.stage.demonstrations_trained and not run.stage.draws_rollouts]
    rewarded = [run for run in runs if run.by_rewards_alone]
    capped = generated = 0
    for folder in evaluations:
        caps = {"ifbench": _known(EvalSpec, _json(folder / "config.json")["evaluation"]).ifbench_max_new_tokens}
        manifest = _json(folder / "manifest.json")
        capped += sum(
            one["num_prompts"] * caps.get(name, data.max_new_tokens) for name, one in manifest["tasks"].items()
        )
        generated += manifest["tokens_generated"]
    return Lengths(
        prompt_tokens=GENERATED_PROMPT_TOKENS,
        answer_share=_count(drawn, "tokens_generated") / (sum(run.answers for run in drawn) * data.max_new_tokens),
        evaluation_share=generated / capped,
        demonstration_share=_count(sft, "tokens_trained")
        / (sum(run.stage.steps * run.stage.demonstrations_per_step for run in sft) * data.max_new_tokens),
        trained_share=_count(rewarded, "tokens_trained") / _count(rewarded, "tokens_generated"),
    )


def _of_evaluation(
    root: Path, entries: Sequence[Mapping[str, Any]], network: Network, data: DataSpec, lengths: Lengths, *,
    scoring: float,
) -> Rates:  # fmt: skip
    """Tokens a second of the main runs' evaluations, their forwards taken off at the rate of these runs."""
    sampling, whole = [], 0.0
    for folder, variant in ((root / entry["directory"], entry["variant"]) for entry in entries):
        manifest = _json(folder / "manifest.json")
        whole += manifest["seconds"]
        if variant != "main":  # it may come from another machine
            continue
        spec = _known(EvalSpec, _json(folder / "config.json")["evaluation"])
        work = evaluation_work(network, spec, data, is_base=manifest["method"] == "base", lengths=lengths)
        sampling.append(manifest["tokens_generated"] / (manifest["seconds"] - work.scoring_flops / scoring))
    jobs = _seconds_of_jobs(root, "evaluate")  # one that was interrupted is not among them
    return Rates(max(sum(jobs) - whole, 0.0) / len(jobs), sampling=median(sampling), scoring=scoring)


def _read_run(root: Path, folder: Path) -> ReleasedRun:
    path = _json(folder / "config.json")["path"]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    parts = [key for key in rows[0] if key.startswith("seconds/")]
    seconds = {part.removeprefix("seconds/"): sum(row[part] or 0.0 for row in rows) for part in parts}
    stage = _known(StageSpec, {"title": path[-1]["name"]} | path[-1])
    return ReleasedRun(stage, _json(folder / "manifest.json"), _job_seconds(root, folder), seconds)


def _known(spec: type[Kind], values: Mapping[str, Any]) -> Kind:
    """A section of a config.json, without keys that were given up since the study."""
    return spec.model_validate({key: value for key, value in values.items() if key in spec.model_fields})


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _count(runs: Iterable[ReleasedRun], key: str) -> int:
    return sum(run.manifest[key] for run in runs)


def _job_seconds(root: Path, folder: Path) -> float:
    """Seconds from start to end of the job that made a directory, as Snakemake measured them."""
    (seconds,) = _seconds_in(root / "benchmarks" / folder.relative_to(root).with_suffix(".tsv"))
    return seconds


def _seconds_of_jobs(root: Path, rule: str) -> list[float]:
    folder = root / "benchmarks"
    files = [folder / f"{rule}.tsv"] if (folder / f"{rule}.tsv").is_file() else sorted((folder / rule).glob("**/*.tsv"))
    return [seconds for file in files for seconds in _seconds_in(file)]


def _seconds_in(file: Path) -> list[float]:
    if not file.is_file():
        raise ConfigError(f"{shown(file)} is missing, which says how long a released job took; release the study again")
    return [float(row["s"]) for row in csv.DictReader(file.open(encoding="utf-8"), delimiter="\t")]
