"""Loss, gradients and advantages against TRL's own trainers on one fixed batch.

Every expected number comes out of TRL: its collation, advantages, importance ratios, normalisers and losses. Only
its generation is replaced, by fixed token ids and sampler log-probs.
"""

from __future__ import annotations

import importlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from uniapl.advantages import group_advantages
from uniapl.batch import needs_gradient, term_counts
from uniapl.config import MachineSpec, StageSpec, TrainSpec
from uniapl.objectives import weighted_sum
from uniapl.records import TokenSequence
from uniapl.update import Policy, term_sums

VOCABULARY, END, PAD = 97, 1, 0
NUM_PROMPTS, NUM_ROLLOUTS, MAX_NEW_TOKENS = 4, 4, 12
SAMPLER_CLIP = 2.0  # C
BLOCK_BYTES = 4096  # of logits: several blocks of the vocabulary
REWARDS_PK = [
    [1.0, 0.0, 0.0, 1.0],
    [1.0, 1.0, 1.0, 1.0],
    [0.0, 0.0, 0.0, 1.0],
    [1.0, 1.0, 0.0, 1.0],
]  # the second is flat
ARCHITECTURES = {
    "qwen3": {"head_dim": 8, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama": {"num_key_value_heads": 4, "tie_word_embeddings": False},
}
Weights = dict[str, Tensor]


@dataclass
class FixedBatch:
    """Ragged prompts and answers, sampler's log-probs, and the weights before (pi_old) and now (pi)."""

    model: Any
    old_weights: Weights
    new_weights: Weights
    sequences: list[TokenSequence]
    old_logprobs: list[Tensor]
    new_logprobs: list[Tensor]


def machine_spec(*, packing: bool = False, micro_batch_tokens: int = 50) -> MachineSpec:
    values: dict[str, Any] = {"micro_batch_tokens": micro_batch_tokens, "packing": packing}
    return MachineSpec(**values, logits_bytes=BLOCK_BYTES)


def stage_spec(**changes: Any) -> StageSpec:
    values: dict[str, Any] = {"name": "grpo", "title": "GRPO", "steps": 1, "mu": 0.0, "learning_rate": 1e-3}
    values |= {"rollouts_per_prompt": NUM_ROLLOUTS, "prompts_per_step": NUM_PROMPTS}
    return StageSpec(**(values | changes))


def policy_of(model: Any, stage: StageSpec, machine: MachineSpec) -> Policy:
    settings = TrainSpec.model_validate({"sampler_clip": SAMPLER_CLIP})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Policy(
        model, optimizer, None, None, torch.device("cpu"), settings, stage, MAX_NEW_TOKENS, "float32",
        machine.logits_bytes, machine.kept_logits_bytes, machine.micro_batch_tokens, machine.packing,
    )  # fmt: skip


def perturbed(weights: Weights, generator: torch.Generator, size: float) -> Weights:
    return {
        name: w + size * w.std().nan_to_num(0) * torch.randn(w.shape, generator=generator)
        for name, w in weights.items()
    }


def sequence_logprobs(model: Any, weights: Weights, sequences: list[TokenSequence]) -> list[Tensor]:
    """Log-probs of each sequence's completion on its own, by plain log_softmax."""
    model.load_state_dict(weights)
    logprobs = []
    with torch.no_grad():
        for s in sequences:
            ids = torch.tensor([s.prompt_ids + s.completion_ids])
            all_ST = model(input_ids=ids).logits[0, len(s.prompt_ids) - 1 : -1].log_softmax(-1)
            logprobs.append(all_ST.gather(1, torch.tensor(s.completion_ids)[:, None])[:, 0])
    return logprobs


@pytest.fixture(scope="session", params=sorted(ARCHITECTURES))
def fixed(request: pytest.FixtureRequest) -> FixedBatch:
    draw = random.Random(7)
    sequences = []
    for _ in range(NUM_PROMPTS):
        prompt = [draw.randrange(2, VOCABULARY) for _ in range(draw.randint(3, 9))]
        for _ in range(NUM_ROLLOUTS):
            length = draw.randint(2, MAX_NEW_TOKENS + 4)
            answer = [draw.randrange(2, VOCABULARY) for _ in range(min(length, MAX_NEW_TOKENS))]
            if length <= MAX_NEW_TOKENS:
                answer[-1] = END
            sequences.append(TokenSequence(prompt, answer, frozenset({"grpo"})))
    config = AutoConfig.for_model(
        request.param, vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, eos_token_id=END, pad_token_id=PAD, bos_token_id=None, **ARCHITECTURES[request.param],
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    new = {n: w.clone() if w.dim() == 1 else w * 8 for n, w in model.state_dict().items()}
    old = perturbed(new, generator, 0.16)
    if ARCHITECTURES[request.param]["tie_word_embeddings"]:
        for weights in (new, old):
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    old_logprobs = sequence_logprobs(model, old, sequences)
    new_logprobs = sequence_logprobs(model, new, sequences)
    for s, logprobs in zip(sequences, old_logprobs, strict=True):
        s.sampler_logprobs = (logprobs + 0.5 * torch.randn(len(logprobs), generator=generator)).tolist()
    return FixedBatch(model, old, new, sequences, old_logprobs, new_logprobs)


@pytest.fixture(scope="session")
def trl() -> Any:
    """TRL's trainers, imported as where vLLM is not installed: generation is not used here."""
    availability = importlib.import_module("trl.import_utils")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(availability, "is_vllm_available", lambda *_, **__: False)
        module = importlib.import_module("trl")
        assert module.GRPOTrainer
        assert module.SFTTrainer
    return module


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": PAD, "<end>": END} | {f"w{i}": i for i in range(2, VOCABULARY)}
    fast = Tokenizer(WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="<end>")


def grpo_trainer(
    trl: Any, tokenizer: Any, fixed: FixedBatch, folder: Path, *, loss_type: str, scale_rewards: str
) -> Any:
    """TRL's GRPOTrainer with its sampler correction on, fed with the fixed answers instead of generating."""
    size = len(fixed.sequences)
    arguments = trl.GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=size, num_generations=NUM_ROLLOUTS, report_to=[],
        use_cpu=True, bf16=False, gradient_checkpointing=False, max_completion_length=MAX_NEW_TOKENS,
        loss_type=loss_type, beta=0.0, scale_rewards=scale_rewards, epsilon=0.2, epsilon_high=0.3,
        gradient_accumulation_steps=1,
        vllm_importance_sampling_mode="token_truncate", vllm_importance_sampling_clip_max=SAMPLER_CLIP, seed=0,
    )  # fmt: skip
    rewards = [r for group in REWARDS_PK for r in group]
    trainer = trl.GRPOTrainer(
        model=fixed.model, reward_funcs=lambda completions, **_: rewards, args=arguments, processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": "w2 w3"}] * size),
    )  # fmt: skip
    trainer.use_vllm = True
    trainer.current_gradient_accumulation_steps = 1

    def fixed_answers(prompts: list[str]) -> tuple[Any, ...]:
        ids, answers = [s.prompt_ids for s in fixed.sequences], [s.completion_ids for s in fixed.sequences]
        logprobs = [s.sampler_logprobs for s in fixed.sequences]
        return ids, answers, None, tokenizer.batch_decode(answers), logprobs, {}, None, None

    trainer._generate = fixed_answers
    trainer.model.train()
    return trainer


def trl_batch(trainer: Any, fixed: FixedBatch) -> dict[str, Any]:
    """TRL's own tensors of the batch: advantages, log-probs under pi_old, importance ratios, token count."""
    fixed.model.load_state_dict(fixed.old_weights)
    return trainer._generate_and_score_completions([{"prompt": "w2 w3"}] * len(fixed.sequences))


def trl_loss_and_gradients(trainer: Any, fixed: FixedBatch, inputs: dict[str, Any]) -> tuple[float, Weights]:
    fixed.model.load_state_dict(fixed.new_weights)
    fixed.model.zero_grad()
    loss = trainer.compute_loss(fixed.model, inputs)
    loss.backward()
    return float(loss.detach()), gradients_of(fixed.model)


def gradients_of(model: Any) -> Weights:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def our_loss_and_gradients(
    fixed: FixedBatch,
    sequences: list[TokenSequence],
    stage: StageSpec,
    machine: MachineSpec,
    coefficients: dict[str, float],
) -> tuple[float, Weights]:
    """One accumulated loss and its gradients, micro-batch by micro-batch, old log-probs from the old weights."""
    policy = policy_of(fixed.model, stage, machine)
    counts = term_counts(sequences, normalization=stage.normalization)
    micros = policy.split([s for s in sequences if needs_gradient(s, coefficients)])
    assert len(micros) > 1
    fixed.model.load_state_dict(fixed.old_weights)
    with torch.no_grad():
        old = [policy.logprobs(micro)[0] for micro in micros]
    fixed.model.load_state_dict(fixed.new_weights)
    fixed.model.zero_grad()
    total = 0.0
    for micro, old_T in zip(micros, old, strict=True):
        sums = term_sums(
            policy.logprobs(micro)[0], micro, coefficients, stage, sampler_clip=policy.settings.sampler_clip,
            start_logprobs_T=None, old_logprobs_T=old_T,
        )  # fmt: skip
        loss = weighted_sum(sums, coefficients, counts)
        assert loss is not None
        loss.backward()
        total += float(loss.detach())
    return total, gradients_of(fixed.model)


def with_advantages(fixed: FixedBatch, *, scale_rewards: str) -> list[TokenSequence]:
    rewards_PK = torch.tensor(REWARDS_PK)
    valid_PK = torch.ones_like(rewards_PK, dtype=torch.bool)
    advantages = group_advantages(rewards_PK, valid_PK, scale_by_std=scale_rewards == "group").flatten().tolist()
    return [
        TokenSequence(s.prompt_ids, s.completion_ids, frozenset({"grpo"}), a, sampler_logprobs=s.sampler_logprobs)
        for s, a in zip(fixed.sequences, advantages, strict=True)
    ]


def assert_same(ours: tuple[float, Weights], theirs: tuple[float, Weights]) -> None:
    """Loss and every parameter's gradient agree to 1e-5, absolutely and, over all gradients, relatively."""
    (loss, gradients), (expected_loss, expected) = ours, theirs
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert gradients.keys() == expected.keys()
    norm = torch.stack([g.square().sum() for g in expected.values()]).sum().sqrt()
    gap = torch.stack([(gradients[n] - g).square().sum() for n, g in expected.items()]).sum().sqrt()
    assert norm > 0.05, "a gradient too small to compare to 1e-5"
    assert gap / norm < 1e-5
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_the_fixed_batch_has_every_difficulty(fixed: FixedBatch) -> None:
    advantages = [s.advantage for s in with_advantages(fixed, scale_rewards="group")]
    ratio = [(new - old).exp() for new, old in zip(fixed.new_logprobs, fixed.old_logprobs, strict=True)]
    for sign in (1, -1):
        ratio_T = torch.cat([r for r, a in zip(ratio, advantages, strict=True) if a * sign > 0])
        assert (ratio_T < 0.8).float().mean() >= 0.1
        assert (ratio_T > 1.3).float().mean() >= 0.1
        assert ((ratio_T > 0.8) & (ratio_T < 1.3)).float().mean() >= 0.1
    assert advantages[NUM_ROLLOUTS : 2 * NUM_ROLLOUTS] == [0.0] * NUM_ROLLOUTS  # a group without spread
    lengths = {len(s.completion_ids) for s in fixed.sequences}
    assert len(lengths) > 4
    assert len({len(s.prompt_ids) for s in fixed.sequences}) > 1
    truncated = [s for s in fixed.sequences if s.completion_ids[-1] != END]
    assert 0.1 < len(truncated) / len(fixed.sequences) < 0.9
    correction = torch.cat(
        [
            (old - torch.tensor(s.sampler_logprobs)).exp()
            for s, old in zip(fixed.sequences, fixed.old_logprobs, strict=True)
        ]
    )
    assert 0.02 < (correction > SAMPLER_CLIP).float().mean() < 0.5
    assert (correction < 1).float().mean() > 0.2


@pytest.mark.parametrize(("loss_type", "scale_rewards"), [("dapo", "group"), ("grpo", "group"), ("dr_grpo", "none")])
def test_grpo_loss_and_gradients_equal_trl(
    fixed: FixedBatch, trl: Any, tokenizer: Any, tmp_path: Path, loss_type: str, scale_rewards: str
) -> None:
    trainer = grpo_trainer(trl, tokenizer, fixed, tmp_path, loss_type=loss_type, scale_rewards=scale_rewards)
    expected = trl_loss_and_gradients(trainer, fixed, trl_batch(trainer, fixed))
    stage = stage_spec(normalization=loss_type, scale_rewards=scale_rewards, clip_low=0.2, clip_high=0.3)
    sequences = with_advantages(fixed, scale_rewards=scale_rewards)
    coefficients = {"sft": 0.0, "grpo": 1.0, "adv": 0.0, "kl": 0.0}
    for packing in (False, True):
        machine = machine_spec(packing=packing)
        assert_same(our_loss_and_gradients(fixed, sequences, stage, machine, coefficients), expected)


def test_old_logprobs_and_sampler_correction_equal_trl(
    fixed: FixedBatch, trl: Any, tokenizer: Any, tmp_path: Path
) -> None:
    from uniapl.objectives import sampler_correction

    batch = trl_batch(grpo_trainer(trl, tokenizer, fixed, tmp_path, loss_type="dapo", scale_rewards="group"), fixed)
    mask_BT = batch["completion_mask"].bool()
    policy = policy_of(fixed.model, stage_spec(), machine_spec())
    fixed.model.load_state_dict(fixed.old_weights)
    micro = policy.layout(fixed.sequences)
    with torch.no_grad():
        old_T = policy.logprobs(micro)[0]
    torch.testing.assert_close(old_T, batch["old_per_token_logps"][mask_BT], atol=1e-5, rtol=0)
    correction_T = sampler_correction(old_T, micro.sampler_logprobs_T, clip=SAMPLER_CLIP)
    torch.testing.assert_close(correction_T, batch["importance_sampling_ratio"][mask_BT], atol=2e-5, rtol=0)


@pytest.mark.parametrize("scale_rewards", ["group", "none"])
def test_advantages_equal_trl(fixed: FixedBatch, trl: Any, tokenizer: Any, tmp_path: Path, scale_rewards: str) -> None:
    trainer = grpo_trainer(trl, tokenizer, fixed, tmp_path, loss_type="dapo", scale_rewards=scale_rewards)
    expected = trl_batch(trainer, fixed)["advantages"]
    ours = torch.tensor([s.advantage for s in with_advantages(fixed, scale_rewards=scale_rewards)])
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("packing", [False, True])
def test_sft_loss_and_gradients_equal_trl(
    fixed: FixedBatch, trl: Any, tokenizer: Any, tmp_path: Path, packing: bool
) -> None:
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=len(fixed.sequences), report_to=[], use_cpu=True,
        bf16=False, gradient_checkpointing=False, loss_type="nll", packing=False, completion_only_loss=True,
    )  # fmt: skip
    examples = [
        {
            "input_ids": s.prompt_ids + s.completion_ids,
            "completion_mask": [0] * len(s.prompt_ids) + [1] * len(s.completion_ids),
        }
        for s in fixed.sequences
    ]
    trainer = trl.SFTTrainer(
        model=fixed.model, args=arguments, processing_class=tokenizer, train_dataset=Dataset.from_list(examples)
    )
    fixed.model.load_state_dict(fixed.new_weights)
    fixed.model.zero_grad()
    trainer.model.train()
    loss = trainer.compute_loss(fixed.model, trainer.data_collator(list(trainer.train_dataset)))
    loss.backward()
    expected = float(loss.detach()), gradients_of(fixed.model)
    sequences = [TokenSequence(s.prompt_ids, s.completion_ids, frozenset({"sft"})) for s in fixed.sequences]
    coefficients = {"sft": 1.0, "grpo": 0.0, "adv": 0.0, "kl": 0.0}
    ours = our_loss_and_gradients(
        fixed, sequences, stage_spec(name="sft", mu=1.0), machine_spec(packing=packing), coefficients
    )
    assert_same(ours, expected)
