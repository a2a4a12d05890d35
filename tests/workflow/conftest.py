"""A copy of the project to run Snakemake in, and one whole smoke study that several tests look at."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from uniapl import leases

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PARTS = ("Snakefile", "workflow", "config", "profiles", "uniapl")

Snakemake = Callable[..., subprocess.CompletedProcess[str]]


def copy_project(target: Path) -> Path:
    """Copy what Snakemake needs, anew where it is there; results start empty."""
    target.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        source = REPOSITORY / part
        if source.is_dir():
            shutil.rmtree(target / part, ignore_errors=True)
            shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / part)
    return target


def snakemake_in(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a project. The copy's own package comes first on the path."""
    environment = os.environ | {"PYTHONPATH": str(project)}
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def error_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a failed call says, without the line that names the profile."""
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if line.strip() and not line.startswith("Using workflow specific profile")]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A fresh copy that a test may spoil."""
    return copy_project(tmp_path / "project")


@pytest.fixture(scope="session")
def shared_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy for dry runs, which change nothing."""
    return copy_project(tmp_path_factory.mktemp("shared") / "project")


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the whole smoke study has been made by one command; tests read it and must not change it.

    Where files are tested side by side, the first process that wants it makes it, and the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    project, made = shared / "smoke" / "project", shared / "smoke" / "made"
    with leases.wait(shared / "smoke.lock", what="the smoke study of the tests"):
        if not made.exists():
            done = snakemake_in(copy_project(project), "--config", "scale=smoke")
            assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
            made.touch()
    return project
