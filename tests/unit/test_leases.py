"""Leases: who holds what, orphans are waited for, nothing has to be unlocked by hand; GPUs go to one run at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from uniapl import launch, leases
from uniapl.leases import Owner, Process, hold, note, try_hold

HOLDER = """
import sys, time
from pathlib import Path
from uniapl import leases
file = leases.hold(Path(sys.argv[1]), what="it is held")
leases.note(Path(sys.argv[1]), "step 3: update")
print("held", flush=True)
time.sleep(600)
"""


def holder(path: Path, *, starter: str = "") -> subprocess.Popen[str]:
    """Another process that holds a lease."""
    environment = os.environ | {leases.STARTER: starter}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def gone_process() -> str:
    """The text of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        text = Process(process.pid, Process.current().host, time.time()).text()
    return text


def test_a_lease_that_is_held_is_refused_with_owner_start_time_and_remedy(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock")
    try:
        with pytest.raises(ValueError, match="results are in use by process") as refused:
            hold(tmp_path / "lock", what="results are in use")
    finally:
        end(process)
    said = str(refused.value)
    assert f"process {process.pid} on {Process.current().host}, running since 20" in said
    assert "(step 3: update)" in said
    assert said.endswith(f"; wait for it, or stop it (kill {process.pid})")


def test_a_killed_owners_lease_is_free_at_once(tmp_path: Path) -> None:
    end(holder(tmp_path / "lock"))
    with hold(tmp_path / "lock", what="") as file:
        assert not file.closed
        owner = Owner.read((tmp_path / "lock").read_text())
    assert owner is not None
    assert owner.process.pid == os.getpid()
    assert owner.doing == ""


def test_an_orphan_is_waited_for_and_not_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = holder(tmp_path / "lock", starter=gone_process())
    timer = threading.Timer(1.0, process.kill)
    timer.start()
    began = time.monotonic()
    hold(tmp_path / "lock", what="the run is made").close()
    assert time.monotonic() - began > 0.8
    end(process)
    assert f"the run is made by process {process.pid} on " in (said := capsys.readouterr().err)
    assert "an orphan: waiting until it saved and left" in said


def test_an_orphan_that_does_not_leave_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "ORPHAN_SECONDS", 0.5)
    process = holder(tmp_path / "lock", starter=gone_process())
    try:
        with pytest.raises(ValueError, match="an orphan that does not leave; wait for it, or stop it"):
            hold(tmp_path / "lock", what="the run is made")
    finally:
        end(process)


def test_a_process_of_another_machine_is_never_taken_for_gone() -> None:
    assert not Process(1, "elsewhere", 0.0).gone()
    assert Process(2**22 - 3, Process.current().host, 0.0).gone()
    assert Process(os.getpid(), Process.current().host, 0.0).gone()  # the id was given to a later process


def test_who_loses_its_starter_gets_sigterm(tmp_path: Path) -> None:
    watcher = "from uniapl import leases; import time; leases.watch_starter(); print('on', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as starter:
        named = Process(starter.pid, Process.current().host, psutil_start(starter.pid)).text()
        environment = os.environ | {leases.STARTER: named}
        watched = subprocess.Popen([sys.executable, "-c", watcher], env=environment, stdout=subprocess.PIPE, text=True)
        assert watched.stdout is not None
        assert watched.stdout.readline() == "on\n"
        assert watched.poll() is None
        starter.kill()
        starter.wait()
        watched.communicate(timeout=10)
    assert watched.returncode == -signal.SIGTERM


def psutil_start(pid: int) -> float:
    import psutil

    return psutil.Process(pid).create_time()


def test_a_note_stands_behind_the_owner(tmp_path: Path) -> None:
    note(tmp_path / "lock", "nothing is noted where no lease is")
    assert not (tmp_path / "lock").exists()
    with hold(tmp_path / "lock", what=""):
        for doing in ("step 10: update, micro-batch 3", "step 11: push"):
            note(tmp_path / "lock", doing)
        owner = Owner.read((tmp_path / "lock").read_text())
    assert owner is not None
    assert owner.process.pid == os.getpid()
    assert str(owner).endswith("(step 11: push)")
    assert json.loads((tmp_path / "lock").read_text().splitlines()[0])["pid"] == os.getpid()


def test_gpus_are_leased_to_one_run_at_a_time(tmp_path: Path) -> None:
    first = launch.lease_gpus(["0", "1", "2"], count=2, directory=tmp_path)
    assert [gpu for gpu, _ in first] == ["0", "1"]
    waiting: list[str] = []
    thread = threading.Thread(
        target=lambda: waiting.extend(g for g, _ in launch.lease_gpus(["0", "1", "2"], count=2, directory=tmp_path))
    )
    thread.start()
    thread.join(1.5)
    assert not waiting, "two runs share a GPU"
    for _, file in first:
        file.close()
    thread.join(10)
    assert len(waiting) == 2


def test_a_gpu_lease_lives_as_long_as_any_process_that_shares_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(leases.LEASES, raising=False)
    ((_, file),) = launch.lease_gpus(["0"], count=1, directory=tmp_path)
    leases.pass_on([file])
    child = (
        "from uniapl import leases; import sys; held = leases.share(); print('shared', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", child], text=True, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "shared\n"
    file.close()
    assert try_hold(tmp_path / "0") is None
    process.communicate(timeout=10)
    again = try_hold(tmp_path / "0")
    assert again is not None
    again.close()


def test_more_ranks_than_gpus_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 GPUs are needed, 2 can be seen here; lower ranks or tensor_parallel"):
        launch.lease_gpus(["0", "1"], count=3, directory=tmp_path)


def test_visible_gpus_are_those_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for named, expected in (("", []), ("-1", []), ("3", ["3"]), ("2, 5", ["2", "5"]), ("GPU-ab,1", ["GPU-ab", "1"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert launch.visible_gpus() == expected
