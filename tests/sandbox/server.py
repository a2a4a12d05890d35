"""A process that asks for verdicts, as another user where told to: one JSON request a line in, one answer a line out.

`python -m tests.sandbox.server [uid]`. It loads all it needs before it gives up root's rights, since the interpreter's
own folder may be root's alone.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from contextlib import ExitStack
from dataclasses import astuple
from pathlib import Path
from typing import Any

from uniapl.sandbox import Call, Limits, Sandbox, available
from uniapl.sandbox.monty import MontyBackend

LIMITS = Limits(
    wall_seconds=0.4, cpu_seconds=1, memory_bytes=160 << 20, monty_seconds=0.2, monty_memory_bytes=32 << 20
)  # fmt: skip


def most_held(pid: int | str) -> int:
    """The most memory that a process ever held, bytes; rusage would count what its parent held at the fork."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def main() -> None:
    """Serve until standard input ends."""
    available()  # loads modules
    if len(sys.argv) > 1:
        os.setgroups([])
        os.setgid(int(sys.argv[1]))
        os.setuid(int(sys.argv[1]))
        available.cache_clear()
    tried = {name: (found.works, found.reason) for name, found in available().items()}
    print(json.dumps({"available": tried, "uid": os.getuid()}), flush=True)
    with ExitStack() as stack:
        sandboxes: dict[str, Any] = {}
        for name, (works, _) in tried.items():
            if works and name == "monty":  # itself, not what the pool keeps from it
                sandboxes[name] = stack.enter_context(MontyBackend(processes=1, limits=LIMITS))
            elif works:
                sandboxes[name] = stack.enter_context(Sandbox(limits=LIMITS, processes=1, backends=[name]))
        for line in sys.stdin:
            request = json.loads(line)
            calls = [Call(source, answer) for source, answer in request["calls"]]
            backend = sandboxes[request["backend"]]
            if isinstance(backend, MontyBackend):
                judgements = [backend.judge(call) for call in calls]
            else:
                judgements = backend.judge(calls)
            answer = {
                "judgements": [astuple(judgement) for judgement in judgements],
                "largest_child_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10,
                "own_bytes": most_held("self"),
            }
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
