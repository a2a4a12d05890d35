"""docs/adding_a_method.md to the letter: its two methods and its term, trained, evaluated and in the tables.

Its chain of stages and its ablation are resolved and planned, not trained.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.workflow.conftest import REPOSITORY, copy_project, snakemake_in
from uniapl import layers
from uniapl.layers import merge, read_yaml
from uniapl.plan import Plan
from uniapl.workflow import chosen_target, plan_study, read_settings, study_of

PAGE = (REPOSITORY / "docs" / "adding_a_method.md").read_text(encoding="utf-8")


def block(opening: str, language: str) -> str:
    """The first code block of a language after some words of the page."""
    found = re.search(rf"{re.escape(opening)}.*?```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found, opening
    return found.group(1)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of config/ with the page's method, from which studies are resolved."""
    shutil.copytree(REPOSITORY / "config", tmp_path / "config")
    monkeypatch.setattr(layers, "CONFIG", tmp_path / "config")
    (tmp_path / "config/methods/late_adv.yaml").write_text(block("`config/methods/late_adv.yaml`:", "yaml"))
    return tmp_path / "config"


def planned(scale: str, target: str, results: Path, **values: object) -> Plan:
    settings = read_settings({"scale": scale, "results": str(results)} | values)
    return plan_study(study_of(scale, target, settings.overrides), settings)


def test_the_pages_chain_has_the_sizes_of_its_scale_and_of_its_path(config: Path, tmp_path: Path) -> None:
    smoke = merge(read_yaml(config / "smoke.yaml"), yaml.safe_load(block("Stages can be chained", "yaml")))
    (config / "smoke.yaml").write_text(yaml.safe_dump(smoke))
    plan = planned("smoke", "all", tmp_path, methods="late_adv,sft.late_adv", models="tiny_qwen3", seeds="0")
    runs = {".".join(run.path): run for run in plan.runs}
    assert set(runs) == {"late_adv", "sft", "sft.late_adv"}
    assert runs["sft.late_adv"].parent == runs["sft"]
    last = {path: run.config["path"][-1] for path, run in runs.items()}
    assert {path: (last[path]["steps"], last[path]["learning_rate"]) for path in ("late_adv", "sft.late_adv")} == {
        "late_adv": (3, 1e-3), "sft.late_adv": (10, 1e-3),
    }  # fmt: skip
    assert last["late_adv"]["lambda_adv"]["warmup_steps"] == 15


def test_the_pages_ablation_is_planned_by_its_command(config: Path, tmp_path: Path) -> None:
    (config / "ablations/late.yaml").write_text(block("`config/ablations/late.yaml` names", "yaml"))
    command = re.search(r"`(snakemake [^`]* ablation_late [^`]*)`", PAGE)
    assert command
    assert chosen_target(command.group(1).split()) == "ablation_late"
    plan = planned("laptop", "ablation_late", tmp_path)
    variants = ("late.at_once", "late.longer", "late.drafts")
    assert [(run.variant, run.seed) for run in plan.runs] == [
        ("main", 0), ("main", 1), *((variant, seed) for seed in (0, 1) for variant in variants)
    ]  # fmt: skip
    first = {run.variant: run.config for run in plan.runs if run.seed == 0}
    stages = {variant: one["path"][-1] for variant, one in first.items()}
    assert stages["late.at_once"]["lambda_adv"] == 0.3
    assert stages["late.longer"]["steps"] == 2 * stages["main"]["steps"] == 60
    drafts = first["late.drafts"]
    assert (drafts["teacher"]["answers"], drafts["discriminator"]["reads"]) == ("best", "length")
    assert {artifact.directory.parent.name for artifact in plan.others} == {"demonstrations", "discriminator"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
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
    done = snakemake_in(project, *command[3:])
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    root = project / "results" / "smoke"
    promised = re.search(r"beside the others in Tables ([\d, and]+) and Figures", PAGE)
    assert promised
    numbers = re.findall(r"\d+", promised.group(1))
    assert numbers
    for number in numbers:
        with open(root / "tables" / f"table{number}.csv", encoding="utf-8", newline="") as file:
            rows = {row["method"] for row in csv.DictReader(file)}
        assert rows - {"expert"} == {"base", "grpo", "uniapl", "late_adv", "positive"}, f"Table {number}"
    (log,) = root.glob("runs/tiny_qwen3/positive/*/seed0/metrics.jsonl")
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["loss/positive"] > 0
    assert "0.2 L_pos / N_grpo" in (root / "report.html").read_text()
