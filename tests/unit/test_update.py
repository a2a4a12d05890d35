"""Coefficients, learning rate, the terms of a micro-batch, and what one update refuses to do."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from uniapl import attention
from uniapl.batch import layout, term_counts
from uniapl.config import ScheduleSpec, StageSpec, TrainSpec
from uniapl.objectives import weighted_sum
from uniapl.records import TokenSequence
from uniapl.update import (
    Policy,
    coefficient_at,
    coefficients_at,
    learning_rate_at,
    prepare_layers,
    probe,
    term_sums,
    update,
)

CPU = torch.device("cpu")


def stage_spec(**changes: Any) -> StageSpec:
    values = {"name": "uniapl", "title": "UniAPL", "steps": 4, "mu": 0.1, "lambda_adv": 0.2, "learning_rate": 0.01}
    return StageSpec(**(values | changes))


class Decoder(torch.nn.Module):
    """A policy whose next-token distribution hangs on the last token alone: an embedding and a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = torch.nn.Embedding(20, 6)
        self.head = torch.nn.Linear(6, 20, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def get_decoder(self) -> Any:
        def decode(*, input_ids: torch.Tensor, **_: Any) -> Any:
            return type("Output", (), {"last_hidden_state": self.embedding(input_ids)})

        decode.config = SimpleNamespace(_attn_implementation=attention.NAME)  # type: ignore[attr-defined]
        return decode

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embedding

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.head


def make_policy(stage: StageSpec, **settings: Any) -> Policy:
    model, start = Decoder(0), Decoder(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.learning_rate, weight_decay=0.0)
    tokens = settings.pop("micro_batch_tokens", 64)
    spec = TrainSpec(**({"max_grad_norm": 1e6} | settings))
    return Policy(
        model, optimizer, None, start, CPU, spec, stage, 8, "float32", 2**20, 0, micro_batch_tokens=tokens, packing=True
    )


def logprobs_of(policy: Policy, completion: list[int], prompt: list[int]) -> list[float]:
    before = torch.tensor([prompt[-1], *completion[:-1]])
    logits = policy.model.head(policy.model.embedding(before))
    return logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)].tolist()


def rollouts(policy: Policy, *, gap: float = 0.0) -> list[TokenSequence]:
    """Two answers with opposite advantages; the sampler's log-probs lie `gap` below the policy's."""
    made = []
    for prompt, answer, a in (([1, 2], [3, 4, 5], 1.0), ([1, 2], [6, 7], -1.0)):
        sampler = [value - gap for value in logprobs_of(policy, answer, prompt)]
        made.append(TokenSequence(prompt, answer, frozenset({"grpo", "adv"}), a, a / 2, sampler))
    return made


DEMONSTRATION = TokenSequence([1, 2], [8, 9, 10], frozenset({"sft"}))


def test_a_schedule_warms_up_linearly_then_decays_by_cosine_to_its_valley() -> None:
    # Peak 0.9 after 2 steps, valley 0.1 after 4 more; half way down it is the mean, 0.5.
    schedule = ScheduleSpec(peak=0.9, valley=0.1, warmup_steps=2, decay_steps=4)
    values = [coefficient_at(schedule, step) for step in range(8)]
    quarter = 0.8 * 0.5 * (1 + math.cos(math.pi / 4)) + 0.1
    assert values == pytest.approx([0.0, 0.45, 0.9, quarter, 0.5, 1.0 - quarter, 0.1, 0.1])
    assert coefficient_at(0.3, 100) == 0.3


def test_the_papers_coefficients_resolve_to_the_weights_of_the_terms() -> None:
    off = {"off_policy": 0.0}
    assert coefficients_at(stage_spec(), 0) == {"sft": 0.1, "grpo": 0.9, "adv": 0.2, "kl": 0.0} | off
    scheduled = stage_spec(mu=ScheduleSpec(peak=1.0, valley=0.0, decay_steps=2), w_kl=0.05)
    assert coefficients_at(scheduled, 1) == pytest.approx({"sft": 0.5, "grpo": 0.5, "adv": 0.2, "kl": 0.05} | off)
    joined = coefficients_at(stage_spec(mu=0.25, expert_in_groups=True), 0)
    assert joined["off_policy"] == joined["grpo"] == 0.75  # L_off is part of the groups' loss


def test_the_learning_rate_warms_up_and_then_stays() -> None:
    rates = [learning_rate_at(stage_spec(learning_rate=0.8, warmup_steps=4), step) for step in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert learning_rate_at(stage_spec(learning_rate=0.8, warmup_steps=0), 0) == 0.8


def test_terms_touch_only_their_own_tokens() -> None:
    # Unit normalisation, rho = 1, correction 1: grpo = -(3 x 1 - 2 x 1) = -1, adv = -0.5, sft = -sum of 3 log-probs.
    stage = stage_spec()
    sequences = [*rollouts(policy := make_policy(stage)), DEMONSTRATION]
    micro = layout(sequences, packing=False, normalization="dapo", max_new_tokens=8, device=CPU)
    logprobs_T = policy.logprobs(micro)[0].detach().requires_grad_()
    sums = term_sums(logprobs_T, micro, coefficients_at(stage, 0), stage, sampler_clip=2.0, start_logprobs_T=None)
    assert set(sums) == {"sft", "grpo", "adv"}
    assert sums["grpo"].item() == pytest.approx(-1.0, abs=1e-5)
    assert sums["adv"].item() == pytest.approx(-0.5, abs=1e-5)
    assert sums["sft"].item() == pytest.approx(-logprobs_T[5:].sum().item(), rel=1e-6)
    (gradient_T,) = torch.autograd.grad(sums["grpo"], logprobs_T, retain_graph=True)
    assert gradient_T.tolist() == pytest.approx([-1.0] * 3 + [1.0] * 2 + [0.0] * 3, abs=1e-5)
    (gradient_T,) = torch.autograd.grad(sums["sft"], logprobs_T)
    assert gradient_T.tolist() == [0.0] * 5 + [-1.0] * 3


def test_terms_with_coefficient_0_are_not_computed() -> None:
    stage = stage_spec(mu=0.0, lambda_adv=0.0)
    sequences = [*rollouts(policy := make_policy(stage)), DEMONSTRATION]
    micro = layout(sequences, packing=False, normalization="dapo", max_new_tokens=8, device=CPU)
    sums = term_sums(
        policy.logprobs(micro)[0], micro, coefficients_at(stage, 0), stage, sampler_clip=2.0, start_logprobs_T=None
    )
    assert set(sums) == {"grpo"}


def test_the_logged_losses_are_the_parts_of_the_total_each_divided_by_the_count_of_the_whole_step() -> None:
    stage = stage_spec(mu=0.1, lambda_adv=0.2)
    policy = make_policy(stage, micro_batch_tokens=5)
    flat = TokenSequence([1, 2], [11, 12, 13, 14, 15], frozenset({"grpo", "adv"}), 0.0, 0.0, [-3.0] * 5)
    sequences = [*rollouts(policy), flat, DEMONSTRATION]
    losses = update(policy, sequences, coefficients_at(stage, 0), step=0)
    # 3 + 2 + 5 rollout tokens: -1 / 10 and -0.5 / 10, though the flat one is in no forward.
    assert losses["loss__grpo"] == pytest.approx(-0.1, abs=1e-6)
    assert losses["loss__adv"] == pytest.approx(-0.05, abs=1e-6)
    total = 0.1 * losses["loss__sft"] + 0.9 * losses["loss__grpo"] + 0.2 * losses["loss__adv"]
    assert losses["loss__total"] == pytest.approx(total, abs=1e-6)
    assert losses["tokens__trained"] == 3 + 2 + 3


def test_the_sampler_gap_is_the_mean_absolute_difference_and_counts_truncated_weights() -> None:
    stage = stage_spec(mu=0.0, lambda_adv=0.0)
    policy = make_policy(stage, sampler_gap_ceiling=2.0)
    losses = update(policy, rollouts(policy, gap=0.9), coefficients_at(stage, 0), step=0)
    # exp(0.9) = 2.46 is above C = 2 on every token.
    assert losses["sampler__gap_nats"] == pytest.approx(0.9, abs=1e-5)
    assert losses["sampler__clipped_share"] == 1.0
    assert losses["loss__grpo"] == pytest.approx(-2.0 / 5, abs=1e-5)  # -C (3 - 2) / 5


def test_a_gap_above_the_ceiling_stops_the_run_before_the_weights_move() -> None:
    stage = stage_spec(mu=0.0, lambda_adv=0.0)
    policy = make_policy(stage, sampler_gap_ceiling=0.5)
    before = policy.model.head.weight.clone()
    with pytest.raises(ValueError, match=r"step 4: sampler and trainer differ by 0\.900 nats"):
        update(policy, rollouts(policy, gap=0.9), coefficients_at(stage, 3), step=3)
    assert torch.equal(policy.model.head.weight, before)


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_move() -> None:
    stage = stage_spec(mu=0.0, lambda_adv=0.0)
    policy = make_policy(stage)
    sequences = rollouts(policy)
    sequences[0].advantage = math.inf
    before = policy.model.head.weight.clone()
    with pytest.raises(ValueError, match=r"is not finite \(rank 0: grpo\); nothing was updated"):
        update(policy, sequences, coefficients_at(stage, 0), step=0)
    assert torch.equal(policy.model.head.weight, before)


def test_the_gradient_norm_is_logged_before_it_is_clipped() -> None:
    stage = stage_spec()
    norms = []
    for limit in (1e6, 0.01):
        policy = make_policy(stage, max_grad_norm=limit)
        norms.append(
            update(policy, [*rollouts(policy), DEMONSTRATION], coefficients_at(stage, 0), step=0)["grad__norm"]
        )
        left = torch.stack([p.grad.square().sum() for p in policy.model.parameters()]).sum().sqrt()
        assert left.item() == pytest.approx(min(limit, norms[0]), rel=1e-3)
    assert norms[0] == norms[1] > 0.01


def test_the_kl_term_pulls_towards_the_first_model_and_is_counted_on_rollouts() -> None:
    stage = stage_spec(mu=0.0, lambda_adv=0.0, w_kl=0.5)
    policy = make_policy(stage, sampler_gap_ceiling=100.0)  # the rollouts grow old here
    sequences = [
        TokenSequence(s.prompt_ids, s.completion_ids, frozenset({"grpo", "kl"}), 0.0, 0.0, s.sampler_logprobs)
        for s in rollouts(policy)
    ]
    d = [
        start - here
        for s in sequences
        for start, here in zip(
            logprobs_of(Policy(**(vars(policy) | {"model": policy.start})), s.completion_ids, s.prompt_ids),
            logprobs_of(policy, s.completion_ids, s.prompt_ids),
            strict=True,
        )
    ]
    expected = sum(math.exp(x) - x - 1 for x in d) / 5
    measured = probe(policy, sequences, [DEMONSTRATION])
    assert measured["kl__start_nats"] == pytest.approx(expected, rel=1e-4)
    assert measured["probe__sft_nats"] == pytest.approx(-sum(logprobs_of(policy, [8, 9, 10], [1, 2])) / 3, rel=1e-5)
    losses = update(policy, sequences, coefficients_at(stage, 0), step=0)
    assert losses["loss__kl"] == pytest.approx(expected, rel=1e-4)
    for step in range(1, 15):
        update(policy, sequences, coefficients_at(stage, step), step=step)
    after = probe(policy, sequences, [])
    assert after["kl__start_nats"] is not None
    assert after["kl__start_nats"] < expected
    assert after["probe__sft_nats"] is None


def test_flat_groups_alone_let_momentum_go_on_and_no_sequence_at_all_changes_nothing() -> None:
    stage = stage_spec(mu=0.0, lambda_adv=0.0, warmup_steps=0)
    policy = make_policy(stage)
    update(policy, rollouts(policy), coefficients_at(stage, 0), step=0)
    moved = policy.model.head.weight.clone()
    flat = [
        TokenSequence(s.prompt_ids, s.completion_ids, s.terms, 0.0, 0.0, s.sampler_logprobs) for s in rollouts(policy)
    ]
    losses = update(policy, flat, coefficients_at(stage, 1), step=1)
    assert losses["grad__norm"] == 0.0
    assert losses["sampler__gap_nats"] is None  # nothing went through the forward
    assert not torch.equal(policy.model.head.weight, moved)
    moved = policy.model.head.weight.clone()
    assert update(policy, [], coefficients_at(stage, 2), step=2)["grad__norm"] is None
    assert torch.equal(policy.model.head.weight, moved)


def test_old_logprobs_of_their_own_change_the_ratio() -> None:
    # rho = exp(0.5) = 1.65 on every token: A = 1 is clipped at 1.2, A = -1 is not: -(3 x 1.2 - 2 x 1.6487) = -0.3026.
    stage = stage_spec(mu=0.0, lambda_adv=0.0)
    sequences = rollouts(policy := make_policy(stage), gap=0.5)  # the sampler is the old policy: correction 1
    micro = policy.layout(sequences)
    logprobs_T = policy.logprobs(micro)[0]
    sums = term_sums(
        logprobs_T, micro, coefficients_at(stage, 0), stage, sampler_clip=2.0, start_logprobs_T=None,
        old_logprobs_T=logprobs_T.detach() - 0.5,
    )  # fmt: skip
    assert sums["grpo"].item() == pytest.approx(-(3 * 1.2 - 2 * math.exp(0.5)), abs=1e-4)
    total = weighted_sum(sums, coefficients_at(stage, 0), term_counts(sequences, normalization="dapo"))
    assert total is not None
    assert total.item() == pytest.approx(sums["grpo"].item() / 5)


def a_llama() -> Any:
    config = AutoConfig.for_model(
        "llama", vocab_size=100, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def gradient(model: Any, *, autocast: bool) -> torch.Tensor:
    """Of the log-probs of random tokens, all parameters' end to end."""
    ids = torch.randint(100, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids).logits
    model.zero_grad()
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_what_layers_read_is_cast_once_which_makes_the_gradient_no_less_exact() -> None:
    model = a_llama()
    exact, plain = gradient(model, autocast=False), gradient(model, autocast=True)
    prepare_layers(model, checkpointed=False, compiled=False)
    read: dict[str, torch.Tensor] = {}
    for name, module in model.get_decoder().layers[1].named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs, name=name: read.update({name: inputs[0]}))
    once = gradient(model, autocast=True)
    assert {tensor.dtype for tensor in read.values()} == {torch.bfloat16}
    assert read["self_attn.q_proj"] is read["self_attn.k_proj"] is read["self_attn.v_proj"]
    assert read["mlp.gate_proj"] is read["mlp.up_proj"]
    off = (plain - exact).norm() / exact.norm()
    assert 1e-3 < off < 0.05
    assert (once - exact).norm() / exact.norm() < 1.05 * off
    assert torch.equal(gradient(model, autocast=False), exact)
