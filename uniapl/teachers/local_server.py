"""A teacher that this machine serves: vLLM's own server on the loopback interface, for as long as it is asked.

Its answers come through the client of any endpoint, so they are kept and resumed alike. It starts with the first
question that no file answers. `python -m uniapl.teachers.local_server [vLLM's options]` is the server's process: it
ends with the process that started it.
"""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx

from uniapl import leases
from uniapl.config import EndpointAccess, VLLMSpec
from uniapl.models import checkpoint_folder
from uniapl.provenance import content_hash
from uniapl.sampler import explain_fallback
from uniapl.serve import CPU_ENVIRONMENT, CPU_OPTIONS, QUIET, SERVER

POLL_SECONDS = 0.5
STOP_SECONDS = 60.0


class LocalServer:
    """A vLLM server of one teacher; use it as a context, which ends it."""

    def __init__(self, spec: VLLMSpec, *, directory: Path) -> None:
        """`directory` gets its log. Raise ValueError where vLLM cannot run here; nothing is started yet."""
        if reason := explain_fallback():
            raise ValueError(f"teacher.kind = 'vllm': {reason.split(':')[0]}; use a teacher behind an endpoint")
        self.spec = spec
        self.model = f"{spec.model.name}-{content_hash(spec.model.model_dump())}"  # other weights have another name
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self.access = EndpointAccess.model_validate(
            {
                "url": f"http://127.0.0.1:{self._port}/v1", "concurrency": spec.access.concurrency,
                "timeout_seconds": spec.access.timeout_seconds,
            }
        )  # fmt: skip
        self._log = directory / "teacher_server.log"
        self._scratch = directory / ".teacher.tmp"  # weights that have to be made; a later start removes what is left
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        ended = self._process.poll() if self._process else None
        self._stop()
        shutil.rmtree(self._scratch, ignore_errors=True)
        if kind is not None and ended is not None:  # the cause of whatever the client met
            raise self._end(ended)

    def start(self) -> None:
        """Start it and wait until it answers. Raise ValueError with the log's place where it ends instead."""
        import torch

        weights = checkpoint_folder(self.spec.model, scratch=self._scratch)
        words = options(self.spec, weights, model=self.model, port=self._port, on_gpu=torch.cuda.is_available())
        environment = os.environ | QUIET | {leases.STARTER: leases.Process.current().text()}
        if not torch.cuda.is_available():
            environment = CPU_ENVIRONMENT | environment
        print(f"starting vLLM with {self.spec.model.title}; its log: {self._log}", flush=True)
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "uniapl.teachers.local_server", *words], env=environment, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + self.spec.access.start_seconds
        while not self._answers():
            if (code := self._process.poll()) is not None:
                raise self._end(code)
            if time.monotonic() > deadline:
                raise ValueError(
                    f"the teacher's vLLM server did not answer in {self.spec.access.start_seconds:g} s "
                    f"(access.start_seconds); its log: {self._log}"
                )
            time.sleep(POLL_SECONDS)

    def _answers(self) -> bool:
        """True once it serves this teacher."""
        try:
            listed = httpx.get(f"{self.access.url}/models", timeout=2.0, trust_env=False)
            return self.model in [one["id"] for one in listed.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return False

    def _end(self, code: int) -> ValueError:
        lines = [line.strip() for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines()]
        last = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no output")
        return ValueError(f"the teacher's vLLM server ended (exit code {code}; {last[-300:]}); its log: {self._log}")

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=STOP_SECONDS)
        with suppress(ProcessLookupError):  # none is left of its group, as it should be
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None


def options(spec: VLLMSpec, weights: Path, *, model: str, port: int, on_gpu: bool) -> list[str]:
    """vLLM's words for a teacher. The model's own generation config is left out: each request says how to sample."""
    access = spec.access
    memory = (
        ["--gpu-memory-utilization", str(access.gpu_memory_share)]
        if on_gpu
        else ["--kv-cache-memory-bytes", str(int(access.kv_cache_gib * 2**30)), *CPU_OPTIONS]
    )
    return [
        "--model", str(weights), "--served-model-name", model, "--host", "127.0.0.1", "--port", str(port),
        "--tensor-parallel-size", str(access.tensor_parallel), "--max-model-len", str(access.max_model_tokens),
        "--generation-config", "vllm", "--enable-prefix-caching", "--disable-uvicorn-access-log", *memory,
    ]  # fmt: skip


if __name__ == "__main__":
    leases.watch_starter()
    runpy.run_module(SERVER, run_name="__main__", alter_sys=True)
