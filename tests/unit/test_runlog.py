"""The log of a run: public names, whole lines, and truncation to the resumed step."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from uniapl.runlog import METRICS, TIMES, RunLog, metrics_row, read_rows

NOTE = "é\u2028\x85"  # characters that end a line for str.splitlines, and no line of JSON


def log_with(path: Path, steps: int) -> RunLog:
    log = RunLog(path, resumed_step=0)
    for step in range(1, steps + 1):
        log.append({"step": step, "note": NOTE})
    return log


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    log_with(tmp_path / "metrics.jsonl", 3)
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": s, "note": NOTE} for s in (1, 2, 3)]


def test_opening_a_log_drops_the_rows_after_the_resumed_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log_with(path, 5)
    log = RunLog(path, resumed_step=3)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]
    log.append({"step": 4, "note": "again"})
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4]


def test_a_line_cut_by_a_kill_is_dropped_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log_with(path, 2)
    with open(path, "ab") as file:
        file.write('{"step": 3, "note": "é'.encode()[:-1])  # within a character
    assert [row["step"] for row in read_rows(path)] == [1, 2]
    RunLog(path, resumed_step=2).append({"step": 3})
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]


def test_a_failure_while_the_log_is_rewritten_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    log_with(path, 4)

    def cut_off(self: Path, target: Path) -> Path:
        raise OSError("killed before the rename")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut_off)
        with pytest.raises(OSError, match="killed"):
            RunLog(path, resumed_step=2)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4]


def test_a_row_has_every_metric_in_order_and_null_where_it_does_not_apply() -> None:
    row = metrics_row(step=1, loss__total=0.5, reward__mean=math.nan, grad__norm=math.inf)
    assert list(row) == list(METRICS)
    assert row["step"] == 1
    assert row["loss/total"] == 0.5
    assert row["reward/mean"] is None
    assert row["grad/norm"] is None
    assert row["loss/adv"] is None
    json.dumps(row, allow_nan=False)


def test_an_unlisted_metric_is_refused() -> None:
    with pytest.raises(AssertionError, match="reward/maen"):
        metrics_row(reward__maen=1.0)


def test_the_public_names_that_plots_depend_on_are_there() -> None:
    plotted = {
        "reward/mean", "kl/start_nats", "entropy/mean_nats", "adv/score_mean", "length/mean_tokens", "sampler/gap_nats",
        "loss/sft", "loss/grpo", "loss/adv", "loss/total", "grad/norm", "tokens/generated", "tokens/trained",
        "seconds/step", "weights/w_sft", "weights/w_grpo", "weights/w_adv", "groups/flat_share",
    }  # fmt: skip
    assert plotted <= set(METRICS)
    assert all(METRICS.values())
    assert set(TIMES) == {name for name in METRICS if name.startswith("seconds/")}
