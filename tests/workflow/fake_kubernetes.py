"""A Kubernetes API for jobs on the loopback interface, as far as a workflow uses it: a posted job's pod is a process.

Resources are believed, not made. `requests` holds what was asked of it, `manifests` what was posted, by job.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Cluster:
    """The state of the cluster. `environment` is what an image brings; `refusal`, if any, is every request's status."""

    environment: Mapping[str, str]
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # verb, resource, namespace
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    refusal: int = 0
    url: str = ""

    def create(self, manifest: dict[str, Any]) -> None:
        """Start the job's pod."""
        name, container = manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]["containers"][0]
        self.manifests[name] = manifest
        self.pods[name] = subprocess.Popen(
            [*container["command"], *container["args"]], cwd=container["workingDir"], text=True,
            env={**self.environment, **{each["name"]: each["value"] for each in container["env"]}},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def present(self, name: str) -> bool:
        """A job that was deleted stays until its pod is gone, as after a deletion in the foreground."""
        if name in self.deleted and self.pods[name].poll() is not None:
            self.deleted.discard(name)
            del self.manifests[name]
        return name in self.manifests

    def status(self, name: str) -> dict[str, Any]:
        """As the job controller writes it."""
        code = self.pods[name].poll()
        if code is None:
            return {"active": 1}
        kind = "Failed" if code else "Complete"
        return {"conditions": [{"type": kind, "status": "True"}]}

    def logs(self) -> str:
        """What all ended pods printed."""
        return "\n".join(pod.stdout.read() for pod in self.pods.values() if pod.stdout and pod.poll() is not None)

    def kubeconfig(self, path: Path, *, namespace: str, token: str) -> Path:
        """Write a kubeconfig of this cluster, with a user's token."""
        named = {
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "somebody", "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "fake", "user": "somebody", "namespace": namespace}}],
        }
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "here", **named}))
        return path


class Handler(BaseHTTPRequestHandler):
    """/apis/batch/v1/namespaces/NAMESPACE/jobs[/NAME[/status]]"""

    cluster: Cluster

    def answer(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_one(self, verb: str) -> None:
        namespace, kind, *rest = urlsplit(self.path).path.removeprefix("/apis/batch/v1/namespaces/").split("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        resource = "/".join([kind, *rest[1:]])
        self.cluster.requests.append((verb, resource, namespace))
        name = rest[0] if rest else ""
        if self.cluster.refusal:
            self.answer(self.cluster.refusal, {"kind": "Status", "message": f"{resource}: not for you"})
        elif verb == "create" and resource == "jobs":
            manifest = json.loads(body)
            name = manifest["metadata"]["name"]
            if self.cluster.present(name):
                self.answer(409, {"kind": "Status", "message": f'jobs.batch "{name}" already exists'})
                return
            self.cluster.create(manifest)
            self.answer(201, manifest)
        elif not self.cluster.present(name):
            self.answer(404, {"kind": "Status", "message": f'jobs.batch "{name}" not found'})
        elif verb == "get" and resource == "jobs/status":
            manifest = self.cluster.manifests[name]
            leaving = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if name in self.cluster.deleted else {}
            metadata = manifest["metadata"] | leaving
            self.answer(200, manifest | {"metadata": metadata, "status": self.cluster.status(name)})
        elif verb == "delete" and resource == "jobs":
            self.cluster.deleted.add(name)
            self.cluster.pods[name].terminate()
            self.answer(200, {"kind": "Status", "status": "Success"})
        else:
            self.answer(405, {"kind": "Status", "message": f"{verb} {resource} is not made here"})

    def do_GET(self) -> None:
        self.handle_one("get")

    def do_POST(self) -> None:
        self.handle_one("create")

    def do_DELETE(self) -> None:
        self.handle_one("delete")

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def serving(environment: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A cluster that lives as long as the block, and its pods with it."""
    cluster = Cluster(environment=dict(environment or os.environ))
    handler = type("ClusterHandler", (Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    cluster.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
        for pod in cluster.pods.values():
            pod.kill()
            pod.wait()
