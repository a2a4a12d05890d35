"""Levers of the update at a tiny size: they are timed, and none of them changes the gradient."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import levers
from bench.work import make_work


@pytest.mark.slow
def test_no_lever_changes_the_gradient_beyond_float_error(tmp_path: Path) -> None:
    sizes = {"prompts": 2, "rollouts": 2, "new_tokens": 8}
    work = make_work("smoke", tmp_path, model="tiny_qwen3", sizes=sizes, kept=True, steps=1)
    variants = [v for v in levers.VARIANTS if v.side == "ours_update" and "flat_groups" not in v.changes]
    rows = levers.measure(work, variants, repetitions=1)
    assert len(rows) == 8
    assert 0 < rows[0]["share_of_limit"] < 1
    for row in rows:
        assert row["error"] is None
        assert row["ratio"] > 0
        assert row["norm"] > 0
        assert row["norm_differs"] < 1e-5
