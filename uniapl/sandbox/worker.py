"""What runs inside: takes a batch from standard input, judges each item in a process of its own, writes a line each.

It is handed to a bare interpreter as text (`python -S -c`), so it imports the standard library only. Input: one JSON
document {limits, filter, landlock, items}. Output: one JSON line [], then [item, letter, text] for each. The item's
process may not start others, signal, or open a socket (`syscalls.py`), so it cannot reach this one; what it hands back
is a letter and at most MAX_TEXT bytes, which nothing here interprets.
"""

import sys

sys.path[:] = [entry for entry in sys.path if entry]  # the current folder is no place to import from

import base64  # noqa: E402
import ctypes  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import resource  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402
import time  # noqa: E402

MAX_TEXT = 400  # bytes
PRELOADED = ("collections", "datetime", "functools", "heapq", "itertools", "math", "re", "string", "typing")
PARENT_DEATH_SIGNAL, NO_NEW_PRIVILEGES, SECCOMP, SECCOMP_FILTER = 1, 38, 22, 2  # prctl
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # landlock_*, the same numbers on every machine
READ_FILE, READ_FOLDER = 1 << 2, 1 << 3
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # version of Landlock -> number of rights it knows; later ones: 16

libc = ctypes.CDLL(None, use_errno=True)


def kernel(outcome, what):
    """The outcome of a call of the kernel; OSError where it failed."""
    if outcome < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return outcome


def prctl(option, *values):
    """Change this process; every value goes as an unsigned long."""
    four = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    kernel(libc.prctl(option, *four), f"prctl {option}")


def confine_files(folders):
    """Landlock: from now on this process and its children read below these folders, and open nothing else."""
    if os.getuid() == 0:
        raise OSError(0, "Landlock is not used with the rights of root")
    version = kernel(libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1), "Landlock")
    words = [(1 << FILE_RIGHTS.get(version, 16)) - 1]
    words += [3] if version >= 4 else []  # TCP: bind and connect
    words += [3] if version >= 6 else []  # abstract sockets and signals outside
    attributes = (ctypes.c_uint64 * len(words))(*words)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    rules = kernel(libc.syscall(CREATE_RULESET, attributes, size, 0), "Landlock")
    for folder in folders:
        if not os.path.exists(folder):
            continue
        opened = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        rights = READ_FILE | READ_FOLDER if os.path.isdir(folder) else READ_FILE
        rule = ctypes.create_string_buffer(rights.to_bytes(8, sys.byteorder) + opened.to_bytes(4, sys.byteorder), 12)
        kernel(libc.syscall(ADD_RULE, rules, 1, rule, 0), f"Landlock, {folder}")
        os.close(opened)
    prctl(NO_NEW_PRIVILEGES, 1)
    kernel(libc.syscall(RESTRICT_SELF, rules, 0), "Landlock")
    os.close(rules)


def confine_process(limits, program):
    """Limits and the filter of system calls, for good."""
    memory, cpu = limits["memory_bytes"], limits["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))  # SIGXCPU, which may be ignored, then SIGKILL
    for name, most in (
        ("AS", memory), ("FSIZE", 0), ("CORE", 0), ("NPROC", 0), ("NOFILE", 32), ("STACK", 8 << 20), ("MEMLOCK", 0),
    ):  # fmt: skip
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (most, most))
    prctl(NO_NEW_PRIVILEGES, 1)
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]

    described = Program(len(program) // 8, ctypes.addressof(buffer))
    prctl(SECCOMP, SECCOMP_FILTER, ctypes.addressof(described))


def answer_of(item):
    """Run an item; its letter and text. T and F are verdicts; the others are why there is none."""
    try:
        if "answer" not in item:
            try:
                exec(compile(item["source"], "<program>", "exec"), {"__name__": "__main__"})
            except MemoryError:
                raise
            except BaseException as error:
                return "F", describe(error)
            return "T", ""
        names: dict = {"__name__": "verifier"}
        exec(compile(item["source"], "<verifier>", "exec"), names)
        if item["entry"] not in names:
            return "E", "no function " + item["entry"]
        result = names[item["entry"]](item["answer"])
        if result is True or result is False:
            return "T" if result else "F", ""
        return "N", "returned " + type(result).__name__
    except MemoryError:
        return "L", "memory"
    except BaseException as error:
        return "E", describe(error)


def describe(error):
    """Name and message of an exception, whose methods may be hostile."""
    name = type(error).__name__
    try:
        return f"{name}: {error}"[:MAX_TEXT]
    except BaseException:
        return name


def run_item(item, limits, program, result, null):
    """The item's own process: never returns."""
    try:
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.dup2(result, 3)
        os.closerange(4, 256)
        write, leave = os.write, os._exit
        try:
            prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
            confine_process(limits, program)
        except (OSError, ValueError) as error:
            letter, text = "U", describe(error)
        else:
            random.seed(0)  # functions that draw give the same verdict each time; a fork had seeded it anew
            letter, text = answer_of(item)
        write(3, (letter + text).encode("utf-8", "backslashreplace")[:MAX_TEXT])
        leave(0)
    finally:
        os._exit(1)


def judge(item, limits, program, null):
    """One item in a process of its own; its letter and text, X after the wall clock, C after a crash."""
    reading, result = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        run_item(item, limits, program, result, null)
    os.close(result)
    written, ended = b"", False
    deadline = time.monotonic() + limits["wall_seconds"]
    while not ended and len(written) <= MAX_TEXT:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            break
        block = os.read(reading, MAX_TEXT + 1)
        written, ended = written + block, not block
    os.close(reading)
    if not ended:
        os.kill(child, signal.SIGKILL)
    _, code, used = os.wait4(child, 0)
    if len(written) > MAX_TEXT:
        return "C", "wrote more than a result"
    if not ended:
        return "X", "wall clock"
    ended_by = os.WTERMSIG(code) if os.WIFSIGNALED(code) else 0
    # The limit's clock and the one that is read here may differ by a tick.
    if ended_by == signal.SIGXCPU or (ended_by and used.ru_utime + used.ru_stime >= limits["cpu_seconds"]):
        return "X", "processor time"
    if ended_by:
        return "C", f"signal {ended_by}"
    if code != 0 or not written:
        return "C", "ended without a result"
    return chr(written[0]), written[1:].decode("utf-8", "replace")


def main():
    """Judge the batch on standard input."""
    batch = json.loads(sys.stdin.buffer.read())
    null = os.open("/dev/null", os.O_RDWR)
    if batch["landlock"] is not None:
        confine_files(batch["landlock"])
    program = base64.b64decode(batch["filter"])
    for name in PRELOADED:
        __import__(name)
    gc.freeze()
    os.write(1, b"[]\n")
    for number, item in enumerate(batch["items"]):
        letter, text = judge(item, batch["limits"], program, null)
        os.write(1, json.dumps([number, letter, text]).encode() + b"\n")


if __name__ == "__main__":
    main()
