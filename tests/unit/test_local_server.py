"""The server of a local teacher: what it is started with, and how it ends."""

from __future__ import annotations

import itertools
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from uniapl import leases
from uniapl.config import VLLMSpec
from uniapl.layers import load_study
from uniapl.teachers import local_server
from uniapl.teachers.local_server import LocalServer, options
from uniapl.workflow import autoif_gpus, teacher_access, teacher_gpus

ROOT = Path(__file__).parents[2]


def spec_of(**values: Any) -> VLLMSpec:
    spec = load_study("smoke", {"teacher": {"name": "qwen3_235b_vllm", **values}}).teacher
    assert isinstance(spec, VLLMSpec)
    return spec


def test_a_local_teacher_gets_its_gpus_and_samples_as_each_request_says() -> None:
    spec = spec_of()
    words = options(spec, Path("/weights"), model="big-1234", port=8001, on_gpu=True)
    pairs = dict(itertools.pairwise(words))
    assert pairs["--tensor-parallel-size"] == "8"
    assert pairs["--gpu-memory-utilization"] == "0.9"
    assert pairs["--host"] == "127.0.0.1"
    assert pairs["--served-model-name"] == "big-1234"
    assert pairs["--generation-config"] == "vllm"
    assert "--trust-remote-code" not in words
    assert teacher_gpus(spec) == 8
    editor = load_study("smoke").teacher
    assert (teacher_gpus(editor), teacher_access(editor)) == (1, "")
    assert autoif_gpus(load_study("paper")) == 0
    local = {"teacher": "qwen3_235b_vllm"}
    assert autoif_gpus(load_study("paper", local)) == 8
    assert autoif_gpus(load_study("paper", local | {"data": {"autoif": {"items": "items.jsonl"}}})) == 0


def test_other_weights_under_one_name_are_another_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "explain_fallback", lambda: None)
    names = {LocalServer(spec_of(model=f"Some/Model-1B@{r}"), directory=tmp_path).model for r in ("a", "b", "b")}
    assert len(names) == 2


@pytest.mark.slow
def test_a_server_that_does_not_start_is_one_line_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "explain_fallback", lambda: None)
    (tmp_path / "config.json").write_text("{}")
    # The child fails at once: this folder is no model that vLLM knows, or vLLM is not there at all.
    server = LocalServer(spec_of(model=str(tmp_path)), directory=tmp_path)
    with (
        pytest.raises(
            ValueError, match=r"the teacher's vLLM server ended \(exit code \d+; .*its log: .*\.log"
        ) as raised,
        server,
    ):
        server.start()
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_server_leaves_when_the_process_that_started_it_is_gone(tmp_path: Path) -> None:
    starter = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    named = leases.Process(starter.pid, platform.node(), psutil.Process(starter.pid).create_time())
    server = subprocess.Popen(
        [sys.executable, "-m", "uniapl.teachers.local_server", "--model", str(tmp_path)],
        env=os.environ | {leases.STARTER: named.text()}, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    starter.kill()
    starter.wait()
    assert "started this and is gone: leaving" in server.communicate(timeout=60)[1]
    assert server.returncode == -signal.SIGTERM
