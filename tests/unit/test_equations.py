"""The printed losses are those that are computed: what divides them, advantages, clip, gamma, temperature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from uniapl import advantages, equations
from uniapl.batch import term_counts, token_weight
from uniapl.layers import load_study
from uniapl.plan import make_plan
from uniapl.records import TokenSequence

SCALED = "A = (r - mean r) / (std r + 0.0001)"
CLIP = "clip to [0.8, 1.2], c at most 2"
TEMPERED = "pi at temperature 0.7, on the expert's answers too"


def told(method: str, scale: str = "laptop", **changes: Any) -> dict[str, Any]:
    """What is printed of a method's last stage."""
    name = method.rpartition(".")[2]
    study = load_study(scale, {"methods": method, "stages": {name: changes}})
    plan = make_plan(study, Path("results"), sampler="hf", compute="float32")
    run = next(run for run in plan.runs if ".".join(run.path) == method)
    return equations.describe_stage(run.config["path"][-1], run.config)


@pytest.mark.parametrize(
    ("method", "equation", "notes"),
    [
        ("sft", "L_sft / N_sft", [TEMPERED, "8 demonstrations a step"]),
        ("dft", "L_sft / N_sft", ["w = p", TEMPERED, "8 demonstrations a step"]),
        (
            "grpo",
            "L_grpo / N_grpo",
            [SCALED, CLIP, "pi at temperature 0.7", "8 prompts with 8 rollouts each a step"],
        ),
        (
            "luffy",
            "(L_grpo + L_off) / (L_max G_grpo)",
            ["A = r - mean r", "the expert's answer in every group, with its reward; gamma = 0.1", CLIP, "L_max = 48",
             TEMPERED, "8 prompts with 7 rollouts each a step"],
        ),
        (
            "uniapl",
            "0.9 L_grpo / N_grpo + 0.1 L_sft / N_sft + 0.2 L_adv / N_adv",
            [SCALED, "B = u - mean u", CLIP, TEMPERED, "8 prompts with 8 rollouts each a step",
             "8 demonstrations a step"],
        ),
        (
            "a_sft",
            "L_sft / N_sft + 0.2 L_adv / N_adv",
            ["B = u - mean u", CLIP, TEMPERED, "8 prompts with 8 rollouts each a step", "8 demonstrations a step"],
        ),
    ],
)  # fmt: skip
def test_a_method_is_printed_with_what_divides_it_and_its_choices(method: str, equation: str, notes: list[str]) -> None:
    found = told(method)
    assert found["equation"] == equation
    assert found["notes"] == notes


def test_what_a_config_changes_is_printed() -> None:
    found = told(
        "uniapl", normalization="grpo", clip_low=0.1, clip_high=0.28, adversarial_scale="group", scale_rewards="none",
        w_kl=0.05,
    )  # fmt: skip
    terms = ("0.9 L_grpo / G_grpo", "0.1 L_sft / N_sft", "0.2 L_adv / G_adv", "0.05 L_kl / G_kl")
    assert found["equation"] == " + ".join(terms)
    assert found["notes"][:4] == [
        "A = r - mean r", "B = (u - mean u) / (std u + 0.0001)", "clip to [0.9, 1.28], c at most 2",
        "each token counts 1 / |y|, but for L_sft's",
    ]  # fmt: skip
    assert not any("temperature" in note for note in told("uniapl", "paper")["notes"]), "1 at this scale"


def test_the_printed_normalization_is_the_batchs() -> None:
    rollout = TokenSequence([1], [2, 3], frozenset({"grpo", "kl"}))
    expert = TokenSequence([1], [4, 5, 6], frozenset({"off_policy"}))
    counts = term_counts([rollout, expert], normalization="dr_grpo")
    assert (counts["grpo"], counts["off_policy"], counts["kl"]) == (2, 2, 1)  # G_grpo has the expert's answer, G_kl not
    assert token_weight(expert, "off_policy", normalization="dr_grpo", max_new_tokens=48) == 1 / 48  # 1 / L_max
    assert term_counts([rollout, expert], normalization="dapo")["grpo"] == 5  # N_grpo
    assert equations.STD_EPSILON == advantages.STD_EPSILON
    centred = advantages.group_advantages(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2).bool(), scale_by_std=False)
    assert centred.tolist() == [[0.5, -0.5]]  # A = r - mean r
