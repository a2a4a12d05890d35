"""The Kubernetes profile, by an API that only pretends: what is posted, what becomes of it, and how a pod leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workflow.conftest import REPOSITORY, copy_project
from tests.workflow.fake_kubernetes import Cluster, serving
from uniapl import kubernetes_jobs
from uniapl.entry import REQUEUE_EXIT_CODE, run_guarded

pytest.importorskip("kubernetes", reason="needs the package kubernetes (requirements/test.txt)")
pytest.importorskip(
    "snakemake_executor_plugin_cluster_generic", reason="needs snakemake-executor-plugin-cluster-generic"
)

PROFILE = REPOSITORY / "profiles" / "kubernetes"
NAMESPACE = "lab"
SECRETS = {"TEACHER_KEY": "key-of-the-teacher", "HF_TOKEN": "token-of-the-hub"}
KUBECONFIG_TOKEN = "token-of-the-user"


STAGE = """
import signal, sys, time
from uniapl import leases
def save(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
leases.watch_starter()
print("training", flush=True)
time.sleep(60)
"""


# Pods and submitters find this interpreter as `python`.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster, and an environment of who submits to it: its address, and secrets that must stay where they are."""
    with serving(os.environ | {"PATH": PATH, "PYTHONPATH": ""}) as served:
        kubeconfig = served.kubeconfig(tmp_path / "kubeconfig", namespace=NAMESPACE, token=KUBECONFIG_TOKEN)
        for name, value in (SECRETS | {"KUBECONFIG": str(kubeconfig), "PATH": PATH}).items():
            monkeypatch.setenv(name, value)
        yield served


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls one of the profile's commands, in this process."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(kubernetes_jobs, "POLL_SECONDS", 0.1)

    def called(*words: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = 0
        try:
            run_guarded(lambda: kubernetes_jobs.main(list(words)))
        except SystemExit as left:
            code = int(left.code or 0)
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, printed.out, printed.err)

    return called


def snakemake(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake with the profile."""
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/kubernetes", *words]
    environment = os.environ | {"PYTHONPATH": str(project)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def jobscript(folder: Path, *, rule: str = "train", command: str = "true", **resources: int) -> str:
    """A job script as Snakemake writes it."""
    properties = {"rule": rule, "output": [f"{rule}.json"], "threads": 4, "resources": {"mem_mb": 2000} | resources}
    path = folder / "snakejob.sh"
    path.write_text(f"#!/bin/sh\n# properties = {json.dumps(properties)}\ncd {folder} && {command}\n")
    return str(path)


def as_kubernetes_reads(document: dict[str, Any]) -> Any:
    """A manifest after a way through the client's model of its kind, which drops what that kind does not have."""
    from kubernetes.client import ApiClient

    class Answer:
        data = json.dumps(document)

    client = ApiClient()
    return client.sanitize_for_serialization(client.deserialize(Answer, f"V1{document['kind']}"))


def allowed() -> set[tuple[str, str]]:
    """Verb and resource of everything that cluster.yaml allows the desk."""
    documents = list(yaml.safe_load_all((PROFILE / "cluster.yaml").read_text()))
    (role,) = [document for document in documents if document["kind"] == "Role"]
    return {(verb, resource) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}


def test_a_job_of_the_study_runs_in_the_cluster(tmp_path: Path, cluster: Cluster):
    project = copy_project(tmp_path / "project")
    words = ["runs", "--until", "data", "--config", "scale=smoke", "models=tiny_qwen3", "methods=sft"]
    quick = ["--seconds-between-status-checks", "1", "--set-resources", "data:gpu=2"]
    done = snakemake(project, *words, *quick)
    assert done.returncode == 0, (done.stdout + done.stderr + cluster.logs())[-6000:]
    assert len(list(project.glob("results/smoke/data/*/manifest.json"))) == 1
    (manifest,) = cluster.manifests.values()
    assert manifest == as_kubernetes_reads(manifest)
    assert manifest["metadata"]["name"].startswith("uniapl-data-")
    assert manifest["spec"]["backoffLimit"] == 0
    (rule,) = manifest["spec"]["podFailurePolicy"]["rules"]
    assert rule == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    pod = manifest["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert container["image"] == "uniapl:0.1.0"
    assert container["command"] == ["python", "-m", "uniapl.kubernetes_jobs", "run"]
    assert container["workingDir"] == str(project)
    assert "-m snakemake" in container["args"][0]
    assert "--mode 'remote'" in container["args"][0]
    assert "--shared-fs-usage" in container["args"][0]
    amounts = {"cpu": "1", "memory": "3000M", "nvidia.com/gpu": "2"}
    assert container["resources"] == {"requests": amounts, "limits": amounts}
    assert {"name": "CUDA_VISIBLE_DEVICES", "value": "0,1"} in container["env"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts == {"work": "/work", "shm": "/dev/shm"}
    assert volumes["work"]["persistentVolumeClaim"] == {"claimName": "uniapl"}
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert container["envFrom"] == [{"secretRef": {"name": "uniapl", "optional": True}}]
    posted = json.dumps(manifest)
    assert not [value for value in [*SECRETS.values(), KUBECONFIG_TOKEN] if value in posted]
    assert {(verb, resource) for verb, resource, _ in cluster.requests} <= allowed()
    assert {namespace for *_, namespace in cluster.requests} == {NAMESPACE}


def test_the_paper_is_planned_with_the_profile(shared_project: Path):
    done = snakemake(shared_project, "-n", "--config", "scale=paper", "accept_missing=true")
    assert done.returncode == 0, done.stderr
    assert "train_first" in done.stdout + done.stderr


def trains(pod: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """The pod, once its stage has begun."""
    assert pod.stdout
    assert pod.stdout.readline() == "training\n"
    return pod


def test_a_job_is_submitted_looked_after_and_cancelled(tmp_path: Path, cluster: Cluster, call: Call):
    (tmp_path / "stage.py").write_text(STAGE)
    script = jobscript(tmp_path, command=f"PYTHONPATH={REPOSITORY} python stage.py", gpu=0)
    submitted = call("submit", script)
    assert submitted.returncode == 0, submitted.stderr
    (name,) = cluster.manifests
    assert submitted.stdout == f"{name}\n"
    (container,) = cluster.manifests[name]["spec"]["template"]["spec"]["containers"]
    amounts = {"cpu": "4", "memory": "2000M"}
    assert container["resources"] == {"requests": amounts, "limits": amounts}
    assert {"name": "CUDA_VISIBLE_DEVICES", "value": ""} in container["env"]
    assert call("status", name).stdout == "running\n"
    first = trains(cluster.pods[name])
    again = call("submit", script)
    assert again.stdout == f"{name}\n"
    assert "taken over" in again.stderr
    assert cluster.pods[name] is first
    assert call("cancel", name, "uniapl-gone").returncode == 0
    # Submitted while the cancelled one is still saving: only one of them is ever there.
    assert call("submit", script).stdout == f"{name}\n"
    assert first.returncode == REQUEUE_EXIT_CODE
    second = trains(cluster.pods[name])
    assert call("cancel", name).returncode == 0
    assert second.wait(timeout=20) == REQUEUE_EXIT_CODE
    gone = call("status", name)
    assert (gone.returncode, gone.stdout) == (0, "failed\n")


def test_a_job_that_failed_is_replaced(tmp_path: Path, cluster: Cluster, call: Call):
    script = jobscript(tmp_path, command="exit 3")
    name = call("submit", script).stdout.strip()
    assert cluster.pods[name].wait(timeout=20) == 3
    failed = call("status", name)
    assert failed.stdout == "failed\n"
    assert f"kubectl -n {NAMESPACE} logs job/{name}" in failed.stderr
    jobscript(tmp_path, command="true")
    assert call("submit", script).stdout == f"{name}\n"
    assert cluster.pods[name].wait(timeout=20) == 0
    assert call("status", name).stdout == "success\n"
    assert {(verb, resource) for verb, resource, _ in cluster.requests} == allowed()


def test_a_cluster_that_does_not_answer_ends_no_job(tmp_path: Path, cluster: Cluster, call: Call):
    cluster.refusal = 503
    shaken = call("status", "uniapl-train-1")
    assert (shaken.returncode, shaken.stdout) == (0, "running\n")
    assert "asked again" in shaken.stderr


def test_mistakes_are_one_line(tmp_path: Path, cluster: Cluster, call: Call):
    def error(*words: str) -> str:
        done = call(*words)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        return line

    assert "machine.nodes = 2" in error("submit", jobscript(tmp_path, nodes=2))
    assert "--envvars" in error("submit", jobscript(tmp_path, command="export KEY='value' && true"))
    assert cluster.requests == []
    cluster.refusal = 403
    assert "jobs: not for you" in error("submit", jobscript(tmp_path))
    assert "jobs/status: not for you" in error("status", "uniapl-train-1")
    assert "kubectl" in error("cancel", "uniapl-train-1")
    (tmp_path / "job.yaml").write_text("kind: Pod\n")
    assert "job.yaml is no template" in error("submit", "--template", str(tmp_path / "job.yaml"), jobscript(tmp_path))
    (tmp_path / "kubeconfig").unlink()
    assert "set KUBECONFIG" in error("submit", jobscript(tmp_path))


def test_the_cluster_and_a_command_of_ones_own_are_what_kubernetes_reads(call: Call):
    for document in yaml.safe_load_all((PROFILE / "cluster.yaml").read_text()):
        assert document == as_kubernetes_reads(document), document["kind"]
    printed = call("manifest", "--gpus", "8", "--", "uniapl", "doctor", "--scale", "paper")
    manifest = yaml.safe_load(printed.stdout)
    assert manifest == as_kubernetes_reads(manifest)
    pod = manifest["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"] == ["uniapl doctor --scale paper"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, REQUEUE_EXIT_CODE), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_pod_that_ends_lets_its_stage_save(tmp_path: Path, number: int, code: int):
    (tmp_path / "stage.py").write_text(STAGE)
    # As in a rule: the stage is neither the shell's last word nor alone in its pipe.
    script = f"{sys.executable} {tmp_path}/stage.py 2>&1 | tee -i {tmp_path}/log; exit 1"
    pod = subprocess.Popen(
        [sys.executable, "-m", "uniapl.kubernetes_jobs", "run", script], cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    log = tmp_path / "log"
    deadline = time.monotonic() + 30
    while not (log.exists() and log.read_text() == "training\n"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pod.send_signal(number)
    assert pod.wait(timeout=20) == code
    while log.read_text().splitlines()[-1] != "saved":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_pod_leaves_with_its_jobs_exit_code(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # SIGTERM stays this process's own
    assert [kubernetes_jobs.run(script) for script in ("true", "exit 3", "kill -9 $$")] == [0, 3, 137]
