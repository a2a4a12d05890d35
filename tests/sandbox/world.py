"""What attacks aim at, and how their effect is seen: files, listeners, processes, memory, time, others' verdicts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.sandbox.attacks import LASTING, SECRET, Attack
from tests.sandbox.server import most_held

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MOST_SECONDS = 5.0  # for three calls of which one reaches its limit of 0.4 s
TRIES = 4  # a busy machine may keep an honest call waiting beyond its limit: no verdict, but no attack either
MOST_BYTES = 300 << 20  # of one process; an interpreter that may have 160 MiB, or Monty with 32 MiB of heap
SLOW = "it held up"
OPEN_SECONDS = 0.7  # an attack without sandbox that runs longer has shown what it wanted
HONEST = (
    ("def evaluate(answer):\n    return '|' in answer\n", True),
    ("def evaluate(answer):\n    return answer == ''\n", False),
)
RUNNER = """
import sys
names = {}
exec(compile(sys.argv[1], "verifier", "exec"), names)
sys.exit(10 if names["evaluate"](sys.argv[2]) is True else 0)
"""


class World:
    """A folder that every user may write to, with a secret file and four listeners."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "canary"
        self.planted = {"canary": SECRET, "planted.py": f"VALUE = {SECRET!r}\n"}
        self.local = str(folder / "socket")
        self.abstract = f"uniapl-{os.getpid()}-{time.monotonic_ns()}"
        self.tcp, self.udp = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.tcp.bind(("127.0.0.1", 0))
        self.port = self.tcp.getsockname()[1]
        self.udp.bind(("127.0.0.1", self.port))
        self.unix, self.hidden = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        self.unix.bind(self.local)
        self.hidden.bind("\0" + self.abstract)
        Path(self.local).chmod(0o777)
        for listener in (self.tcp, self.unix, self.hidden):
            listener.listen()
        for listener in (self.tcp, self.unix, self.hidden, self.udp):
            listener.setblocking(False)
        folder.chmod(0o777)
        self.repair()

    def close(self) -> None:
        """Close the listeners."""
        for listener in (self.tcp, self.unix, self.hidden, self.udp):
            listener.close()

    def answer(self, asker: int) -> str:
        """The text that the attack gets."""
        return "|".join([str(self.file), str(self.folder), str(self.port), self.local, self.abstract, str(asker)])

    def environment(self) -> dict[str, str]:
        """Of the process that asks for verdicts."""
        return os.environ | {"UNIAPL_SECRET": SECRET, "UNIAPL_PLANTED": str(self.folder)}

    def repair(self) -> None:
        """Put the folder in order."""
        for name in os.listdir(self.folder):
            if name not in (*self.planted, "socket"):
                path = self.folder / name
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        for name, text in self.planted.items():
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o666)

    def effects(self) -> list[str]:
        """What an attack changed out here."""
        found = []
        names = set(os.listdir(self.folder)) - {"__pycache__"}
        if names != {*self.planted, "socket"}:
            found.append(f"the folder holds {sorted(names)}")
        if not self.file.exists() or self.file.read_text() != SECRET or self.file.stat().st_mode & 0o777 != 0o666:
            found.append("the file was changed")
        for name, listener in (("TCP", self.tcp), ("unix", self.unix), ("abstract", self.hidden)):
            with suppress(BlockingIOError):
                listener.accept()[0].close()
                found.append(f"the {name} listener was reached")
        with suppress(BlockingIOError):
            self.udp.recvfrom(100)
            found.append("the UDP listener was reached")
        return found


def left_behind(*, server: int | None) -> list[psutil.Process]:
    """Processes that outlived their verdict: below the server or orphaned, and those that an attack marked."""
    below = {child.pid for child in psutil.Process(server).children(recursive=True)} if server is not None else set()
    found = []
    for process in psutil.process_iter(["cmdline", "ppid", "status"]):
        line = process.info["cmdline"] or []
        ours = line[-1:] == ["uniapl-sandbox"] and (process.pid in below or process.info["ppid"] == 1)
        if (ours or LASTING in line) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def settle(*, server: int | None) -> list[psutil.Process]:
    """The same, once processes that are being killed had a moment to end."""
    deadline = time.monotonic() + 1.0
    while (found := left_behind(server=server)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


class Server:
    """Asks for verdicts as a given user (`server.py`)."""

    def __init__(self, world: World, *, uid: int | None) -> None:
        self.world = world
        command = [sys.executable, "-m", "tests.sandbox.server", *([str(uid)] if uid is not None else [])]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, env=world.environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        hello = json.loads(self.process.stdout.readline())
        self.available: dict[str, tuple[bool, str]] = hello["available"]
        assert hello["uid"] == (os.getuid() if uid is None else uid)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=20)

    def ask(self, calls: list[tuple[str, str]], *, backend: str) -> dict[str, Any]:
        """One request; its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"backend": backend, "calls": calls}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def attack(self, attack: Attack, *, backend: str) -> list[str]:
        """Run an attack between two honest calls; everything that it achieved, of time what it achieves each time."""
        for _ in range(TRIES):
            effects = self._attack(attack, backend=backend)
            if any(not effect.startswith(SLOW) for effect in effects) or not effects:
                break
        return effects

    def _attack(self, attack: Attack, *, backend: str) -> list[str]:
        answer = self.world.answer(self.process.pid)
        calls = [(HONEST[0][0], answer), (attack.source, answer), (HONEST[1][0], answer)]
        began = time.monotonic()
        replied = self.ask(calls, backend=backend)
        seconds = time.monotonic() - began
        first, hostile, last = replied["judgements"]
        effects = self.world.effects()
        if hostile[1] is True:
            effects.append("it got what it wanted")
        if SECRET in hostile[2] or not hostile[2].isprintable() or len(hostile[2]) > 200:
            effects.append("its reason is more than a short line")
        for judgement, (_, wanted) in ((first, HONEST[0]), (last, HONEST[1])):
            if judgement[0] == "timeout":
                effects.append(f"{SLOW} another judgement")
            elif judgement[:2] != ["ok", wanted]:
                effects.append(f"another judgement was {judgement}")
        if seconds > MOST_SECONDS:
            effects.append(f"{SLOW} all, for {seconds:.1f} seconds")
        largest = max(replied["largest_child_bytes"], replied["own_bytes"], self._monty_bytes())
        if largest > MOST_BYTES:
            effects.append(f"it took {largest >> 20} MiB")
        effects += [f"it left {process.cmdline()[:1]} behind" for process in settle(server=self.process.pid)]
        if self.process.poll() is not None:
            effects.append("who asked was killed")
        return effects

    def _monty_bytes(self) -> int:
        """The most memory that one of Monty's workers ever held."""
        most = 0
        for child in psutil.Process(self.process.pid).children():
            with suppress(OSError, psutil.NoSuchProcess):
                most = max(most, most_held(child.pid))
        return most


def in_the_open(attack: Attack, world: World) -> list[str]:
    """Run an attack without any sandbox; what it achieved. Ends the processes that it left."""
    asker = subprocess.Popen(["sleep", "60"], env=world.environment())
    command = [sys.executable, "-c", RUNNER, attack.source, world.answer(asker.pid)]
    process = subprocess.Popen(
        command, env=world.environment(), cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    watched, most = psutil.Process(process.pid), 0
    deadline = time.monotonic() + OPEN_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess):
            most = max(most, watched.memory_info().rss)
        time.sleep(0.005)
    effects = world.effects()
    left = left_behind(server=None)
    effects += [f"it left {other.cmdline()[:1]} behind" for other in left]
    if process.poll() is None:
        effects.append("it ran without end")
        process.kill()
    if process.wait() == 10:
        effects.append("it got what it wanted")
    if most > MOST_BYTES:
        effects.append(f"it took {most >> 20} MiB")
    for other in left:
        with suppress(psutil.NoSuchProcess):
            other.kill()
    asker.kill()
    asker.wait()
    return effects
