"""Back ends that run CPython: in bubblewrap's namespaces, or under Landlock where bubblewrap cannot run.

Both start `worker.py` in a bare interpreter, which gives every call a process of its own under rlimits and the filter
of `syscalls.py`; one start serves a batch. As root, everything runs as user NOBODY from the start.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from uniapl.sandbox.records import Call, Judgement, Limits, Program, Status, judged, refused
from uniapl.sandbox.syscalls import filter_program

NOBODY = 65534  # user and group, inside as well
START_SECONDS = 20.0  # for the interpreter on a busy machine
SPARE_SECONDS = 1.0  # per call, above its wall clock, which the worker keeps
LINE_BYTES = 4096  # most of one line of the worker
ENVIRONMENT = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
WORKER = Path(__file__).with_name("worker.py").read_text(encoding="utf-8")
STATUS: dict[str, Status] = {"N": "not_bool", "E": "error", "L": "limit", "X": "timeout", "C": "crashed",
          "U": "unavailable"}  # fmt: skip


@dataclass(frozen=True)
class Interpreter:
    """A CPython and the folder it was installed below."""

    path: str
    prefix: str

    @property
    def folders(self) -> list[str]:
        """What it needs to see: itself and its libraries, not the rest of its prefix, which may be a home folder."""
        own = [self.path, f"{self.prefix}/lib", f"{self.prefix}/lib64"]
        return [folder for folder in [*own, *SYSTEM_LIBRARIES] if os.path.exists(folder)]


def interpreters() -> list[Interpreter]:
    """This one, and the system's, for users that cannot read this one (root's own, seen by NOBODY)."""
    executable = getattr(sys, "_base_executable", None) or sys.executable
    found = [Interpreter(os.path.realpath(executable), sys.base_prefix)]
    system = Path("/usr/bin/python3")
    if system.exists():
        found.append(Interpreter(str(system.resolve()), "/usr"))
    return found


@dataclass(frozen=True)
class ProcessBackend:
    """CPython, confined by bubblewrap or by Landlock."""

    name: Literal["bubblewrap", "landlock"]
    interpreter: Interpreter

    def judge(self, items: Sequence[Call | Program], *, limits: Limits) -> list[Judgement]:
        """Judge a batch. Where the worker dies, the item that it died of has crashed and the rest is run again."""
        judgements: dict[int, Judgement] = {}
        left = list(range(len(items)))
        while left:
            started, records, why = self._run([items[i] for i in left], limits)
            judgements |= {left[number]: judgement for number, judgement in records.items()}
            left = [i for i in left if i not in judgements]
            if left and not started:
                judgements |= {i: refused("unavailable", why, backend=self.name) for i in left}
                left = []
            elif left:
                judgements[left.pop(0)] = refused("crashed", why, backend=self.name)
        return [judgements[i] for i in range(len(items))]

    @cached_property
    def description(self) -> dict[str, str]:
        """Name and versions, for a manifest."""
        asked = [self.interpreter.path, "-S", "-c", "import platform; print(platform.python_version())"]
        python = subprocess.run(asked, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout.strip()
        if self.name == "landlock":
            return {"name": self.name, "python": python, "kernel": platform.release()}
        version = subprocess.run([bubblewrap(), "--version"], capture_output=True, text=True, check=True).stdout
        return {"name": self.name, "version": version.split()[-1], "python": python}

    def command(self) -> list[str]:
        """The worker's command line, confinement included."""
        python = [self.interpreter.path, "-S", "-c", WORKER, "uniapl-sandbox"]
        if self.name == "landlock":
            return python
        options = ["--unshare-all", "--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
        options += ["--hostname", "sandbox", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
        for name, value in ENVIRONMENT.items():
            options += ["--setenv", name, value]
        for folder in self.interpreter.folders:
            options += ["--ro-bind", folder, folder]
        options += ["--tmpfs", "/tmp", "--dev-bind", "/dev/null", "/dev/null"]
        options += ["--remount-ro", "/tmp", "--remount-ro", "/", "--chdir", "/"]
        return [bubblewrap(), *options, "--", *python]

    def _run(self, items: Sequence[Call | Program], limits: Limits) -> tuple[bool, dict[int, Judgement], str]:
        """One start: whether the worker began, what it wrote, and why it ended."""
        batch: dict[str, Any] = {
            "limits": {key: getattr(limits, key) for key in ("wall_seconds", "cpu_seconds", "memory_bytes")},
            "filter": base64.b64encode(filter_program(platform.machine())).decode(),
            "landlock": self.interpreter.folders if self.name == "landlock" else None,
            "items": [vars(item) for item in items],
        }
        seconds = START_SECONDS + len(items) * (limits.wall_seconds + SPARE_SECONDS)
        output, why = run_bounded(
            self.command(), json.dumps(batch).encode(), seconds=seconds, most_bytes=LINE_BYTES * (len(items) + 1)
        )
        lines = output.split(b"\n")[:-1]  # the last one is empty, or half written
        records: dict[int, Judgement] = {}
        for line in lines[1:]:
            record = _read(line, self.name, len(items))
            if record is not None:
                records.setdefault(record[0], record[1])
        return bool(lines) and lines[0] == b"[]", records, why


def bubblewrap() -> str:
    """Path of bwrap. Raise ValueError with the remedy where there is none."""
    found = shutil.which("bwrap")
    if found is None:
        raise ValueError("bwrap is missing; install the system package bubblewrap")
    return found


def run_bounded(command: Sequence[str], given: bytes, *, seconds: float, most_bytes: int) -> tuple[bytes, str]:
    """Run with `given` as standard input; what it wrote, and a line on how it ended.

    The whole session is killed after `seconds`, and when it writes more than `most_bytes`. As root it runs as NOBODY.
    """
    user = NOBODY if os.geteuid() == 0 else None
    with os.fdopen(os.memfd_create("batch"), "w+b") as batch, tempfile.TemporaryFile() as errors:
        batch.write(given)
        batch.seek(0)
        try:
            process = subprocess.Popen(
                command, stdin=batch, stdout=subprocess.PIPE, stderr=errors, env=ENVIRONMENT, cwd="/",
                start_new_session=True, user=user, group=user, extra_groups=None if user is None else [],
            )  # fmt: skip
        except OSError as error:
            return b"", f"{command[0]}: {error.strerror}"
        assert process.stdout is not None
        written, why = bytearray(), ""
        deadline = time.monotonic() + seconds
        waiting = select.poll()  # not select.select, which takes no descriptor above 1,023
        waiting.register(process.stdout, select.POLLIN)
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0 or not waiting.poll(1000 * left):
                    why = f"no end after {seconds:.0f} seconds"
                    break
                block = os.read(process.stdout.fileno(), 1 << 16)
                if not block:
                    break
                written += block
                if len(written) > most_bytes:
                    why = f"more than {most_bytes} bytes of output"
                    break
        finally:
            with suppress(ProcessLookupError):
                if why or process.poll() is None:
                    _end(process, patient=not why)
            process.stdout.close()
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - 2000))
        said = errors.read().decode("utf-8", "replace").strip().splitlines()
    return bytes(written[:most_bytes]), why or (said[-1] if said else f"ended with code {process.returncode}")


def _end(process: subprocess.Popen[bytes], *, patient: bool) -> None:
    """Wait for a process that closed its output, then kill its session."""
    if patient:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2.0)
            return
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(line: bytes, backend: str, count: int) -> tuple[int, Judgement] | None:
    """One line of the worker; None where it is no record."""
    try:
        number, letter, text = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    if type(number) is not int or not 0 <= number < count or not isinstance(letter, str) or not isinstance(text, str):
        return None
    if letter in ("T", "F"):
        return number, judged(letter == "T", backend=backend, reason=text)
    if letter not in STATUS:
        return number, refused("crashed", "wrote no result", backend=backend)
    return number, refused(STATUS[letter], text, backend=backend)
