"""What `uniapl doctor` looks at: everything that a scale needs of this machine, each as ok or missing with its remedy.

Nothing is changed, and nothing leaves the machine but one request to the teacher's endpoint.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.markup import escape

from uniapl import hub
from uniapl.config import ConfigError, EndpointSpec, Study
from uniapl.endpoint import read_key
from uniapl.estimate.disk import disk_of
from uniapl.estimate.memory import gib
from uniapl.launch import visible_gpus
from uniapl.plan import Plan
from uniapl.sampler import explain_fallback
from uniapl.sandbox import offered
from uniapl.sandbox.probe import available, remedy
from uniapl.workflow import check_memory, gpu_memories, has_vllm_for_gpus

LOCK = Path(__file__).resolve().parent.parent / "requirements" / "lock.txt"
ELSEWHERE = ("triton", "intel-openmp", "intel-cmplr-lib-ur")  # locked, but of some platforms alone
ENDPOINT_SECONDS = 10.0


@dataclass(frozen=True)
class Finding:
    """One line. `remedy` is None where all is well."""

    name: str
    found: str
    remedy: str | None = None


def examine(plan: Plan) -> Iterator[Finding]:
    """Findings about a plan on this machine, one after the other, since some take seconds."""
    study = plan.study
    yield _python()
    yield _packages()
    yield from _gpus(study)
    yield _memory(plan)
    yield _disk(plan)
    yield from _hub(study)
    if isinstance(study.teacher, EndpointSpec):
        yield _endpoint(study.teacher)
    if "humaneval" in study.evaluation.tasks:
        yield _sandbox()


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    wrong = not (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding("python", version, "install Python 3.11, 3.12 or 3.13" if wrong else None)


def _packages(lock: Path = LOCK) -> Finding:
    """Installed versions against the lock."""
    lines = [line.partition("#")[0].partition(";")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines()]
    pins = dict(line.split("==") for line in lines if "==" in line)
    differing = []
    for name, version in pins.items():
        try:
            installed = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            installed = "missing"
        if installed != version and name not in ELSEWHERE:
            differing.append(f"{name} {installed} for {version}")
    found = f"{len(pins) - len(differing)} of {len(pins)} as locked"
    shown = ", ".join(differing[:3]) + (", ..." if len(differing) > 3 else "")
    return Finding("packages", found, f"{shown}: run make environment, or make conda's anew" if shown else None)


def _gpus(study: Study) -> Iterator[Finding]:
    """GPUs, driver, PyTorch's CUDA build, NCCL and vLLM; on a CPU only what samples there."""
    import torch

    machine = study.machine
    if not machine.gpus_per_rank:
        fallback = explain_fallback() if study.sampler.kind == "auto" else None
        yield Finding("sampler", fallback or f"{study.sampler.kind}, on the CPU")
        return
    visible, needed = visible_gpus(), machine.ranks_per_node
    lacking = "lower machine.ranks, or start it where the GPUs are (profiles/slurm)" if len(visible) < needed else None
    yield Finding("GPUs", f"{len(visible)} of {needed} that a node's ranks need", lacking)
    if visible:
        yield _driver()
    cuda = torch.version.cuda
    yield Finding(
        "PyTorch", f"{torch.__version__}, CUDA {cuda or 'none'}",
        None if cuda else "install PyTorch's CUDA build (environment.yml)",
    )  # fmt: skip
    if machine.ranks > 1:
        has = torch.distributed.is_nccl_available()
        yield Finding("NCCL", "there" if has else "none", None if has else "it comes with PyTorch's CUDA build")
    has = has_vllm_for_gpus()
    yield Finding("vLLM", "GPU build" if has else "no GPU build", None if has else "environment.yml installs it")


def _driver() -> Finding:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
        sizes = ", ".join(sorted({f"{gib(size)} GiB" for size in gpu_memories()}))
    except (OSError, ConfigError, subprocess.SubprocessError) as error:
        return Finding(
            "driver", "nvidia-smi does not answer", f"mend the driver ({' '.join(str(error).split())[:100]})"
        )
    return Finding("driver", f"{lines[0]}; {sizes}")


def _memory(plan: Plan) -> Finding:
    try:
        check_memory(plan)
    except ConfigError as error:
        return Finding("memory", "a model does not fit", str(error))
    if plan.study.machine.gpus_per_rank and not visible_gpus():
        return Finding("memory", "not known without the GPUs; uniapl estimate --model says what is needed")
    return Finding("memory", f"every model fits; {gib(psutil.virtual_memory().total)} GiB of main memory")


def _disk(plan: Plan) -> Finding:
    """Free space against models, runs and one that trains; shapes that are not known count nothing."""
    needed = disk_of(plan, runs_at_once=1).results
    folder = plan.root.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{gib(free)} GiB free for {gib(needed)} GiB of {len(plan.runs)} runs"
    return Finding(
        "disk", found, f"free some below {plan.root}, or give --config results=DIR" if free < needed else None
    )


def _hub(study: Study) -> Iterator[Finding]:
    for source in hub.sources_of(study):
        cached = hub.is_cached(source)
        found = "in the cache" if cached else "not in the cache"
        wanted = f"uniapl fetch --scale {study.scale} brings it; its licence: {hub.page_of(source)}"
        yield Finding(f"{source.kind} {source}", found, None if cached else wanted)


def _endpoint(teacher: EndpointSpec) -> Finding:
    """Whether the teacher's endpoint answers and has its model. The key is sent and never shown."""
    url = teacher.access.url
    try:
        key = read_key(teacher.access.key_variable)
    except ValueError as error:
        return Finding("teacher", "no key", str(error))
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{url}/models", headers=headers, timeout=ENDPOINT_SECONDS)
        names = [entry["id"] for entry in answer.json()["data"]] if answer.status_code == httpx.codes.OK else None
    except httpx.TransportError as error:
        found = f"{url} cannot be reached ({type(error).__name__})"
        return Finding("teacher", found, "start the server, or see access.url (docs/teachers.md)")
    except (ValueError, KeyError, TypeError):
        names = []
    if names is None:
        return Finding("teacher", f"{url} answers with status {answer.status_code}", "see the key and access.url")
    if teacher.model not in names:
        return Finding("teacher", f"{url} does not list {teacher.model}", "see model in the teacher's file")
    return Finding("teacher", f"{url} has {teacher.model}")


def _sandbox() -> Finding:
    """Whether model-written programs can be run: HumanEval's need a CPython back end."""
    works = [name for name in offered() if name != "monty"]
    if works:
        return Finding("sandbox", f"{works[0]} holds")
    reasons = "; ".join(f"{name}: {found.reason}" for name, found in available().items() if not found.works)
    return Finding("sandbox", reasons or "none", remedy())


def show(findings: Iterator[Finding], *, say: Callable[[str], None] | None = None) -> int:
    """Print a line for each finding, with the remedy of what is missing; return how many are missing."""
    console = Console(soft_wrap=True, highlight=False)
    say = say or console.print
    missing = 0
    for finding in findings:
        if finding.remedy is None:
            say(f"[green]ok[/]       {escape(finding.name)}: {escape(finding.found)}")
        else:
            missing += 1
            say(f"[red]missing[/]  {escape(finding.name)}: {escape(finding.found)}; {escape(finding.remedy)}")
    return missing
