"""What each job of a study computes: floating-point operations, bytes that decoding reads, tokens. Arithmetic alone.

Operations are counted as `bench.shapes.update_flops` does, a forward's products: 2 for each weight of the layers and
position, 2 for each weight of the head and predicted token, 4 x layers x width of the queries for each pair of a
position and one that it sees. A backward is twice its forward. Norms, softmax, optimizer, and pairs that a mask hides
but a kernel computes all the same are not counted. Imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from uniapl.config import (
    DataSpec,
    DiscriminatorSpec,
    EditorSpec,
    EvalSpec,
    FeaturesSpec,
    HeadSpec,
    MachineSpec,
    PolarSpec,
    StageSpec,
    TeacherSpec,
    TrainSpec,
    pooled_layer,
)
from uniapl.shapes import Shape, find_polar_shape

PROBED_DEMONSTRATIONS, PROBED_ROLLOUTS = 8, 16  # of train.py, which cannot be imported here; a test compares them
LIKELIHOOD_CHOICES = 4  # a question's answers, A to D, each scored with the whole prompt
DEFAULT_NEW_TOKENS = 256  # of evaluate_lm.py, as above


@dataclass(frozen=True)
class Lengths:
    """Mean lengths and shares that no config states."""

    prompt_tokens: float  # a rendered training prompt
    answer_share: float  # a rollout's tokens, of the cap
    evaluation_share: float  # an evaluated answer's tokens, of the cap
    demonstration_share: float  # a demonstration's tokens, of the cap
    trained_share: float  # rollouts with a gradient where only rewards decide: groups of equal rewards have none


@dataclass(frozen=True)
class Network:
    """What running a decoder takes, in elements; of a mixture of experts, those of one position and all of them."""

    layers: int
    layer_weights: int  # that a position is multiplied with
    read_weights: int  # of the layers, read in a step of decoding that serves many sequences
    head_weights: int  # of the output head
    attention_width: int  # layers x width of the queries
    cache_width: int  # layers x widths of keys and values
    parameters: int  # all, as they lie on the disk

    @classmethod
    def of(cls, shape: Shape, *, layers: int | None = None, head: bool = True) -> Network:
        """A decoder of this shape, whole or its first layers, with or without its output head."""
        used = shape.layers if layers is None else min(layers, shape.layers)
        weights = used * shape.matrices_of_layer
        return cls(
            layers=used,
            layer_weights=weights,
            read_weights=weights,
            head_weights=shape.embedding_parameters if head else 0,
            attention_width=used * shape.queries,
            cache_width=2 * used * shape.keys,
            parameters=shape.parameters,
        )

    def forward_flops(self, *, positions: float, predicted: float, pairs: float) -> float:
        """Operations of a forward; `pairs` are of a position and one that it sees."""
        return 2 * self.layer_weights * positions + 2 * self.head_weights * predicted + self._pairs(pairs)

    def training_flops(self, *, positions: float, predicted: float, pairs: float, recomputed: bool) -> float:
        """Operations of a forward and its backward, with the layers' forward once more where it is recomputed."""
        again = self.forward_flops(positions=positions, predicted=0, pairs=pairs) if recomputed else 0.0
        return 3 * self.forward_flops(positions=positions, predicted=predicted, pairs=pairs) + again

    def _pairs(self, pairs: float) -> float:
        return 4 * self.attention_width * pairs


def mixture(
    *, layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int, expert_width: int, experts: int,
    active_experts: int, vocabulary: int,
) -> Network:  # fmt: skip
    """A decoder whose MLPs are mixtures of experts, with an output head of its own; norms are not counted."""
    attention = 2 * hidden * (heads + kv_heads) * head_dim
    expert, router = 3 * hidden * expert_width, hidden * experts
    every = layers * (attention + router + experts * expert)
    return Network(
        layers=layers,
        layer_weights=layers * (attention + router + active_experts * expert),
        read_weights=every,
        head_weights=vocabulary * hidden,
        attention_width=layers * heads * head_dim,
        cache_width=2 * layers * kv_heads * head_dim,
        parameters=every + 2 * vocabulary * hidden,
    )


# Teachers whose shape shapes.py does not describe, from their config.json.
MIXTURES = {
    "Qwen/Qwen3-235B-A22B-Instruct-2507": mixture(
        layers=94, hidden=4096, heads=64, kv_heads=4, head_dim=128, expert_width=1536, experts=128, active_experts=8,
        vocabulary=151_936,
    ),
}  # fmt: skip


def causal_pairs(before: float, length: float) -> float:
    """Pairs of `length` positions behind `before` others, each with itself and those ahead of it."""
    return length * before + length * (length + 1) / 2


@dataclass(frozen=True)
class Sampling:
    """Answers that are sampled together, `times` over; prompts that several answers share are read once."""

    network: Network
    prompts: float
    answers: float
    prompt_tokens: float
    answer_tokens: float  # mean
    cap: int  # the longest that an answer may be
    times: float = 1.0

    @property
    def tokens(self) -> float:
        """Tokens generated in all."""
        return self.answers * self.answer_tokens * self.times

    @property
    def mean_context(self) -> float:
        """Tokens that a step of decoding finds in the cache of a sequence."""
        return self.prompt_tokens + self.answer_tokens / 2

    def prefill_flops(self, *, prompts: float) -> float:
        """Operations that read so many prompts; of each only the last position's logits are needed."""
        pairs = prompts * causal_pairs(0, self.prompt_tokens)
        return self.network.forward_flops(positions=prompts * self.prompt_tokens, predicted=prompts, pairs=pairs)

    def decode_flops(self, *, answers: float) -> float:
        """Operations that decode so many answers."""
        tokens = answers * self.answer_tokens
        return self.network.forward_flops(positions=tokens, predicted=tokens, pairs=tokens * self.mean_context)

    def decode_steps(self, *, answers: float, at_once: float) -> float:
        """Steps that decode so many answers, `at_once` together, where one of them runs to the cap."""
        return max(self.cap, answers * self.answer_tokens / at_once)

    def decode_bytes(self, *, answers: float, at_once: float, size: int) -> float:
        """Bytes that decoding reads: the weights at every step, and each sequence's keys and values; `size` of one."""
        weights = self.network.read_weights + self.network.head_weights
        cached = answers * self.answer_tokens * self.mean_context * self.network.cache_width
        return size * (self.decode_steps(answers=answers, at_once=at_once) * weights + cached)


@dataclass(frozen=True)
class Step:
    """What one update computes."""

    flops: float
    positions: float  # prompts included
    predicted: float  # completion tokens, `tokens/trained` of the log


@dataclass(frozen=True)
class TrainingWork:
    """What one run computes."""

    update: Step  # of one step
    steps: int
    sampling: Sampling | None
    scoring_flops: float  # of all steps: discriminator, probes, and the model that KL is measured to

    @property
    def flops(self) -> float:
        """Operations of all updates."""
        return self.steps * self.update.flops

    @property
    def tokens_trained(self) -> float:
        """Completion tokens that were trained on."""
        return self.steps * self.update.predicted


def update_step(
    network: Network, stage: StageSpec, machine: MachineSpec, *, max_new_tokens: int, lengths: Lengths
) -> Step:
    """One update of a stage. A schedule's terms count at every step."""
    prompt, answer = lengths.prompt_tokens, lengths.answer_share * max_new_tokens
    shown = lengths.demonstration_share * max_new_tokens
    every = stage.ever(stage.lambda_adv) or stage.w_kl > 0
    groups = stage.prompts_per_step * (1.0 if every else lengths.trained_share) if stage.draws_rollouts else 0.0
    answers = groups * stage.rollouts_per_prompt
    in_row = max(1, int((machine.micro_batch_tokens - prompt) // answer)) if machine.packing else 1
    rows = groups * math.ceil(stage.rollouts_per_prompt / in_row)  # each with the prompt once
    demonstrations = stage.demonstrations_trained
    positions = rows * prompt + answers * answer + demonstrations * (prompt + shown)
    predicted = answers * answer + demonstrations * shown
    pairs = rows * causal_pairs(0, prompt) + answers * causal_pairs(prompt, answer)
    pairs += demonstrations * causal_pairs(0, prompt + shown)
    flops = network.training_flops(
        positions=positions, predicted=predicted, pairs=pairs, recomputed=machine.activation_checkpointing
    )
    return Step(flops, positions, predicted)


def training_work(
    network: Network, judge: Judge, stage: StageSpec, train: TrainSpec, machine: MachineSpec, *, max_new_tokens: int,
    lengths: Lengths,
) -> TrainingWork:  # fmt: skip
    """One run of a stage, its parents not included."""
    cap = max_new_tokens
    update = update_step(network, stage, machine, max_new_tokens=cap, lengths=lengths)
    prompt, answer = lengths.prompt_tokens, lengths.answer_share * cap
    shown = lengths.demonstration_share * cap
    groups = stage.prompts_per_step if stage.draws_rollouts else 0
    probes = len({*range(0, stage.steps, train.probe_every), *([stage.steps - 1] if stage.steps else [])})
    scored = stage.steps if stage.ever(stage.lambda_adv) else probes
    scoring = scored * judge.flops(
        prompts=groups,
        references=1,
        candidates=stage.rollouts_per_prompt,
        prompt=prompt,
        reference=shown,
        answer=answer,
    )
    probed = min(PROBED_ROLLOUTS, groups * stage.rollouts_per_prompt)
    scoring += probes * 2 * sequences_flops(network, number=probed, prompt=prompt, completion=answer)
    scoring += probes * sequences_flops(network, number=PROBED_DEMONSTRATIONS, prompt=prompt, completion=shown)
    if stage.w_kl > 0 and groups:
        answers = groups * stage.rollouts_per_prompt
        scoring += stage.steps * sequences_flops(network, number=answers, prompt=prompt, completion=answer)
    sampling = None
    if groups:
        sampling = Sampling(network, groups, groups * stage.rollouts_per_prompt, prompt, answer, cap, stage.steps)
    return TrainingWork(update, stage.steps, sampling, scoring)


def sequences_flops(network: Network, *, number: float, prompt: float, completion: float) -> float:
    """Operations of a forward over so many sequences, logits of their completions included."""
    whole = prompt + completion
    return network.forward_flops(
        positions=number * whole, predicted=number * completion, pairs=number * causal_pairs(0, whole)
    )


@dataclass(frozen=True)
class Judge:
    """The discriminator's network; POLAR reads a prompt again before each answer, `features` once for all texts."""

    network: Network
    is_polar: bool

    @classmethod
    def of(cls, spec: DiscriminatorSpec, shape: Shape) -> Judge | None:
        """The discriminator of a study: POLAR's shape, None where it is not known; or the base model's first layers."""
        if isinstance(spec, HeadSpec):
            layers = (
                pooled_layer(spec.layer, shape.layers) if isinstance(spec, FeaturesSpec) else 0
            )  # a control reads no model's states
            return cls(Network.of(shape, layers=layers, head=False), False)
        polar = find_polar_shape(spec)
        return None if polar is None else cls(Network.of(polar, head=False), True)

    def flops(
        self, *, prompts: float, references: float, candidates: float, prompt: float, reference: float, answer: float
    ) -> float:
        """Operations that score each prompt's candidates against each of its references; lengths in tokens."""
        if self.is_polar:
            rows, ahead, behind = prompts * references, prompt + reference, [(candidates, prompt + answer)]
        else:
            rows, ahead, behind = prompts, prompt, [(references, reference), (candidates, answer)]
        positions = rows * (ahead + sum(number * length for number, length in behind))
        pairs = causal_pairs(0, ahead) + sum(number * causal_pairs(ahead, length) for number, length in behind)
        return self.network.forward_flops(positions=positions, predicted=0, pairs=rows * pairs)


def drafts_of_prompt(teacher: TeacherSpec) -> int:
    """The base model's drafts of a prompt of the discriminator; the editor mends some for each of two takes."""
    return 2 * teacher.num_samples if isinstance(teacher, EditorSpec) else teacher.num_drafts


def discriminator_flops(
    judge: Judge, spec: DiscriminatorSpec, teacher: TeacherSpec, data: DataSpec, lengths: Lengths
) -> float:
    """Operations of fixing a discriminator: forwards over the texts of its prompts. A head on top costs nothing."""
    shown, drafted = lengths.demonstration_share * data.max_new_tokens, lengths.answer_share * data.max_new_tokens
    drafts, sizes = drafts_of_prompt(teacher), {"prompt": lengths.prompt_tokens, "reference": shown, "answer": drafted}
    tested = judge.flops(
        prompts=data.num_discriminator_test, references=2, candidates=drafts + (1 if judge.is_polar else 0), **sizes
    )
    if isinstance(spec, PolarSpec):
        return tested
    kept = min(spec.num_negatives, drafts)
    return tested + judge.flops(prompts=data.num_discriminator, references=2, candidates=kept, **sizes)


@dataclass(frozen=True)
class Task:
    """A benchmark of lm-eval: how many questions, and the mean tokens of a rendered prompt, examples included."""

    questions: int
    prompt_tokens: float
    subjects: int = 1  # tasks of which lm-eval takes `limit` questions each
    likelihood: bool = False  # scored by the log-likelihood of its choices; else an answer is generated


# Questions as the data sets have them. Tokens were counted with SmolLM2's tokenizer on the questions of the data sets,
# GSM8K's and MMLU's with 5 examples; C-Eval's were not and are taken to be MMLU's.
TASKS = {
    "ifeval": Task(541, 78),
    "gsm8k": Task(1319, 1085),
    "humaneval": Task(164, 170),
    "mmlu": Task(14_042, 745, subjects=57, likelihood=True),
    "ceval-valid": Task(1346, 745, subjects=52, likelihood=True),
}
IFBENCH_PROMPT_TOKENS = 115.0  # counted as above


@dataclass(frozen=True)
class EvaluationWork:
    """What evaluating one model computes."""

    samplings: tuple[Sampling, ...]
    scoring_flops: float
    left_out: tuple[str, ...]  # tasks whose size is not known


def evaluation_work(
    network: Network, spec: EvalSpec, data: DataSpec, *, is_base: bool, lengths: Lengths
) -> EvaluationWork:
    """All tasks on one model: answers, likelihoods, and the log-probs of held-out answers and demonstrations."""
    samplings, scoring, left_out = [], 0.0, []

    def answered(questions: int, prompt: float, cap: int) -> None:
        samplings.append(Sampling(network, questions, questions, prompt, lengths.evaluation_share * cap, cap))

    own = {
        "development": (data.num_development, lengths.prompt_tokens, data.max_new_tokens),
        "heldout": (data.num_heldout, lengths.prompt_tokens, data.max_new_tokens),
        "ifbench": (data.num_ifbench, IFBENCH_PROMPT_TOKENS, spec.ifbench_max_new_tokens),
    }
    for name in spec.tasks:
        if name in own:
            questions, prompt, cap = own[name]
            questions = min(questions, spec.limit or questions)
            answered(questions, prompt, cap)
            if name != "ifbench":  # answers under the base model, and the expert's under this one
                again = () if is_base else (lengths.evaluation_share * cap,)
                shown = (lengths.demonstration_share * cap,) if name == "heldout" else ()
                for completion in (*again, *shown):
                    scoring += sequences_flops(network, number=questions, prompt=prompt, completion=completion)
        elif name in TASKS:
            task = TASKS[name]
            questions = min(task.questions, (spec.limit or task.questions) * task.subjects)
            if task.likelihood:
                number = LIKELIHOOD_CHOICES * questions
                scoring += sequences_flops(network, number=number, prompt=task.prompt_tokens, completion=1)
            else:
                benchmark = spec.benchmarks.get(name)
                cap = (benchmark.max_new_tokens if benchmark else None) or DEFAULT_NEW_TOKENS
                answered(questions, task.prompt_tokens, cap)
        else:
            left_out.append(name)
    return EvaluationWork(tuple(samplings), scoring, tuple(left_out))


def total_tokens(samplings: Sequence[Sampling]) -> float:
    """Tokens generated by all of them."""
    return sum(sampling.tokens for sampling in samplings)
