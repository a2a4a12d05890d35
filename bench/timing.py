"""Timing on a GPU, or on a CPU in the tests."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

WARMUPS = 2
OUT_OF_MEMORY = "out of memory"


def synchronize() -> None:
    """Wait until the GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(action: Callable[[], Any], *, repetitions: int, warmups: int = WARMUPS) -> list[float]:
    """Wall-clock seconds of each repetition, the GPU's work included."""
    times = []
    for repetition in range(-warmups, repetitions):
        synchronize()
        started = time.perf_counter()
        action()
        synchronize()
        if repetition >= 0:
            times.append(time.perf_counter() - started)
    return times


def spread(times: list[float]) -> dict[str, Any]:
    """Median and extremes, seconds."""
    return {"seconds_median": statistics.median(times), "seconds_least": min(times), "seconds_most": max(times)}


def free() -> None:
    """Give memory that nothing refers to any more back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
