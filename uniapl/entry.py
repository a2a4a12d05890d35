"""How every stage starts from the command line: one directory, its config.json, and the directories it reads.

A user's mistake is one line on stderr and exit code 2, a full disk exit code 3, Ctrl-C 130, SIGTERM 143; never a
traceback. Anything else is a defect of the suite and keeps its traceback.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uniapl.provenance import read_config


class SharedError(ValueError):
    """A mistake that every rank of a training run finds at the same place; the first one says it for all."""


def run_guarded(action: Callable[[], None]) -> None:
    """Run, and turn a user's mistake, a full disk or an interruption into one line and an exit code."""
    try:
        action()
    except ValueError as error:
        if isinstance(error, SharedError) and os.environ.get("RANK", "0") != "0":
            sys.exit(2)
        sys.exit(_fail(str(error), 2))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = f" while writing {error.filename}" if error.filename else ""
            sys.exit(_fail(f"no space left on the disk{where}; free some and run snakemake again, nothing is lost", 3))
        if isinstance(error, FileNotFoundError):
            sys.exit(_fail(f"{error.filename}: no such file; run snakemake, which makes it", 2))
        raise
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted; the same command goes on from the last checkpoint", 130))


def _fail(message: str, code: int) -> int:
    rank = os.environ.get("RANK", "0")
    who = "" if rank == "0" else f"rank {rank}: "
    print(f"error: {who}{' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def run_stage(
    main: Callable[..., None], description: str, *, inputs: tuple[str, ...] = (), optional: tuple[str, ...] = ()
) -> None:
    """Parse `DIR --input DIR ...`, read DIR/config.json and call main(directory, config, input=Path, ...)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("directory", type=Path, help="the directory to fill; holds config.json")
    for name in (*inputs, *optional):
        parser.add_argument(f"--{name}", type=Path, required=name in inputs)
    arguments = vars(parser.parse_args())
    directory: Path = arguments.pop("directory")

    def action() -> None:
        config: dict[str, Any] = read_config(directory)
        main(directory, config, **arguments)

    run_guarded(action)
