"""A released study holds all that tables and figures read, and nothing else."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from tests.unit.conftest import build_study
from uniapl.analysis import release as module
from uniapl.analysis.collect import Study, read_study
from uniapl.analysis.release import release
from uniapl.analysis.render import to_csv
from uniapl.analysis.tables import all_tables
from uniapl.analysis.trace import trace
from uniapl.records import read_jsonl

PROJECT = Path(__file__).resolve().parents[2]
LAPTOP = PROJECT / "results" / "released" / "laptop"
BY_MAKE = {"base", "sft", "grpo", "sft.grpo", "uniapl", "grpo.grpo"}  # what the target `all` evaluates, of seed 0


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
    root, target = make(tmp_path / "laptop"), tmp_path / "released" / "laptop"
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
    root, old = make(tmp_path / "laptop"), tmp_path / "released" / "laptop"
    (root / "benchmarks/runs.tsv").write_text("s\n5\n")
    release(root, old)
    (root / "benchmarks/runs.tsv").unlink()
    index = json.loads((root / "study.json").read_text())
    for entry in (index["runs"][0], index["evaluations"][1]):
        (root / entry["directory"]).rename(tmp_path / "moved")
        (tmp_path / "moved").rename(tmp_path / f"moved-{entry['directory'].replace('/', '-')}")
        entry["directory"] = f"../released/laptop/{entry['directory']}"
    (root / "study.json").write_text(json.dumps(index))
    before = read_study(old).answers
    release(root, old)
    assert read_study(old).answers.equals(before)
    assert (old / "benchmarks/runs.tsv").read_text() == "s\n5\n", "what was taken was measured there"
    assert not any(e["directory"].startswith("..") for e in read_study(old).index["evaluations"])


def test_what_variants_wrote_is_gzipped_and_reads_as_before_also_by_trace_and_a_release_of_it(tmp_path: Path) -> None:
    root, old = tmp_path / "laptop", tmp_path / "released" / "laptop"
    build_study(root, variants={"lambda_adv.5": 10})
    (root / "heldout_log.jsonl").write_text('{"task": "heldout"}\n')
    release(root, old)
    packed = {path.relative_to(old).parts[3] for path in old.rglob("*.jsonl.gz")}
    assert packed == {"lambda_adv.5-00000000"}
    assert not list(old.glob("*/*/*/lambda_adv*/*/*.jsonl"))
    before, study = read_study(root), read_study(old)
    assert study.answers.equals(before.answers)
    assert study.metrics.equals(before.metrics)
    text = [to_csv(table) for table in all_tables(study)]
    assert text == [to_csv(table) for table in all_tables(before)]
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(trace(old, 6, "variant=lambda_adv.5,task=heldout", "prompt_strict"))
    assert "heldout.jsonl.gz (20 records)" in console.export_text()
    first = {path.relative_to(old): path.read_bytes() for path in old.rglob("*") if path.is_file()}
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(next(iter(old.rglob("heldout.jsonl.gz"))).read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cut\.jsonl\.gz: not a whole gzip file .*; restore it"):
        list(read_jsonl(tmp_path / "cut.jsonl"))
    shutil.copytree(old, tmp_path / "again" / "laptop")
    release(tmp_path / "again" / "laptop", old)
    assert {path.relative_to(old): path.read_bytes() for path in old.rglob("*") if path.is_file()} == first


def test_a_release_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="more than"):
        release(make(tmp_path / "laptop"), tmp_path / "released" / "laptop")
    assert not list((tmp_path / "released").iterdir())


@pytest.mark.skipif(not LAPTOP.exists(), reason="no laptop study has been released")
def test_the_page_on_results_shows_the_released_tables_and_how_much_is_not_run() -> None:
    page = (PROJECT / "docs/results.md").read_text(encoding="utf-8")
    index = json.loads((LAPTOP / "study.json").read_text())
    for number in (6, 9, 10, 11, 12):
        file = LAPTOP / f"tables/table{number}.md"
        rows = (
            [row for row in file.read_text(encoding="utf-8").splitlines() if row[:2] == "| "] if file.exists() else []
        )
        left = [row for row in rows if number == 6 and "| not run |" in row]  # most of a long table
        assert not [row for row in rows if row not in left and row not in page], number
    for kind in ("main", "variants"):
        made, left = (
            sum((e["variant"] == "main") == (kind == "main") for e in index[of]) for of in ("evaluations", "not_run")
        )
        assert f"{made} of the {made + left} {kind}" in page
    assert {table.number for table in all_tables(read_study(LAPTOP))} >= {1, 2, 3, 4, 5, 10, 11}


def summary(study: Study) -> str:
    """The README's table: all seeds of the main runs, of Table 1, and seed 0 alone, which is what `make` trains."""

    def shown(row: pd.Series, column: str) -> str:
        values = [row[name] for name in (column, f"{column}_low", f"{column}_high")]
        if any(pd.isna(value) for value in values):
            return "—"
        sign = "+" if "_minus_" in column else ""
        value, low, high = (
            f"{100 * value:{s}.1f}".replace("-", "−") for value, s in zip(values, (sign, "", ""), strict=True)
        )
        return f"{value} [{low}, {high}]"

    table = pd.read_csv(LAPTOP / "tables/table1.csv").query("group == 'all'")
    ifbench = table.query("task == 'ifbench'").set_index("method")
    seed_0 = study.answers.query("task == 'heldout' and variant == 'main' and seed == 0")
    first = seed_0.groupby("method").prompt_strict.mean()
    header = (
        "Method",
        "Seeds",
        "Held-out, %",
        "− GRPO, points",
        "IFBench, %",
        "Seed 0, %",
        "Tokens trained",
        "Seconds",
    )
    lines = ["| " + " | ".join(header) + " |", "| --- | ---: | --- | --- | --- | ---: | ---: | ---: |"]
    for _, row in table.query("task == 'heldout'").iterrows():
        base = row.method == "base"
        name = f"{row.label} *" if row.method in BY_MAKE else row.label
        cells = (
            name, "—" if base else f"{row.num_seeds:.0f}", shown(row, "prompt_strict"),
            shown(row, "prompt_strict_minus_grpo"), shown(ifbench.loc[row.method], "prompt_strict"),
            f"{100 * first[row.method]:.1f}", "—" if base else f"{row.tokens_trained:,.0f}",
            "—" if base else f"{row.seconds:.0f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@pytest.mark.skipif(not LAPTOP.exists(), reason="no laptop study has been released")
def test_the_readme_shows_the_released_table_and_its_dates() -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    study = read_study(LAPTOP)
    assert summary(study) in readme, summary(study)
    looks = (LAPTOP / "heldout_log.jsonl").read_text().splitlines()
    assert {json.loads(look)["time"][:10] for look in looks} <= set(re.findall(r"\d{4}-\d\d-\d\d", readme))
