"""The bench beside TRL: what its sides do at a tiny size, and its ratios and goals by hand."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import compare, figures, peers, step, trl_sides
from bench.shapes import SHAPES
from bench.turns import take_turns
from bench.work import FIRST_STEP, Work, make_work
from uniapl import constraints, train

SIZES = {"prompts": 2, "rollouts": 4, "new_tokens": 6, "demonstrations": 3}


class EnoughError(Exception):
    """Raised in place of waiting for another step."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny model is made once."""
    return tmp_path_factory.mktemp("bench")


def work_in(folder: Path, *, kept: bool, steps: int | None = 4) -> Work:
    return make_work("smoke", folder, model="tiny_qwen3", sizes=SIZES, kept=kept, steps=steps)


def steps_of(side: Callable[..., None], work: Work, *changes: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """What a side tells of one step for each of `changes`, in this process."""
    waiting, told = list(changes), []

    def wait() -> dict[str, Any]:
        if not waiting:
            raise EnoughError
        return waiting.pop(0)

    with pytest.raises(EnoughError):
        side(work, wait, told.append, **options)
    return told


@pytest.fixture
def own_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the trainer's verifiers back after a side replaced them."""
    monkeypatch.setattr(train, "judge", train.judge)


@pytest.fixture
def own_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives TRL's view of vLLM back after a side hid it."""
    availability = importlib.import_module("trl.import_utils")
    monkeypatch.setattr(availability, "is_vllm_available", availability.is_vllm_available)


@pytest.mark.usefixtures("own_judge")
def test_where_groups_are_kept_every_answer_has_all_its_tokens_and_is_trained_on(folder: Path) -> None:
    first, wider = steps_of(
        peers.ours, work_in(folder, kept=True), {}, {"rollouts_per_prompt": 6, "new_tokens": 3}, method="grpo"
    )
    assert first["tokens_generated"] == first["tokens_trained"] == 2 * 4 * 6
    assert wider["tokens_generated"] == wider["tokens_trained"] == 2 * 6 * 3
    assert first["flat_share"] == 0
    assert first["sample"] + first["score"] + first["update"] + first["push"] <= first["step"]
    assert first["flops"] > 0
    assert first["resident_bytes"] > 1e6


@pytest.mark.usefixtures("own_judge")
def test_uniapl_trains_on_demonstrations_too_and_scores_by_a_discriminator(folder: Path) -> None:
    work = work_in(folder, kept=True)
    (took,) = steps_of(peers.ours, work, {}, method="uniapl")
    assert took["score"] > 0
    assert took["tokens_generated"] == 2 * 4 * 6
    assert took["tokens_trained"] > 2 * 4 * 6


@pytest.mark.usefixtures("own_judge", "own_vllm")
def test_trl_is_given_our_prompts_and_rewards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, verify_all, judged = work_in(folder, kept=False), constraints.verify_all, list[Any]()

    def watched(answers: Any) -> Any:
        judged.append([asked for asked, _ in answers])
        return verify_all(answers)

    monkeypatch.setattr(constraints, "verify_all", watched)
    monkeypatch.setattr(trl_sides, "DATASET_STEPS", 3)
    took, _ = steps_of(trl_sides.trl_grpo, work, {}, {})
    for number, asked in enumerate(judged[:2]):  # 4 answers of each prompt that training draws for the step
        prompts = work.prompts_at(FIRST_STEP + number)
        assert asked == [prompt.constraints for prompt in prompts for _ in range(SIZES["rollouts"])]
    assert 0 < took["tokens_generated"] <= 2 * 4 * 6
    assert took["flat_share"] in (0, 0.5, 1)  # of 2 groups
    assert took["sample"] > 0
    assert took["sample"] + took["score"] + took["update"] == pytest.approx(took["step"])


@pytest.mark.usefixtures("own_vllm")
def test_both_sides_of_sft_train_on_the_same_tokens(folder: Path) -> None:
    work = work_in(folder, kept=False, steps=None)
    assert len(work.demonstrations) == SIZES["demonstrations"]
    (own,) = steps_of(peers.ours, work, {}, method="sft")
    (theirs,) = steps_of(trl_sides.trl_sft, work, {})
    assert own["tokens_trained"] == theirs["tokens_trained"] > 0


def test_the_prompts_of_the_work_are_new_at_every_step_and_have_the_experts_demonstration(folder: Path) -> None:
    work = work_in(folder, kept=True)
    drawn = [prompt.id for number in range(4) for prompt in work.prompts_at(number)]
    assert len(set(drawn)) == 4 * SIZES["prompts"] == len(work.prompts)
    assert [prompt.id for prompt in work.prompts] == [shown.prompt_id for shown in work.demonstrations]
    assert not {example.prompt.id for example in work.judged} & set(drawn)


def test_a_side_that_does_not_run_is_a_finding_and_the_others_go_on(folder: Path) -> None:
    found = take_turns(("limit", "no_such_side"), work_in(folder, kept=True), repetitions=1, warmups=0)
    assert found["no_such_side"] == {"steps": [], "error": "KeyError: 'no_such_side'"}
    assert len(found["limit"]["steps"]) == 1


def made_step(*, sample: float, update: float, score: float = 0.0, **more: float) -> dict[str, Any]:
    whole = sample + score + update
    return {
        "sample": sample, "score": score, "update": update, "push": 0.0, "step": whole, "tokens_trained": 10,
        "flat_share": 0.0,
    } | more  # fmt: skip


FOUND = {
    "limit": {"steps": [{"flops_own": 100.0, "flops_square": 200.0, "bytes": 1.0}] * 3},
    # The update's 120 operations in 2, 3 and 4 seconds are 0.6, 0.4 and 0.3 of the limit.
    "ours": {"steps": [made_step(sample=1, update=u, flops=120.0) for u in (2, 3, 4)]},
    # By turn: updates 4 / 2, 9 / 3, 4 / 4; steps 9 / 3, 12 / 4, 10 / 5.
    "trl": {"steps": [made_step(sample=5, update=4), made_step(sample=3, update=9), made_step(sample=6, update=4)]},
    "trl_vllm": {"steps": [], "error": "none here"},
}


def test_ratios_are_those_of_the_same_turn() -> None:
    summary = compare.summarize(FOUND)
    assert summary["sides"]["trl"]["ratios"]["update"] == 2
    assert summary["sides"]["trl"]["ratios"]["step"] == 3
    assert "score" not in summary["sides"]["trl"]["ratios"]
    assert summary["limit"]["share_of_update"] == pytest.approx(0.4)
    assert summary["sides"]["ours"]["seconds"]["update"] == {
        "seconds_median": 3, "seconds_least": 2, "seconds_most": 4,
    }  # fmt: skip


def test_goals_are_judged_from_their_good_side_and_not_where_nothing_was_measured() -> None:
    grpo = [goal.judged(compare.summarize(FOUND)) for goal in compare.GOALS["grpo"]]
    assert [goal["reached"] for goal in grpo] == [True, True, None, False]  # 2 >= 2, 3 >= 3, no vLLM, 0.4 < 0.55
    (uniapl,) = compare.GOALS["uniapl"]
    for update, reached in ((3.0, True), (4.5, False)):  # of steps of 4 seconds: (1 + 3) / 4, (1 + 4.5) / 4 = 1.375
        found = {
            "ours": {"steps": [made_step(sample=1, update=3)]},
            "ours_uniapl": {"steps": [made_step(sample=1, update=update, score=50)]},
        }
        assert uniapl.judged(compare.summarize(found))["reached"] is reached


def test_the_record_and_its_figure_are_written_for_every_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step, "take_turns", lambda *_, **__: FOUND)
    words = ["step", "--scale", "smoke", "--model", "tiny_qwen3", "--cases", "grpo", "--repetitions", "1"]
    monkeypatch.setattr("sys.argv", [*words, "--prompts", "2", "--output", str(tmp_path / "bench.json")])
    step.main()
    case = json.loads((tmp_path / "bench.json").read_text())["cases"]["grpo"]
    assert case["work"]["prompts"] == 2
    assert case["sides"]["trl_vllm"]["error"] == "none here"
    assert (tmp_path / "bench.svg").read_text().count("<svg") == 1
    printed = capsys.readouterr().out
    assert "trl / ours: sample 5.00, update 2.00, step 3.00" in printed  # sampling 5, 3 and 6 times ours
    assert re.search(r"share of the limit.*0\.40.*MISSED", printed)


def test_a_shape_is_a_checkpoint_of_random_weights_of_that_size_with_a_tokenizer(tmp_path: Path) -> None:
    work = make_work("smoke", tmp_path, model="tiny_qwen3", sizes=SIZES, kept=True, steps=1, shape="tiny")
    assert work.shape == SHAPES["tiny"]
    assert "tokenizer.json" in {file.name for file in work.model.iterdir()}


def test_every_case_has_sides_goals_and_a_name_in_the_figure() -> None:
    assert set(compare.GOALS) == set(step.CASES)
    for case in step.CASES.values():
        assert set(case.sides) <= set(peers.SIDES)
    assert set(figures.LABELS) == {name for name in peers.SIDES if name != "limit" and "update" not in name}
