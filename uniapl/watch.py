"""What a study is doing: `uniapl watch` lists its runs with step, reward and the time left, and redraws.

Read are the index, each run's log and the lease of its directory, whose first rank notes there what it does; nothing is
written, so a study can be watched from anywhere that sees its folder.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table

from uniapl import leases
from uniapl.entry import LEASE
from uniapl.records import stored
from uniapl.runlog import read_rows

RECENT = 5  # steps whose median time tells how long the rest takes
REDRAW_SECONDS = 2.0
FINISHED, RUNNING, STOPPED, WAITING = "finished", "running", "stopped", "waiting"


@dataclass(frozen=True)
class Seen:
    """One run as it is now."""

    name: str
    state: str
    doing: str
    step: int
    steps: int
    reward: float | None
    seconds_a_step: float | None

    @property
    def seconds_left(self) -> float | None:
        """Of the steps alone; None before the first one."""
        if self.seconds_a_step is None or self.state != RUNNING:
            return None
        return self.seconds_a_step * (self.steps - self.step)


def look(root: Path, entry: dict[str, Any]) -> Seen:
    """The state of one run of the index."""
    directory = root / entry["directory"]
    name = f"{entry['model']} {'.'.join(entry['path'])}"
    name += ("" if entry["variant"] == "main" else f" {entry['variant']}") + f" seed {entry['seed']}"
    log = stored(directory / "metrics.jsonl")
    rows = read_rows(log) if log.is_file() else []
    steps = 0
    if (directory / "config.json").is_file():
        steps = json.loads((directory / "config.json").read_text(encoding="utf-8"))["path"][-1]["steps"]
    rewards = [row["reward/mean"] for row in rows[-RECENT:] if row.get("reward/mean") is not None]
    times = [row["seconds/step"] for row in rows[-RECENT:]]
    state, doing = _state(directory, begun=bool(rows))
    return Seen(
        name, state, doing, rows[-1]["step"] if rows else 0, steps, statistics.mean(rewards) if rewards else None,
        statistics.median(times) if times else None,
    )  # fmt: skip


def _state(directory: Path, *, begun: bool) -> tuple[str, str]:
    """The state, and what the process does that works on it."""
    if (directory / "manifest.json").is_file():
        return FINISHED, ""
    lease = directory / LEASE
    owner = leases.Owner.read(lease.read_text(encoding="utf-8")) if lease.is_file() else None
    if owner is None:
        return WAITING, ""
    if owner.process.gone():
        return (STOPPED if begun else WAITING), ""
    return RUNNING, owner.doing


def shown(seen: list[Seen]) -> Table:
    """The runs that are not waiting, those at work first; how many there are of each in the title."""
    counts = {state: sum(one.state == state for one in seen) for state in (RUNNING, FINISHED, STOPPED, WAITING)}
    table = Table(title=", ".join(f"{number} {state}" for state, number in counts.items() if number))
    for column in ("run", "state", "step", "reward", "s/step", "left"):
        table.add_column(column, justify="left" if column in ("run", "state") else "right")
    order = (RUNNING, STOPPED, FINISHED)
    for one in sorted((s for s in seen if s.state in order), key=lambda s: order.index(s.state)):
        left = one.seconds_left
        table.add_row(
            one.name, f"{one.state}, {one.doing}" if one.doing else one.state, f"{one.step}/{one.steps}",
            "" if one.reward is None else f"{one.reward:.3f}",
            "" if one.seconds_a_step is None else f"{one.seconds_a_step:.1f}",
            "" if left is None else f"{int(left) // 60}:{int(left) % 60:02d}",
        )  # fmt: skip
    return table


def look_at_all(root: Path) -> list[Seen]:
    """All runs of the study below `root`. Raise ValueError where there is none."""
    path = root / "study.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: no study was started here; name another folder with --root")
    return [look(root, entry) for entry in json.loads(path.read_text(encoding="utf-8"))["runs"]]


def watch(root: Path, *, once: bool) -> None:
    """Show the runs and redraw until interrupted, or once."""
    seen = look_at_all(root)
    if once:
        from rich.console import Console

        Console(highlight=False, soft_wrap=True).print(shown(seen))
        return
    with Live(shown(seen), auto_refresh=False) as live:
        try:
            while True:
                time.sleep(REDRAW_SECONDS)
                live.update(shown(look_at_all(root)), refresh=True)
        except KeyboardInterrupt:
            return
