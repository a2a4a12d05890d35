"""Which back ends work on this machine: each one is really run, and must withstand a few attacks, before it is offered.

A kernel without user namespaces, a container that forbids them, or a missing package then show at start-up, not in the
middle of a run; and a back end that does not confine is worse than none.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from uniapl.sandbox.monty import MontyBackend
from uniapl.sandbox.process import Interpreter, ProcessBackend, bubblewrap, interpreters
from uniapl.sandbox.records import Call, Limits
from uniapl.sandbox.syscalls import filter_program

PROBE_LIMITS = Limits(wall_seconds=5.0, cpu_seconds=2, memory_bytes=256 << 20)
SOUND = (
    ("def evaluate(answer): return answer.endswith('canary')", True),
    ("import re\ndef evaluate(answer): return re.match('[a-z]+$', answer) is not None", False),
)
# Each returns True where it got what it must not get; the answer is the path of a file that every user may read.
MUST_HOLD = {
    "read a file": "def evaluate(path): return open(path).read() == 'secret'",
    "list a folder": "import os\ndef evaluate(path): return 'canary' in os.listdir(os.path.dirname(path))",
    "write a file": "def evaluate(path): return open(path + '.new', 'w').write('x') == 1",
    "open a socket": "import socket\ndef evaluate(path): return socket.socket() is not None",
    "open a unix socket": "import socket\ndef evaluate(path): return socket.socket(socket.AF_UNIX) is not None",
    "start a process": "import os\ndef evaluate(path):\n    pid = os.fork()\n    return pid >= 0",
    "signal its parent": "import os\ndef evaluate(path): return os.kill(os.getppid(), 0) is None",
    "take memory": f"def evaluate(path): return len(bytearray({PROBE_LIMITS.memory_bytes})) > 0",
}
REMEDY = {
    "monty": "pip install pydantic-monty",
    "bubblewrap": "install the system package bubblewrap and allow unprivileged user namespaces",
    "landlock": "use a Linux kernel of 5.13 or newer that has Landlock on",
}


@dataclass(frozen=True)
class Availability:
    """Whether a back end works here; `reason` is a short line where it does not."""

    works: bool
    reason: str
    process: ProcessBackend | None = None


@cache
def available() -> dict[str, Availability]:
    """Every back end by name, tried once in this process: monty, bubblewrap, landlock."""
    return {"monty": _monty(), "bubblewrap": _bubblewrap(), "landlock": _process("landlock")}


def offered() -> list[str]:
    """Names of the back ends that the suite uses here, in the order they are asked: Monty, then one with CPython."""
    works = [name for name, tried in available().items() if tried.works]
    return works[:2] if works[:1] == ["monty"] else works[:1]


def remedy() -> str:
    """One line for a user whose machine cannot run the code: what fails, and what to do about it."""
    lacking = [f"{name} ({tried.reason}; {REMEDY[name]})" for name, tried in available().items() if not tried.works]
    return "code that a model wrote cannot be run safely here; any one of these helps: " + ", ".join(lacking)


def _monty() -> Availability:
    calls = [(Call(source, "/canary"), wanted) for source, wanted in SOUND]
    try:
        with MontyBackend(processes=1, limits=PROBE_LIMITS) as backend, _canary() as path:
            if any(backend.judge(call).verdict is not wanted for call, wanted in calls):
                return Availability(False, "gives no or wrong verdicts")
            for name, source in MUST_HOLD.items():
                if backend.judge(Call(source, path)).verdict is not None:
                    return Availability(False, f"lets code {name}")
    except (OSError, RuntimeError) as error:
        return Availability(False, str(error))
    return Availability(True, "")


def _bubblewrap() -> Availability:
    try:
        bubblewrap()
    except ValueError as error:
        return Availability(False, str(error))
    return _process("bubblewrap")


def _process(name: str) -> Availability:
    reasons = []
    for interpreter in interpreters():
        backend = ProcessBackend("landlock" if name == "landlock" else "bubblewrap", interpreter)
        reason = _fails(backend, interpreter)
        if not reason:
            return Availability(True, "", backend)
        reasons.append(reason)
    return Availability(False, reasons[-1])


def _fails(backend: ProcessBackend, interpreter: Interpreter) -> str:
    """Why a CPython back end cannot be offered; empty where it can."""
    try:
        filter_program(os.uname().machine)
    except ValueError as error:
        return str(error)
    with _canary() as path:
        calls = [Call(source, "/canary") for source, _ in SOUND] + [Call(s, path) for s in MUST_HOLD.values()]
        judgements = backend.judge(calls, limits=PROBE_LIMITS)
        for judgement, (_, wanted) in zip(judgements, SOUND, strict=False):
            if judgement.verdict is not wanted:
                return f"{interpreter.path}: {judgement.reason or 'wrong verdict'}"
        for judgement, name in zip(judgements[len(SOUND) :], MUST_HOLD, strict=True):
            if judgement.verdict is not None or judgement.status == "unavailable":
                return f"lets code {name}"
    return ""


class _canary:
    """A file that every user of this machine may read, in a folder that every user may write to, for one probe."""

    def __enter__(self) -> str:
        self._folder = tempfile.TemporaryDirectory(prefix="uniapl-probe-")
        folder = Path(self._folder.name)
        folder.chmod(0o777)
        (folder / "canary").write_text("secret")
        (folder / "canary").chmod(0o644)
        return str(folder / "canary")

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()
