"""A released study holds all that tables and figures read, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.unit.conftest import build_study
from uniapl.analysis import release as module
from uniapl.analysis.collect import read_study
from uniapl.analysis.release import release
from uniapl.analysis.tables import all_tables

PROJECT = Path(__file__).resolve().parents[2]
LAPTOP = PROJECT / "results" / "released" / "laptop"


def make(root: Path) -> Path:
    index = build_study(root, methods=("grpo",))
    (root / "runs" / "weights.safetensors").write_text("weights")
    (root / index["runs"][0]["directory"] / "model.safetensors").write_text("weights")
    for task in ("heldout", "ifbench"):
        (root / index["data"] / f"{task}.jsonl").write_text("prompts\n")
    (root / "heldout_log.jsonl").write_text('{"task": "heldout"}\n')
    for name in ("benchmarks/tables.tsv", "tables/table1.csv", "figures/figure1.png", "figures/figure1.pdf"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("made before\n")
    return root


def test_the_copy_reads_as_the_same_study_without_weights_and_others_prompts(tmp_path: Path) -> None:
    root, target = make(tmp_path / "laptop"), tmp_path / "released" / "laptop"
    size = release(root, target)
    files = [path for path in target.rglob("*") if path.is_file()]
    assert size == sum(path.stat().st_size for path in files)
    names = {path.name for path in files}
    assert names >= {"study.json", "metrics.jsonl", "heldout.jsonl", "heldout_log.jsonl", "kinds.csv", "tables.tsv"}
    assert names >= {"table1.csv", "figure1.png"}
    assert not any(name.endswith((".safetensors", ".pdf")) for name in names)
    assert (target / "data/00000000/heldout.jsonl").exists()
    assert not (target / "data/00000000/ifbench.jsonl").exists(), "another's prompts"
    assert read_study(target).answers.equals(read_study(root).answers)


def test_a_study_that_is_incomplete_or_of_changed_code_leaves_the_old_release(tmp_path: Path) -> None:
    root, target = make(tmp_path / "laptop"), tmp_path / "released" / "laptop"
    release(root, target)
    manifest = root / read_study(root).index["runs"][0]["directory"] / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"code": {"modified": True}}))
    with pytest.raises(ValueError, match="was made by changed code; commit it"):
        release(root, target)
    manifest.unlink()
    with pytest.raises(ValueError, match="was never finished"):
        release(root, target)
    assert read_study(target).runs.shape[0] == 1


def test_what_is_finished_of_a_study_is_released_with_what_is_not_run(tmp_path: Path) -> None:
    root, target = make(tmp_path / "laptop"), tmp_path / "released" / "laptop-matrix"
    index = json.loads((root / "study.json").read_text())
    run, evaluation = index["runs"][0], index["evaluations"][1]
    later = {"directory": "runs/m/uniapl/main-1/seed0", "path": ["uniapl"], "variant": "main"}
    index["runs"].append(run | later)
    (root / later["directory"]).mkdir(parents=True)
    (root / later["directory"] / "metrics.jsonl").write_text('{"step": 1}\n')  # begun
    index["evaluations"].append(evaluation | {"method": "uniapl", "directory": "evaluations/m/uniapl/main-1/seed0"})
    (root / "study.json").write_text(json.dumps(index))
    release(root, target, partial=True)
    study = read_study(target)
    assert [e["method"] for e in study.index["evaluations"]] == ["base", "grpo"]
    assert [entry["method"] for entry in study.index["not_run"]] == ["uniapl"]
    assert not (target / later["directory"]).exists()


def test_a_release_takes_what_came_from_a_release_under_its_own_name(tmp_path: Path) -> None:
    root, old = make(tmp_path / "laptop"), tmp_path / "released" / "laptop-matrix"
    release(root, old)
    index = json.loads((root / "study.json").read_text())
    for entry in (index["runs"][0], index["evaluations"][1]):
        (root / entry["directory"]).rename(tmp_path / "moved")
        (tmp_path / "moved").rename(tmp_path / f"moved-{entry['directory'].replace('/', '-')}")
        entry["directory"] = f"../released/laptop-matrix/{entry['directory']}"
    (root / "study.json").write_text(json.dumps(index))
    before = read_study(old).answers
    release(root, old)
    assert read_study(old).answers.equals(before)
    assert not any(e["directory"].startswith("..") for e in read_study(old).index["evaluations"])


def test_a_release_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="more than"):
        release(make(tmp_path / "laptop"), tmp_path / "released" / "laptop")
    assert not (tmp_path / "released").exists()


MATRIX = LAPTOP.with_name("laptop-matrix")


@pytest.mark.skipif(not MATRIX.exists(), reason="no matrix has been released")
def test_the_page_on_results_shows_the_released_tables_and_how_much_is_not_run() -> None:
    page = (PROJECT / "docs/results.md").read_text(encoding="utf-8")
    for number in (10, 11):
        made = (MATRIX / f"tables/table{number}.md").read_text(encoding="utf-8")
        grids = [part.strip() for part in made.split("\n\n") if part.startswith("| ")]
        assert all(grid in page for grid in grids), number
    index = json.loads((MATRIX / "study.json").read_text())
    made, left = len(index["evaluations"]), len(index["not_run"])
    assert f"{made} of the {made + left} are there" in page
    assert {table.number for table in all_tables(read_study(MATRIX))} >= {1, 2, 3, 4, 5, 10, 11}


@pytest.mark.skipif(not LAPTOP.exists(), reason="no laptop study has been released")
def test_the_readme_shows_the_released_table_and_its_date() -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    grids = [part for part in (LAPTOP / "tables/table1.md").read_text(encoding="utf-8").split("\n\n") if part[0] == "|"]
    assert len(grids) == 2
    for grid in grids:
        assert grid.strip() in readme
    looks = (LAPTOP / "heldout_log.jsonl").read_text().splitlines()
    assert {json.loads(look)["time"][:10] for look in looks} <= set(re.findall(r"\d{4}-\d\d-\d\d", readme))
