"""The timing table is the sum of Snakemake's benchmark files."""

from __future__ import annotations

from pathlib import Path

import pytest

from uniapl.analysis.timing import read_costs, table

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
