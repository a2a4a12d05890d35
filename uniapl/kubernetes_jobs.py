"""A study's jobs in a Kubernetes cluster: what profiles/kubernetes calls to submit, look after and cancel them.

A job of Snakemake becomes a `batch/v1` Job of one pod: profiles/kubernetes/job.yaml, with name, command, folder and
resources filled in. All pods mount one volume, which holds the repository and the results, so that a pod that takes
another one's place goes on from the last checkpoint. (The plugin snakemake-executor-plugin-kubernetes cannot be used:
Snakemake takes it to have no shared volume, whatever `shared-fs-usage` says, and wants an object store between jobs.)

    python -m uniapl.kubernetes_jobs submit JOBSCRIPT         post the job and print its name
    python -m uniapl.kubernetes_jobs status NAME              print running, success or failed
    python -m uniapl.kubernetes_jobs cancel NAME ...          delete jobs; their pods save and leave
    python -m uniapl.kubernetes_jobs manifest -- COMMAND ...  print a job of that command, for kubectl
    python -m uniapl.kubernetes_jobs run SCRIPT               in the pod: the job itself
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import re
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from uniapl import leases
from uniapl.entry import REQUEUE_EXIT_CODE, run_guarded
from uniapl.layers import CONFIG, read_yaml
from uniapl.provenance import content_hash

TEMPLATE = CONFIG.parent / "profiles" / "kubernetes" / "job.yaml"
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")  # in every pod that may use the API
GPU = "nvidia.com/gpu"
REQUEST_SECONDS = 30
POLL_SECONDS = 2.0
LEAVE_SECONDS = 900.0  # how long a deleted job's pod is waited for; job.yaml gives it 600 to save
INSTALL = "profiles/kubernetes/config.yaml says how to install it"


@dataclass(frozen=True)
class Needs:
    """What one job is and asks for. `key` names it in its folder; `memory_mb` is in 10^6 bytes, as Snakemake counts."""

    rule: str
    key: str
    cpus: int
    memory_mb: int
    gpus: int = 0
    nodes: int = 1


def job_of(jobscript: Path) -> tuple[Needs, str]:
    """What Snakemake wrote of a job: its needs, and the shell text that runs it. Raise ValueError where no pod can."""
    properties, lines = None, []
    for line in jobscript.read_text(encoding="utf-8").splitlines():
        if line.startswith("# properties = "):
            properties = json.loads(line.removeprefix("# properties = "))
        elif line and not line.startswith("#"):
            lines.append(line)
    if properties is None:
        raise ValueError(f"{jobscript} is no job script of Snakemake: it has no line of properties")
    script = "\n".join(lines)
    if re.search(r"(^|&& )export ", script):
        raise ValueError("--envvars would write values into the job; put them into the secret uniapl (docs/cluster.md)")
    resources = properties["resources"]
    needs = Needs(
        rule=properties.get("rule") or "group",
        key=content_hash([str(Path.cwd()), *sorted(properties["output"])]),
        cpus=int(properties["threads"]),
        memory_mb=int(resources["mem_mb"]),
        gpus=int(resources.get("gpu", 0)),
        nodes=int(resources.get("nodes", 1)),
    )
    if needs.nodes > 1:
        raise ValueError(
            f"{needs.rule}: machine.nodes = {needs.nodes}, but a job in Kubernetes is one pod on one node; "
            f"set machine.nodes to 1, or use SLURM (docs/cluster.md)"
        )
    return needs, script


def filled(template: dict[str, Any], needs: Needs, script: str, *, directory: Path) -> dict[str, Any]:
    """The manifest of one job that runs a shell text in a folder. Raise ValueError where the template is none."""
    manifest = copy.deepcopy(template)
    try:
        pod = manifest["spec"]["template"]["spec"]
        container = pod["containers"][0]
        metadata = manifest["metadata"]
        if manifest["kind"] != "Job" or not container["image"]:
            raise ValueError("its kind must be Job, and its container have an image")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"job.yaml is no template of a Job: {error!r}; start from the repository's own") from None
    rule = re.sub(r"[^a-z0-9]+", "-", needs.rule.lower()).strip("-")[:40]
    metadata["name"] = f"uniapl-{rule}-{needs.key}"
    labels = [metadata.setdefault("labels", {})]
    labels.append(manifest["spec"]["template"].setdefault("metadata", {}).setdefault("labels", {}))
    for each in labels:
        each["rule"] = rule
    container["command"] = ["python", "-m", "uniapl.kubernetes_jobs", "run"]
    container["args"] = [script]
    container["workingDir"] = str(directory)
    amounts = {"cpu": str(needs.cpus), "memory": f"{needs.memory_mb}M"} | ({GPU: str(needs.gpus)} if needs.gpus else {})
    resources = container.setdefault("resources", {})
    for kind in ("requests", "limits"):
        resources[kind] = resources.get(kind, {}) | amounts
    # A pod sees only its own GPUs, numbered from 0, though their device files keep the node's numbers.
    gpus = ",".join(str(number) for number in range(needs.gpus))
    container["env"] = [*container.get("env", []), {"name": "CUDA_VISIBLE_DEVICES", "value": gpus}]
    if needs.gpus:
        taint = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}
        pod["tolerations"] = [*pod.get("tolerations", []), taint]
    return manifest


def cluster() -> tuple[Any, str]:
    """The cluster's API for jobs, and the namespace: of KUBECONFIG or ~/.kube/config, else of the pod that this is.

    Raise ValueError where there is no cluster, or the client is not installed.
    """
    try:
        from kubernetes import client, config
    except ImportError:
        raise ValueError(f"the package kubernetes is not installed; {INSTALL}") from None
    try:
        file = os.environ.get("KUBECONFIG")
        if NAMESPACE.exists() and not file:
            config.load_incluster_config()
            return client.BatchV1Api(), NAMESPACE.read_text(encoding="utf-8").strip()
        config.load_kube_config(file)
        _, context = config.list_kube_config_contexts(file)
        return client.BatchV1Api(), context["context"].get("namespace", "default")
    except config.ConfigException as error:
        raise ValueError(
            f"no Kubernetes cluster is to be found ({error}); set KUBECONFIG, or run this in the desk pod of "
            f"profiles/kubernetes/cluster.yaml"
        ) from None


def asked(question: Callable[[], Any]) -> tuple[Any, str, int]:
    """What the cluster answers, or why not: (answer, "", 200) or (None, reason, HTTP status; 0 if not reached)."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return question(), "", 200
    except ApiException as error:
        try:
            reason = json.loads(error.body or "")["message"]
        except (TypeError, ValueError, KeyError):
            reason = str(error.reason)
        return None, reason, int(error.status or 0)
    except HTTPError as error:
        return None, str(error), 0


def submit(jobscript: Path, *, template: Path) -> None:
    """Post a job and print its name. Raise ValueError where the cluster does not take it.

    The name follows from what the job makes, so the cluster never holds it twice: a job that an earlier Snakemake left
    running is taken over, one that ended is replaced, and one that was cancelled is waited for until its pod has saved.
    """
    needs, script = job_of(jobscript)
    manifest = filled(read_yaml(template), needs, script, directory=Path.cwd())
    name = manifest["metadata"]["name"]
    jobs, namespace = cluster()
    deadline = time.monotonic() + LEAVE_SECONDS
    while True:
        _, reason, code = asked(
            lambda: jobs.create_namespaced_job(namespace, manifest, _request_timeout=REQUEST_SECONDS)
        )
        if not reason:
            break
        if code != 409:
            raise ValueError(f"the cluster does not take a job of {needs.rule} in namespace {namespace}: {reason}")
        present, _, _ = asked(
            lambda: jobs.read_namespaced_job_status(name, namespace, _request_timeout=REQUEST_SECONDS)
        )
        if present is not None and not present.metadata.deletion_timestamp:
            if not ended(present):
                print(f"job {name} runs already and is taken over", file=sys.stderr)
                break
            delete(jobs, name, namespace)
        if time.monotonic() > deadline:
            raise ValueError(f"job {name} does not go away; kubectl -n {namespace} describe job {name} says why")
        time.sleep(POLL_SECONDS)
    print(name)


def ended(job: Any) -> str:
    """`Complete` or `Failed`; empty while it runs."""
    kinds = {condition.type for condition in job.status.conditions or [] if condition.status == "True"}
    return next((kind for kind in ("Failed", "Complete") if kind in kinds), "")


def delete(jobs: Any, name: str, namespace: str) -> tuple[str, int]:
    """Delete a job, which stays until its pod is gone; the reason why not, and the HTTP status."""
    _, reason, code = asked(
        lambda: jobs.delete_namespaced_job(
            name, namespace, propagation_policy="Foreground", _request_timeout=REQUEST_SECONDS
        )
    )
    return reason, code


def status(name: str) -> None:
    """Print what Snakemake asks for. A cluster that cannot be reached for a while ends nothing: `running`.

    Raise ValueError where the cluster refuses to say.
    """
    jobs, namespace = cluster()
    job, reason, code = asked(
        lambda: jobs.read_namespaced_job_status(name, namespace, _request_timeout=REQUEST_SECONDS)
    )
    if code == 404:
        print(f"job {name} is gone from namespace {namespace}: counted as failed", file=sys.stderr)
        print("failed")
    elif reason and (code == 0 or code == 429 or code >= 500):
        print(f"the cluster does not say how job {name} stands ({reason}); asked again", file=sys.stderr)
        print("running")
    elif reason:
        raise ValueError(f"the cluster does not say how job {name} stands: {reason}")
    else:
        if ended(job) == "Failed":
            print(f"job {name} failed; kubectl -n {namespace} logs job/{name}", file=sys.stderr)
        print({"Complete": "success", "Failed": "failed"}.get(ended(job), "running"))


def cancel(names: Sequence[str]) -> None:
    """Delete jobs with their pods, which get SIGTERM, save and leave. Raise ValueError naming those that stayed."""
    jobs, namespace = cluster()
    stayed = []
    for name in names:
        reason, code = delete(jobs, name, namespace)
        if reason and code != 404:
            stayed.append(f"{name} ({reason})")
    if stayed:
        raise ValueError(f"not cancelled: {', '.join(stayed)}; kubectl -n {namespace} delete job NAME")


def run(script: str) -> int:
    """Run a job's shell text; return its exit code, or 75 where SIGTERM came meanwhile.

    Kubernetes tells only the container's first process that it must leave, and neither the shell nor Snakemake hand
    that on. So a process of ours is named as the stages' starter (`leases`) and ended: each stage sees that within a
    second, saves and leaves.
    """
    starter = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # ends with this process, whatever ends that
    born = psutil.Process(starter.pid).create_time()
    named = {leases.STARTER: leases.Process(starter.pid, platform.node(), born).text()}
    told = []

    def leave(number: int, _frame: object) -> None:
        told.append(number)
        starter.kill()

    signal.signal(signal.SIGTERM, leave)
    try:
        code = subprocess.run(["/bin/sh", "-c", script], env=os.environ | named, check=False).returncode
    finally:
        starter.kill()
        starter.wait()
    if told:
        return REQUEUE_EXIT_CODE
    return 128 - code if code < 0 else code


def main(arguments: list[str]) -> None:
    """Do what the first word says."""
    parser = argparse.ArgumentParser(prog="python -m uniapl.kubernetes_jobs", description="A study's Kubernetes jobs.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("submit", help="post a job script of Snakemake as a Job")
    one.add_argument("--template", type=Path, default=TEMPLATE)
    one.add_argument("jobscript", type=Path)
    one = commands.add_parser("status", help="print running, success or failed")
    one.add_argument("name")
    one = commands.add_parser("cancel", help="delete Jobs")
    one.add_argument("names", nargs="+")
    one = commands.add_parser("manifest", help="print the Job of a command, for kubectl create -f -")
    one.add_argument("--template", type=Path, default=TEMPLATE)
    one.add_argument("--cpus", type=int, default=8)
    one.add_argument("--memory-mb", type=int, default=64000)
    one.add_argument("--gpus", type=int, default=0)
    one.add_argument("--directory", type=Path, default=Path.cwd(), help="where the command runs, on the volume")
    one.add_argument("words", nargs="+", help="after --: the command")
    one = commands.add_parser("run", help="in the pod: run a shell text, and let its stages save on SIGTERM")
    one.add_argument("script")
    options = parser.parse_args(arguments)
    if options.command == "submit":
        submit(options.jobscript, template=options.template)
    elif options.command == "status":
        status(options.name)
    elif options.command == "cancel":
        cancel(options.names)
    elif options.command == "manifest":
        needs = Needs("command", secrets.token_hex(4), options.cpus, options.memory_mb, options.gpus)
        script, directory = shlex.join(options.words), options.directory
        print(yaml.safe_dump(filled(read_yaml(options.template), needs, script, directory=directory), sort_keys=False))
    else:
        sys.exit(run(options.script))


if __name__ == "__main__":
    run_guarded(lambda: main(sys.argv[1:]))
