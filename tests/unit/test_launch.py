"""The launcher's command for several nodes, and what it refuses."""

from __future__ import annotations

import os
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
