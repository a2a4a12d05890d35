"""`snakemake -n` for every scale and every method: the plan, or its one clear message."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.workflow.conftest import error_lines, snakemake_in
from uniapl.layers import CONFIG, available, read_yaml

PATHS = [*available("methods"), "sft.grpo", "sft.a_grpo", "a_sft.a_grpo"]


@pytest.mark.parametrize("scale", ["smoke", "laptop", "auto"])
def test_a_dry_run_prints_the_plan_of_a_scale_and_writes_nothing(shared_project: Path, scale: str):
    done = snakemake_in(shared_project, "-n", "--config", f"scale={scale}")
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    assert "train" in output
    assert "evaluate" in output
    expected = "smoke" if scale == "smoke" else "laptop"
    assert f"scale {expected}" in output
    assert not (shared_project / "results").exists()


def test_a_dry_run_of_auto_says_in_one_line_what_the_paper_scale_lacks(shared_project: Path):
    done = snakemake_in(shared_project, "-n")
    (line,) = [line for line in error_lines(done) if line.startswith("scale laptop")]
    assert "POLAR" in line
    assert "it takes" in line


def test_a_dry_run_of_the_paper_plans_both_models_where_what_is_missing_is_accepted(shared_project: Path):
    done = snakemake_in(shared_project, "-n", "--config", "scale=paper", "accept_missing=true")
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    assert "scale paper (missing here: an NVIDIA GPU" in output
    assert training_jobs(done) == 2 * 5  # sft, grpo, sft.grpo, uniapl and grpo.grpo; their parents are among them
    assert not (shared_project / "results").exists()


def training_jobs(done: subprocess.CompletedProcess[str]) -> int:
    """Jobs of both training rules in Snakemake's table of jobs, which it prints twice."""
    rows = [line.split() for line in (done.stdout + done.stderr).splitlines()]
    counts = {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[0] in ("train", "train_first")}
    return sum(counts.values())


@pytest.mark.parametrize("path", PATHS)
def test_a_dry_run_plans_every_method_with_its_parents(shared_project: Path, path: str):
    done = snakemake_in(shared_project, "-n", "--config", "scale=laptop", f"methods={path}")
    assert done.returncode == 0, done.stderr
    assert training_jobs(done) == path.count(".") + 1  # one for each stage of the path


@pytest.mark.parametrize(("target", "runs"), [("matrix", 47), ("ablations", 154), ("ablation_compute", 12)])
def test_the_other_targets_plan_their_runs(shared_project: Path, target: str, runs: int):
    # matrix: 13 paths x 3 seeds, 2 more of grpo, sft.grpo (with its sft), uniapl. ablations, 2 seeds each: 15 variants
    # of one stage, 2 of two (switch); 3 seeds each: 4 of one stage (discriminator, compute), 1 of two (equal_steps),
    # one order for 2 methods, 3 teachers of 5 stages. ablation_compute, 3 seeds: its variant, GRPO, its second stage,
    # UniAPL.
    done = snakemake_in(shared_project, "-n", target, "--config", "scale=laptop")
    assert done.returncode == 0, done.stderr
    assert training_jobs(done) == runs


@pytest.mark.parametrize("name", available("ablations"))
def test_a_dry_run_plans_every_variant_of_an_ablation(shared_project: Path, name: str):
    done = snakemake_in(shared_project, "-n", f"ablation_{name}", "--config", "scale=laptop")
    assert done.returncode == 0, done.stderr
    variants = read_yaml(CONFIG / "ablations" / f"{name}.yaml")["variants"]
    planned = set(re.findall(rf"output: results/laptop/runs/\S+/{name}\.(\w+)-", done.stdout + done.stderr))
    assert planned == {str(variant) for variant in variants}
    assert not (shared_project / "results").exists()
