"""A run's metrics in TensorBoard and in Weights & Biases, where `machine.log_to` asks for it.

metrics.jsonl stays the truth: both are copies of it. A start writes the rows that the log kept for the resumed step
first, so that a run which was killed has every step once: TensorBoard's events and W&B's offline files are made anew,
and a W&B run on the server is resumed and gets only the steps that it does not have.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from uniapl.provenance import config_hash_of

PACKAGES = {"tensorboard": "tensorboard==2.21.0", "wandb": "wandb==0.31.0"}
MODES = ("online", "offline")
PROJECT = "uniapl"  # W&B's, where WANDB_PROJECT names no other

Row = dict[str, Any]


def missing(names: Sequence[str]) -> str | None:
    """What is missing for these, each with its remedy; None where nothing is."""
    said = [
        f"{name} is not installed: pip install {PACKAGES[name]}"
        for name in names
        if importlib.util.find_spec(name) is None
    ]
    if "wandb" in names:
        mode = wandb_mode()
        if mode not in MODES:
            said.append(f"the environment variable WANDB_MODE = {mode!r}: give {' or '.join(MODES)}")
        elif mode == "online" and not os.environ.get("WANDB_API_KEY"):
            said.append("wandb's key: set the environment variable WANDB_API_KEY, or WANDB_MODE=offline")
    return f"machine.log_to = {', '.join(names)}: {'; '.join(said)}" if said else None


def wandb_mode() -> str:
    """WANDB_MODE, or wandb's default."""
    return os.environ.get("WANDB_MODE") or "online"


class Tracker(Protocol):
    """Where rows of the log go beside it."""

    def write(self, row: Row) -> None: ...

    def close(self, *, failed: bool) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard, made anew at every start."""

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = directory / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))

    def write(self, row: Row) -> None:
        """One point for each metric that the step has."""
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """Close the event file."""
        self._writer.close()


class WandB:
    """A W&B run, named by model, path, variant and seed; its files are in RUN/wandb.

    Neither code, git state, console nor the machine's name is sent. Raise ValueError where the server cannot be had.
    """

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")  # optional, so not known where it is not installed
        shutil.rmtree(directory / "wandb", ignore_errors=True)  # what follows writes all rows again
        parts = directory.resolve().parts[-4:]
        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, x_disable_meta=True,
            x_disable_machine_info=True, host="-",
        )  # fmt: skip
        mode: Any = wandb_mode()
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT, id=f"{config_hash_of(directory)}-{parts[-1]}",
                name="/".join(parts), config=config, dir=str(directory), mode=mode, settings=settings,
                resume="allow" if mode == "online" else None,
            )  # fmt: skip
        except wandb.Error as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"machine.log_to: W&B cannot be reached ({reason}); set WANDB_MODE=offline, or leave wandb out"
            ) from None
        self._first = self._run.step  # of a resumed run, the first step that the server does not have

    def write(self, row: Row) -> None:
        """One point for each metric, unless the server has the step from before a kill."""
        if row["step"] >= self._first:
            self._run.log(numbers(row), step=row["step"])

    def close(self, *, failed: bool) -> None:
        """Finish the run; it is marked as failed where training did not reach its end."""
        self._run.finish(exit_code=int(failed))


class Trackers:
    """All trackers of a run; they start with the rows that its log kept, and end with the block."""

    def __init__(self, names: Sequence[str], directory: Path, config: dict[str, Any]) -> None:
        self._names, self._directory, self._config = names, directory, config
        self._open: list[Tracker] = []

    def start(self, rows: Iterable[Row]) -> None:
        """Open them and write the log's rows."""
        for name in self._names:
            tracker = TensorBoard(self._directory) if name == "tensorboard" else WandB(self._directory, self._config)
            self._open.append(tracker)
        for row in rows:
            self.write(row)

    def write(self, row: Row) -> None:
        """One row of the log."""
        for tracker in self._open:
            tracker.write(row)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._open:
            tracker.close(failed=kind is not None)


def numbers(row: Row) -> dict[str, float]:
    """The metrics that a row has, without its step."""
    return {name: float(value) for name, value in row.items() if name != "step" and value is not None}
