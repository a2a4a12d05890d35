"""How fast a study's work is done on CPU: by what a released study's manifests, logs and benchmark files measured."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
    """A run of a released study: its stage, its manifest, and the sums of its log."""

    stage: StageSpec
    manifest: Mapping[str, Any]
    seconds: Mapping[str, float]  # by part of a step

    @property
    def answers(self) -> int:
        """Rollouts that it drew."""
        return self.stage.steps * self.stage.prompts_per_step * self.stage.rollouts_per_prompt

    @property
    def by_rewards_alone(self) -> bool:
        """Groups of equal rewards had no gradient."""
        return self.stage.draws_rollouts and not self.stage.ever(self.stage.lambda_adv) and not self.stage.w_kl


def read_released_speed(root: Path) -> ReleasedSpeed:
    """Throughput by rule of a released study. Raise ConfigError where the folder holds none with runs."""
    folders = sorted(path.parent for path in root.glob("runs/*/*/*/*/manifest.json"))
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
    network, runs = Network.of(shape), [_read_run(folder) for folder in folders]
    evaluations = sorted(path.parent for path in root.glob("evaluations/*/*/*/*/manifest.json"))
    lengths = _lengths(runs, evaluations, data)
    machine = MachineSpec.model_validate({})  # its rows held a prompt with all its answers, as the default's do

    def worked(run: ReleasedRun) -> TrainingWork:
        return training_work(
            network, judge, run.stage, train, machine, max_new_tokens=data.max_new_tokens, lengths=lengths
        )

    drawn = [run for run in runs if run.stage.draws_rollouts]
    trained = sum(run.manifest["seconds"] for run in runs)
    in_runs = Rates(
        start_seconds=(sum(_job_seconds(root, "runs")) - trained) / len(runs),
        sampling=sum(run.manifest["tokens_generated"] for run in drawn) / _sum(drawn, "sample"),
        scoring=sum(worked(run).scoring_flops for run in runs) / _sum(runs, "score", "probe"),
        training=sum(worked(run).flops for run in runs) / _sum(runs, "update"),
        push_seconds=_sum(drawn, "push") / sum(run.stage.steps for run in drawn),
    )
    (demonstrations,) = (_json(path) for path in root.glob("demonstrations/*/manifest.json"))
    (fixing,) = (_json(path) for path in root.glob("discriminator/*/manifest.json"))
    teacher = _known(TEACHERS[config["teacher"]["kind"]], config["teacher"])
    rates = {
        "runs": in_runs,
        "evaluate": _of_evaluation(root, evaluations, network, data, lengths, scoring=in_runs.scoring),
        "demonstrations": Rates(
            sum(_job_seconds(root, "demonstrations")) - demonstrations["drafting_seconds"],
            sampling=demonstrations["tokens_generated"] / demonstrations["drafting_seconds"],
        ),
        "discriminator": Rates(
            sum(_job_seconds(root, "discriminator")) - fixing["seconds"],
            scoring=discriminator_flops(judge, judged, teacher, data, lengths) / fixing["seconds"],
        ),
    }
    for rule in UNTIMED:
        seconds = _job_seconds(root, rule)
        rates[rule] = Rates(sum(seconds) / len(seconds))
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
    root: Path, evaluations: Sequence[Path], network: Network, data: DataSpec, lengths: Lengths, *, scoring: float
) -> Rates:
    """Tokens a second of evaluations, their forwards taken off at the rate of the runs'."""
    generated = seconds = whole = 0.0
    for folder in evaluations:
        manifest, spec = _json(folder / "manifest.json"), _known(EvalSpec, _json(folder / "config.json")["evaluation"])
        work = evaluation_work(network, spec, data, is_base=manifest["method"] == "base", lengths=lengths)
        generated += manifest["tokens_generated"]
        seconds += manifest["seconds"] - work.scoring_flops / scoring
        whole += manifest["seconds"]
    jobs = _job_seconds(root, "evaluate")
    return Rates((sum(jobs) - whole) / len(jobs), sampling=generated / seconds, scoring=scoring)


def _read_run(folder: Path) -> ReleasedRun:
    path = _json(folder / "config.json")["path"]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    parts = [key for key in rows[0] if key.startswith("seconds/")]
    seconds = {part.removeprefix("seconds/"): sum(row[part] or 0.0 for row in rows) for part in parts}
    return ReleasedRun(
        _known(StageSpec, {"title": path[-1]["name"]} | path[-1]), _json(folder / "manifest.json"), seconds
    )


def _known(spec: type[Kind], values: Mapping[str, Any]) -> Kind:
    """A section of a config.json, without keys that were given up since the study."""
    return spec.model_validate({key: value for key, value in values.items() if key in spec.model_fields})


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _sum(runs: Iterable[ReleasedRun], *parts: str) -> float:
    return sum(run.seconds[part] for run in runs for part in parts)


def _count(runs: Iterable[ReleasedRun], key: str) -> int:
    return sum(run.manifest[key] for run in runs)


def _job_seconds(root: Path, rule: str) -> list[float]:
    """Seconds of a rule's jobs from start to end, as Snakemake measured them."""
    folder = root / "benchmarks"
    files = [folder / f"{rule}.tsv"] if (folder / f"{rule}.tsv").is_file() else sorted((folder / rule).glob("**/*.tsv"))
    return [float(row["s"]) for file in files for row in csv.DictReader(file.open(encoding="utf-8"), delimiter="\t")]
