"""Figures from a synthetic study: announced files, identical bytes, captions, one colour a method."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uniapl.analysis import figures
from uniapl.analysis.collect import curve_of, read_study
from uniapl.analysis.costs import axis_costs
from uniapl.analysis.labels import COLOURS, colour, dashes, marker, prominent
from uniapl.analysis.outputs import figure_files
from uniapl.layers import available

Builder = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pixels, for speed."""
    monkeypatch.setitem(figures.STYLE, "savefig.dpi", 60)


def test_all_figures_are_written_twice_with_the_same_bytes(tmp_path: Path, study_builder: Builder) -> None:
    index = study_builder(tmp_path, methods=("grpo", "uniapl"))
    for output in ("first", "second"):
        figures.main(tmp_path, tmp_path / output)
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == sorted(figure_files(index))
    for name in figure_files(index):
        content = (tmp_path / "first" / name).read_bytes()
        assert content == (tmp_path / "second" / name).read_bytes()
        assert b"CreationDate" not in content


def test_every_model_has_figures_of_its_own(tmp_path: Path, study_builder: Builder) -> None:
    index = study_builder(tmp_path, models=("tiny", "small"), methods=("sft",))
    figures.main(tmp_path, tmp_path / "figures")
    assert {"figure1_tiny.png", "figure4_small.pdf"} <= set(figure_files(index))
    assert (tmp_path / "figures/figure3_small.png").stat().st_size > 5_000


def test_the_share_cut_stands_under_figure_1(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path, methods=("grpo",))
    figures.main(tmp_path, tmp_path / "figures")
    caption = (tmp_path / "figures/figure1_smollm2_135m.txt").read_text()
    assert "cut at 40 tokens; share cut: Base 15.0%, GRPO 0.0%, expert 0.0%" in caption  # 3 of 20


@pytest.mark.parametrize("tasks", [("ifbench",), ("heldout",), ("gsm8k",)])
def test_figures_stand_without_a_task(tmp_path: Path, study_builder: Builder, tasks: tuple[str, ...]) -> None:
    index = study_builder(tmp_path, tasks=tasks, methods=("uniapl",))
    figures.main(tmp_path, tmp_path / "figures")
    assert all((tmp_path / "figures" / name).exists() for name in figure_files(index))


def test_curves_are_means_over_seeds_and_skip_steps_without_a_value(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path, seeds=(0, 1))
    study = read_study(tmp_path)
    assert curve_of(study, "smollm2_135m", "grpo", "kl/start_nats") == pytest.approx({2: 0.02, 4: 0.04, 6: 0.06})
    assert curve_of(study, "smollm2_135m", "sft", "reward/mean") == {}


def test_figures_8_and_9_are_drawn_where_their_ablations_are(tmp_path: Path, study_builder: Builder) -> None:
    switched = {("sft.grpo", "switch.early"): (3, (2, 10))}
    index = study_builder(
        tmp_path, seeds=(0, 1), variants={"lambda_adv.5": 2, "lambda_adv.25": 1}, other_variants=switched
    )
    assert {"figure8_smollm2_135m.svg", "figure9_smollm2_135m.svg"} <= set(figure_files(index))
    figures.main(tmp_path, tmp_path / "figures")
    assert "In brackets the main run's" in (tmp_path / "figures/figure8_smollm2_135m.txt").read_text()
    assert "figure8_tiny.svg" not in figure_files(study_builder(tmp_path / "without", models=("tiny",)))


def test_the_weight_of_the_main_run_stands_in_brackets_among_the_others(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path, variants={"lambda_adv.5": 2, "lambda_adv.25": 1})
    drawn, _ = figures.FIGURES[8](read_study(tmp_path), "smollm2_135m")
    axes = drawn.axes[2]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["(0.2)", "5", "25"]
    accuracies = drawn.axes[0].lines[0].get_ydata()
    assert [round(float(y)) for y in accuracies] == [80, 10, 5]


def test_when_to_switch_is_shown_by_the_first_stages_share_of_the_steps(tmp_path: Path, study_builder: Builder) -> None:
    switched = {("sft.grpo", "switch.late"): (3, (10, 2)), ("sft.grpo", "switch.early"): (12, (2, 10))}
    study_builder(tmp_path, seeds=(0, 1), other_variants=switched)
    drawn, caption = figures.FIGURES[9](read_study(tmp_path), "smollm2_135m")
    accuracies, lengths = drawn.axes
    # 2, 6 (the main run's) and 10 of 12 steps; 12, 9 and 3 of 20 prompts
    assert [label.get_text() for label in accuracies.get_xticklabels()] == ["17%", "50%", "83%"]
    assert list(accuracies.lines[0].get_ydata()) == pytest.approx([60, 45, 15])
    assert [list(seeds.get_ydata()) for seeds in accuracies.lines[1:]] == [
        pytest.approx([y, y]) for y in (60, 45, 15)
    ]  # a circle for each of two seeds
    # the expert's 12 tokens (10 to 14), 6 more, and one more where the seed is odd
    assert list(lengths.lines[0].get_ydata()) == pytest.approx([18.5] * 3)
    assert "12 steps in all" in caption


def test_a_scheduled_weight_has_no_place_among_the_others(tmp_path: Path, study_builder: Builder) -> None:
    index = study_builder(tmp_path, methods=("grpo", "uniapl"), variants={"lambda_adv.5": 2})
    run = next(r for r in index["runs"] if (r["path"], r["variant"]) == (["uniapl"], "main"))
    path = tmp_path / run["directory"] / "config.json"
    config = json.loads(path.read_text())
    config["path"][0]["lambda_adv"] = {"peak": 0.3, "valley": 0.3, "warmup_steps": 1, "decay_steps": 0}
    path.write_text(json.dumps(config))
    drawn, _ = figures.FIGURES[8](read_study(tmp_path), "smollm2_135m")
    assert [label.get_text() for label in drawn.axes[2].get_xticklabels()] == ["5"]


def test_cost_is_counted_in_operations_of_the_weights(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path)
    spent = axis_costs(read_study(tmp_path), "smollm2_135m", "sft.grpo")
    assert spent["tokens"] == 2 * (600 + 700)
    assert spent["operations"] == 1e6 * 2 * (6 * 700 + 2 * 600)
    assert math.isnan(axis_costs(read_study(tmp_path), "smollm2_135m", "base")["seconds"])


def test_of_many_methods_those_of_the_claims_are_in_colour() -> None:
    few, many = ["base", "dft", "grpo"], ["base", "sft", "grpo", "uniapl", "a_sft", "a_grpo", "luffy", "dft"]
    assert prominent(few) == few
    assert prominent(many) == ["base", "sft", "grpo", "uniapl"]


def test_no_two_methods_share_colour_or_marker_and_lines_are_told_apart() -> None:
    methods = ["base", "grpo.grpo", "sft.grpo", *available("methods"), "sft.a_grpo", "a_sft.a_grpo"]
    assert len({colour(m, methods) for m in methods}) == len(methods)
    assert len({marker(m, methods) for m in methods}) == len(methods)
    compared = [m for m in methods[1:] if m in COLOURS]
    for group in (compared, [m for m in methods[1:] if m not in COLOURS]):
        assert len({dashes(m, methods) for m in group}) == len(group)
