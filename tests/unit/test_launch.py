"""The launcher's command for several nodes, and what it refuses."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from uniapl import launch, leases
from uniapl.config import MachineSpec
from uniapl.launch import over_nodes


def test_srun_starts_one_launcher_on_each_node_with_its_part_of_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    words = over_nodes(["-m", "uniapl.train", "DIR"], ranks=16, nodes=2)
    assert words[:3] == ["srun", "--overlap", "--nodes=2"]
    assert words[words.index("--ranks") + 1] == "8"
    assert "--nnodes=2" in words
    assert any(word.startswith("--rdzv-endpoint=") and word.endswith(":24711") for word in words)
    assert words[-3:] == ["-m", "uniapl.train", "DIR"]


def test_several_nodes_outside_of_slurm_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ValueError, match="nodes = 2 need a SLURM job"):
        over_nodes([], ranks=2, nodes=2)


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({"ranks": 3, "nodes": 2}, "ranks = 3 cannot be spread evenly over nodes = 2"),
        ({"ranks": 4, "nodes": 2, "tensor_parallel": 4}, "the 2 ranks of a node cannot be cut"),
    ],
)
def test_ranks_that_do_not_fit_the_nodes_are_refused(machine: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MachineSpec.model_validate(machine)


def test_a_job_that_needs_no_gpu_sees_none_and_takes_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launch, "visible_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(launch, "lease_directory", lambda: tmp_path)
    seen: list[str] = []

    def end(program: str, words: list[str]) -> None:
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        raise SystemExit(0)

    monkeypatch.setattr("os.execv", end)
    monkeypatch.setattr(leases, "pass_on", lambda files: seen.append(str(len(files))))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(SystemExit):
        launch.main(["--gpus", "0", "-m", "uniapl.autoif", "DIR"])
    assert seen == ["0", ""]


FAULTS = """
import resource
from ctypes import CDLL, c_size_t, c_void_p
c = CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes, c.memset.argtypes = (
    c_void_p, [c_size_t], [c_void_p], [c_void_p, c_size_t, c_size_t])
for _ in range(10):
    block = c.malloc(64 * 2**20)
    c.memset(block, 1, 64 * 2**20)
    c.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt * resource.getpagesize())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc of another C library")
def test_a_stage_on_cpu_keeps_the_memory_that_it_frees(tmp_path: Path) -> None:
    (tmp_path / "faults.py").write_text(FAULTS)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "CUDA_VISIBLE_DEVICES": ""}

    def faulted_bytes(*launcher: str) -> int:
        ran = subprocess.run(
            [sys.executable, *launcher, "-m", "faults"], env=environment, capture_output=True, text=True, check=True
        )
        return int(ran.stdout)

    assert faulted_bytes() > 10 * 64 * 2**20  # each block anew, page by page
    assert faulted_bytes("-m", "uniapl.launch") < 4 * 64 * 2**20
