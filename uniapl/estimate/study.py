"""What `uniapl estimate --scale` prints: memory of a rank, then hours, tokens, teacher requests and disk of a study.

Every figure is arithmetic over a resolved plan; docs/paper_scale.md shows it for two machines. With GPUs the hours come
from operations and bytes at assumed shares of what the makers state, or from a known throughput; without, from the
throughput that the released study measured on CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from uniapl.config import ConfigError, EditorSpec, EndpointSpec, VLLMSpec
from uniapl.estimate.disk import SPARE_BYTES, Disk, disk_of
from uniapl.estimate.gpus import find_gpu
from uniapl.estimate.jobs import Job, Place, asked_by, jobs_of, wall_seconds
from uniapl.estimate.released import read_released_speed
from uniapl.estimate.speed import ASSUMED_LENGTHS, GPUSpeed, Speed, Throughput, read_bench
from uniapl.estimate.table import print_table, refuse, rows_of, show_model
from uniapl.estimate.teacher import (
    CHECKED_INSTRUCTIONS,
    NEW_INSTRUCTIONS,
    TEACHER_PASSES,
    Asked,
    totals,
)
from uniapl.estimate.work import TASKS
from uniapl.layers import CONFIG, merge, read_overrides
from uniapl.plan import Plan
from uniapl.released import describe
from uniapl.workflow import SCALES, jobs_at_once, plan_study, read_settings, study_of

RELEASED = CONFIG.parent / "results" / "released" / "laptop"  # whose throughput counts on a CPU
OWN_TASKS = ("development", "heldout", "ifbench")
COLUMNS = (
    "rule", "what", "jobs", "GPUs", "GPU hours", "wall hours", "generated", "trained", "teacher requests",
)  # fmt: skip
NARROWEST = 140  # characters in which the table's columns stay whole


@dataclass(frozen=True)
class Options:
    """The command line beside the study's own settings."""

    gpus: int | None = None
    gpu: str = "H100"
    gpu_memory_gib: float | None = None  # None: what the maker states
    training: float | None = None  # tokens/s of one GPU, prompts included
    sampling: float | None = None  # tokens/s of one GPU
    bench: Path | None = None
    answer_share: float | None = None
    target: str = "all"


@dataclass(frozen=True)
class Line:
    """Jobs of one kind together. Seconds are None where no throughput says anything of them."""

    rule: str
    what: str
    jobs: int
    gpus: int
    job_seconds: float | None  # of all its jobs
    wall_seconds: float | None  # its part of the rule's time, in which jobs run side by side
    generated: float
    trained: float
    requests: float

    @property
    def gpu_seconds(self) -> float | None:
        """GPUs that its jobs hold, times their seconds."""
        return None if self.job_seconds is None else self.gpus * self.job_seconds


@dataclass(frozen=True)
class Estimate:
    """A study on one kind of machine."""

    plan: Plan
    place: Place
    speed: Speed
    lines: tuple[Line, ...]
    asked: tuple[Asked, ...]
    disk: Disk

    def total(self, name: str) -> float:
        """The sum of a line's quantity."""
        return math.fsum(getattr(line, name) or 0.0 for line in self.lines)


def plan_of(scale: str, options: Options, overrides: Mapping[str, Any]) -> tuple[Plan, Place]:
    """The resolved plan and where it runs: on `--gpus`, on the scale's own GPUs, or on this machine's CPU.

    Raise ConfigError for a scale or GPU that is not known, or fewer GPUs than a run's ranks.
    """
    if scale not in SCALES:
        raise ConfigError(f"--scale = {scale!r}: unknown; known: {', '.join(SCALES)}")
    settings = read_settings({**overrides, "scale": scale})
    if settings.source == "released":
        raise ConfigError("--config: source = 'released': nothing is made then; give released+local, or leave it out")
    ranks = {} if options.gpus is None else {"machine": {"ranks": options.gpus}}
    study = study_of(scale, options.target, merge(ranks, settings.overrides))
    gpus = options.gpus or (study.machine.ranks if study.machine.gpus_per_rank else 0)
    if not gpus:
        given = {
            "--tokens-per-second-train": options.training, "--tokens-per-second-rollout": options.sampling,
            "--bench": options.bench, "--answer-share": options.answer_share,
        }  # fmt: skip
        for name in (name for name, value in given.items() if value is not None):
            raise ConfigError(f"{name} is of GPUs: give --gpus, or leave it out; scale {scale} runs on a CPU")
        return plan_study(study, settings), Place(0, None)
    if study.machine.ranks > gpus:
        raise ConfigError(
            f"machine.ranks = {study.machine.ranks} is more than --gpus {gpus}; lower it, or raise --gpus"
        )
    plan = plan_study(study, settings, elsewhere=("vllm", "bfloat16"))
    if any(artifact.config.get("compute") == "float32" for artifact in plan.artifacts()):
        raise ConfigError("compute = float32: the rates of GPUs are those of bfloat16; set compute to bfloat16")
    memory = options.gpu_memory_gib or find_gpu(options.gpu).memory_gib
    return plan, Place(gpus, int(memory * 2**30))


def speed_of(plan: Plan, place: Place, options: Options) -> Speed:
    """What the hours come from. Raise ConfigError where options do not fit the study, or no study was released."""
    if not place.gpus:
        return read_released_speed(RELEASED)
    known = {} if options.bench is None else read_bench(options.bench, row_tokens=plan.study.machine.micro_batch_tokens)
    names = [model.name for model in plan.study.models]
    if options.training is not None or options.sampling is not None:
        if len(names) > 1:
            raise ConfigError(
                f"--tokens-per-second-train and --tokens-per-second-rollout are of one model, the study has "
                f"{', '.join(names)}; name one with --config models=..., or give --bench"
            )
        stated = Throughput("as stated", options.training, options.sampling)
        known = {**known, names[0]: stated}
    known = {name: throughput for name, throughput in known.items() if name in names}
    if options.bench is not None and not known:
        raise ConfigError(
            f"--bench {options.bench}: says nothing of {', '.join(names)}; run python -m bench.gpu for them"
        )
    share = options.answer_share
    lengths = ASSUMED_LENGTHS
    if share is not None:
        lengths = replace(lengths, answer_share=share, evaluation_share=share, demonstration_share=share)
    return GPUSpeed(find_gpu(options.gpu), lengths, known)


def estimate(plan: Plan, place: Place, speed: Speed) -> Estimate:
    """Hours, tokens, requests and disk of a plan."""
    jobs = jobs_of(plan, speed, place)
    walls = {}
    for rule in dict.fromkeys(job.rule for job in jobs):
        of_rule = [job for job in jobs if job.rule == rule]
        seconds = math.fsum(job.seconds or 0.0 for job in of_rule)
        walls[rule] = wall_seconds(of_rule, place, scale=plan.study.scale) / seconds if seconds else 0.0
    lines = []
    for rule, what in dict.fromkeys((job.rule, job.what) for job in jobs):
        lines.append(_line([job for job in jobs if (job.rule, job.what) == (rule, what)], share_of_wall=walls[rule]))
    at_once = place.gpus // plan.study.machine.ranks if place.gpus else jobs_at_once(plan.study.scale)
    disk = disk_of(plan, runs_at_once=at_once, text_tokens=math.fsum(job.text_tokens for job in jobs))
    return Estimate(plan, place, speed, tuple(lines), asked_by(plan, speed.lengths), disk)


def _line(jobs: Sequence[Job], *, share_of_wall: float) -> Line:
    timed = [job.seconds for job in jobs if job.seconds is not None]
    seconds = math.fsum(timed) if timed else None
    return Line(
        jobs[0].rule, jobs[0].what, len(jobs), jobs[0].gpus, seconds,
        None if seconds is None else share_of_wall * seconds,
        math.fsum(job.generated for job in jobs), math.fsum(job.trained for job in jobs),
        math.fsum(job.requests for job in jobs),
    )  # fmt: skip


def price_line(teacher: EndpointSpec, asked: Asked) -> str:
    """What the requests cost, where the teacher's file states prices with their source and date."""
    access = teacher.access
    stated = (access.prompt_price, access.completion_price, access.price_source, access.price_date)
    if access.prompt_price is None or access.completion_price is None or None in stated:
        missing = [
            f"teacher.access.{name}"
            for name, value in zip(
                ("prompt_price", "completion_price", "price_source", "price_date"), stated, strict=True
            )
            if value is None
        ]
        return f"price not stated: multiply by your provider's, or set {', '.join(missing)} (of a million tokens)"
    price = (asked.prompt_tokens * access.prompt_price + asked.completion_tokens * access.completion_price) / 1e6
    most = math.fsum(
        one.most * (one.prompt_tokens * access.prompt_price + one.completion_tokens * access.completion_price) / 1e6
        for one in asked.parts
    )
    return (
        f"price {price:,.2f} expected, {most:,.2f} at most, at {access.prompt_price:g} and {access.completion_price:g} "
        f"for a million prompt and completion tokens ({access.price_source}, {access.price_date})"
    )


def teacher_lines(found: Estimate) -> list[str]:
    """What is asked of the teacher, and its price."""
    study, teacher = found.plan.study, found.plan.study.teacher
    if isinstance(teacher, EditorSpec):
        return ["teacher: the editor, which asks nobody"]
    name = teacher.model if isinstance(teacher, EndpointSpec) else teacher.model.location
    if not found.asked:
        return [f"teacher: {name} is asked nothing, since what it wrote is released"]
    lines = [
        f"{one.rule} asks {name}: {one.requests:,.0f} requests expected, {one.least:,.0f} to {one.most:,.0f} in any "
        f"case; {count(one.prompt_tokens)} prompt and {count(one.completion_tokens)} completion tokens expected"
        for one in found.asked
    ]
    if isinstance(teacher, EndpointSpec):
        lines.append(price_line(teacher, totals(found.asked)))
        lines.append(
            "the endpoint's own GPUs and the time it takes are not counted; teacher=qwen3_235b_vllm, which the job "
            "serves itself, is"
        )
    lines.append(f"assumed: {TEACHER_PASSES:.0%} of the teacher's answers pass; students share its answers")
    if study.data.autoif is not None and study.data.autoif.items is None:
        lines[-1] += (
            f"; {NEW_INSTRUCTIONS:.0%} of AutoIF's instructions are new, {CHECKED_INSTRUCTIONS:.0%} survive its "
        )
        lines[-1] += "checks"
    return lines


def disk_line(disk: Disk) -> str:
    """The parts of the disk."""
    parts = {
        "base models": disk.base_models,
        "exported runs": disk.runs,
        "checkpoints of those being trained": disk.checkpoints,
        "answers, demonstrations and rollouts": disk.texts,
        "logs and other records": SPARE_BYTES,
    }
    said = ", ".join(f"{gib(size)} of {name}" for name, size in parts.items())
    hub = f"; {gib(disk.hub)} GiB in the hub's cache, benchmarks not counted" if disk.hub else ""
    return f"disk: {gib(disk.results)} GiB for results at most ({said}){hub}"


def assumptions(found: Estimate) -> list[str]:
    """What the figures rest on, a line each."""
    study, place = found.plan.study, found.place
    lines = found.speed.assumptions()
    if place.gpus:
        lines.append(
            f"GPUs of a run: {study.machine.ranks}, activation checkpointing "
            f"{'on' if study.machine.activation_checkpointing else 'off'}; of discriminator, evaluation and drafts: 1"
        )
        if isinstance(study.teacher, VLLMSpec):
            lines[-1] += f", of the teacher's job: {study.teacher.access.tensor_parallel}"
        if study.machine.servers or study.machine.discriminator_servers:
            lines.append("servers are taken to be as fast as engines beside the ranks; their own GPUs are not counted")
        lines.append("prompts, base models, tables, figures and report take minutes of CPU, which are not counted")
    lines.append("rules run one after the other, the jobs of one side by side where there is room; queues not counted")
    unknown = [task for task in study.evaluation.tasks if task not in (*OWN_TASKS, *TASKS)]
    if unknown:
        lines.append(f"not counted, since their questions are not known here: {', '.join(unknown)}")
    return lines


def show_estimate(
    model: str | None, scale: str | None, options: Options, *, config: Sequence[str], named: Mapping[str, Any]
) -> None:
    """Print the memory of a model on GPUs, or all of a scale. `named` are settings that have options of their own.

    Raise ConfigError for options that do not go together, and where nothing fits.
    """
    if (model is None) == (scale is None):
        raise ConfigError("estimate needs either --model, for its memory on GPUs, or --scale, for a study; give one")
    if options.gpus is not None and options.gpus < 1:
        raise ConfigError(f"--gpus = {options.gpus}: give at least 1, or leave it out")
    overrides = merge(dict(named), read_overrides(config))
    for key in ("scale",) if model is None else ("scale", "models", "ranks"):
        if key in overrides:
            raise ConfigError(f"--config {key}: another option says it (--scale, --model, --gpus); leave it out")
    memory = options.gpu_memory_gib or find_gpu(options.gpu).memory_gib
    if scale is not None:
        return show_study(scale, options, overrides)
    return show_model(str(model), gpus=options.gpus, gpu_memory_gib=memory, overrides=overrides)


def show_study(scale: str, options: Options, overrides: Mapping[str, Any]) -> None:
    """Print memory, hours, requests and disk of a scale. Raise ConfigError where it cannot be, or does not fit."""
    plan, place = plan_of(scale, options, overrides)
    speed = speed_of(plan, place, options)
    found = estimate(plan, place, speed)
    rows = rows_of(plan, gpu_bytes=place.gpu_bytes)
    machine = f"{place.gpus} × {find_gpu(options.gpu).name}" if place.gpus else "a CPU"
    where = "on each GPU" if place.gpus else "of each rank on this machine"
    print_table(f"scale {scale}, {machine}: GiB {where}", rows)
    print()
    show(found, machine=machine)
    refuse(rows, on_gpu=bool(place.gpus))


def show(found: Estimate, *, machine: str) -> None:
    """Print the table, then teacher, disk and assumptions."""
    console = Console()
    if console.width < NARROWEST:
        console = Console(width=NARROWEST)
    scale, on_gpus = found.plan.study.scale, bool(found.place.gpus)
    table = Table(
        title=f"scale {scale} on {machine}: estimated, not measured; tokens of answers", box=box.SIMPLE_HEAD,
        title_justify="left", padding=(0, 1, 0, 0), show_footer=True,
    )  # fmt: skip
    total = Line(
        "all", "", sum(line.jobs for line in found.lines), 0, found.total("job_seconds"), found.total("wall_seconds"),
        found.total("generated"), found.total("trained"), found.total("requests"),
    )  # fmt: skip
    last = _cells(total, gpu_seconds=found.total("gpu_seconds"), on_gpus=on_gpus)
    for name, footer in zip(COLUMNS, last, strict=True):
        if on_gpus or name != "GPUs":
            shown = name if on_gpus else {"GPU hours": "job minutes", "wall hours": "wall minutes"}.get(name, name)
            table.add_column(shown, footer, justify="left" if name in ("rule", "what") else "right", no_wrap=True)
    for line in found.lines:
        cells = _cells(line, gpu_seconds=line.gpu_seconds, on_gpus=on_gpus)
        table.add_row(*(cell for name, cell in zip(COLUMNS, cells, strict=True) if on_gpus or name != "GPUs"))
    console.print(table)
    lines = [] if all(map(found.plan.makes, found.plan.runs)) else [describe(found.plan)]
    if on_gpus:
        held = found.place.gpus * found.total("wall_seconds") / 3600
        lines.append(f"{machine} held from the first job to the last: {held:,.0f} GPU hours, idle ones included")
    for text in (*lines, *teacher_lines(found), disk_line(found.disk), *assumptions(found)):
        console.print(f"- {text}", highlight=False, markup=False)


def _cells(line: Line, *, gpu_seconds: float | None, on_gpus: bool) -> tuple[str, ...]:
    held, unit = (gpu_seconds, 3600) if on_gpus else (line.job_seconds, 60)
    tokens = (count(line.generated), count(line.trained))
    requests = f"{line.requests:,.0f}" if line.requests else ""
    gpus = str(line.gpus) if line.gpus else ""
    times = (in_units(held, unit), in_units(line.wall_seconds, unit))
    return (line.rule, line.what, str(line.jobs), gpus, *times, *tokens, requests)


def in_units(seconds: float | None, unit: int) -> str:
    """Seconds as hours or minutes, for people; a dash where they are not known."""
    return "—" if seconds is None else f"{seconds / unit:,.1f}"


def count(tokens: float) -> str:
    """A number of tokens, for people."""
    if not tokens:
        return ""
    return f"{tokens / 1e6:,.1f} M" if tokens >= 1e6 else f"{tokens / 1e3:,.1f} k"


def gib(size: float) -> str:
    """Bytes in GiB, for people."""
    return f"{size / 2**30:,.1f}"
