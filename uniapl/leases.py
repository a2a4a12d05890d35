"""Who holds a study, a run directory or a GPU: `flock` leases that name their owner and die with it.

No lease has to be removed by hand: the kernel drops it when the last process that inherited it is gone. A process that
snakemake (or the launcher of several ranks) started watches that one; when it is killed, the process sends itself
SIGTERM, so that an orphan saves and leaves. Whoever meets an orphan's lease waits for it, and never joins in.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import psutil

STARTER = "UNIAPL_STARTER"  # environment variable: the process whose death makes its children orphans
LEASES = "UNIAPL_LEASES"  # environment variable: files of shared leases that children hold as well
WATCH_SECONDS = 1.0
ORPHAN_SECONDS = 600.0  # how long an orphan is waited for; it saves at the end of its step's current phase


@dataclass(frozen=True)
class Process:
    """One process on one machine; the start time tells it from a later one with the same id."""

    pid: int
    host: str
    started: float  # seconds since 1970

    @classmethod
    def current(cls) -> Process:
        """The calling process."""
        return cls(os.getpid(), platform.node(), psutil.Process().create_time())

    @classmethod
    def read(cls, text: str) -> Process | None:
        """Out of JSON; None where the text is none of `text()`."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError):
            return None

    def text(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))

    def gone(self) -> bool:
        """True where the process ended; of another machine's processes nothing is known, so False."""
        if self.host != platform.node():
            return False
        try:
            found = psutil.Process(self.pid)
            return abs(found.create_time() - self.started) > 1.0 or found.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        return f"process {self.pid} on {self.host}, running since {since}"


@dataclass(frozen=True)
class Owner:
    """Who wrote a lease, who started that process (None: a person), and what it does at present."""

    process: Process
    starter: Process | None
    doing: str = ""

    @classmethod
    def read(cls, text: str) -> Owner | None:
        """Out of a lease's file; None where it was not written yet."""
        first, second, doing = [*text.split("\n"), "", "", ""][:3]
        process = Process.read(first)
        return cls(process, Process.read(second), doing) if process else None

    def __str__(self) -> str:
        return f"{self.process} ({self.doing})" if self.doing else str(self.process)

    @property
    def is_orphan(self) -> bool:
        """True where the process lives on though the one that started it ended."""
        return self.starter is not None and self.starter.gone()


def name_starter() -> None:
    """Make this process the one whose death ends what it starts."""
    os.environ[STARTER] = Process.current().text()


def starter() -> Process | None:
    """The process on this machine that started this one, if it said so."""
    named = Process.read(os.environ.get(STARTER, ""))
    return named if named is not None and named.host == platform.node() else None


def watch_starter() -> None:
    """From now on, send this process SIGTERM once the process that started it is gone."""
    watched = starter()
    if watched is None or watched.pid == os.getpid():
        return

    def watch() -> None:
        while not watched.gone():
            time.sleep(WATCH_SECONDS)
        print(f"{watched} started this and is gone: leaving", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch_starter", daemon=True).start()


def try_hold(path: Path) -> IO[str] | None:
    """Take a lease until the returned file is closed or this process ends; None where another one holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (held until the process ends)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)
    began = starter()
    file.write(f"{Process.current().text()}\n{began.text() if began else ''}\n")
    file.flush()
    return file


def note(path: Path, doing: str) -> None:
    """Write into a lease what its owner, this process, does at present. Nothing where the lease was not taken."""
    if not path.exists():
        return
    with open(path, "r+", encoding="utf-8") as file:
        owner = file.read().split("\n")[:2]
        file.seek(0)
        file.write("\n".join([*owner, doing, ""]))
        file.truncate()


def pass_on(files: Iterable[IO[str]]) -> None:
    """Let the processes that this one starts hold its shared leases too: `share` is theirs to call."""
    held = list(files)
    for file in held:
        os.set_inheritable(file.fileno(), True)  # for the one that takes this process's place
    os.environ[LEASES] = os.pathsep.join(file.name for file in held)


def share() -> list[IO[str]]:
    """Hold the leases that the starting process passed on, until the returned files are closed or this process ends."""
    files: list[IO[str]] = []
    for path in filter(None, os.environ.get(LEASES, "").split(os.pathsep)):
        files.append(open(path, encoding="utf-8"))  # noqa: SIM115 (held until the process ends)
        fcntl.flock(files[-1], fcntl.LOCK_SH | fcntl.LOCK_NB)
    return files


def hold(path: Path, *, what: str) -> IO[str]:
    """Take a lease, waiting for an orphan to leave. Raise ValueError naming the owner and the remedy where it is held.

    `what` begins the message: "results/laptop is in use".
    """
    deadline = time.monotonic() + ORPHAN_SECONDS
    unknown_until = time.monotonic() + 2.0  # between taking a lease and writing its owner
    told = False
    while True:
        if file := try_hold(path):
            return file
        owner = Owner.read(path.read_text(encoding="utf-8"))
        late = time.monotonic() > (deadline if owner else unknown_until)
        if late or (owner is not None and not owner.is_orphan):
            who = str(owner) if owner else "an unknown process"
            remedy = f"wait for it, or stop it (kill {owner.process.pid})" if owner else f"find it with: fuser {path}"
            orphan = ", an orphan that does not leave" if owner and owner.is_orphan else ""
            raise ValueError(f"{what} by {who}{orphan}; {remedy}")
        if owner is not None and not told:
            told = True
            print(f"{what} by {owner.process}, an orphan: waiting until it saved and left", file=sys.stderr, flush=True)
        time.sleep(0.2)


def wait(path: Path, *, what: str) -> IO[str]:
    """Take a lease, waiting as long as another process has it; a line says that `what` is waited for."""
    told = False
    while (file := try_hold(path)) is None:
        if not told:
            told = True
            print(f"waiting for {what}: another process uses it", file=sys.stderr, flush=True)
        time.sleep(WATCH_SECONDS)
    return file
