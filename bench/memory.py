"""How many bytes of tensors a function needs at its peak, from the allocator itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], object], *, device: str = "cpu") -> int:
    """Peak of the tensor bytes allocated on `device` during the call, above those at its start.

    What the function returns counts, what was there before does not; neither does memory that libraries take past
    torch's allocator (oneDNN's and cuBLAS's work space). On CPU the profiler's record of every allocation is summed up.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        peak = max(peak, allocated)
    return peak
