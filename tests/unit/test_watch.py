"""What a study is doing, and what two runs differ in."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from uniapl import leases
from uniapl.analysis.compare import compare, differing
from uniapl.cli import app
from uniapl.provenance import content_hash
from uniapl.records import write_jsonl
from uniapl.watch import FINISHED, RUNNING, STOPPED, WAITING, look_at_all, shown


def text_of(table: object) -> str:
    console = Console(width=200, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def rows(count: int, **values: Any) -> list[dict[str, Any]]:
    return [{"step": i + 1, "reward/mean": 0.1 * (i + 1), "seconds/step": 2.0} | values for i in range(count)]


def run_in(root: Path, path: str, *, seed: int = 0, steps: int = 10, **changes: Any) -> Path:
    """A run directory with its config."""
    config = {"model": {"name": "tiny"}, "path": [{"name": path, "steps": steps}], "seed": seed} | changes
    directory = root / "runs" / "tiny" / path / f"main-{content_hash(config)}" / f"seed{seed}"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def study(root: Path, directories: list[Path]) -> None:
    entries = [
        {"model": "tiny", "path": [d.parts[-3]], "variant": "main", "seed": 0, "directory": str(d.relative_to(root))}
        for d in directories
    ]
    (root / "study.json").write_text(json.dumps({"runs": entries}))


def test_a_run_is_waiting_running_stopped_or_finished_and_says_what_is_left(tmp_path: Path) -> None:
    waiting, running, stopped, finished = (run_in(tmp_path, name) for name in ("sft", "grpo", "uniapl", "luffy"))
    for directory, count in ((running, 4), (stopped, 6), (finished, 10)):
        write_jsonl(directory / "metrics.jsonl", rows(count))
    (finished / "manifest.json").write_text("{}")
    dead = leases.Process(2**22 + 1, leases.Process.current().host, 0.0)
    (stopped / "lock").write_text(f"{dead.text()}\n\n")
    with leases.try_hold(running / "lock"):  # type: ignore[union-attr]
        leases.note(running / "lock", "step 5: sample")
        study(tmp_path, [waiting, running, stopped, finished])
        seen = look_at_all(tmp_path)
    assert [one.state for one in seen] == [WAITING, RUNNING, STOPPED, FINISHED]
    assert seen[1].seconds_left == 2.0 * 6
    assert seen[1].doing == "step 5: sample"
    assert seen[1].reward == pytest.approx(0.25)
    text = text_of(shown(seen))
    assert "1 running, 1 finished, 1 stopped, 1 waiting" in text
    assert "tiny grpo seed 0" in text
    assert "4/10" in text
    assert "0:12" in text
    assert "tiny sft" not in text


def test_a_released_variant_whose_log_is_gzipped_has_its_steps_and_reward(tmp_path: Path) -> None:
    run = run_in(tmp_path, "uniapl")
    (run / "manifest.json").write_text("{}")
    text = "".join(json.dumps(row) + "\n" for row in rows(10))
    (run / "metrics.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    study(tmp_path, [run])
    (seen,) = look_at_all(tmp_path)
    assert (seen.state, seen.step, seen.steps, seen.seconds_a_step) == (FINISHED, 10, 10, 2.0)
    assert seen.reward == pytest.approx(0.8)  # of the last five: 0.6 to 1.0


def test_watch_says_where_no_study_is(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["watch", "--once", "--root", str(tmp_path)])
    assert done.exit_code != 0
    study(tmp_path, [run_in(tmp_path, "grpo")])
    done = CliRunner().invoke(app, ["watch", "--once", "--root", str(tmp_path)])
    assert done.exit_code == 0
    assert "1 waiting" in done.output


def test_differing_names_leaves_of_nested_values() -> None:
    first, second = {"a": {"b": 1, "c": [1, 2]}, "d": 3}, {"a": {"b": 1, "c": [1, 5]}, "e": None}
    assert differing(first, second) == [("a.c.1", 2, 5), ("d", 3, None)]


def test_two_runs_are_compared_in_config_environment_and_result(tmp_path: Path) -> None:
    runs = [run_in(tmp_path, "grpo", seed=seed) for seed in (0, 1)]
    for number, run in enumerate(runs):
        write_jsonl(run / "metrics.jsonl", rows(3 + number, **{"kl/start_nats": None}))
        manifest = {"steps": 3 + number, "train_seconds": 6.0, "python": f"3.11.{number}", "sampler": "hf"}
        (run / "manifest.json").write_text(json.dumps(manifest))
        config = json.loads((run / "config.json").read_text())
        evaluated = {"of": content_hash(config)}
        place = tmp_path / "evaluations" / "tiny" / "grpo" / f"main-{content_hash(evaluated)}" / f"seed{number}"
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(evaluated))
        tasks = {"heldout": {"prompt_strict": 0.25 + 0.1 * number}}
        (place / "manifest.json").write_text(json.dumps({"tasks": tasks}))
    config, environment, result = (text_of(table) for table in compare(*runs))
    assert "seed" in config
    assert "steps" not in config
    assert "3.11.0" in environment
    assert "3.11.1" in environment
    assert "heldout, prompt strict, %" in result
    assert "25" in result
    assert "35" in result
    with pytest.raises(ValueError, match=r"no run directory|is missing"):
        compare(runs[0], tmp_path)
