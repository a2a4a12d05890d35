"""`uniapl doctor`: every line, as it is where all is well and where something is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.chat_server import ChatServer, Reply
from uniapl import doctor
from uniapl.config import EndpointSpec
from uniapl.doctor import Finding, examine, show
from uniapl.layers import load_study
from uniapl.plan import Plan, make_plan

CACHE = "hub/models--Qwen--Qwen3-0.6B"


def plan_of(tmp_path: Path, scale: str = "paper", **overrides: Any) -> Plan:
    return make_plan(load_study(scale, overrides), tmp_path, sampler="hf", compute="float32")


def named(findings: Iterator[Finding] | list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name.startswith(name)]
    return found


def teacher_of(url: str, **access: Any) -> EndpointSpec:
    study = load_study("paper", {"teacher": {"name": "qwen3_235b", "access": {"url": url} | access}})
    assert isinstance(study.teacher, EndpointSpec)
    return study.teacher


def test_smoke_lacks_nothing_here(tmp_path: Path) -> None:
    said: list[str] = []
    assert show(examine(plan_of(tmp_path, "smoke")), say=said.append) == 0, said
    assert [line.split(":")[0].split()[-1] for line in said] == ["python", "packages", "sampler", "memory", "disk"]


def test_the_paper_lacks_gpus_and_sources_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(doctor, "has_vllm_for_gpus", lambda: False)
    findings = list(examine(plan_of(tmp_path, teacher={"access": {"url": "http://127.0.0.1:9/v1"}})))
    assert named(findings, "GPUs") == Finding(
        "GPUs", "0 of 8 that a node's ranks need",
        "lower machine.ranks, or start it where the GPUs are (profiles/slurm)",
    )  # fmt: skip
    assert named(findings, "vLLM").remedy == "environment.yml installs it"
    assert "uniapl fetch --scale paper" in str(named(findings, "model Qwen/Qwen3-4B@").remedy)
    assert "https://huggingface.co/datasets/google/IFEval" in str(named(findings, "dataset google/IFEval@").remedy)
    assert "cannot be reached" in named(findings, "teacher").found
    said: list[str] = []
    assert show(iter(findings), say=said.append) == sum(f.remedy is not None for f in findings) >= 9


def test_a_source_in_the_cache_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    study = load_study("paper", {"models": ["qwen3_0_6b"]})
    (tmp_path / CACHE / "snapshots" / str(study.models[0].revision)).mkdir(parents=True)
    assert named(doctor._hub(study), "model Qwen/Qwen3-0.6B@").remedy is None


def test_packages_that_are_not_as_locked_are_named(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("# what\nnumpy==0.1\nno-such-package==1.0\ntriton==9\n")
    finding = doctor._packages(lock)
    assert finding.found == "1 of 3 as locked"
    assert "for 0.1, no-such-package missing for 1.0: run make environment" in str(finding.remedy)


def test_a_full_disk_is_found_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage._replace(free=2**30))
    finding = doctor._disk(plan)
    # 596 and 4,022 million parameters: the models in bfloat16, 5 runs of each in float32; two checkpoints of the
    # larger; 2 GiB to spare.
    needed = ((596.0e6 + 4022.5e6) * (2 + 5 * 4) + 2 * 4022.5e6 * 12) / 2**30 + 2
    assert float(finding.found.split(" GiB free for ")[1].split()[0]) == pytest.approx(needed, abs=0.2)
    assert "--config results=DIR" in str(finding.remedy)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage._replace(free=2**50))
    assert doctor._disk(plan).remedy is None


@pytest.fixture
def server() -> Iterator[Callable[[bytes, int], str]]:
    """Starts an endpoint whose list of models is a body with a status."""
    running: list[ChatServer] = []

    def start(body: bytes, status: int = 200) -> str:
        import threading

        from tests.unit import chat_server

        class Listing(chat_server.Handler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        made = ChatServer(lambda _body, _attempt: Reply())
        made.RequestHandlerClass = Listing
        threading.Thread(target=made.serve_forever, daemon=True).start()
        running.append(made)
        return made.url

    yield start
    for one in running:
        one.shutdown()
        one.server_close()


@pytest.mark.parametrize(
    ("body", "status", "found", "fine"),
    [
        (b'{"data": [{"id": "Qwen/Qwen3-235B-A22B-Instruct-2507"}]}', 200, "has Qwen/Qwen3-235B", True),
        (b'{"data": [{"id": "other"}]}', 200, "does not list Qwen/Qwen3-235B", False),
        (b"<html>", 200, "does not list", False),
        (b"", 401, "answers with status 401", False),
    ],
)
def test_the_teachers_endpoint_is_asked_for_its_models(
    server: Callable[[bytes, int], str], body: bytes, status: int, found: str, fine: bool
) -> None:
    finding = doctor._endpoint(teacher_of(server(body, status)))
    assert found in finding.found
    assert (finding.remedy is None) == fine


def test_a_key_that_is_not_set_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    finding = doctor._endpoint(teacher_of("http://127.0.0.1:9/v1", key_variable="TEACHER_KEY"))
    assert finding.found == "no key"
    assert "TEACHER_KEY" in str(finding.remedy)


def test_a_sandbox_that_does_not_hold_names_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "offered", lambda: ["monty"])
    assert doctor._sandbox().remedy


def test_a_driver_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._driver().found == "nvidia-smi does not answer"
