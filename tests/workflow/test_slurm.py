"""The SLURM profile, by a SLURM that only pretends: what is submitted, and a run over two nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow import fake_slurm
from tests.workflow.conftest import REPOSITORY, copy_project
from uniapl.runlog import read_rows

pytest.importorskip("snakemake_executor_plugin_slurm", reason="needs snakemake-executor-plugin-slurm")

NAMES = ("sbatch", "sacct", "srun", "sinfo", "squeue", "scancel", "sacctmgr", "sshare", "scontrol", "strigger")


def pretend(folder: Path) -> dict[str, str]:
    """An environment in which SLURM's commands are those of fake_slurm.py; its jobs lie in the folder."""
    folder.mkdir()
    for name in NAMES:
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_slurm.__file__} {name} "$@"\n')
        command.chmod(0o755)
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


def submitted(folder: Path, rule: str) -> list[list[str]]:
    """The words of every sbatch call for a rule's jobs."""
    jobs = [json.loads((job / "command.json").read_text()) for job in sorted(folder.glob("job-*"))]
    return [words for words in jobs if (fake_slurm.option(words, "--comment") or "").startswith(f"rule_{rule}_")]


@pytest.mark.slow
def test_a_study_is_submitted_and_trains_over_two_nodes(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    environment = pretend(tmp_path / "slurm") | {
        "PYTHONPATH": f"{project}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "CUDA_VISIBLE_DEVICES": "",
    }
    config = {
        "scale": "smoke", "models": "tiny_qwen3", "methods": "sft", "stages": json.dumps({"sft": {"steps": 2}}),
        "machine": json.dumps({"ranks": 2, "nodes": 2, "cpus_per_rank": 3}),
    }  # fmt: skip
    words = [f"{key}={value}" for key, value in config.items()]
    profile = ["--profile", str(REPOSITORY / "profiles" / "slurm"), "--slurm-init-seconds-before-status-checks", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *profile, "runs", "--config", *words],
        cwd=project, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    logs = "".join(path.read_text() for path in sorted(project.glob("results/slurm/**/*.log")))
    assert done.returncode == 0, (done.stdout + done.stderr + logs)[-6000:]
    (train,) = submitted(tmp_path / "slurm", "train")
    assert fake_slurm.option(train, "--nodes") == "2"
    assert fake_slurm.option(train, "--cpus-per-task") == "3"
    assert "--requeue" in train
    assert fake_slurm.option(train, "--signal") == "TERM@120"
    assert len(submitted(tmp_path / "slurm", "data")) == 1
    (manifest,) = project.glob("results/smoke/runs/tiny_qwen3/sft/*/seed0/manifest.json")
    assert json.loads(manifest.read_text())["world_size"] == 2
    assert [row["step"] for row in read_rows(manifest.parent / "metrics.jsonl")] == [1, 2]
    steps = [json.loads(line) for line in (tmp_path / "slurm" / "srun.jsonl").read_text().splitlines()]
    (over_nodes,) = [step for step in steps if "--ntasks=2" in step]
    assert {"--nodes=2", "--ntasks-per-node=1", "--nnodes=2"} <= set(over_nodes)
