"""Model cards: what a run was trained on and by, its equation, and that the hub's own library reads it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.unit.test_evaluate import RUN_MANIFEST
from uniapl.layers import load_study
from uniapl.model_card import MEASURES, Evaluated, render
from uniapl.plan import make_plan
from uniapl.workflow import study_of


def card_of(scale: str, path: str, **overrides: Any) -> tuple[dict[str, Any], str]:
    """The card of a run before it is evaluated: its metadata, read back by the hub's library, and its text."""
    plan = make_plan(load_study(scale, overrides), Path("results"), sampler="hf", compute="float32")
    run = next(run for run in plan.runs if ".".join(run.path) == path)
    text = render(run.config, RUN_MANIFEST | {"config_hash": run.directory.parent.name[-8:]}, [], [], data_card=True)
    return ModelCard(text).data.to_dict(), text


def test_a_card_of_the_papers_scale_names_models_data_and_licences() -> None:
    card, text = card_of("paper", "uniapl")
    assert (card["base_model"], card["license"]) == ("Qwen/Qwen3-0.6B", "apache-2.0")
    assert card["base_model_relation"] == "finetune"
    assert {"uniapl", "arxiv:2509.25148"} <= set(card["tags"])
    assert "not for production" in text
    assert "| Teacher | Qwen/Qwen3-235B-A22B-Instruct-2507: the first of up to 4 answers" in text
    assert "| Discriminator | internlm/POLAR-7B, fixed | apache-2.0 |" in text
    assert "at `c1899de289a04d12100db370d81485cdf75e47ca` | apache-2.0 |" in text
    assert "`0.9 L_grpo / N_grpo + 0.1 L_sft / N_sft + 0.2 L_adv / N_adv`; mu = 0.1, lambda_adv = 0.2" in text
    assert "| commit | `c0ffee`, with changes that were not committed |" in text
    assert "| tokens trained, stages before included | 1,234 |" in text
    assert "Not evaluated so far" in text
    assert "| Prompts | AutoIF's pipeline (arXiv 2406.13542) with the teacher | that of its answers |" in text
    assert "| Prompts | IF-RLVR: allenai/IF_multi_constraints_upto5 | odc-by |" in text
    assert card["datasets"] == ["allenai/IF_multi_constraints_upto5"]
    assert "counts of the prompts: [data_card.md](data_card.md)." in text
    assert "model-index" not in card


def test_a_variants_scores_stand_beside_the_base_models_though_it_was_asked_fewer_tasks(tmp_path: Path) -> None:
    study = study_of("smoke", "ablation_lambda_adv", {"models": ["tiny_qwen3"]})
    plan = make_plan(study, tmp_path, sampler="hf", compute="float32")

    def evaluated(variant: str, *, base: bool, score: float) -> Evaluated:
        one = next(e for e in plan.evaluations if e.variant == variant and (e.run is None) == base)
        summary = {"num_prompts": 8, "not_computed": 0} | dict.fromkeys(MEASURES, score)
        tasks = {task: summary for task in one.config["evaluation"]["tasks"]}
        return Evaluated(one.directory, one.config, RUN_MANIFEST | {"tasks": tasks, "config_hash": "01234567"})

    run = next(run for run in plan.runs if run.variant == "lambda_adv.5")
    own, base = evaluated("lambda_adv.5", base=False, score=0.5), evaluated("main", base=True, score=0.25)
    text = render(run.config, RUN_MANIFEST | {"config_hash": "01234567"}, [own], [base], data_card=True)
    rows = [line for line in text.splitlines() if "50.0%" in line]
    assert len(rows) == 2 * len(MEASURES)
    assert all("| 25.0% |" in row for row in rows)


def test_a_card_says_what_its_numbers_cannot_say() -> None:
    _, laptop = card_of("laptop", "sft.grpo")
    for limit in (
        "dequantised from a 4-bit file",
        "The expert is an editor",
        "not the paper's POLAR",
        "of up to 48 tokens",
    ):
        assert limit in laptop
    card, smoke = card_of("smoke", "sft")
    assert "this model's answers mean nothing" in smoke
    assert "license" not in card
    _, paper = card_of("paper", "sft", models="qwen3_4b")
    assert "editor" not in paper
    assert "* `sft`: 500 steps of `L_sft / N_sft`;" in paper
    assert "* `L_sft = - sum w log pi`: over the expert's answers;" in paper
    assert "rollouts each" not in paper


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"mu": {"peak": 0.9, "valley": 0.05, "warmup_steps": 5, "decay_steps": 20}},
            "`(1 - mu(t)) L_grpo / N_grpo + mu(t) L_sft / N_sft + 0.2 L_adv / N_adv`; mu = warm-up from 0 to 0.9",
        ),
        ({"adversarial_as": "reward"}, "`0.9 L_grpo / N_grpo + 0.1 L_sft / N_sft`; mu = 0.1, lambda_adv = 0.2"),
        ({"adversarial_as": "reward"}, "A = (R - mean R) / (std R + 0.0001); R = r + 0.2 u, the adversarial"),
        ({"w_kl": 0.05, "lambda_adv": 0.0}, "`0.9 L_grpo / N_grpo + 0.1 L_sft / N_sft + 0.05 L_kl / N_kl`"),
        ({"sft_weighting": "phi"}, "; w = p (1 - p);"),
    ],
)
def test_the_equation_is_the_stages_own(changes: dict[str, Any], expected: str) -> None:
    assert expected in card_of("laptop", "uniapl", stages={"uniapl": changes})[1]


def test_a_model_whose_licence_is_not_listed_is_said_to_be_unknown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    card, text = card_of("laptop", "sft", models=str(tmp_path))
    assert "| not known here |" in text
    assert "license" not in card
