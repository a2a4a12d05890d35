"""All that a study can vary, as pydantic models; `layers.py` resolves the YAML files to them.

Layers, later ones win: `config/default.yaml`, `config/<scale>.yaml`, the command line's `--config`. A stage
is one file in `config/methods/`; a method is a path of stages written with dots (`sft.grpo`). Every field says
its unit and source; "not stated" means that neither the paper's abstracts nor its reviews give the value.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
LOGITS_BYTES = 128 * 2**20  # keeps a GPU busy; 4,096 words for 8,192 tokens


class ConfigError(ValueError):
    """A user's mistake in a config file: one line that names file, key, value and remedy."""


class Spec(BaseModel):
    """Base of every config section: unknown keys are errors, values are never changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSpec(Spec):
    """One student model; a file in config/models/."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="Name in directories and tables.")
    title: str = Field(description="Name in figures and reports.")
    source: Literal["package_gguf", "random", "path", "hub"] = Field(description="Where the weights come from.")
    package: str | None = Field(None, description="Python package that ships the GGUF file (source: package_gguf).")
    file: str | None = Field(None, description="File inside that package (source: package_gguf).")
    location: str | None = Field(None, description="Folder or hub id (sources path and hub).")
    revision: str | None = Field(None, description="Pinned commit on the hub (source: hub).")
    architecture: dict[str, Any] = Field({}, description="Fields of the model's transformers config (source: random).")
    seed: int = Field(0, description="Seed of random weights (source: random).")

    @model_validator(mode="after")
    def _complete(self) -> ModelSpec:
        needed = {"package_gguf": ("package", "file"), "random": ("architecture", "package", "file")}
        needed |= {"path": ("location",), "hub": ("location", "revision")}
        for key in needed[self.source]:
            if not getattr(self, key):
                raise ValueError(f"source {self.source} needs '{key}'")
        return self


class DataSpec(Spec):
    """The prompt sets. Reward is binary, one verification function per instruction (reviews)."""

    seed: int = Field(0, description="Seed of the prompt generator.")
    max_new_tokens: Positive = Field(description="Cap on an answer, shared by teacher, training and evaluation; ours.")
    kinds: Literal["study", "coin_flip"] = Field(
        "study", description="Constraint kinds: the study's, or those random text meets about half the time (smoke)."
    )
    num_train: Positive = Field(description="Training prompts generated.")
    num_development: Positive = Field(description="Development prompts: the only ones that choices are made on.")
    num_heldout: Positive = Field(
        description="Held-out prompts, half of them with constraint kinds unseen in training."
    )
    num_ifbench: Count = Field(294, description="IFBench prompts from the package, the first n (transfer test).")
    max_constraints: int = Field(3, ge=1, le=3, description="Most constraints a prompt carries.")
    num_policy: Positive = Field(description="Training prompts that get a demonstration and train the policies.")
    num_discriminator: Positive = Field(description="Training prompts that only train the discriminator's head.")
    num_discriminator_test: Positive = Field(description="Training prompts that only measure the discriminator's AUC.")

    @model_validator(mode="after")
    def _enough(self) -> DataSpec:
        used = self.num_policy + self.num_discriminator + self.num_discriminator_test
        if used > self.num_train:
            raise ValueError(
                f"num_policy + num_discriminator + num_discriminator_test = {used} "
                f"is more than num_train = {self.num_train}"
            )
        return self


class TeacherSpec(Spec):
    """The expert. Paper: Qwen3-235B-A22B-Instruct-2507; at laptop scale an editor over best-of-n samples."""

    name: str = Field("editor", description="Name of the file in config/teachers/.")
    kind: Literal["editor"] = Field("editor", description="editor: best of n samples, edited until the verifiers pass.")
    drafts: Literal["model", "canned"] = Field(
        "model", description="Drafts are the base model's samples or canned text."
    )
    num_samples: Positive = Field(4, description="Drafts per demonstration; our choice.")
    temperature: float = Field(1.0, gt=0, description="Temperature of the drafts; our choice.")
    seed: int = Field(0, description="Seed of the drafts.")


class FeaturesSpec(Spec):
    """The fixed discriminator at laptop scale: a small head over the frozen base model's states."""

    kind: Literal["features"] = Field("features", description="features: pooled hidden states and a small head.")
    layer: Positive = Field(description="Hidden layer whose states are pooled (counted from 1); ours.")
    num_components: Positive = Field(
        64, description="Principal components of the pooled states that the head reads; ours."
    )
    width: Positive = Field(64, description="Width of the head's hidden layer; ours.")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW on the head; ours.")
    weight_decay: float = Field(0.1, ge=0, description="AdamW on the head; ours.")
    epochs: Positive = Field(60, description="Passes over the head's training pairs; ours.")
    num_negatives: Positive = Field(3, description="Base samples of the same prompt per pair; ours.")
    micro_batch_tokens: Positive = Field(4096, description="Tokens per forward of the frozen model; speed only.")
    seed: int = Field(0, description="Seed of the head.")


class PolarSpec(Spec):
    """The fixed discriminator of the paper: POLAR, as published; how the paper modified it is not stated."""

    kind: Literal["polar"] = Field("polar", description="polar: InternLM/POLAR; scores are unbounded logits.")
    source: Literal["path", "hub"] = Field("hub", description="Where the checkpoint is; hub: its local cache.")
    location: str = Field(min_length=1, description="Folder or hub id.")
    revision: str | None = Field(None, description="Pinned commit on the hub (source: hub).")
    dtype: Literal["float16", "bfloat16", "float32"] = Field(
        "float16", description="Type of the decoder; float16 as in POLAR-7B's config.json; the head is float32."
    )
    max_length: Positive = Field(16384, description="Most tokens of a scored text; POLAR's own client.")
    max_response_length: Positive = Field(
        4096, description="Most tokens of the reference, and of the candidate; their heads are kept, as in POLAR."
    )
    micro_batch_tokens: Positive = Field(16384, description="Tokens per forward, or of a request; speed only.")
    seed: int = Field(0, description="Seed of the AUC's bootstrap.")

    @model_validator(mode="after")
    def _complete(self) -> PolarSpec:
        if self.source == "hub" and not self.revision:
            raise ValueError("source hub needs 'revision'")
        return self


DiscriminatorSpec = FeaturesSpec | PolarSpec
DISCRIMINATOR_KINDS: dict[str, type[FeaturesSpec] | type[PolarSpec]] = {"features": FeaturesSpec, "polar": PolarSpec}


def read_discriminator(values: dict[str, Any]) -> DiscriminatorSpec:
    """A discriminator out of a config.json."""
    return DISCRIMINATOR_KINDS[values.get("kind", "features")].model_validate(values)


class SamplerSpec(Spec):
    """The rollout engine."""

    kind: Literal["auto", "vllm", "hf", "server"] = Field(
        "auto", description="auto: vLLM where it runs, else transformers; server: those of machine.servers."
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
    sft_weighting: Literal["none", "phi"] = Field("none", description="phi: CHORD-phi's p(1-p), detached.")
    normalization: Literal["dapo", "grpo", "dr_grpo"] = Field(
        "dapo", description="TRL's loss_type; dapo is its default."
    )
    scale_rewards: Literal["group", "none"] = Field("group", description="Divide A by the group's std; TRL's default.")
    clip_low: float = Field(0.2, gt=0, lt=1, description="epsilon_low; not stated; TRL's default.")
    clip_high: float = Field(0.2, gt=0, description="epsilon_high; not stated; TRL's default.")
    adversarial_as: Literal["loss", "reward"] = Field(
        "loss", description="A separate loss (paper) or inside the reward (C7)."
    )
    adversarial_scale: Literal["none", "group"] = Field("none", description="Divide B by the group's std; off is ours.")

    @model_validator(mode="after")
    def _possible(self) -> StageSpec:
        largest = max(self.mu.peak, self.mu.valley) if isinstance(self.mu, ScheduleSpec) else self.mu
        if largest > 1:
            raise ValueError(f"mu = {largest} is above 1, so that w_grpo = 1 - mu would be negative")
        if not self.ever(self.mu) and not self.draws_rollouts:
            raise ValueError("mu and lambda_adv are 0 and w_grpo never above 0: nothing would be trained")
        if self.adversarial_as == "reward" and self.always_one:
            raise ValueError("adversarial_as: reward needs mu below 1, since the reward only enters L_grpo")
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
    def draws_demonstrations(self) -> bool:
        """A step trains on demonstrations."""
        return self.ever(self.mu)


class TrainSpec(Spec):
    """What all stages of a study share."""

    temperature: float = Field(
        1.0, gt=0, description="Of rollouts; not stated; 1, so that both sides score one policy."
    )
    sampler_clip: float = Field(2.0, gt=0, description="C in c = min(pi_old / pi_sampler, C); our choice.")
    sampler_gap_ceiling: float = Field(
        0.5, gt=0, description="Mean |log pi_old - log pi_sampler| that stops a run, nats."
    )
    micro_batch_tokens: Positive = Field(description="Tokens of a micro-batch, prompts included; speed only.")
    packing: bool = Field(True, description="Run a prompt once for all its answers, in one row; speed only.")
    max_grad_norm: float = Field(1.0, gt=0, description="Global norm; not stated.")
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, description="Not stated; off.")
    checkpoint_every: Positive = Field(10, description="Steps between checkpoints.")
    probe_every: Positive = Field(5, description="Steps between measurements of terms that the stage does not draw.")


class MachineSpec(Spec):
    """How this machine executes a run: speed, memory and patience. In no run's hash, since results stay the same."""

    ranks: Positive = Field(1, description="Processes that train one run together; one GPU each where there are GPUs.")
    activation_checkpointing: bool = Field(
        False, description="Compute the layers' activations again in the backward: less memory, about a third slower."
    )
    compile: bool = Field(False, description="torch.compile of each decoder layer; needs a C++ compiler on CPU.")
    logits_bytes: Positive = Field(
        LOGITS_BYTES, description="Float32 logits that exist at once, a block of the vocabulary; peak about twice that."
    )
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
        if self.ranks % self.tensor_parallel:
            raise ValueError(
                f"ranks = {self.ranks} cannot be cut into groups of tensor_parallel = {self.tensor_parallel}; "
                f"make ranks a multiple of it"
            )
        return self


class EvalSpec(Spec):
    """Evaluation through lm-eval, greedy. `development` is for choices; the others are held out."""

    tasks: tuple[str, ...] = Field(
        ("heldout", "ifbench"), description="Tasks of uniapl/tasks or any lm-eval task name."
    )
    ifbench_max_new_tokens: int = Field(128, gt=0, le=256, description="IFBench's own cap.")


class ClaimSpec(Spec):
    """Tolerances of the claim table, fixed before the run. Points are percentage points of prompt-strict accuracy."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    kept_margin_points: float = Field(
        2.0, ge=0, description="C9: a loss up to this counts as kept (lower end of interval)."
    )
    distance_margin: float = Field(
        0.0, ge=0, description="C5, C6: least reduction of Wasserstein distance that counts."
    )
    degrade_points: float = Field(2.0, ge=0, description="C8: least loss that counts as degradation.")
    num_resamples: Positive = Field(9999, description="Bootstrap and permutation draws.")
    seed: int = 0


class Study(Spec):
    """One scale, resolved: everything that `snakemake --cores all` will do."""

    scale: Literal["smoke", "laptop", "paper"]
    models: tuple[ModelSpec, ...] = Field(min_length=1)
    methods: tuple[str, ...] = Field(min_length=1, description="Paths of stages, written with dots.")
    ablations: tuple[str, ...] = Field((), description="Files of config/ablations run by the target `ablations`.")
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    stages: dict[str, StageSpec] = Field(description="By name; steps and sizes may be set by the scale.")
    paths: dict[str, dict[str, Any]] = Field({}, description="Overrides of the last stage of one path.")
    data: DataSpec
    teacher: TeacherSpec
    discriminator: DiscriminatorSpec = Field(discriminator="kind")
    sampler: SamplerSpec
    compute: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="Type of matrix products (weights stay float32); auto: bfloat16 where it is faster."
    )
    train: TrainSpec
    evaluation: EvalSpec
    machine: MachineSpec = MachineSpec()
    claims: ClaimSpec
    cost: str = Field(description="One line: minutes, disk and memory of the whole scale, measured.")
