"""Table 7: base models beside their published scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.conftest import records
from uniapl.analysis import tables
from uniapl.analysis.collect import read_study
from uniapl.analysis.outputs import table_files
from uniapl.analysis.references import stack_checks, stack_warnings

Builder = Callable[..., dict[str, Any]]


def reference(task: str, metrics: list[str], score: float, no_check: str = "") -> dict[str, Any]:
    source = "a report, Table 20"
    return {"task": task, "metrics": metrics, "score": score, "source": source, "no_check": no_check}


@pytest.mark.parametrize(("score", "check"), [(25.0, "agrees"), (15.1, "agrees"), (14.9, "differs"), (25.1, "differs")])
def test_a_base_score_far_from_the_published_one_is_flagged(
    tmp_path: Path, study_builder: Builder, score: float, check: str
) -> None:
    references = {"smollm2_135m": [reference("ifeval", ["prompt_strict"], score)]}
    study_builder(tmp_path, tasks=("heldout", "ifeval"), references=references)
    tables.main(tmp_path, tmp_path / "tables")
    (row,) = records(tmp_path / "tables", 7)
    # base solves 4 of 20: 20.0%, the tolerance is 5 points
    assert (float(row["score"]), row["stack_check"]) == (20.0, check)
    assert float(row["difference_points"]) == pytest.approx(20.0 - score)
    said = stack_warnings(read_study(tmp_path))
    assert len(said) == (check == "differs")
    assert all("model smollm2_135m scores 20.0% on IFEval, published are" in one for one in said)
    assert "a report, Table 20" in (tmp_path / "tables/table7.md").read_text()


def test_scores_that_say_nothing_of_the_stack_are_shown_and_not_judged(tmp_path: Path, study_builder: Builder) -> None:
    rows = [
        reference("ifeval", ["prompt_strict", "inst_strict"], 90.0, "the weights are dequantised"),
        reference("mmlu", ["acc,none"], 45.0),
        reference("gsm8k", ["exact_match,strict-match"], 45.0),
    ]
    results = {"base": {"mmlu": {"acc,none": 0.41, "acc_stderr,none": 0.01}}}
    tasks = ("heldout", "ifeval", "mmlu", "gsm8k")
    index = study_builder(tmp_path, tasks=tasks, results=results, references={"smollm2_135m": rows})
    tables.main(tmp_path, tmp_path / "tables")
    ifeval, mmlu, gsm8k = records(tmp_path / "tables", 7)
    # base: 4 of 20 prompts, 20 + 4 of 40 instructions: the mean of 20% and 60%
    assert (float(ifeval["score"]), ifeval["stack_check"]) == (40.0, "no check")
    assert (float(mmlu["score"]), mmlu["stack_check"]) == (41.0, "agrees")
    assert float(mmlu["score_high"]) == pytest.approx(41.0 + 1.96, abs=0.01)
    assert (gsm8k["score"], gsm8k["stack_check"]) == ("", "not measured")
    assert not stack_warnings(read_study(tmp_path))
    (tmp_path / "study.json").write_text(json.dumps(index | {"limit": 4}))
    assert {one.check for one in stack_checks(read_study(tmp_path))} == {"no check", "not measured"}


def test_a_study_made_before_references_were_there_has_no_table_7(tmp_path: Path, study_builder: Builder) -> None:
    index = study_builder(tmp_path)
    for key in ("references", "limit"):
        del index[key]
    (tmp_path / "study.json").write_text(json.dumps(index))
    assert "table7.md" not in table_files(index)
    assert [table.number for table in tables.all_tables(read_study(tmp_path))] == [1, 2, 3, 4, 5, 10, 11, 13]
