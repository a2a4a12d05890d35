"""The whole smoke study through Snakemake: all outputs, a second call that does nothing, the CLI, released results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.workflow.conftest import copy_project, snakemake_in
from uniapl.analysis.outputs import figure_files, table_files
from uniapl.analysis.release import release
from uniapl.provenance import content_hash

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def _index(root: Path) -> dict:
    return json.loads((root / "study.json").read_text())


def test_every_declared_output_of_the_smoke_study_exists(smoke: Path):
    root = smoke / "results" / "smoke"
    index = _index(root)
    # Two models; each with sft, grpo, sft.grpo, uniapl and grpo.grpo (whose parents are among them) and the base model.
    assert len(index["runs"]) == 10
    assert len(index["evaluations"]) == 12
    closed = [entry["directory"] for entry in (*index["runs"], *index["evaluations"], *index["models"].values())]
    closed += [index["data"], *index["demonstrations"].values(), *index["discriminators"].values()]
    missing = [directory for directory in closed if not (root / directory / "manifest.json").exists()]
    assert missing == []
    expected = [f"tables/{name}" for name in table_files(index)] + [f"figures/{name}" for name in figure_files(index)]
    empty = [name for name in [*expected, "report.html"] if (root / name).stat().st_size == 0]
    assert empty == []


def test_every_exported_run_carries_its_card_with_scores_and_lm_evals_own_results(smoke: Path):
    root = smoke / "results" / "smoke"
    for entry in (entry for entry in _index(root)["evaluations"] if entry["run"]):
        data: Any = ModelCard.load(root / entry["run"] / "model" / "README.md").data
        tasks = json.loads((root / entry["directory"] / "manifest.json").read_text())["tasks"]
        scores = {(one.dataset_type, one.metric_type): one.metric_value for one in data.eval_results}
        for task in ("heldout", "ifbench"):
            assert scores[f"uniapl-{task}", "prompt_strict"] == pytest.approx(
                100 * tasks[task]["prompt_strict"], abs=1e-3
            )
        assert "generated" in (root / entry["run"] / "model" / "data_card.md").read_text()
        (native,) = (root / entry["run"] / "model" / "lm_eval").glob("results_*.json")
        assert json.loads(native.read_text())["results"].keys() == {"heldout", "ifbench"}


def test_every_manifest_names_the_hash_of_its_own_config(smoke: Path):
    manifests = sorted((smoke / "results" / "smoke").glob("**/manifest.json"))
    assert len(manifests) == 2 + 1 + 2 + 2 + 10 + 12
    for path in manifests:
        config = json.loads((path.parent / "config.json").read_text())
        assert json.loads(path.read_text())["config_hash"] == content_hash(config), path


def test_a_second_call_has_nothing_to_do(smoke: Path, tmp_path: Path):
    project = shutil.copytree(smoke, tmp_path / "project")
    done = snakemake_in(project, "--config", "scale=smoke")
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr


def test_every_run_shows_its_progress_on_the_terminal_and_logs_it(smoke: Path):
    logs = sorted((smoke / "results" / "smoke" / "logs" / "runs").glob("**/*.log"))
    assert len(logs) == 10
    for log in logs:
        assert "step 1/" in log.read_text(), log


def test_a_study_with_fewer_methods_reuses_what_is_there(smoke: Path, tmp_path: Path):
    project = copy_project(tmp_path / "project")
    shutil.copytree(smoke / "results", project / "results")
    done = snakemake_in(project, "-n", "--config", "scale=smoke", "methods=sft,grpo")
    assert done.returncode == 0
    jobs = {line.split()[0] for line in (done.stdout + done.stderr).splitlines() if line.split()[1:2] == ["1"]}
    assert not jobs & {"train", "train_first"}


def test_sample_shows_answers_with_verdicts_beside_the_experts(smoke: Path):
    run = sorted(smoke.glob("results/smoke/runs/tiny_qwen3/uniapl/*/seed0"))[0]
    command = [sys.executable, "-m", "uniapl.cli", "sample", "--run", str(run), "--num", "2"]
    environment = os.environ | {"PYTHONPATH": str(smoke), "COLUMNS": "160"}
    done = subprocess.run(command, cwd=smoke, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("expert") == 2
    assert done.stdout.count("uniapl") >= 2
    assert "✓" in done.stdout  # the expert's answers pass every verifier


def test_released_results_are_rebuilt_byte_for_byte_without_weights(smoke: Path, tmp_path: Path):
    project = copy_project(tmp_path / "project")
    released = project / "results" / "released" / "smoke"
    assert release(smoke / "results" / "smoke", released) < 10_000_000
    before = {path: path.stat().st_mtime_ns for path in released.rglob("*")}
    done = snakemake_in(project, "tables", "figures", "--config", "source=released", "scale=smoke")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    rebuilt = project / "results" / "rebuilt" / "smoke"
    for name in table_files(_index(released)):
        assert (rebuilt / "tables" / name).read_bytes() == (smoke / "results/smoke/tables" / name).read_bytes(), name
    for name in figure_files(_index(released)):
        assert (rebuilt / "figures" / name).stat().st_size > 0, name
    assert {path: path.stat().st_mtime_ns for path in released.rglob("*")} == before


LAPTOP = Path(__file__).resolve().parents[2] / "results" / "released" / "laptop"


@pytest.mark.skipif(not LAPTOP.exists(), reason="no laptop study has been released")
def test_the_released_study_gives_its_tables_figures_and_page_again_in_90_seconds(tmp_path: Path):
    project = copy_project(tmp_path / "project")
    shutil.copytree(LAPTOP, project / "results" / "released" / "laptop")
    start = time.monotonic()
    done = snakemake_in(project, "tables", "figures", "report", "--config", "source=released")
    seconds = time.monotonic() - start
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    rebuilt = project / "results" / "rebuilt" / "laptop"
    for file in table_files(_index(LAPTOP)):
        assert (rebuilt / "tables" / file).read_bytes() == (LAPTOP / "tables" / file).read_bytes(), file
    for file in figure_files(_index(LAPTOP)):
        assert (rebuilt / "figures" / file).stat().st_size > 0, file
    assert (rebuilt / "report.html").stat().st_size < 8_000_000
    assert seconds < 90, seconds
