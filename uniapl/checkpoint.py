"""Checkpoints of a run: model, optimizer and step by torch's DCP, whole or absent, guarded by the config's hash."""

from __future__ import annotations

import errno
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from uniapl.distributed import ALONE, Ranks
from uniapl.provenance import write_whole

COMPLETE = "COMPLETE"
TORN_WRITE = ("file write failed", "unexpected pos")  # what torch's writer says of a full disk; it hides the errno


def _steps(run_directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in (run_directory / "checkpoints").glob(f"step_*/{COMPLETE}"))


@contextmanager
def _single_process() -> Iterator[None]:
    """Without DCP's warning that it takes no_dist at its word."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def save(run_directory: Path, *, step: int, model: Any, optimizer: Any, fingerprint: str, ranks: Ranks = ALONE) -> None:
    """Write the state after `step` steps, then drop older checkpoints. Raise OSError where the disk is full.

    The directory gets its name by a rename after the COMPLETE marker is in it, so the previous checkpoint is only
    dropped once the new one is whole. Of several ranks each writes its shards, the first does the rest.
    """
    parent = run_directory / "checkpoints"
    target, temporary = parent / f"step_{step:06d}", parent / f"partial_{step:06d}"
    if ranks.first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    ranks.wait()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    try:
        state = {"model": model_state, "optimizer": optimizer_state}
        with _single_process():
            dcp.save(state, checkpoint_id=str(temporary), no_dist=ranks.size == 1)
        if not ranks.first:
            return
        write_whole(temporary / COMPLETE, json.dumps({"step": step, "config_hash": fingerprint}) + "\n")
    except (OSError, RuntimeError, CheckpointException) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _as_disk_error(error, target) from error
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    for old in _steps(run_directory):
        if old != target:
            shutil.rmtree(old)


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


def load_newest(run_directory: Path, *, model: Any, optimizer: Any, fingerprint: str) -> int:
    """Load the newest complete checkpoint in place and return its step; 0 where there is none.

    Raise ValueError where the checkpoint belongs to another config.
    """
    steps = _steps(run_directory)
    if not steps:
        return 0
    marker = json.loads((steps[-1] / COMPLETE).read_text())
    if marker["config_hash"] != fingerprint:
        raise ValueError(
            f"{steps[-1]} was written for config {marker['config_hash']}, this run is {fingerprint}: "
            f"move the checkpoints away to start this run afresh"
        )
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    with _single_process():
        dcp.load(state, checkpoint_id=str(steps[-1]), no_dist=not dist.is_initialized())
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return int(marker["step"])


def remove_all(run_directory: Path) -> None:
    """Drop the checkpoints of a finished run; its weights are exported."""
    shutil.rmtree(run_directory / "checkpoints", ignore_errors=True)
