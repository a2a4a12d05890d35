"""The timing tables are sums of Snakemake's benchmark files and of the runs' logs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from bench import study
from uniapl.analysis.timing import OTHER, OUTSIDE, read_costs, table, training_seconds, training_table

HEADER = "s\th:m:s\tmax_rss\tmax_vms"


def _benchmark(path: Path, seconds: float, memory: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{HEADER}\n{seconds}\t0:00:00\t{memory}\t-\n")


def test_the_table_adds_up_the_jobs_of_each_rule(tmp_path: Path):
    _benchmark(tmp_path / "benchmarks/runs/tiny/sft/main-0a/seed0.tsv", 10.0, "100.0")
    _benchmark(tmp_path / "benchmarks/runs/tiny/grpo/main-0b/seed0.tsv", 32.0, "300.0")
    _benchmark(tmp_path / "benchmarks/tables.tsv", 3.0, "-")  # too short to be measured
    lines = table(read_costs(tmp_path)).splitlines()
    assert "| runs | 2 | 42 | 32 | 300 |" in lines  # 10 + 32 seconds, the larger of 100 and 300 MiB
    assert "| tables | 1 | 3 | 3 | 0 |" in lines
    assert lines[-1] == "| all | 3 | 45 | 32 | 300 |"


def test_a_study_without_measurements_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no measurements"):
        read_costs(tmp_path)


def _log(root: Path, name: str, rows: list[dict[str, float | None]]) -> None:
    path = root / "runs" / name / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _study(root: Path) -> None:
    """Two runs of 30 and 10 seconds, of which steps cover 24 and 6."""
    _benchmark(root / "benchmarks/runs/tiny/grpo/main-0a/seed0.tsv", 30.0, "100.0")
    _benchmark(root / "benchmarks/runs/tiny/sft/main-0b/seed0.tsv", 10.0, "100.0")
    step = {"seconds/sample": 4.0, "seconds/score": 1.0, "seconds/probe": 0.0, "seconds/update": 6.0}
    _log(root, "tiny/grpo/main-0a/seed0", [step | {"seconds/push": 0.5, "seconds/step": 12.0}] * 2)
    _log(root, "tiny/sft/main-0b/seed0", [{"seconds/sample": None, "seconds/update": 5.0, "seconds/step": 6.0}])


def test_parts_of_training_add_up_to_its_jobs(tmp_path: Path):
    _study(tmp_path)
    runs = training_seconds(tmp_path)
    # 2 x (12 - 4 - 1 - 6 - 0.5) = 1 second in steps has no name, and 30 - 2 x 12 = 6 lie outside of steps.
    assert runs["tiny/grpo/main-0a/seed0"] == {
        "sample": 8.0, "score": 2.0, "probe": 0.0, "update": 12.0, "push": 1.0, OTHER: 1.0, OUTSIDE: 6.0,
    }  # fmt: skip
    assert sum(runs["tiny/sft/main-0b/seed0"].values()) == 10.0
    lines = training_table(runs).splitlines()
    assert "| update | 17 | 42.5% |" in lines  # 12 + 5 of 40
    assert f"| {OUTSIDE} | 10 | 25.0% |" in lines  # 6 + 4
    assert lines[-1] == "| all | 40 | 100.0% |"


def test_a_released_variant_whose_log_is_gzipped_counts_too(tmp_path: Path):
    _study(tmp_path)
    log = tmp_path / "runs/tiny/grpo/main-0a/seed0/metrics.jsonl"
    whole = training_seconds(tmp_path)
    log.with_name("metrics.jsonl.gz").write_bytes(gzip.compress(log.read_bytes()))
    log.unlink()
    assert training_seconds(tmp_path) == whole


def test_the_bench_writes_the_same_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _study(tmp_path)
    monkeypatch.setattr("sys.argv", ["study", str(tmp_path), "--output", str(tmp_path / "study.json")])
    study.main()
    found = json.loads((tmp_path / "study.json").read_text())
    assert found["rules"]["runs"] == {"jobs": 2, "seconds": 40.0, "longest_seconds": 30.0, "peak_mib": 100.0}
    assert found["training"] == training_seconds(tmp_path)


def test_a_study_without_runs_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no measured run"):
        training_seconds(tmp_path)
