"""Checkpoints are whole or absent, belong to one config, and a full disk costs only the newest one."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from uniapl import checkpoint
from uniapl.checkpoint import COMPLETE, Checkpoints, remove_checkpoints

State = tuple[torch.nn.Linear, torch.optim.Optimizer]


def fresh(seed: int, width: int = 8) -> State:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = torch.nn.Linear(width, width)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)


def train(state: State, steps: int) -> None:
    model, optimizer = state
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, model.weight.shape[1]) * (step + 1)).square().sum().backward()
        optimizer.step()


def write(directory: Path, state: State, step: int, fingerprint: str = "aaaa0000", **options: Any) -> None:
    checkpoints = Checkpoints(directory, fingerprint, **options)
    checkpoints.save(step, model=state[0], optimizer=state[1])
    checkpoints.finish()


def read(directory: Path, state: State, fingerprint: str = "aaaa0000") -> int:
    return Checkpoints(directory, fingerprint).load_newest(model=state[0], optimizer=state[1])


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").glob("*"))


def test_weights_and_optimizer_come_back_bit_for_bit(tmp_path: Path) -> None:
    saved, loaded = fresh(0), fresh(1)
    train(saved, 3)
    write(tmp_path, saved, 3)
    assert not torch.equal(saved[0].weight, loaded[0].weight)
    assert read(tmp_path, loaded) == 3
    assert torch.equal(saved[0].weight, loaded[0].weight)
    train(saved, 2)
    train(loaded, 2)  # the same only with AdamW's moments and step count
    assert torch.equal(saved[0].weight, loaded[0].weight)
    assert torch.equal(saved[0].bias, loaded[0].bias)


def test_what_is_written_in_the_background_is_the_state_at_the_call(tmp_path: Path) -> None:
    saved, loaded = fresh(0, width=512), fresh(1, width=512)
    train(saved, 3)
    expected = saved[0].weight.clone()
    checkpoints = Checkpoints(tmp_path, "aaaa0000", background=True)
    checkpoints.save(3, model=saved[0], optimizer=saved[1])
    train(saved, 5)
    checkpoints.finish()
    assert not torch.equal(saved[0].weight, expected)
    assert read(tmp_path, loaded) == 3
    assert torch.equal(loaded[0].weight, expected)
    train(loaded, 5)
    assert torch.equal(loaded[0].weight, saved[0].weight)


def test_where_there_is_no_checkpoint_nothing_is_loaded(tmp_path: Path) -> None:
    state = fresh(0)
    before = state[0].weight.clone()
    assert read(tmp_path, state) == 0
    assert torch.equal(state[0].weight, before)


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    state = fresh(0)
    for step in (2, 4, 10):
        train(state, 1)
        write(tmp_path, state, step)
    assert names(tmp_path) == ["step_000010"]
    assert read(tmp_path, fresh(1)) == 10


def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path: Path) -> None:
    state = fresh(0)
    for step in (2, 4, 10):
        train(state, 1)
        write(tmp_path, state, step, kept=2)
    assert names(tmp_path) == ["step_000004", "step_000010"]


def test_a_checkpoint_without_its_marker_is_not_there(tmp_path: Path) -> None:
    state = fresh(0)
    train(state, 1)
    write(tmp_path, state, 2)
    shutil.copytree(tmp_path / "checkpoints" / "step_000002", tmp_path / "checkpoints" / "step_000004")
    (tmp_path / "checkpoints" / "step_000004" / COMPLETE).unlink()
    assert read(tmp_path, fresh(1)) == 2


def test_a_save_that_is_killed_before_the_rename_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = fresh(0)
    train(state, 1)
    write(tmp_path, state, 2)
    kept = state[0].weight.clone()
    train(state, 1)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, state, 4)
    loaded = fresh(1)
    assert read(tmp_path, loaded) == 2
    assert torch.equal(loaded[0].weight, kept)
    write(tmp_path, state, 4)  # what the kill left behind is in nobody's way
    assert names(tmp_path) == ["step_000004"]


def test_another_configs_checkpoint_is_one_error_with_both_hashes_and_loads_nothing(tmp_path: Path) -> None:
    state, other = fresh(0), fresh(1)
    train(state, 1)
    write(tmp_path, state, 2)
    before = other[0].weight.clone()
    with pytest.raises(ValueError, match="written for config aaaa0000, this run is bbbb1111: move") as raised:
        read(tmp_path, other, fingerprint="bbbb1111")
    assert "step_000002" in str(raised.value)
    assert torch.equal(other[0].weight, before)


def test_a_finished_run_drops_its_checkpoints(tmp_path: Path) -> None:
    write(tmp_path, fresh(0), 2)
    remove_checkpoints(tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    remove_checkpoints(tmp_path)


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB. Skip where mounting is not permitted; the limit on file sizes is tested everywhere."""
    directory = tmp_path / "disk"
    directory.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("mounting a tmpfs is not permitted")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def assert_full(raised: pytest.ExceptionInfo[OSError], directory: Path, kept: torch.Tensor) -> None:
    """The error says what is full and where; the previous checkpoint is whole and nothing half-written is left."""
    assert raised.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert raised.value.filename == str(directory / "checkpoints" / "step_000004")
    assert names(directory) == ["step_000002"]
    loaded = fresh(1, width=256)
    assert read(directory, loaded) == 2
    assert torch.equal(loaded[0].weight, kept)


def test_a_file_that_may_not_grow_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    state = fresh(0, width=256)  # 256 KiB of weights and twice that of moments
    train(state, 1)
    write(tmp_path, state, 2)
    kept = state[0].weight.clone()
    train(state, 1)
    with file_size_limit(64 * 1024), pytest.raises(OSError, match="no space left") as raised:
        write(tmp_path, state, 4)
    assert_full(raised, tmp_path, kept)


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_keeps_the_previous_checkpoint_and_space_lets_the_run_go_on(
    small_disk: Path, background: bool
) -> None:
    state = fresh(0, width=256)
    train(state, 1)
    write(small_disk, state, 2)
    kept = state[0].weight.clone()
    train(state, 1)
    (small_disk / "filler").write_bytes(b"0" * 1024 * 1024)
    with pytest.raises(OSError, match="no space left") as raised:
        write(small_disk, state, 4, background=background)
    assert_full(raised, small_disk, kept)
    (small_disk / "filler").unlink()
    write(small_disk, state, 4)
    assert json.loads((small_disk / "checkpoints" / "step_000004" / COMPLETE).read_text())["step"] == 4
