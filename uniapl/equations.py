"""The loss of a stage as people read it, with the numbers of its config: for model cards and the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _number(value: float | Mapping[str, Any], symbol: str) -> str:
    return f"{symbol}(t)" if isinstance(value, Mapping) else f"{value:g}"


def _coefficient(value: float | Mapping[str, Any]) -> str:
    """A constant, or a schedule in words."""
    if not isinstance(value, Mapping):
        return f"{value:g}"
    return (
        f"warm-up from 0 to {value['peak']:g} over {value['warmup_steps']} steps, then cosine decay to"
        f" {value['valley']:g} over {value['decay_steps']}"
    )


def describe_stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    """A stage of a run's config: `equation`, absent terms left out, its coefficients, and `notes` on its choices."""
    mu, adversarial = stage["mu"], stage["lambda_adv"]
    scheduled, way = isinstance(mu, Mapping), stage["adversarial_as"]
    joined = stage.get("expert_in_groups", False)
    terms = []
    if scheduled or mu < 1:
        grpo = "(L_grpo + L_off)" if joined else "L_grpo"
        terms.append(f"{'(1 - mu(t))' if scheduled else f'{1 - mu:g}'} {grpo} / N_grpo")
    if scheduled or mu > 0:
        terms.append(f"{_number(mu, 'mu')} L_sft / N_sft")
    if adversarial and way != "reward":
        terms.append(f"{_number(adversarial, 'lambda_adv')} L_adv / N_adv")
    if stage["w_kl"]:
        terms.append(f"{stage['w_kl']:g} L_kl / N_grpo")
    notes = []
    if adversarial and way != "loss":
        notes.append("the adversarial score inside the reward, r_k + lambda_adv log sigmoid((s_k - b) / tau)")
    if stage["sft_weighting"] != "none":
        notes.append(f"tokens of L_sft weighted by {'p' if stage['sft_weighting'] == 'dft' else 'p (1 - p)'}")
    if joined:
        notes.append("the expert's answer in every group, with its reward; L_off is LUFFY's shaped objective on it")
    drawn = f"{stage['prompts_per_step']} prompts with {stage['rollouts_per_prompt']} rollouts each"
    if terms != ["1 L_sft / N_sft"]:
        notes.append(f"{drawn} a step")
    if scheduled or mu > 0:
        notes.append(f"{stage['demonstrations_per_step']} demonstrations a step")
    return {
        "name": stage["name"], "steps": stage["steps"], "equation": " + ".join(terms), "mu": _coefficient(mu),
        "lambda_adv": _coefficient(adversarial), "w_kl": _coefficient(stage["w_kl"]),
        "learning_rate": f"{stage['learning_rate']:g}", "notes": notes,
    }  # fmt: skip
