"""The loss of a stage as people read it, with the numbers of its config: for model cards and the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uniapl.config import Coefficient, ScheduleSpec, StageSpec

STD_EPSILON = 1e-4  # of advantages.py, whose import takes torch; a test compares them

# What stands in the losses: a formula and words. Sums go over the tokens of all answers of the step.
LEGEND = (
    ("L_sft = - sum w log pi", "over the expert's answers; w = 1 unless it is named, and without gradient"),
    (
        "L_grpo = - sum c min(rho A, clip(rho) A)",
        "over the rollouts; A from verified rewards r, with mean and std of a prompt's group; rho = pi / pi_old, which"
        " is 1 in value since each batch has one update; c = min(pi_old / pi_sampler, its cap)",
    ),
    (
        "L_off = - sum A p / (p + gamma)",
        "over the expert's answers that are members of the groups, with their own A, neither c nor clip (LUFFY)",
    ),
    (
        "L_adv = - sum c min(rho B, clip(rho) B)",
        "over the rollouts; B from u = log sigmoid((s - b) / tau), s the discriminator's score, with those of a group",
    ),
    ("L_kl = sum (exp(d) - d - 1)", "over the rollouts; d = log pi_start - log pi"),
    (
        "N_x, G_x",
        "the tokens and the number of the answers that L_x sums over, flat groups included, and the expert's of L_off"
        " in those of grpo; |y| is an answer's tokens, L_max the most it may have",
    ),
    ("pi, p", "the policy's probability of a token, at temperature 1 unless another is named"),
)


def _number(value: Coefficient, symbol: str) -> str:
    return f"{symbol}(t)" if isinstance(value, ScheduleSpec) else f"{value:g}"


def _coefficient(value: Coefficient) -> str:
    """A constant, or a schedule in words."""
    if not isinstance(value, ScheduleSpec):
        return f"{value:g}"
    return (
        f"warm-up from 0 to {value.peak:g} over {value.warmup_steps} steps, then cosine decay to"
        f" {value.valley:g} over {value.decay_steps}"
    )


def _centred(value: str, *, scaled: bool) -> str:
    """A group's advantages of a value."""
    return f"({value} - mean {value}) / (std {value} + {STD_EPSILON:g})" if scaled else f"{value} - mean {value}"


def describe_stage(stage: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A stage of a run's config: `equation`, absent terms left out, its coefficients, and `notes` on its choices."""
    spec = StageSpec.model_validate({"title": ""} | dict(stage))
    terms = _terms(spec)
    return {
        "name": spec.name, "steps": spec.steps, "equation": " + ".join(terms.values()), "mu": _coefficient(spec.mu),
        "lambda_adv": _coefficient(spec.lambda_adv), "w_kl": _coefficient(spec.w_kl),
        "learning_rate": f"{spec.learning_rate:g}", "notes": _notes(spec, terms, config),
    }  # fmt: skip


def _terms(spec: StageSpec) -> dict[str, str]:
    """The terms that the loss has, each with its coefficient and what divides it."""
    divided = {"dapo": "N_{}", "grpo": "G_{}", "dr_grpo": "(L_max G_{})"}[spec.normalization]
    terms = {}
    if not spec.always_one:
        sums = "(L_grpo + L_off)" if spec.expert_in_groups else "L_grpo"
        weight = "(1 - mu(t))" if isinstance(spec.mu, ScheduleSpec) else f"{1 - spec.mu:g}"
        terms["grpo"] = f"{weight} {sums} / {divided.format('grpo')}"
    if spec.ever(spec.mu):
        terms["sft"] = f"{_number(spec.mu, 'mu')} L_sft / N_sft"
    if spec.ever(spec.lambda_adv) and spec.adversarial_as != "reward":
        terms["adv"] = f"{_number(spec.lambda_adv, 'lambda_adv')} L_adv / {divided.format('adv')}"
    if spec.w_kl and spec.draws_rollouts:
        terms["kl"] = f"{spec.w_kl:g} L_kl / {divided.format('kl')}"
    return {name: text.removeprefix("1 ") for name, text in terms.items()}


def _notes(spec: StageSpec, terms: Mapping[str, str], config: Mapping[str, Any]) -> list[str]:
    """What makes the terms exact, then what a step draws."""
    notes: list[str] = []
    temperature = config["train"]["temperature"]
    if "grpo" in terms:
        inside = spec.adversarial_as != "loss" and spec.ever(spec.lambda_adv)
        notes.append(f"A = {_centred('R' if inside else 'r', scaled=spec.scale_rewards == 'group')}")
        if inside:
            notes.append(f"R = r + {_number(spec.lambda_adv, 'lambda_adv')} u, the adversarial score inside the reward")
        if spec.expert_in_groups:
            notes.append(f"the expert's answer in every group, with its reward; gamma = {spec.shaping_gamma:g}")
    if "adv" in terms:
        notes.append(f"B = {_centred('u', scaled=spec.adversarial_scale == 'group')}")
    if {"grpo", "adv"} & set(terms):
        cap = config["train"]["sampler_clip"]
        notes.append(f"clip to [{1 - spec.clip_low:g}, {1 + spec.clip_high:g}], c at most {cap:g}")
    if set(terms) - {"sft"} and spec.normalization != "dapo":
        dr_grpo = spec.normalization == "dr_grpo"
        longest = config["data"]["max_new_tokens"]
        notes.append(f"L_max = {longest}" if dr_grpo else "each token counts 1 / |y|, but for L_sft's")
    if "sft" in terms and spec.sft_weighting != "none":
        notes.append(f"w = {'p' if spec.sft_weighting == 'dft' else 'p (1 - p)'}")
    if temperature != 1:
        experts = ", on the expert's answers too" if "sft" in terms or spec.expert_in_groups else ""
        notes.append(f"pi at temperature {temperature:g}{experts}")
    if spec.draws_rollouts:
        notes.append(f"{spec.prompts_per_step} prompts with {spec.rollouts_per_prompt} rollouts each a step")
    if "sft" in terms:
        notes.append(f"{spec.demonstrations_per_step} demonstrations a step")
    return notes
