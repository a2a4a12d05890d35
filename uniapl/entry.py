"""How every stage starts from the command line and how it ends: one directory, its config.json, and what it reads.

A user's mistake is one line on stderr and exit code 2, a full disk exit code 3, Ctrl-C 130, SIGTERM while training 75
(saved; start it again, as a scheduler's requeue does); never a traceback. Anything else is a defect of the suite and
keeps its traceback.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from uniapl import leases
from uniapl.provenance import read_config

REQUEUE_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on
LOST_RANK_EXIT_CODE = 4
LEASE = "lock"  # in every directory that a stage makes: who makes it


class SharedError(ValueError):
    """A mistake that every rank of a training run finds at the same place; the first one says it for all."""


class LostRankError(Exception):
    """Another rank does not answer any more. `silent` where whoever started the ranks knows better which and why."""

    def __init__(self, message: str, *, silent: bool) -> None:
        super().__init__(message)
        self.silent = silent


class Interruption:
    """SIGINT and SIGTERM are remembered, so that what runs comes to a place where it can be saved."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: object) -> None:
        self.signal = number

    def exit_code(self) -> int:
        """130 after Ctrl-C, as shells say it; else, as of another rank's signal, the code that asks for a restart."""
        return 130 if self.signal == signal.SIGINT else REQUEUE_EXIT_CODE


def run_guarded(action: Callable[[], None]) -> None:
    """Run, and turn a user's mistake, a full disk or an interruption into one line and an exit code."""
    other_rank = os.environ.get("RANK", "0") != "0"
    try:
        action()
    except ValueError as error:
        if isinstance(error, SharedError) and other_rank:
            sys.exit(2)
        sys.exit(_fail(str(error), 2))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            if other_rank:  # the first rank writes as well, and says it
                sys.exit(3)
            where = f" while writing {error.filename}" if error.filename else ""
            sys.exit(_fail(f"no space left on the disk{where}; free some and run snakemake again, nothing is lost", 3))
        if isinstance(error, FileNotFoundError):
            sys.exit(_fail(f"{error.filename}: no such file; run snakemake, which makes it", 2))
        raise
    except LostRankError as error:
        end_lost(error)
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted; the same command goes on from the last checkpoint", 130))


def end_lost(error: LostRankError) -> NoReturn:
    """End without the interpreter's clean-up, which would wait for threads of a process group that lost a rank."""
    if not error.silent:
        _fail(str(error), LOST_RANK_EXIT_CODE)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(LOST_RANK_EXIT_CODE)


def _fail(message: str, code: int) -> int:
    rank = os.environ.get("RANK", "0")
    who = "" if rank == "0" else f"rank {rank}: "
    print(f"error: {who}{' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def run_stage(
    main: Callable[..., None], description: str, *, inputs: tuple[str, ...] = (), optional: tuple[str, ...] = (),
    parsed: Mapping[str, Callable[[str], Any]] | None = None,
) -> None:  # fmt: skip
    """Parse `DIR --input DIR ...`, read DIR/config.json and call main(directory, config, input=Path, ...).

    `parsed` are further options with the functions that read their text. The directory's lease is held meanwhile.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("directory", type=Path, help="the directory to fill; holds config.json")
    for name in (*inputs, *optional):
        parser.add_argument(f"--{name}", type=Path, required=name in inputs)
    for name in parsed or {}:
        parser.add_argument(f"--{name}")
    arguments = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    directory: Path = arguments.pop("directory")

    def action() -> None:
        config: dict[str, Any] = read_config(directory)
        for name, read in (parsed or {}).items():
            if name in arguments:
                arguments[name] = read(arguments[name])
        with working_on(directory / LEASE, what=f"{directory} is being made"):
            if os.environ.get("RANK", "0") == "0":
                remove_half_written(directory)
            if "compute" in config:
                from uniapl import products  # torch is not imported for less

                products.prepare(config["compute"])
            main(directory, config, **arguments)

    run_guarded(action)


def remove_half_written(directory: Path) -> None:
    """Drop what a process that was killed left under a temporary name."""
    for left in [*directory.glob(".*.tmp"), *directory.glob(".*.old")]:
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


@contextmanager
def working_on(lease: Path, *, what: str) -> Iterator[None]:
    """Hold a lease and the starter's GPUs, and end with the process that started us.

    Of several ranks the first does, and waits until no rank of a launcher that was killed is left; the others take
    leases of their own once they all met (`distributed.start`).
    Raise ValueError, beginning with `what` and naming the owner, where another process holds the lease.
    """
    leases.watch_starter()
    held = leases.share()
    if os.environ.get("RANK", "0") == "0":
        held.append(leases.hold(lease, what=what))
        for other in lease.parent.glob(f"{lease.name}.*"):
            leases.hold(other, what=what).close()
    try:
        yield
    finally:
        for file in held:
            file.close()
