"""TensorBoard and W&B as copies of a run's log: read back by their own libraries, and never a step twice."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from uniapl import tracking
from uniapl.layers import load_study
from uniapl.plan import make_plan
from uniapl.runlog import RunLog, metrics_row, read_rows
from uniapl.tracking import Trackers
from uniapl.workflow import check_tracking

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"seed": 0, "path": [{"name": "grpo", "mu": 0.0}]}
STEPS = (1, 2, 3, 4, 5)


def needs(name: str) -> pytest.MarkDecorator:
    there = importlib.util.find_spec(name) is not None
    return pytest.mark.skipif(not there, reason=f"{name} is optional: pip install {tracking.PACKAGES[name]}")


def row(step: int, attempt: int) -> dict[str, Any]:
    return dict(metrics_row(step=step, reward__mean=0.1 * step + attempt, loss__sft=None))


def attempt(run: Path, name: str, number: int, *, resumed: int, last: int, killed: bool) -> None:
    """One start of a run, from a checkpoint on; the process ends here where it is killed."""
    log = RunLog(run / "metrics.jsonl", resumed_step=resumed)
    with Trackers((name,), run, CONFIG) as trackers:
        trackers.start(read_rows(log.path))
        for step in range(resumed + 1, last + 1):
            log.append(row(step, number))
            trackers.write(row(step, number))
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)


def train_killed_and_resumed(run: Path, name: str) -> list[float]:
    """A run killed after its fourth step and resumed from the checkpoint of its second; returns the log's rewards."""
    for number, (resumed, last, killed) in enumerate(((0, 4, True), (2, 5, False))):
        call = f"attempt(Path({str(run)!r}), {name!r}, {number}, resumed={resumed}, last={last}, killed={killed})"
        code = f"from pathlib import Path; from tests.unit.test_tracking import attempt; {call}"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr[-2000:]
    rewards = [one["reward/mean"] for one in read_rows(run / "metrics.jsonl")]
    assert rewards == pytest.approx([0.1, 0.2, 1.3, 1.4, 1.5])
    return rewards


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "tiny/grpo/main-0123abcd/seed0"
    directory.mkdir(parents=True)
    return directory


@needs("tensorboard")
def test_tensorboard_has_every_step_of_a_killed_run_once(run: Path) -> None:
    accumulators: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    rewards = train_killed_and_resumed(run, "tensorboard")
    (file,) = (run / "tensorboard").iterdir()
    events = accumulators.EventAccumulator(
        str(file), purge_orphaned_data=False
    )  # what lies in the file, not what is hidden
    events.Reload()
    assert events.Tags()["scalars"] == ["reward/mean"]  # a metric that a step lacks is no point
    points = events.Scalars("reward/mean")
    assert [point.step for point in points] == list(STEPS)
    assert [point.value for point in points] == pytest.approx(rewards)


@needs("wandb")
def test_wandb_offline_has_every_step_of_a_killed_run_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert tracking.missing(("wandb",)) is None
    rewards = train_killed_and_resumed(run, "wandb")
    (file,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.name == "run-0123abcd-seed0.wandb"  # so that a resumed run is the same one on the server
    history = wandb_history(file)
    assert [point["_step"] for point in history] == list(STEPS)
    assert [point["reward/mean"] for point in history] == pytest.approx(rewards)
    assert all("loss/sft" not in point for point in history)


def wandb_history(file: Path) -> list[dict[str, Any]]:
    """Points of an offline run: wandb's records, in LevelDB's log format behind a header of 7 bytes."""
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, place, points = file.read_bytes(), 7, []
    assert data.startswith(b":W&B")
    assert len(data) < 32768, "records of more than one block are not read here"
    while place < len(data):
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])  # checksum, length, 1: whole
        assert kind == 1
        record = messages.Record()
        record.ParseFromString(data[place + 7 : place + 7 + length])
        place += 7 + length
        if record.WhichOneof("record_type") == "run":
            assert record.run.host == "-", "the machine's name would be sent"
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            points.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return points


def test_what_is_missing_is_one_line_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    both = tracking.missing(("tensorboard", "wandb"))
    assert both == (
        "machine.log_to = tensorboard, wandb: tensorboard is not installed: pip install tensorboard==2.21.0; "
        "wandb is not installed: pip install wandb==0.31.0"
    )
    assert tracking.missing(()) is None
    study = load_study("smoke", {"machine": {"log_to": ["tensorboard"]}})
    plan = make_plan(study, tmp_path, sampler="hf", compute="float32")
    with pytest.raises(ValueError, match=r"pip install tensorboard==2\.21\.0"):
        check_tracking(plan)


@pytest.mark.parametrize(
    ("mode", "key", "expected"),
    [
        (None, None, "set the environment variable WANDB_API_KEY, or WANDB_MODE=offline"),
        ("online", None, "set the environment variable WANDB_API_KEY"),
        ("of", "x", "WANDB_MODE = 'of': give online or offline"),
        ("online", "x", None),
        ("offline", None, None),
    ],
)
def test_wandbs_key_and_mode_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, mode: str | None, key: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for name, value in (("WANDB_MODE", mode), ("WANDB_API_KEY", key)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    said = tracking.missing(("wandb",))
    assert (expected or "nothing") in (said or "nothing")


def test_where_metrics_go_is_in_no_hash(tmp_path: Path) -> None:
    def names(**machine: Any) -> list[str]:
        study = load_study("smoke", {"machine": machine})
        return [str(a.directory) for a in make_plan(study, tmp_path, sampler="hf", compute="float32").artifacts()]

    assert names() == names(log_to=["tensorboard", "wandb"])
