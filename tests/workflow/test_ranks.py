"""Several ranks through Snakemake: each with its own vLLM, and killed at random moments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.invariance.small_step import assert_not_vacuous
from tests.soak import soak
from tests.workflow.conftest import copy_project, snakemake_in
from uniapl.runlog import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_two_ranks_with_a_vllm_each_train_and_agree_with_their_samplers_after_every_push(project: Path):
    pytest.importorskip("vllm")
    done = snakemake_in(
        project, "runs", "--config", "scale=smoke", "models=tiny_qwen3", "methods=uniapl", "ranks=2",
        "sampler={kind: vllm, kv_cache_gib: 0.25}",
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    (directory,) = project.glob("results/smoke/runs/tiny_qwen3/uniapl/*/seed0")
    manifest = json.loads((directory / "manifest.json").read_text())
    assert (manifest["world_size"], manifest["sampler"]) == (2, "vllm")
    rows = read_rows(directory / "metrics.jsonl")
    assert_not_vacuous(rows)
    assert rows[-1]["kl/start_nats"] > 1e-3, "the weights did not move, so a push that does nothing would agree"
    assert [row["sampler/gap_nats"] < 1e-3 for row in rows] == [True, True, True]


def test_killed_six_times_the_study_ends_with_the_same_weights(tmp_path: Path):
    log = tmp_path / "kills.jsonl"
    project = copy_project(tmp_path / "project")
    said = list(soak(project, log, kills=6, sampler="hf", seed=1, ranks=(2,)))
    rows = read_rows(log)
    assert [row["kill"] for row in rows[:-1]] == [1, 2, 3, 4, 5, 6], said
    assert rows[-1]["equal"] is True
    assert rows[-1]["runs"] == 3
