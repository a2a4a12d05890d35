"""Checkpoints of a run: model, optimizer and step by torch's DCP, whole or absent, guarded by the config's hash.

The data position is the step, and all randomness is a function of (seed, step, index), so there is no generator's
state to save. On a GPU the state is copied to the host and written while training goes on; on CPU such a copy would
cost the memory of a second run, and it is written at once.
"""

from __future__ import annotations

import errno
import json
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from uniapl.distributed import ALONE, Ranks
from uniapl.entry import SharedError
from uniapl.provenance import write_whole

COMPLETE = "COMPLETE"
TORN_WRITE = ("file write failed", "unexpected pos")  # what torch's writer says of a full disk; it hides the errno


@contextmanager
def _quiet() -> Iterator[None]:
    """Without DCP's warnings: that it takes no_dist at its word, and of its own deprecated parts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.checkpoint")
        yield


@dataclass
class Checkpoints:
    """The checkpoints of one run directory; every rank has one of these and calls the same methods."""

    run_directory: Path
    fingerprint: str  # the config's hash
    ranks: Ranks = ALONE
    kept: int = 1
    background: bool = False
    _writing: tuple[int, Future[Any]] | None = field(default=None, init=False)
    _group: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.background and self.ranks.size > 1:
            self._group = dist.new_group(backend="gloo")  # writing in the background talks on its own

    @property
    def _folder(self) -> Path:
        return self.run_directory / "checkpoints"

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(int(path.parent.name.removeprefix("step_")) for path in self._folder.glob(f"step_*/{COMPLETE}"))

    def save(self, step: int, *, model: Any, optimizer: Any, others: dict[str, Tensor] | None = None) -> None:
        """Write the state after `step` steps, `others` with it; the oldest beyond `kept` go once it is whole.

        Raise OSError where the disk is full: of this one, or, in the background, of the one before. Of several ranks
        each writes its shards, the first does the rest.
        """
        self.finish()
        self.ranks.wait()  # so that all see the same checkpoints
        if step in self.steps():
            return
        temporary = self._folder / f"partial_{step:06d}"
        if self.ranks.first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.ranks.wait()
        model_state, optimizer_state = get_state_dict(model, optimizer)
        state = {"model": model_state, "optimizer": optimizer_state} | ({"others": others} if others else {})
        alone = self.ranks.size == 1
        with self._disk_errors(step), _quiet():
            if self.background:
                written = dcp.async_save(state, checkpoint_id=str(temporary), process_group=self._group, no_dist=alone)
                assert isinstance(written, Future)
                self._writing = step, written
            else:
                dcp.save(state, checkpoint_id=str(temporary), no_dist=alone)
                self._publish(step)

    def finish(self) -> None:
        """Wait for the checkpoint that is being written in the background. Raise OSError where the disk is full."""
        if self._writing is not None:
            (step, written), self._writing = self._writing, None
            with self._disk_errors(step):
                written.result()
                self._publish(step)

    def poll(self) -> None:
        """Publish the checkpoint of the background if it is written, without waiting. Raise as `finish`."""
        if self._writing is not None and self._writing[1].done():
            self.finish()

    def _publish(self, step: int) -> None:
        """Give a written checkpoint its name, by one rename after the COMPLETE marker is in it, and drop old ones."""
        if not self.ranks.first:
            return
        temporary = self._folder / f"partial_{step:06d}"
        marker = {"step": step, "config_hash": self.fingerprint, "world_size": self.ranks.size}
        write_whole(temporary / COMPLETE, json.dumps(marker) + "\n")
        shutil.rmtree(self._directory(step), ignore_errors=True)  # without its marker, or `save` would not have begun
        temporary.rename(self._directory(step))
        for old in self.steps()[: -self.kept]:
            (self._directory(old) / COMPLETE).unlink()  # first, so that what is half removed is not complete
            shutil.rmtree(self._directory(old))

    def _directory(self, step: int) -> Path:
        return self._folder / f"step_{step:06d}"

    @contextmanager
    def _disk_errors(self, step: int) -> Iterator[None]:
        """Remove what was half written, and say of a full disk that it is full."""
        try:
            yield
        except (OSError, RuntimeError, CheckpointException) as error:
            shutil.rmtree(self._folder / f"partial_{step:06d}", ignore_errors=True)
            raise _as_disk_error(error, self._directory(step)) from error

    def load_newest(self, *, model: Any, optimizer: Any, others: dict[str, Tensor] | None = None) -> int:
        """Load the newest complete checkpoint in place, of whatever number of ranks; return its step, 0 without one.

        `others` are written into, as they were given to `save`.

        Raise ValueError where the checkpoint belongs to another config.
        """
        if self.ranks.first:
            for left in self._folder.glob("*"):  # by a process that was killed
                if left.name.startswith("partial") or not (left / COMPLETE).exists():
                    shutil.rmtree(left)
        steps = self.steps()
        if not steps:
            return 0
        newest = self._directory(steps[-1])
        marker = json.loads((newest / COMPLETE).read_text())
        if marker["config_hash"] != self.fingerprint:
            raise SharedError(
                f"{newest} was written for config {marker['config_hash']}, this run is {self.fingerprint}: "
                f"move the checkpoints away to start this run afresh"
            )
        model_state, optimizer_state = get_state_dict(model, optimizer)
        state = {"model": model_state, "optimizer": optimizer_state} | ({"others": others} if others else {})
        with _quiet():
            dcp.load(state, checkpoint_id=str(newest), no_dist=self.ranks.size == 1)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        return int(marker["step"])


def remove_checkpoints(run_directory: Path) -> None:
    """Drop the checkpoints of a finished run; its weights are exported."""
    shutil.rmtree(run_directory / "checkpoints", ignore_errors=True)


def _as_disk_error(error: BaseException, target: Path) -> BaseException:
    """The full disk behind an error of DCP, if that is what it was."""
    failures = error.failures.values() if isinstance(error, CheckpointException) else ()
    for failed in (error, *(wrapped[0] for wrapped in failures)):
        cause: BaseException | None = failed
        while cause is not None:  # torch's writer raises errors of its own while it handles the disk's
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                return OSError(cause.errno, "no space left", str(target))
            if isinstance(cause, RuntimeError) and any(words in str(cause) for words in TORN_WRITE):
                return OSError(errno.ENOSPC, "no space left", str(target))
            cause = cause.__cause__ or cause.__context__
    return error
