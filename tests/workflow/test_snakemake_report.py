"""What Snakemake brings itself: its report of a finished study, and a job that was killed half-way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workflow.conftest import copy_project, snakemake_in
from uniapl.analysis.outputs import table_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SMOKE = ("--config", "scale=smoke")


def test_snakemakes_report_holds_tables_figures_and_their_captions(smoke: Path, tmp_path: Path):
    page = tmp_path / "study.html"
    done = snakemake_in(shutil.copytree(smoke, tmp_path / "project"), *SMOKE, "--report", str(page))
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert "downloading" not in output  # its scripts come with the package
    text = page.read_text()
    for name in ("table1.csv", "table2.md", "figure1_tiny_qwen3.png", "figure4_small_qwen3.png", "report.html"):
        assert f"Adding {name}" in output
        assert name in text
    assert "Adding table1.tex" not in output
    for words in ("Table 2 judges the paper", "3 training curves", "The study on one page", "a replication of"):
        assert words in text
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=\"http", text), (
        "the report loads something when it is read"
    )


def test_a_report_of_an_unfinished_study_says_what_is_missing(project: Path, tmp_path: Path):
    done = snakemake_in(project, *SMOKE, "--report", str(tmp_path / "study.html"))
    assert done.returncode != 0
    assert "results/smoke/tables/table1.csv" in done.stdout + done.stderr
    assert not (tmp_path / "study.html").exists()


def test_a_job_killed_half_way_is_named_with_its_remedy_and_made_again_with_it(smoke: Path, tmp_path: Path):
    project = copy_project(tmp_path / "project")
    shutil.copytree(smoke / "results", project / "results")
    tables = project / "results" / "smoke" / "tables"
    wanted = [tables / name for name in table_files(json.loads((project / "results/smoke/study.json").read_text()))]
    shutil.rmtree(tables)
    target = ("tables", *SMOKE)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *target]
    environment = os.environ | {"PYTHONPATH": str(project)}
    with subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as running:  # fmt: skip
        deadline = time.monotonic() + 300
        while not wanted[0].exists() and time.monotonic() < deadline and running.poll() is None:
            time.sleep(0.001)
        os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    assert wanted[0].exists()

    # The project's own profile gives the flag (profiles/default), so that a user need not; here it is left out.
    refused = snakemake_in(project, *target, "--workflow-profile", "none")
    assert refused.returncode != 0
    output = refused.stdout + refused.stderr
    assert "incomplete" in output
    assert "--rerun-incomplete" in output
    assert wanted[0].name in output

    done = snakemake_in(project, *target, "--workflow-profile", "none", "--rerun-incomplete")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    for path in wanted:
        made_at_once = smoke / "results" / "smoke" / "tables" / path.name
        assert path.read_bytes() == made_at_once.read_bytes(), path.name
    assert "Nothing to be done" in (again := snakemake_in(project, *target)).stdout + again.stderr
