"""Start a stage on one or several processes: `python -m uniapl.launch --ranks 2 -m uniapl.train DIR ...`.

Leases the GPUs that the ranks use, where the machine has any, and waits until enough of them are free. One rank takes
this process's place; several run under torchrun. With `--nodes N` inside of a SLURM job, srun starts this command on
each of N nodes with its part of the ranks; without SLURM torchrun's own options (--nnodes, --rdzv-endpoint, ...) are
passed on. SIGINT and SIGTERM reach every rank, which save and leave; the exit code is that of the rank that failed
first.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil

from uniapl import leases
from uniapl.entry import run_guarded

POLL_SECONDS = 1.0
# glibc's malloc gives large blocks back to the kernel at once and gets them again page by page, a part of an update's
# time on a CPU (docs/performance.md). With these the process keeps what it has freed.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62), "MALLOC_TOP_PAD_": str(2**26)}
FIRST_PORT, NUM_PORTS = 20000, 12000  # where nodes meet: below Linux's ports for outgoing connections


def visible_gpus() -> list[str]:
    """Ids of the GPUs that may be used here: CUDA_VISIBLE_DEVICES, else all of the machine's."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    return sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)


def lease_directory() -> Path:
    """Where this user's GPU leases lie."""
    return Path(tempfile.gettempdir()) / f"uniapl-gpus-{os.getuid()}"


def lease_gpus(gpus: Sequence[str], *, count: int, directory: Path) -> list[tuple[str, IO[str]]]:
    """Lease `count` of the GPUs, waiting until as many are free. Raise ValueError where there are not as many.

    A lease is a shared lock, so that every rank can hold it as well (`leases.share`); only under the directory's
    exclusive lock is a GPU tried for.
    """
    if count > len(gpus):
        raise ValueError(f"{count} GPUs are needed, {len(gpus)} can be seen here; lower ranks or tensor_parallel")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    told = False
    while True:
        with open(directory / "choosing", "a", encoding="utf-8") as choosing:
            fcntl.flock(choosing, fcntl.LOCK_EX)
            tried = [(gpu, leases.try_hold(directory / gpu)) for gpu in gpus]
            taken = [(gpu, file) for gpu, file in tried if file is not None]
            for _, file in taken[count:]:
                file.close()
            if len(taken) >= count:
                for _, file in taken[:count]:
                    fcntl.flock(file, fcntl.LOCK_SH)
                return taken[:count]
            for _, file in taken:
                file.close()
        if not told:
            told = True
            print(f"waiting for {count} of the GPUs {', '.join(gpus)}: {len(taken)} free", file=sys.stderr, flush=True)
        time.sleep(POLL_SECONDS)


def over_nodes(stage: Sequence[str], *, ranks: int, nodes: int) -> list[str]:
    """The srun command that starts a stage on all nodes of the SLURM job, which meet on this one.

    Raise ValueError outside of a SLURM job.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if not job.isdigit():
        raise ValueError(
            f"nodes = {nodes} need a SLURM job (snakemake --profile profiles/slurm); elsewhere start `python -m "
            f"uniapl.launch` with torchrun's options on every node (docs/training.md), or set nodes to 1"
        )
    port = FIRST_PORT + int(job) % NUM_PORTS
    srun = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    meeting = [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={platform.node()}:{port}"]
    own = [sys.executable, "-m", "uniapl.launch", "--ranks", str(ranks // nodes), *meeting]
    return [*srun, *own, f"--rdzv-id={job}-{os.getpid()}", *stage]


def forward_signals() -> None:
    """Hand SIGINT and SIGTERM on to the ranks and go on waiting, so that they save and their codes are known."""

    def forward(number: int, _frame: object) -> None:
        ranks = psutil.Process().children()
        if not ranks:
            sys.exit(128 + number)
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
                rank.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)


def run_ranks(arguments: list[str]) -> int:
    """Run torchrun; return 0, or the exit code of the rank that failed first (128 + signal where one killed it)."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    options = parse_args(arguments)
    options.signals_to_handle = (
        "SIGHUP"  # `forward_signals` has the others: torchrun would stop waiting after 30 seconds
    )
    try:
        run(options)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(f"error: rank {rank} was ended by {name}; the same command goes on", file=sys.stderr, flush=True)
            return 128 - failure.exitcode
        return int(failure.exitcode)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def main(arguments: list[str]) -> None:
    """Lease, start and wait; leaves with the stage's exit code."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        usage="%(prog)s [--ranks N] [--nodes N] [--threads N] [--gpus N] [torchrun's options] -m MODULE ...",
    )
    parser.add_argument("--ranks", type=int, default=1, help="of all nodes; of this one with torchrun's --nnodes")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of each node, shared out among its ranks")
    parser.add_argument("--gpus", type=int, help="GPUs to lease where there are any; one for each rank if not given")
    if "-m" not in arguments:
        parser.error("-m MODULE is missing")
    begin = arguments.index("-m")
    own, options = parser.parse_known_args(arguments[:begin])
    stage = arguments[begin:]
    gpus = visible_gpus()
    if not gpus:
        os.environ.update({name: value for name, value in ALLOCATOR.items() if name not in os.environ})
    if own.threads:
        os.environ["OMP_NUM_THREADS"] = str(max(1, own.threads * own.nodes // own.ranks))
    if own.nodes > 1:
        command = over_nodes(stage, ranks=own.ranks, nodes=own.nodes)
        try:
            os.execvp(command[0], command)
        except FileNotFoundError:
            raise ValueError("srun is not to be found on this node of the SLURM job; load SLURM's module") from None
    held: list[tuple[str, Any]] = []
    if gpus:
        held = lease_gpus(gpus, count=own.ranks if own.gpus is None else own.gpus, directory=lease_directory())
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu for gpu, _ in held)
        leases.pass_on([file for _, file in held])
    if own.ranks == 1 and not options:
        os.execv(sys.executable, [sys.executable, *stage])
    leases.watch_starter()
    leases.name_starter()
    forward_signals()
    options = options or ["--standalone"]
    code = run_ranks([*options, "--nproc-per-node", str(own.ranks), *stage])
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run_guarded(lambda: main(sys.argv[1:]))
