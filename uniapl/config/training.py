"""Rollout engine, stages, what all stages share, and how a machine executes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from uniapl.config.base import KEPT_LOGITS_BYTES, LOGITS_BYTES, Count, Positive, Spec, later


class SamplerSpec(Spec):
    """The rollout engine."""

    kind: Literal["auto", "vllm", "hf", "server"] = Field(
        "auto",
        description="auto: vLLM where it runs, else transformers, or what sampled the released runs that are taken; "
        "server: those of machine.servers.",
    )
    kv_cache_gib: float = Field(1.0, gt=0, description="vLLM's KV cache on CPU, GiB.")
    max_sequences: Positive = Field(64, description="Sequences decoded together.")
    max_model_tokens: Positive = Field(1024, description="Longest prompt plus answer.")


class ScheduleSpec(Spec):
    """CHORD's schedule (arXiv 2508.11408): linear warm-up from 0 to peak, cosine decay to valley."""

    peak: float = Field(ge=0)
    valley: float = Field(ge=0)
    warmup_steps: Count = 0
    decay_steps: Count = 0


Coefficient = Annotated[float, Field(ge=0)] | ScheduleSpec


class StageSpec(Spec):
    """One stage: coefficients in the paper's words, what a step draws, and for how long. Sizes are global."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str
    steps: Count = Field(description="Gradient steps; not stated.")
    mu: Coefficient = Field(description="w_sft = mu, w_grpo = 1 - mu (CHORD, arXiv 2508.11408); values not stated.")
    lambda_adv: Coefficient = Field(0.0, description="Weight of the adversarial term; values not stated.")
    w_kl: float = Field(0.0, ge=0, description="Weight of the KL penalty to the path's first model; not stated, off.")
    prompts_per_step: Positive = Field(8, description="P; not stated.")
    rollouts_per_prompt: int = Field(8, ge=2, description="K; not stated; 8 as TRL and CHORD.")
    demonstrations_per_step: Positive = Field(
        16, description="Those of the step's own prompts first, then others; not stated, 20% of the batch in CHORD's."
    )
    learning_rate: float = Field(
        gt=0, description="AdamW; not stated; ours, one for all methods with L_grpo, one for SFT."
    )
    warmup_steps: Count = Field(2, description="Linear warm-up of the learning rate; ours.")
    data_seed: int | None = later(None, description="Of the order of prompts and demonstrations; the run's, if none.")
    sft_weighting: Literal["none", "phi", "dft"] = Field(
        "none", description="phi: CHORD-phi's p(1-p); dft: DFT's p; both detached."
    )
    expert_in_groups: bool = later(
        False, description="The expert's answer joins its prompt's group, with a reward and the term L_off (LUFFY)."
    )
    shaping_gamma: float = later(0.1, gt=0, description="gamma in L_off's p / (p + gamma); LUFFY's.")
    normalization: Literal["dapo", "grpo", "dr_grpo"] = Field(
        "dapo", description="TRL's loss_type; dapo is its default."
    )
    scale_rewards: Literal["group", "none"] = Field("group", description="Divide A by the group's std; TRL's default.")
    clip_low: float = Field(0.2, gt=0, lt=1, description="epsilon_low; not stated; TRL's default.")
    clip_high: float = Field(0.2, gt=0, description="epsilon_high; not stated; TRL's default.")
    adversarial_as: Literal["loss", "reward", "both"] = Field(
        "loss", description="A separate loss (paper), inside the reward (C7), or both with the same weight."
    )
    adversarial_scale: Literal["none", "group"] = Field("none", description="Divide B by the group's std; off is ours.")

    @model_validator(mode="before")
    @classmethod
    def _shares(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A schedule's `decay_share` of the stage's steps, in steps."""
        resolved = dict(values)
        for key in ("mu", "lambda_adv"):
            schedule = resolved.get(key)
            if isinstance(schedule, dict) and "decay_share" in schedule:
                rest = {name: value for name, value in schedule.items() if name != "decay_share"}
                resolved[key] = rest | {"decay_steps": round(schedule["decay_share"] * resolved.get("steps", 0))}
        return resolved

    @model_validator(mode="after")
    def _possible(self) -> StageSpec:
        largest = max(self.mu.peak, self.mu.valley) if isinstance(self.mu, ScheduleSpec) else self.mu
        if largest > 1:
            raise ValueError(f"mu = {largest} is above 1, so that w_grpo = 1 - mu would be negative")
        if not self.ever(self.mu) and not self.draws_rollouts:
            raise ValueError("mu and lambda_adv are 0 and w_grpo never above 0: nothing would be trained")
        if self.adversarial_as != "loss" and self.always_one:
            raise ValueError(
                f"adversarial_as: {self.adversarial_as} needs mu below 1, since the reward only enters L_grpo"
            )
        if self.expert_in_groups and self.adversarial_as != "loss":
            raise ValueError(
                f"adversarial_as: {self.adversarial_as} with expert_in_groups: the expert's answer has no score "
                f"against itself; use adversarial_as: loss"
            )
        return self

    @staticmethod
    def ever(coefficient: Coefficient) -> bool:
        """True where the coefficient is above 0 at some step."""
        if isinstance(coefficient, ScheduleSpec):
            return max(coefficient.peak, coefficient.valley) > 0
        return coefficient > 0

    @property
    def always_one(self) -> bool:
        """mu is 1 for the whole stage, so L_grpo is absent."""
        if isinstance(self.mu, ScheduleSpec):
            return self.mu.peak == self.mu.valley == 1 and self.mu.warmup_steps == 0
        return self.mu == 1

    @property
    def draws_rollouts(self) -> bool:
        """A step samples answers: for L_grpo, or for L_adv alone (A-SFT)."""
        return not self.always_one or self.ever(self.lambda_adv)

    @property
    def demonstrations_trained(self) -> int:
        """Demonstrations that a step trains on at most: those of L_sft, and those in its groups."""
        return self.ever(self.mu) * self.demonstrations_per_step + self.expert_in_groups * self.prompts_per_step


class TrainSpec(Spec):
    """What all stages of a study share."""

    temperature: float = Field(
        1.0, gt=0, description="Of rollouts; not stated; 1, so that both sides score one policy."
    )
    sampler_clip: float = Field(2.0, gt=0, description="C in c = min(pi_old / pi_sampler, C); our choice.")
    sampler_gap_ceiling: float = Field(
        0.5, gt=0, description="Mean |log pi_old - log pi_sampler| that stops a run, nats."
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Global norm; not stated.")
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, description="Not stated; off.")
    checkpoint_every: Positive = Field(10, description="Steps between checkpoints.")
    probe_every: Positive = Field(5, description="Steps between measurements of terms that the stage does not draw.")


class MachineSpec(Spec):
    """How this machine executes a run: speed, memory and patience. In no run's hash, since results stay the same."""

    ranks: Positive = Field(1, description="Processes that train one run together; one GPU each where there are GPUs.")
    nodes: Positive = Field(
        1, description="Machines that these processes are spread over, in equal parts; needs SLURM."
    )
    cpus_per_rank: Positive = Field(8, description="Cores of each process where jobs are submitted to a cluster.")
    gpus_per_rank: int = Field(0, ge=0, le=1, description="GPUs of each process where jobs are submitted to a cluster.")
    micro_batch_tokens: Positive = Field(4096, description="Tokens of a micro-batch, prompts included; speed only.")
    packing: bool = Field(True, description="Run a prompt once for all its answers, in one row; speed only.")
    activation_checkpointing: bool = Field(
        False, description="Compute the layers' activations again in the backward: less memory, about a third slower."
    )
    compile: bool = Field(False, description="torch.compile of each decoder layer; needs a C++ compiler on CPU.")
    logits_bytes: Positive = Field(
        LOGITS_BYTES, description="Float32 logits that exist at once, a block of the vocabulary; peak about twice that."
    )
    kept_logits_bytes: Count = Field(
        KEPT_LOGITS_BYTES,
        description="Logits of a micro-batch, in compute's type, up to which they are kept and not computed again.",
    )  # fmt: skip
    checkpoints_kept: Positive = Field(1, description="Complete checkpoints of a run that stay while it trains.")
    hang_seconds: float = Field(
        1800.0, gt=0, description="A rank that keeps the others waiting for longer ends the run."
    )
    tensor_parallel: Positive = Field(
        1, description="Consecutive ranks of a run that share one vLLM (sampler.kind vllm)."
    )
    servers: tuple[Annotated[str, Field(pattern=r"^https?://[^/]+/?$")], ...] = Field(
        (), description="URLs of vLLM servers that share the prompts (sampler.kind server); docs/training.md."
    )

    discriminator_engine: Literal["transformers", "vllm", "servers"] = Field(
        "transformers", description="What runs POLAR (discriminator.kind polar); docs/discriminator.md."
    )
    discriminator_servers: tuple[Annotated[str, Field(pattern=r"^https?://[^/@]+/(pooling|classify)$")], ...] = Field(
        (), description="Endpoints that share POLAR's texts: vLLM's /pooling or SGLang's /classify (engine servers)."
    )

    log_to: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="Where a run's metrics go beside its metrics.jsonl; docs/training.md."
    )

    @model_validator(mode="after")
    def _served(self) -> MachineSpec:
        if (self.discriminator_engine == "servers") != bool(self.discriminator_servers):
            raise ValueError(
                f"discriminator_engine = {self.discriminator_engine} with "
                f"{len(self.discriminator_servers)} discriminator_servers; give URLs with engine servers, and only then"
            )
        return self

    @model_validator(mode="after")
    def _divisible(self) -> MachineSpec:
        if self.ranks % self.nodes:
            raise ValueError(f"ranks = {self.ranks} cannot be spread evenly over nodes = {self.nodes}")
        if self.ranks_per_node % self.tensor_parallel:
            raise ValueError(
                f"the {self.ranks_per_node} ranks of a node cannot be cut into groups of tensor_parallel = "
                f"{self.tensor_parallel}; make ranks / nodes a multiple of it"
            )
        return self

    @property
    def ranks_per_node(self) -> int:
        """Processes of a run on each machine."""
        return self.ranks // self.nodes
