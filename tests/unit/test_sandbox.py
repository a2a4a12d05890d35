"""The sandbox: verdicts and statuses, which back end judges what, batches that survive, real functions and programs."""

from __future__ import annotations

import gzip
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import get_args

import psutil
import pytest

from uniapl.sandbox import Call, Judgement, Limits, Program, Sandbox, available, offered, probe, process
from uniapl.sandbox.monty import may_hide_a_gap
from uniapl.sandbox.process import run_bounded
from uniapl.sandbox.records import Status
from uniapl.sandbox.syscalls import ALLOWED, filter_program

LONGER = "def evaluate(response):\n    return len(response) > 3\n"
SLEEPS = "import time\ndef evaluate(response):\n    time.sleep(60)\n    return True\n"
SHORT = Limits(wall_seconds=1.0, cpu_seconds=1, monty_seconds=0.3)
EVERY = ("monty", "bubblewrap", "landlock")
IN_CPYTHON = ("bubblewrap", "landlock")

Judge = Callable[..., list[Judgement]]


def need(*names: str) -> None:
    """Skip, with the reason, where a back end is not offered."""
    for name in names:
        if not available()[name].works:
            pytest.skip(f"{name} is not offered here: {available()[name].reason}")


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    """Judges with one back end, or with those the suite would use; sandboxes are kept between calls."""
    kept: dict[str | None, Sandbox] = {}

    def ask(items: list[Call | Program], *, backend: str | None = None, compare: bool = False) -> list[Judgement]:
        need(*([backend] if backend else []))
        if backend not in kept:
            kept[backend] = Sandbox(limits=SHORT, backends=[backend] if backend else None)
            kept[backend].__enter__()
        return kept[backend].judge(items, compare=compare)

    yield ask
    for sandbox in kept.values():
        sandbox.__exit__(None, None, None)


@pytest.mark.parametrize("backend", EVERY)
def test_a_function_that_answers_gets_its_verdict(backend: str, judge: Judge) -> None:
    judgements = judge([Call(LONGER, "long"), Call(LONGER, "é"), Call(LONGER, "")], backend=backend)
    assert judgements == [Judgement("ok", v, "", backend) for v in (True, False, False)]


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize(
    ("source", "status", "reason"),
    [
        ("def evaluate(r):\n    return 1 / 0", "error", "ZeroDivisionError"),
        ("def evaluate(r):\n    return 'true'", "not_bool", "returned"),
        ("def evaluate(r):\n    return 1", "not_bool", "returned"),
        ("def evaluate(r):\n    pass", "not_bool", "returned"),
        ("def evaluate(r):\n    while True:\n        pass", "timeout", ""),
        ("def evaluate(r):\n    return len([0] * 10 ** 10) > 0", "limit", ""),
    ],
)
def test_code_without_a_verdict_gets_a_status_and_a_reason(
    backend: str, source: str, status: str, reason: str, judge: Judge
) -> None:
    (judgement,) = judge([Call(source, "x")], backend=backend)
    assert (judgement.status, judgement.verdict) == (status, None)
    assert judgement.reason
    assert reason in judgement.reason


@pytest.mark.parametrize("backend", IN_CPYTHON)
@pytest.mark.parametrize(
    ("source", "status", "reason"),
    [
        ("def other(r):\n    return True", "error", "no function evaluate"),
        ("def evaluate(r:\n", "error", "SyntaxError"),
        ("import no_such_module", "error", "ModuleNotFoundError: No module named 'no_such_module'"),
        (SLEEPS, "timeout", "wall clock"),
        ("import os\ndef evaluate(r):\n    os._exit(0)", "crashed", "ended without a result"),
        ("import ctypes\ndef evaluate(r):\n    ctypes.string_at(0)", "crashed", "signal 11"),
    ],
)
def test_cpython_says_what_happened(backend: str, source: str, status: str, reason: str, judge: Judge) -> None:
    (judgement,) = judge([Call(source, "x")], backend=backend)
    assert (judgement.status, judgement.verdict) == (status, None)
    assert judgement.reason.startswith(reason)


@pytest.mark.parametrize("backend", IN_CPYTHON)
def test_a_program_passes_where_it_runs_to_its_end(backend: str, judge: Judge) -> None:
    sources = ["assert 1 + 1 == 2", "assert 1 + 1 == 3, 'sum'", "def f(:", "import sys\nsys.exit(0)", "while 1: pass"]
    judgements = judge([Program(source) for source in sources], backend=backend)
    assert [j.verdict for j in judgements] == [True, False, False, False, None]
    assert judgements[1].reason == "AssertionError: sum"
    assert judgements[4].status == "timeout"


def test_monty_is_asked_first_and_cpython_where_monty_refuses(judge: Judge) -> None:
    need("monty", "bubblewrap")
    letters = "import string\ndef evaluate(r):\n    return all(c in string.ascii_letters for c in r)"
    unbound = "def evaluate(r):\n    return all(map(str.isalpha, r))"
    raising = "def evaluate(r):\n    return int(r) > 3"
    judgements = judge([Call(source, "abcd") for source in (LONGER, letters, unbound, raising)])
    assert [(j.status, j.verdict, j.backend) for j in judgements] == [
        ("ok", True, "monty"),
        ("ok", True, "bubblewrap"),
        ("ok", True, "bubblewrap"),
        ("error", None, "bubblewrap"),
    ]


def test_a_handler_cannot_turn_what_monty_lacks_into_a_verdict(judge: Judge) -> None:
    need("monty", "bubblewrap")
    source = (
        "def evaluate(r):\n    try:\n        import string\n        return r in string.printable\n"
        "    except Exception:\n        return False"
    )
    (judgement,) = judge([Call(source, "a")])
    assert (judgement.verdict, judgement.backend) == (True, "bubblewrap")
    (alone,) = judge([Call(source, "a")], backend="monty")
    assert (alone.status, alone.verdict) == ("unsupported", None)


@pytest.mark.parametrize(
    ("words", "hides"),
    [
        ("except ValueError:", False),
        ("except (ValueError, IndexError) as error:", False),
        ("except:", True),
        ("except Exception as e:", True),
        ("except (ValueError, AttributeError):", True),
        ("except*ValueError:", True),
        ("hasattr(str, 'x')", True),
        ("finally:", True),
        ("an exceptional word", False),
    ],
)
def test_handlers_that_could_hide_a_gap_are_found(words: str, hides: bool) -> None:
    assert may_hide_a_gap(f"x = 1\n{words}\n") is hides


def test_monty_alone_says_unsupported_and_never_guesses(judge: Judge) -> None:
    need("monty")
    letters = "import string\ndef evaluate(r):\n    return r in string.printable"
    (judgement,) = judge([Call(letters, "a")], backend="monty")
    assert (judgement.status, judgement.verdict) == ("unsupported", None)
    assert "string" in judgement.reason
    with pytest.raises(ValueError, match=r"any one of these helps|sandbox") as refused:
        judge([Program("pass")], backend="monty")
    assert "\n" not in str(refused.value)


def test_two_back_ends_that_differ_are_a_disagreement(judge: Judge) -> None:
    need("monty", "bubblewrap")
    differs = "import sys\ndef evaluate(r):\n    return 'monty' in sys.version.lower()"
    raises = differs.replace("return ", "return 1 if ") + " else 1 / 0"
    same = ["def evaluate(r):\n    return r", LONGER]
    judgements = judge([Call(source, "long") for source in (differs, raises, *same)], compare=True)
    assert [j.status for j in judgements] == ["disagreement", "disagreement", "not_bool", "ok"]
    assert judgements[1].reason == "monty says not_bool, bubblewrap says error"
    assert judgements[0].reason == "monty says True, bubblewrap says False"
    assert judge([Call(differs, "")])[0].verdict is True


def test_judgements_keep_the_order_of_their_items_over_many_batches(judge: Judge) -> None:
    need("monty", "bubblewrap")
    in_cpython = "import string\n" + LONGER
    items = [Call(in_cpython if i % 3 else LONGER, "x" * (i % 7)) for i in range(200)]
    judgements = judge(items)
    assert [j.verdict for j in judgements] == [i % 7 > 3 for i in range(200)]
    assert Counter(j.backend for j in judgements) == {"monty": 67, "bubblewrap": 133}


@pytest.mark.parametrize("backend", EVERY)
def test_answers_cross_unchanged(backend: str, judge: Judge) -> None:
    for text in ("", "a\0b", "\u2028\x1b\r\n", "中文 \U0001f600", "x" * 10000):
        source = f"def evaluate(r):\n    return r == {text!r}"
        (judgement,) = judge([Call(source, text)], backend=backend)
        assert judgement.verdict is True


def test_lone_surrogates_are_judged_by_cpython(judge: Judge) -> None:
    need("monty", "bubblewrap")
    (judgement,) = judge([Call("def evaluate(r):\n    return ord(r) == 0xD800", "\ud800")])
    assert (judgement.verdict, judgement.backend) == (True, "bubblewrap")


@pytest.mark.parametrize("backend", EVERY)
def test_a_function_that_draws_gives_the_same_verdict_each_time(backend: str, judge: Judge) -> None:
    first = 0.8444218515250481  # of CPython's generator seeded with 0
    drawn = f"import random\ndef evaluate(r):\n    return abs(random.random() - {first}) < 1e-12"
    hashed = "def evaluate(r):\n    return list({'a', 'b', 'c', 'd', 'e', 'f'})[0] == 'a'"
    judgements = judge([Call(drawn, ""), Call(hashed, "")] * 3, backend=backend)
    assert [j.verdict for j in judgements[0::2]] == [True] * 3
    assert len({j.verdict for j in judgements[1::2]}) == 1


@pytest.mark.parametrize("backend", IN_CPYTHON)
def test_nothing_is_carried_from_one_call_to_the_next(backend: str, judge: Judge) -> None:
    counts = "import math\nmath.seen = getattr(math, 'seen', 0) + 1\ndef evaluate(r):\n    return math.seen == 1"
    assert [j.verdict for j in judge([Call(counts, "")] * 3, backend=backend)] == [True] * 3


def test_names_of_one_call_are_unknown_to_the_next_in_monty(judge: Judge) -> None:
    need("monty")
    sets, reads = "seen = True\ndef evaluate(r):\n    return seen", "def evaluate(r):\n    return seen"
    judgements = judge([Call(sets, ""), Call(reads, "")] * 4, backend="monty")
    assert [j.verdict for j in judgements] == [True, None] * 4


@pytest.mark.parametrize("backend", IN_CPYTHON)
def test_what_a_dying_worker_left_is_judged_by_another(backend: str) -> None:
    need(backend)
    chosen = available()[backend].process
    assert chosen is not None
    results: list[Judgement] = []
    calls = [Call(LONGER, "long"), Call(SLEEPS, ""), Call(LONGER, "é"), Call(LONGER, "long")]
    limits = Limits(wall_seconds=30.0)
    others = {process.pid for process in psutil.Process().children(recursive=True)}  # of sandboxes that are open
    thread = threading.Thread(target=lambda: results.extend(chosen.judge(calls, limits=limits)))
    thread.start()
    deadline = time.monotonic() + 10
    while not (found := workers_that_wait(others)) and time.monotonic() < deadline:
        time.sleep(0.05)
    found[0].kill()
    thread.join(timeout=10)
    assert [(j.status, j.verdict) for j in results] == [("ok", True), ("crashed", None), ("ok", False), ("ok", True)]


def workers_that_wait(others: set[int]) -> list[psutil.Process]:
    """Workers of this process that have a child which judges: not bwrap's own two processes, and none of `others`."""
    below = [process for process in psutil.Process().children(recursive=True) if process.pid not in others]
    found = []
    for other in below:
        with suppress(psutil.NoSuchProcess):  # it, or its child, ended meanwhile
            judging = other.children() if other.name().startswith("python") else []
            if judging and judging[0].status() == psutil.STATUS_SLEEPING:
                found.append(other)
    return found


def test_a_process_that_does_not_end_is_ended_with_all_below_it() -> None:
    began, lasting = time.monotonic(), str(100_000 + os.getpid())
    command = ["/bin/sh", "-c", f"sleep {lasting} & sleep {lasting}"]
    written, why = run_bounded(command, b"", seconds=0.3, most_bytes=10)
    assert (written, why) == (b"", "no end after 0 seconds")
    assert time.monotonic() - began < 5
    time.sleep(0.1)
    assert not [other for other in psutil.process_iter(["cmdline"]) if lasting in (other.info["cmdline"] or [])]


def test_output_is_bounded() -> None:
    written, why = run_bounded(
        ["/bin/sh", "-c", "while :; do echo xxxxxxxxxxxxxxxx; done"], b"", seconds=9, most_bytes=99
    )
    assert (len(written), why) == (99, "more than 99 bytes of output")


@pytest.mark.skipif(os.getuid() != 0, reason="not run as root")
@pytest.mark.parametrize("backend", IN_CPYTHON)
def test_code_never_runs_as_root(backend: str, judge: Judge) -> None:
    source = "import os\ndef evaluate(r):\n    return os.getuid() == os.geteuid() == os.getgid() == 65534"
    assert judge([Call(source, "")], backend=backend)[0].verdict is True
    _, said = run_bounded(["/bin/sh", "-c", "id -u >&2"], b"", seconds=9, most_bytes=99)
    assert said == "65534"


def test_landlock_tells_that_a_file_exists_and_bubblewrap_does_not(judge: Judge) -> None:
    stat = f"import os\ndef evaluate(r):\n    return os.path.exists({str(Path(__file__).parents[2] / 'README.md')!r})"
    assert judge([Call(stat, "")], backend="bubblewrap")[0].verdict is False
    assert judge([Call(stat, "")], backend="landlock")[0].verdict is True


def test_the_documentation_names_every_status_and_limit() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text()
    statuses = [status for status in get_args(Status) if status != "ok"]
    assert set(re.findall(r"^\| `(\w+)`", page, re.M)) == {*statuses, *(field.name for field in fields(Limits))}


def test_texts_above_their_limit_are_a_status(judge: Judge) -> None:
    need("monty")
    large = [Call(LONGER + "#" * SHORT.source_bytes, "x"), Call(LONGER, "é" * (SHORT.answer_bytes // 2 + 1))]
    judgements = judge([*large, Call(LONGER, "long")], backend="monty")
    assert [j.status for j in judgements] == ["limit", "limit", "ok"]
    assert judgements[1].reason == "answer of 1048578 bytes, at most 1048576"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Limits(wall_seconds=0), "sandbox limit wall_seconds = 0 must be above 0"),
        (lambda: Limits(memory_bytes=1 << 20), "leaves an interpreter no room"),
        (lambda: Call("", "", entry="f()"), "'f\\(\\)' is no name of a function"),
        (lambda: Call("", "", entry="class"), "'class' is no name of a function"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_the_choice_is_described_for_a_manifest() -> None:
    need("monty", "bubblewrap")
    with Sandbox() as sandbox:
        described = json.loads(json.dumps(sandbox.describe()))
    assert [back["name"] for back in described["backends"]] == offered() == ["monty", "bubblewrap"]
    assert all(re.match(r"\d+\.\d+", back["version"]) for back in described["backends"])
    assert re.match(r"3\.\d+\.\d+", described["backends"][1]["python"])
    assert described["limits"]["wall_seconds"] == 10.0


@pytest.fixture
def forget() -> Iterator[None]:
    """Probe anew in this test, and again after it."""
    available.cache_clear()
    yield
    available.cache_clear()


@pytest.mark.usefixtures("forget")
def test_a_back_end_that_lets_an_attack_through_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    need("bubblewrap")
    available.cache_clear()
    allow_all = filter_program("x86_64")[-8:]  # the last instruction alone: every call is allowed
    monkeypatch.setattr(process, "filter_program", lambda machine: allow_all)
    tried = available()
    assert not tried["bubblewrap"].works
    assert tried["bubblewrap"].reason.startswith("lets code ")
    assert not tried["landlock"].works
    assert offered() == ["monty"]


@pytest.mark.usefixtures("forget")
def test_where_nothing_works_one_line_names_the_remedies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MONTY_BIN", str(tmp_path / "monty"))
    monkeypatch.setattr(process, "interpreters", lambda: [])
    monkeypatch.setattr(probe, "interpreters", lambda: [process.Interpreter("/no/python3", "/no")])
    assert not any(tried.works for tried in available().values())
    with pytest.raises(ValueError, match="code that a model wrote cannot be run safely here") as refused:
        Sandbox()
    said = str(refused.value)
    assert "\n" not in said
    assert "pip install pydantic-monty" in said
    assert "bubblewrap (bwrap is missing; install the system package bubblewrap" in said
    with pytest.raises(ValueError, match="sandbox back end landlock does not work here"):
        Sandbox(backends=["landlock"])


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "/usr/include/asm-generic/unistd.h")],
)
def test_the_numbers_of_system_calls_are_the_kernels(machine: str, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"{header} is not installed")
    named = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text())
    numbers = {name: int(number) for name, number in named}
    numbers |= {"newfstatat": numbers["fstatat"]} if "fstatat" in numbers else {}
    assert {name: numbers[name] for name in ALLOWED[machine]} == ALLOWED[machine]


def test_a_machine_without_a_list_of_system_calls_is_refused() -> None:
    with pytest.raises(ValueError, match="no list of system calls for riscv64 machines, only for x86_64, aarch64"):
        filter_program("riscv64")


def test_monty_gives_500_verdicts_a_second() -> None:
    need("monty")
    calls = [Call(LONGER, "x" * (i % 9)) for i in range(3000)]
    with Sandbox(backends=["monty"], processes=2) as sandbox:
        sandbox.judge(calls[:200])
        began = time.monotonic()
        judgements = sandbox.judge(calls)
        rate = len(calls) / (time.monotonic() - began)
    assert {j.status for j in judgements} == {"ok"}
    assert rate >= 500


def autoif_functions(folder: Path) -> list[str]:
    """Every verification function of AutoIF's sample, once."""
    found: dict[str, None] = {}
    for name in ("back_trans", "dpo_query_w_funcs", "query_rft"):
        for line in (folder / f"{name}.jsonl").read_text().splitlines():
            found |= dict.fromkeys(source for source, _ in json.loads(line)["eval_func"])
    for line in (folder / "eval_func_rft.jsonl").read_text().splitlines():
        for answer in json.loads(line)["gpt-answer"]:
            for source in re.findall(r'"func":\s*("(?:[^"\\]|\\[nt"\\/])*")', answer):
                found[json.loads(source, strict=False)] = None
    return list(found)


def autoif_texts(folder: Path) -> list[str]:
    """Inputs of its test cases and answers to its queries."""
    texts = ["", "wow mow", "Grüße, 世界! #OneTag", "2 + 2 : Apple\n3 * 3 : Banana", "a, big a, very big a"]
    for line in (folder / "back_trans.jsonl").read_text().splitlines():
        texts += [str(given) for given, _ in json.loads(line)["cases"][:2]]
    for line in (folder / "query_rft.jsonl").read_text().splitlines()[:2]:
        texts += json.loads(line)["gpt-answer"][:2]
    return texts


def test_autoif_functions_get_cpythons_verdicts_or_a_status(eval_data: Path, judge: Judge) -> None:
    need("monty", "bubblewrap")
    functions, texts = autoif_functions(eval_data / "autoif_sample"), autoif_texts(eval_data / "autoif_sample")
    assert len(functions) >= 60
    calls = [Call(source, text) for source in functions for text in texts]
    both = judge(calls, compare=True)
    counts = Counter(j.status for j in both)
    assert counts["disagreement"] == 0
    by = Counter(j.backend for j in both if j.status == "ok")
    assert by["monty"] > 0.8 * len(calls)
    some = range(0, len(calls), 7)
    assert [both[i].verdict for i in some] == [j.verdict for j in judge([calls[i] for i in some], backend="bubblewrap")]


def test_humaneval_solutions_pass_and_broken_ones_fail(eval_data: Path, judge: Judge) -> None:
    need("bubblewrap")
    lines = gzip.decompress((eval_data / "HumanEval.jsonl.gz").read_bytes()).decode().splitlines()
    tasks = [json.loads(line) for line in lines]
    assert len(tasks) == 164

    def program(task: dict[str, str], body: str) -> Program:
        return Program(f"{task['prompt']}{body}\n{task['test']}\ncheck({task['entry_point']})\n")

    right = judge([program(task, task["canonical_solution"]) for task in tasks], backend="bubblewrap")
    assert [task["task_id"] for task, j in zip(tasks, right, strict=True) if j.verdict is not True] == []
    broken = judge([program(task, "    raise ValueError\n") for task in tasks[:20]], backend="bubblewrap")
    assert {(j.status, j.verdict, j.reason) for j in broken} == {("ok", False, "ValueError:")}
