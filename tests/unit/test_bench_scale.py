"""Cost by size at a tiny size, lines by hand, and what counts as growing memory."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from bench import scale
from bench.figures import write_scale
from bench.shapes import random_model, random_rows, update_flops
from uniapl.distributed import device


def test_a_line_through_points_on_a_line_has_its_slope_and_r_squared_of_1() -> None:
    line = scale.fit([1, 2, 4], [3.0, 5.0, 9.0])  # 1 + 2 x
    assert (line["slope"], line["intercept"], line["r_squared"]) == pytest.approx((2, 1, 1))
    bent = scale.fit([1, 2, 4, 8], [1.0, 4.0, 16.0, 64.0])
    assert bent["r_squared"] < 0.98


def test_memory_grows_by_what_is_above_its_settled_value() -> None:
    resident = [[1, 50.0], [2, 100.0], [3, 110.0]]
    assert scale.growth(resident, settled=2) == pytest.approx(0.1)
    assert scale.growth(resident, settled=3) == 0


def test_random_models_have_the_parameters_that_their_shape_counts() -> None:
    shapes = [scale.random_shape(size) for size in (1, 2)]
    for shape in shapes:
        assert sum(p.numel() for p in random_model(shape, device=device()).parameters()) == shape.parameters
    small, large = (update_flops(shape, random_rows(shape, rows=1, row_tokens=64)) for shape in shapes)
    assert large > 2 * small


def test_updates_are_timed_through_the_launcher() -> None:
    (row,) = scale.updates_on(1, [1], threads=1, repetitions=1)
    assert row["parameters"] == scale.random_shape(1).parameters
    assert row["seconds"] > 0


@pytest.mark.slow
def test_a_steps_cost_is_measured_against_each_size_alone(tmp_path: Path) -> None:
    sizes = {"prompts": [1, 2], "rollouts": [2, 4], "new_tokens": [2, 8]}
    series = scale.steps_by_size(sizes, tmp_path, scale="smoke", model="tiny_qwen3", repetitions=1)
    assert {name: one["x"] for name, one in series.items()} == sizes
    for one in series.values():
        assert all(update < step for update, step in zip(one["update"]["seconds"], one["seconds"], strict=True))
    write_scale(json.loads(json.dumps(series)), [[1, 1e6], [2, 1e6]], tmp_path / "scale.svg")
    assert (tmp_path / "scale.svg").read_text().count("<svg") == 1


def test_a_failed_step_is_an_error_that_names_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def step(self, **_: int) -> dict[str, str]:
            return {"error": "no memory"}

    monkeypatch.setattr(scale, "open_sides", lambda *_: nullcontext({"ours": Failing()}))
    with pytest.raises(ValueError, match="prompts = 1: no memory"):
        scale.steps_by_size({"prompts": [1]}, tmp_path, scale="smoke", model="tiny_qwen3", repetitions=1)
