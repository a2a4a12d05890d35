"""docs/adding_a_method.md to the letter: its two methods and its term, trained, evaluated and in the tables."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.workflow.conftest import REPOSITORY, copy_project, snakemake_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PAGE = (REPOSITORY / "docs" / "adding_a_method.md").read_text(encoding="utf-8")


def block(opening: str, language: str) -> str:
    """The first code block of a language after some words of the page."""
    found = re.search(rf"{re.escape(opening)}.*?```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found, opening
    return found.group(1)


def test_the_pages_methods_and_term_are_trained_by_its_one_command(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    for name in ("late_adv", "positive"):
        text = block(f"`config/methods/{name}.yaml`:", "yaml")
        (project / "config" / "methods" / f"{name}.yaml").write_text(text)
    patch = block("An example, which the tests apply", "diff")
    applied = subprocess.run(
        ["git", "apply", "--unidiff-zero", "-"], cwd=project, input=patch, capture_output=True, text=True, check=False
    )
    assert applied.returncode == 0, applied.stderr
    command = block("One command trains it", "").split()
    assert command[:3] == ["snakemake", "--cores", "all"]
    done = snakemake_in(project, *command[3:], "stages={late_adv: {steps: 3}, positive: {steps: 3}}")
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    root = project / "results" / "smoke"
    with open(root / "tables" / "table10.csv", encoding="utf-8", newline="") as file:
        rows = {row["method"] for row in csv.DictReader(file)}
    assert rows == {"base", "grpo", "uniapl", "late_adv", "positive"}
    (log,) = root.glob("runs/tiny_qwen3/positive/*/seed0/metrics.jsonl")
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["loss/positive"] > 0
    assert "0.2 L_pos / N_grpo" in (root / "report.html").read_text()
