"""The jobs of a plan with their seconds and tokens, and what the teacher is asked. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from uniapl.config import ConfigError, EditorSpec, ModelSpec, StageSpec, Study, VLLMSpec
from uniapl.estimate.memory import BYTES, sampler_memory
from uniapl.estimate.speed import Engine, Speed
from uniapl.estimate.teacher import Asked, asked_of, num_orders
from uniapl.estimate.work import (
    MIXTURES,
    Judge,
    Lengths,
    Network,
    Sampling,
    discriminator_flops,
    drafts_of_prompt,
    evaluation_work,
    training_work,
)
from uniapl.plan import Plan, Run, in_share
from uniapl.shapes import find_shape
from uniapl.workflow import evaluation_shares, jobs_at_once

# Of rollouts.py (a step's) and teachers/drafts.py, which cannot be imported here; a test compares them.
KEPT_ROLLOUTS, DRAFTS_PER_CALL = 8, 512
COPIES = 4  # of a demonstration: the answers' file, all answers with verdicts, what counts of it and its original


@dataclass(frozen=True)
class Job:
    """One job of the workflow; `seconds` None where no throughput says anything of it."""

    rule: str
    what: str  # model, or model and path
    seconds: float | None
    gpus: int = 0
    generated: float = 0.0  # tokens
    trained: float = 0.0  # completion tokens
    requests: float = 0.0  # to the teacher
    text_tokens: float = 0.0  # that are kept on the disk, copies included
    name: str = ""  # of a run
    parent: str = ""


@dataclass(frozen=True)
class Networks:
    """The networks of one student: its own and its discriminator's."""

    own: Network
    judge: Judge


@dataclass(frozen=True)
class Place:
    """Where a study runs: so many GPUs of so much memory, or none."""

    gpus: int
    gpu_bytes: int | None

    @property
    def one(self) -> int:
        """GPUs of a job that takes one where there is one."""
        return min(1, self.gpus)


def networks_of(study: Study, model: ModelSpec) -> Networks:
    """A student's networks. Raise ConfigError where a shape is not known."""
    shape = find_shape(model)
    if shape is None:
        raise ConfigError(
            f"models = {model.name}: its shape is not known: it has no config.json of a Qwen3 or Llama model here; "
            f"fetch the model (uniapl fetch), or give a folder"
        )
    judge = Judge.of(study.discriminator, shape)
    if judge is None:
        raise ConfigError(
            "discriminator: the shape of this POLAR is not known: it has no config.json here; fetch it (uniapl fetch), "
            "or give a folder"
        )
    return Networks(Network.of(shape), judge)


def teacher_network(teacher: VLLMSpec) -> Network:
    """A local teacher's network. Raise ConfigError where its shape is not known."""
    model = teacher.model
    if str(model.location) in MIXTURES:
        return MIXTURES[str(model.location)]
    shape = find_shape(model)
    if shape is None:
        raise ConfigError(
            f"teacher.model = {model.location}: its shape is not known: no config.json of a Qwen3 or Llama model "
            f"is here; fetch it, or choose a teacher behind an endpoint, whose GPUs are not counted"
        )
    return Network.of(shape)


def jobs_of(plan: Plan, speed: Speed, place: Place) -> list[Job]:
    """All jobs but `all`; none for what is taken from released results.

    Raise ConfigError where a shape is not known, or a job needs more GPUs than there are.
    """
    networks = {model.name: networks_of(plan.study, model) for model in plan.study.models}

    def on_the_host(rule: str, what: str = "") -> Job:  # too little to say anything of, where GPUs are counted
        return Job(rule, what, None if place.gpus else speed.start_seconds(rule))

    asked = {one.rule: one for one in asked_by(plan, speed.lengths)}
    own = {
        **{("demonstrations", name): artifact for name, artifact in plan.demonstrations.items()},
        **{("discriminator", name): artifact for name, artifact in plan.discriminators.items()},
    }
    learned_from = [
        *_demonstrations(plan, speed, place, networks, asked.get("demonstrations")),
        *_discriminators(plan, speed, place, networks),
    ]
    variants = [  # taken to cost as much as the study's own
        replace(job, what=f"{job.what} of variants", requests=0.0)
        for other in filter(plan.makes, plan.others)
        for job in learned_from
        if (job.rule, job.what) == (other.directory.parent.name, other.config["model"]["name"])
    ]
    made = [job for job in learned_from if plan.makes(own[job.rule, job.what])]
    return [
        *_autoif(plan, speed, place, asked.get("autoif")),
        *([on_the_host("data")] if plan.makes(plan.data) else []),
        *(on_the_host("models", name) for name, artifact in plan.models.items() if plan.makes(artifact)),
        *sorted([*made, *variants], key=lambda job: job.rule),
        *(_run(plan, run, speed, place, networks[run.model]) for run in plan.runs if plan.makes(run)),
        *_evaluations(plan, speed, place, networks),
        *(on_the_host(rule) for rule in ("tables", "figures", "report")),
    ]


def asked_by(plan: Plan, lengths: Lengths) -> tuple[Asked, ...]:
    """What a plan's jobs ask of a chat teacher; nothing for what is taken from released results."""
    makes = {
        "autoif": plan.autoif is not None and plan.makes(plan.autoif),
        "demonstrations": any(map(plan.makes, plan.demonstrations.values())),
    }
    return tuple(one for one in asked_of(plan.study, lengths) if makes[one.rule])


def _engine(plan: Plan, model: ModelSpec, place: Place, *, ranks: int) -> Engine:
    """The samplers of a job with so many ranks."""
    study, shape = plan.study, find_shape(model)
    assert shape is not None
    each = study.machine.tensor_parallel if ranks > 1 else 1
    memory = sampler_memory(
        shape, study.sampler, study.data, kind="vllm", compute="bfloat16", gpu_bytes=place.gpu_bytes,
        tensor_parallel=each,
    )  # fmt: skip
    number = len(study.machine.servers) or ranks // each
    return Engine(number, each, study.sampler.max_sequences, float(each * memory.kv_cache))


def _teacher_gpus(study: Study, place: Place) -> int:
    """GPUs of a job that asks the teacher. Raise ConfigError where there are fewer."""
    if not isinstance(study.teacher, VLLMSpec) or not place.gpus:
        return place.one
    gpus = study.teacher.access.tensor_parallel
    if gpus > place.gpus:
        raise ConfigError(
            f"teacher.access.tensor_parallel = {gpus} is more than --gpus {place.gpus}; lower it, or choose a teacher "
            f"behind an endpoint"
        )
    return gpus


def _autoif(plan: Plan, speed: Speed, place: Place, asked: Asked | None) -> Iterator[Job]:
    """AutoIF's prompts, where the study makes them; an endpoint's time is not known."""
    if plan.autoif is None or not plan.makes(plan.autoif):
        return
    teacher, seconds = plan.study.teacher, None
    if asked is not None and isinstance(teacher, VLLMSpec):
        gpus = _teacher_gpus(plan.study, place)
        seconds = _local_teacher_seconds(teacher, asked, speed, place) + speed.start_seconds("autoif")
        yield Job("autoif", "", seconds, gpus, requests=asked.requests, text_tokens=2 * asked.completion_tokens)
    else:
        requests, texts = (asked.requests, 2 * asked.completion_tokens) if asked else (0.0, 0.0)
        yield Job("autoif", "", None, requests=requests, text_tokens=texts)


def _demonstrations(
    plan: Plan, speed: Speed, place: Place, networks: dict[str, Networks], asked: Asked | None
) -> Iterator[Job]:
    """The teacher's answers, in the first student's job that is made, and each base model's drafts."""
    study, teacher, lengths = plan.study, plan.study.teacher, speed.lengths
    cap, data, rule = study.data.max_new_tokens, study.data, "demonstrations"
    if isinstance(teacher, EditorSpec):
        orders, each = num_orders(study), teacher.num_samples
    else:
        orders, each = data.num_discriminator + data.num_discriminator_test, drafts_of_prompt(teacher)
    first = next((name for name, artifact in plan.demonstrations.items() if plan.makes(artifact)), None)
    for model in study.models:
        at_once = min(DRAFTS_PER_CALL, each * orders)
        drafts = Sampling(
            networks[model.name].own, at_once / each, at_once, lengths.prompt_tokens, lengths.answer_share * cap, cap,
            times=each * orders / at_once,
        )  # fmt: skip
        asks = asked if model.name == first else None  # the next student finds the answers
        seconds, generated = speed.start_seconds(rule), 0.0
        if teacher.drafts == "model":
            engine = _engine(plan, model, place, ranks=1)
            seconds += speed.sampling_seconds(rule, model.name, drafts, engine)
            generated = drafts.tokens
        if asks is not None and isinstance(teacher, VLLMSpec):
            seconds += _local_teacher_seconds(teacher, asks, speed, place)
        texts = (asked.completion_tokens if asked else orders * lengths.demonstration_share * cap) + generated
        yield Job(
            rule, model.name, seconds, _teacher_gpus(study, place), generated,
            requests=asks.requests if asks else 0.0, text_tokens=COPIES * texts,
        )  # fmt: skip


def _local_teacher_seconds(teacher: VLLMSpec, asked: Asked, speed: Speed, place: Place) -> float:
    """Seconds in which a teacher that the job serves itself answers all. Raise ConfigError where it does not fit."""
    network, access = teacher_network(teacher), teacher.access
    if place.gpu_bytes is None:
        raise ConfigError("teacher.kind = vllm: its speed on a CPU is not known; give --gpus, or another teacher")
    room = access.gpu_memory_share * access.tensor_parallel * place.gpu_bytes - BYTES["bfloat16"] * network.parameters
    if room <= 0:
        raise ConfigError(
            f"teacher.access.tensor_parallel = {access.tensor_parallel}: {teacher.model.location} does not fit so many "
            f"GPUs of {place.gpu_bytes / 2**30:g} GiB; raise it"
        )
    engine = Engine(1, access.tensor_parallel, access.concurrency, room)
    return math.fsum(
        speed.sampling_seconds(
            asked.rule, teacher.name,
            Sampling(network, one.number, one.number, one.prompt_tokens, one.completion_tokens, one.cap), engine,
        )
        for one in asked.parts
    )  # fmt: skip


def _discriminators(plan: Plan, speed: Speed, place: Place, networks: dict[str, Networks]) -> Iterator[Job]:
    study, rule = plan.study, "discriminator"
    for model in study.models:
        flops = discriminator_flops(
            networks[model.name].judge, study.discriminator, study.teacher, study.data, speed.lengths
        )
        seconds = speed.start_seconds(rule) + speed.scoring_seconds(rule, flops, gpus=place.one)
        yield Job(rule, model.name, seconds, place.one)


def _run(plan: Plan, run: Run, speed: Speed, place: Place, networks: Networks) -> Job:
    """One run, on all ranks."""
    study, machine, rule = plan.study, plan.study.machine, "runs"
    gpus = machine.ranks if place.gpus else 0
    stage = StageSpec(title=run.config["path"][-1]["name"], **run.config["path"][-1])
    work = training_work(
        networks.own, networks.judge, stage, study.train, machine, max_new_tokens=study.data.max_new_tokens,
        lengths=speed.lengths,
    )  # fmt: skip
    seconds = speed.start_seconds(rule) + speed.training_seconds(run.model, work, gpus=gpus)
    seconds += speed.scoring_seconds(rule, work.scoring_flops, gpus=gpus)
    generated = kept = 0.0
    if work.sampling is not None:
        model = next(model for model in study.models if model.name == run.model)
        engine = _engine(plan, model, place, ranks=machine.ranks)
        seconds += speed.sampling_seconds(rule, run.model, work.sampling, engine)
        seconds += work.steps * speed.push_seconds(networks.own)
        generated = work.sampling.tokens
        kept = min(KEPT_ROLLOUTS, work.sampling.answers) * work.steps * work.sampling.answer_tokens
    parent = str(run.parent.directory) if run.parent else ""
    what = f"{run.model} {'.'.join(run.path)}" + ("" if run.variant == "main" else f" {run.variant}")
    return Job(
        rule, what, seconds, gpus, generated, work.tokens_trained, text_tokens=kept, name=str(run.directory),
        parent=parent,
    )  # fmt: skip


def _evaluations(plan: Plan, speed: Speed, place: Place, networks: dict[str, Networks]) -> Iterator[Job]:
    """One job for each share of the models, on one GPU; one start of the engine for each base model in it."""
    rule, number, study = "evaluate", evaluation_shares(plan, at_once=jobs_at_once(plan.study.scale)), plan.study
    engines = {model.name: _engine(plan, model, place, ranks=1) for model in study.models}
    models = sum(map(plan.makes, plan.evaluations))
    for index in range(number):
        share = [
            (one.model, evaluation_work(
                networks[one.model].own, study.evaluation.of(one.variant), study.data, is_base=one.run is None,
                lengths=speed.lengths,
            ))
            for one in in_share(plan.evaluations, f"{index + 1}of{number}")
            if plan.makes(one)
        ]  # fmt: skip
        if not share:
            continue
        seconds = speed.start_seconds(rule) * len({model for model, _ in share})
        for model, work in share:
            seconds += speed.scoring_seconds(rule, work.scoring_flops, gpus=place.one)
            for sampling in work.samplings:
                seconds += speed.sampling_seconds(rule, model, sampling, engines[model])
        generated = sum(sampling.tokens for _, work in share for sampling in work.samplings)
        yield Job(rule, f"{models} models", seconds, place.one, generated, text_tokens=generated)


def wall_seconds(jobs: list[Job], place: Place, *, scale: str) -> float:
    """From the first to the last job of one rule: as many side by side as there is room for, without gaps."""
    timed = [job for job in jobs if job.seconds is not None]
    if not timed:
        return 0.0
    if place.gpus:
        at_once = max(1, place.gpus // max(1, *(job.gpus for job in timed)))
    else:
        at_once = jobs_at_once(scale) if timed[0].rule in ("runs", "evaluate") else 1
    own = {job.name: job for job in timed}

    def chain(job: Job) -> float:
        return float(job.seconds or 0.0) + (chain(own[job.parent]) if job.parent in own and job.parent else 0.0)

    return max(*(chain(job) for job in timed), math.fsum(job.seconds or 0.0 for job in timed) / at_once)
