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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from uniapl import leases
from uniapl.entry import REQUEUE_EXIT_CODE, run_guarded
from uniapl.layers import CONFIG, read_yaml

TEMPLATE = CONFIG.parent / "profiles" / "kubernetes" / "job.yaml"
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")  # in every pod that may use the API
GPU = "nvidia.com/gpu"
REQUEST_SECONDS = 30
INSTALL = "profiles/kubernetes/config.yaml says how to install it"


@dataclass(frozen=True)
class Needs:
    """What one job asks for. `memory_mb` in 10^6 bytes, as Snakemake counts them."""

    rule: str
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
    metadata["name"] = f"uniapl-{rule}-{secrets.token_hex(4)}"
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
        if NAMESPACE.exists() and not os.environ.get("KUBECONFIG"):
            config.load_incluster_config()
            return client.BatchV1Api(), NAMESPACE.read_text(encoding="utf-8").strip()
        config.load_kube_config()
        _, context = config.list_kube_config_contexts()
        return client.BatchV1Api(), context["context"].get("namespace", "default")
    except config.ConfigException as error:
        raise ValueError(
            f"no Kubernetes cluster is to be found ({error}); set KUBECONFIG, or run this in the desk pod of "
            f"profiles/kubernetes/cluster.yaml"
        ) from None


def asked(question: Callable[[], Any]) -> tuple[Any, str, int]:
    """What the cluster answers, or why it does not: (answer, "", 200) or (None, reason, HTTP status; 0 if unreached)."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return question(), "", 200
    except ApiException as error:
        try:
            reason = json.loads(error.body)["message"]
        except (TypeError, ValueError, KeyError):
            reason = str(error.reason)
        return None, reason, int(error.status or 0)
    except HTTPError as error:
        return None, str(error), 0


def submit(jobscript: Path, *, template: Path) -> None:
    """Post a job and print its name. Raise ValueError where the cluster does not take it."""
    needs, script = job_of(jobscript)
    manifest = filled(read_yaml(template), needs, script, directory=Path.cwd())
    jobs, namespace = cluster()
    _, reason, _ = asked(lambda: jobs.create_namespaced_job(namespace, manifest, _request_timeout=REQUEST_SECONDS))
    if reason:
        raise ValueError(f"the cluster does not take a job of {needs.rule} in namespace {namespace}: {reason}")
    print(manifest["metadata"]["name"])


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
        ended = {condition.type for condition in job.status.conditions or [] if condition.status == "True"}
        if "Failed" in ended:
            print(f"job {name} failed; kubectl -n {namespace} logs job/{name}", file=sys.stderr)
        print("success" if "Complete" in ended else "failed" if "Failed" in ended else "running")


def cancel(names: Sequence[str]) -> None:
    """Delete jobs with their pods, which get SIGTERM, save and leave. Raise ValueError naming those that stayed."""
    jobs, namespace = cluster()
    stayed = []
    for name in names:
        _, reason, code = asked(
            lambda name=name: jobs.delete_namespaced_job(
                name, namespace, propagation_policy="Background", _request_timeout=REQUEST_SECONDS
            )
        )
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
    starter = subprocess.Popen(["sleep", "infinity"])
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
        needs = Needs("command", options.cpus, options.memory_mb, options.gpus)
        script, directory = shlex.join(options.words), options.directory
        print(yaml.safe_dump(filled(read_yaml(options.template), needs, script, directory=directory), sort_keys=False))
    else:
        sys.exit(run(options.script))


if __name__ == "__main__":
    run_guarded(lambda: main(sys.argv[1:]))
