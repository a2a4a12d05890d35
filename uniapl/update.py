"""One gradient step: coefficients of the step, token sums of each term over micro-batches, optimizer.

One update is made per batch of rollouts, so pi_old is the policy before the step and rho = 1; the sampler's own
log-probs enter through the truncated correction c only (paper.md's c_kt).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from uniapl.batch import FILLER, MicroBatch, layout, needs_gradient, split, term_counts
from uniapl.distributed import ALONE, Ranks, device, shard, under_forward, whole
from uniapl.entry import SharedError
from uniapl.logprobs import completion_logprobs
from uniapl.norms import fuse_norms
from uniapl.objectives import (
    TERMS,
    clipped_surrogate_loss,
    kl_loss,
    off_policy_loss,
    sampler_correction,
    sft_loss,
    weighted_sum,
)
from uniapl.records import TokenSequence

if TYPE_CHECKING:  # an update needs torch and transformers alone
    from uniapl.config import Coefficient, MachineSpec, StageSpec, TrainSpec

# Of a compiled layer, before PyTorch would go on without compiling: with and without gradient, by size.
MOST_GRAPHS = 64
READERS = ("self_attn", "mlp")  # of a decoder layer: what multiplies the hidden states with matrices


def coefficient_at(coefficient: Coefficient, step: int) -> float:
    """Value at a step counted from 0: a constant, or CHORD's warm-up to peak and cosine decay to valley."""
    if isinstance(coefficient, (int, float)):
        return float(coefficient)
    c = coefficient
    if step < c.warmup_steps:
        return c.peak * step / c.warmup_steps
    after = step - c.warmup_steps
    if after >= c.decay_steps:
        return c.valley
    return (c.peak - c.valley) * 0.5 * (1 + math.cos(math.pi * after / c.decay_steps)) + c.valley


def coefficients_at(stage: StageSpec, step: int) -> dict[str, float]:
    """The resolved weights of the terms: w_sft = mu, w_grpo = 1 - mu, w_adv = lambda_adv, w_kl; w_grpo of L_off too."""
    mu = coefficient_at(stage.mu, step)
    off_policy = 1.0 - mu if stage.expert_in_groups else 0.0
    return {
        "sft": mu, "grpo": 1.0 - mu, "off_policy": off_policy, "adv": coefficient_at(stage.lambda_adv, step),
        "kl": stage.w_kl,
    }  # fmt: skip


def learning_rate_at(stage: StageSpec, step: int) -> float:
    """Linear warm-up, then constant."""
    return stage.learning_rate * min(1.0, (step + 1) / max(1, stage.warmup_steps))


@dataclass
class Policy:
    """The trained model with its optimizer, and the path's first model for KL measurements."""

    model: Any
    optimizer: torch.optim.Optimizer
    tokenizer: Any
    start: Any
    device: torch.device
    settings: TrainSpec
    stage: StageSpec
    max_new_tokens: int
    compute: str  # float32, or bfloat16 by autocast
    logits_bytes: int  # of float32 logits that exist at once
    kept_logits_bytes: int  # of logits in the products' type that a micro-batch may keep for its backward
    micro_batch_tokens: int  # prompts included
    packing: bool
    ranks: Ranks = ALONE

    def layout(self, sequences: list[TokenSequence]) -> MicroBatch:
        return layout(
            sequences,
            packing=self.packing,
            normalization=self.stage.normalization,
            max_new_tokens=self.max_new_tokens,
            device=self.device,
        )

    def split(self, sequences: list[TokenSequence]) -> list[MicroBatch]:
        """This rank's micro-batches. All ranks have as many: FSDP2's forwards and backwards are collective calls."""
        groups = split(sequences, micro_tokens=self.micro_batch_tokens, packing=self.packing)
        every = list(groups)
        every += [[FILLER]] * (-len(every) % self.ranks.size)
        return [self.layout(group) for group in self.ranks.share(every)]

    def logprobs(
        self, micro: MicroBatch, model: Any | None = None, *, temperature: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of a micro-batch's completion tokens under the policy (or another model).

        At the rollouts' temperature, if none is given.
        """
        # DEVIATION-CANDIDATE: tempering: demonstrations are scored at the rollouts' temperature too.
        at = self.settings.temperature if temperature is None else temperature
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.compute == "bfloat16"):
            used = self.model if model is None else model
            return under_forward(used, completion_logprobs, used, micro, self.logits_bytes, self.kept_logits_bytes, at)


def make_policy(
    model: Any, start: Any, tokenizer: Any, settings: TrainSpec, stage: StageSpec, *, max_new_tokens: int, compute: str,
    machine: MachineSpec, ranks: Ranks = ALONE,
) -> Policy:  # fmt: skip
    """A policy out of loaded models: on this rank's GPU where it has one, sharded where there are several ranks.

    `start` may be None where no KL is ever measured.
    """
    here = device()
    prepare_layers(model.train(), checkpointed=machine.activation_checkpointing, compiled=machine.compile)
    shard(model, ranks, compute=compute)  # before the move, so that no GPU ever holds all of a model
    model.to(here)
    if start is not None:
        prepare_layers(start.eval().requires_grad_(False), checkpointed=False, compiled=machine.compile)
        shard(start, ranks, compute=compute)
        start.to(here)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.learning_rate, betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.weight_decay, fused=True,
    )  # fmt: skip
    return Policy(
        model, optimizer, tokenizer, start, here, settings, stage, max_new_tokens, compute, machine.logits_bytes,
        machine.kept_logits_bytes, machine.micro_batch_tokens, machine.packing, ranks,
    )  # fmt: skip


def prepare_layers(model: Any, *, checkpointed: bool, compiled: bool) -> None:
    """Let decoder layers forget their activations until the backward, and compile their forwards; before sharding.

    All layers cast what attention and MLP read once; on a GPU norms are fused.

    What is compiled holds the checkpoint, since a backward that computes a compiled layer again may meet another of its
    graphs than the forward did; FSDP2's hooks stay outside. One function for all layers, so they share their graphs.
    """
    if device().type == "cuda":
        fuse_norms(model)
    layers = model.get_decoder().layers
    for layer in layers:
        for block in filter(None, (getattr(layer, name, None) for name in READERS)):
            if not hasattr(block, "experts"):  # which add their outputs up in the type of what they read
                block.register_forward_pre_hook(_cast_once, with_kwargs=True)
    forward = _checkpointed if checkpointed else type(layers[0]).forward
    if compiled:
        # The sizes of packed documents are equal by chance now and then, and some are 0 or 1: none is worth a graph.
        torch.fx.experimental._config.use_duck_shape = False
        torch._dynamo.config.recompile_limit = MOST_GRAPHS
        forward = torch.compile(forward, dynamic=True)
    if checkpointed or compiled:
        for layer in layers:
            layer.forward = MethodType(forward, layer)


def _cast_once(_module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The hidden states that a block reads, in autocast's type: else each of its matrices casts them for itself."""
    states = arguments[0] if arguments else options["hidden_states"]
    if torch.is_autocast_enabled(states.device.type):
        states = states.to(torch.get_autocast_dtype(states.device.type))
    return ((states, *arguments[1:]), options) if arguments else (arguments, options | {"hidden_states": states})


def _checkpointed(layer: Any, *arguments: Any, **options: Any) -> Any:
    """A layer's forward of which only the inputs are kept; nothing in it is random."""
    forward = type(layer).forward
    return checkpoint(forward, layer, *arguments, use_reentrant=False, preserve_rng_state=False, **options)


class NotFiniteError(SharedError):
    """Loss or gradient of a step is not finite; the optimizer did not step."""


@dataclass
class Sums:
    """Token sums over the micro-batches of a step, for the log."""

    losses: dict[str, float] = field(default_factory=dict)
    total: float = 0.0
    entropy: float = 0.0
    gap: float = 0.0
    clipped: float = 0.0
    rollout_tokens: int = 0
    trained_tokens: int = 0
    broken: list[str] = field(default_factory=list)  # this rank's gradients that are not finite

    def add(self, name: str, value: Tensor) -> None:
        self.losses[name] = self.losses.get(name, 0.0) + float(value.detach())

    def not_finite(self) -> list[str]:
        """Terms whose sum is not finite; else the micro-batches whose gradient is not."""
        return [name for name, value in self.losses.items() if not math.isfinite(value)] or self.broken

    def over(self, ranks: Ranks) -> Sums:
        """The sums of all ranks together."""
        own = [self.losses.get(term, 0.0) for term in TERMS] + [float(term in self.losses) for term in TERMS]
        own += [self.total, self.entropy, self.gap, self.clipped, self.rollout_tokens, self.trained_tokens]
        values = iter(ranks.sums(own))
        losses = dict(zip(TERMS, values, strict=False))
        present = dict(zip(TERMS, values, strict=False))
        losses = {term: value for term, value in losses.items() if present[term]}
        total, entropy, gap, clipped, rollout_tokens, trained_tokens = values
        return Sums(losses, total, entropy, gap, clipped, int(rollout_tokens), int(trained_tokens))


def term_sums(
    logprobs_T: Tensor, micro: MicroBatch, coefficients: dict[str, float], stage: StageSpec, *,
    sampler_clip: float, start_logprobs_T: Tensor | None, old_logprobs_T: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Token sums of the terms with a coefficient above 0 that have tokens in this micro-batch.

    `old_logprobs_T` is pi_old; None means one update per batch, where it is the policy itself (rho = 1).
    """
    old_T = logprobs_T.detach() if old_logprobs_T is None else old_logprobs_T
    correction_T = sampler_correction(old_T, micro.sampler_logprobs_T, clip=sampler_clip)
    sums = {}
    present = {term for term, w in coefficients.items() if w > 0 and bool(micro.select(term).any())}
    if "sft" in present:
        sums["sft"] = sft_loss(logprobs_T, micro.weights_T["sft"], weighting=stage.sft_weighting)
    if "off_policy" in present:
        on = micro.weights_T["off_policy"]
        sums["off_policy"] = off_policy_loss(logprobs_T, micro.advantages_T, on, gamma=stage.shaping_gamma)
    # DEVIATION-CANDIDATE: adversarial-gradient: B takes the place of A in GRPO's surrogate (a score-function gradient).
    for term, advantages_T in (("grpo", micro.advantages_T), ("adv", micro.adversarial_T)):
        if term in present:
            on = micro.weights_T[term]
            sums[term] = clipped_surrogate_loss(
                logprobs_T, old_T, advantages_T, torch.where(on > 0, correction_T, 0.0), on,
                clip_low=stage.clip_low, clip_high=stage.clip_high,
            )  # fmt: skip
    if "kl" in present:
        assert start_logprobs_T is not None
        sums["kl"] = kl_loss(logprobs_T, start_logprobs_T, micro.weights_T["kl"])
    return sums


def update(
    policy: Policy, sequences: list[TokenSequence], coefficients: dict[str, float], *, step: int,
    begin: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """One gradient step on the weighted sum over all micro-batches; returns the log's losses and norms.

    Every rank is given all sequences of the step. `begin` is told each micro-batch before it, and may raise: weights
    and optimizer change only after all of them. Raise NotFiniteError where loss or gradient is not finite (the
    optimizer does not step), SharedError where sampler and trainer disagree by more than the ceiling.
    """
    counts = term_counts(sequences, normalization=policy.stage.normalization)
    trained = [s for s in sequences if needs_gradient(s, coefficients)]
    sums = Sums()
    policy.optimizer.zero_grad(set_to_none=False)  # taken anew every step, their memory would break up the heap
    for number, micro in enumerate(policy.split(trained)):
        begin(f"update, micro-batch {number + 1}")
        start_T = None
        if coefficients["kl"] > 0:
            with torch.no_grad():
                start_T = policy.logprobs(micro, policy.start)[0]
        with watched_backward(policy.model) as reached:
            logprobs_T, entropy_T = policy.logprobs(micro)
        parts = term_sums(
            logprobs_T, micro, coefficients, policy.stage,
            sampler_clip=policy.settings.sampler_clip, start_logprobs_T=start_T,
        )  # fmt: skip
        loss = weighted_sum(parts, coefficients, counts)
        if loss is None:
            assert not len(logprobs_T), "a micro-batch without a term"
            loss = logprobs_T.sum()  # of a filler: 0, and its backward answers the other ranks'
        loss.backward()
        sums.total += float(loss.detach())
        for term, value in parts.items():
            sums.add(term, value)
        if not all(math.isfinite(value) for value in reached):
            sums.broken.append(f"gradient of micro-batch {number + 1}, which has {' and '.join(parts)}")
        _measure(sums, policy, micro, logprobs_T.detach(), entropy_T)
    own, sums = sums, sums.over(policy.ranks)
    gap = sums.gap / sums.rollout_tokens if sums.rollout_tokens else None
    if gap is not None and gap > policy.settings.sampler_gap_ceiling:
        raise SharedError(
            f"step {step + 1}: sampler and trainer differ by {gap:.3f} nats a token on average, above "
            f"train.sampler_gap_ceiling = {policy.settings.sampler_gap_ceiling}; "
            f"set sampler.kind to hf, or compute to float32"
        )
    norm = None
    if sequences:
        parameters = [p for p in policy.model.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:  # all sequences were left out: as if kept, so that momentum goes on
                parameter.grad = torch.zeros_like(parameter)
        norm = float(whole(torch.nn.utils.clip_grad_norm_(parameters, policy.settings.max_grad_norm)))
        if not (math.isfinite(norm) and math.isfinite(sums.total)):
            bad = [(rank, places) for rank, places in enumerate(policy.ranks.collect([own.not_finite()])) if places]
            where = "".join(f" (rank {rank}: {', '.join(places)})" for rank, places in bad)
            raise NotFiniteError(
                f"step {step + 1}: loss {sums.total} or gradient norm {norm} is not finite{where}; nothing was updated"
            )
        for group in policy.optimizer.param_groups:
            group["lr"] = learning_rate_at(policy.stage, step)
        policy.optimizer.step()
    tokens = max(1, sums.rollout_tokens)
    measured = bool(sums.rollout_tokens)
    return {
        "loss__total": sums.total,
        **{f"loss__{term}": value / counts[term] for term, value in sums.losses.items()},
        "grad__norm": norm,
        "entropy__mean_nats": sums.entropy / tokens if measured else None,
        "sampler__gap_nats": gap,
        "sampler__clipped_share": sums.clipped / tokens if measured else None,
        "tokens__trained": sums.trained_tokens,
    }


@contextmanager
def watched_backward(model: Any) -> Iterator[list[Tensor]]:
    """Sums of the gradients that reach the embedding in the backward of a forward made inside.

    What goes wrong in a rank's backward shows there, before gradients are summed over ranks.
    """
    reached: list[Tensor] = []

    def look(_module: Any, _inputs: Any, embedded: Tensor) -> None:
        if embedded.requires_grad:
            embedded.register_hook(lambda gradient: reached.append(gradient.detach().sum()))

    handle = model.get_input_embeddings().register_forward_hook(look)
    try:
        yield reached
    finally:
        handle.remove()


def _measure(sums: Sums, policy: Policy, micro: MicroBatch, logprobs_T: Tensor, entropy_T: Tensor) -> None:
    """Add a micro-batch's entropy and sampler gap on rollout tokens."""
    on_T = micro.select("grpo") | micro.select("adv") | micro.select("kl")
    gap_T = (logprobs_T - micro.sampler_logprobs_T)[on_T]
    sums.entropy += float(entropy_T[on_T].sum())
    sums.gap += float(gap_T.abs().sum())
    sums.clipped += float((gap_T.exp() > policy.settings.sampler_clip).sum())
    sums.rollout_tokens += int(on_T.sum())
    sums.trained_tokens += len(logprobs_T)


@torch.no_grad()
def probe(
    policy: Policy, rollouts: list[TokenSequence], demonstrations: list[TokenSequence]
) -> dict[str, float | None]:
    """Measure, without gradient, the KL to the path's first model and the loss on fixed demonstrations, nats."""
    kl_sum, kl_tokens, sft_sum, sft_tokens = 0.0, 0.0, 0.0, 0.0
    marked = [TokenSequence(s.prompt_ids, s.completion_ids, frozenset({"kl"})) for s in rollouts]
    for micro in policy.split(marked):
        logprobs_T, start_T = policy.logprobs(micro)[0], policy.logprobs(micro, policy.start)[0]
        kl_sum += float(kl_loss(logprobs_T, start_T, torch.ones_like(logprobs_T)))
        kl_tokens += len(logprobs_T)
    for micro in policy.split(demonstrations):
        logprobs_T = policy.logprobs(micro)[0]
        sft_sum -= float(logprobs_T.sum())
        sft_tokens += len(logprobs_T)
    kl_sum, kl_tokens, sft_sum, sft_tokens = policy.ranks.sums([kl_sum, kl_tokens, sft_sum, sft_tokens])
    return {
        "kl__start_nats": kl_sum / kl_tokens if kl_tokens else None,
        "probe__sft_nats": sft_sum / sft_tokens if sft_tokens else None,
    }
