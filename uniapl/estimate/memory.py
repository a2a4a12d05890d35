"""How much memory one rank of a training run needs, as arithmetic: what `uniapl estimate` prints and snakemake asks.

Bytes of tensors, counted from the code that allocates them (`train.open_policy`, `update.update`, `logprobs`, the
samplers, the discriminator); docs/memory.md holds them against measured ones. An update has four moments at which
memory can be highest, and the highest of them counts. Not counted: the host's memory beside a GPU, work spaces of
libraries, and what an allocator keeps beyond the tensors. Imports nothing heavy: the Snakefile asks at every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from uniapl.config import (
    ConfigError,
    ControlSpec,
    DataSpec,
    DiscriminatorSpec,
    FeaturesSpec,
    MachineSpec,
    ModelSpec,
    PolarSpec,
    SamplerSpec,
    StageSpec,
    Study,
    pooled_layer,
)
from uniapl.estimate.batches import PROMPT_TOKENS, Attended, Batch, largest_batch, polar_batch
from uniapl.plan import Plan
from uniapl.shapes import Shape, find_polar_shape, find_shape, words_at_once

FLOAT32 = 4
BYTES = {"float32": FLOAT32, "bfloat16": 2, "float16": 2}
VLLM_GPU_SHARE = 0.35  # GPU_MEMORY_SHARE of sampler_vllm.py, which cannot be imported here; a test compares them
PRODUCTS_BYTES = 32 * 2**20  # of attention.py, as above
GPU_RESERVE = 2**30  # assumed, not measured: CUDA's context, NCCL's buffers and work spaces of libraries
REENCODED_TOKENS = 64  # of POLAR's text beyond max_length: what was cut is read again, in a few tokens more
HOST_SHARE = 0.95  # of the machine's memory, where there is no GPU
# Where trainings run side by side: of the machine's memory, what is left to the system and its user; and the resident
# memory of a training beyond its tensors (Python, libraries, what the allocator keeps), 1.2 to 1.6 GiB at laptop scale.
SIDE_BY_SIDE_SHARE, LIBRARIES = 0.85, int(1.5 * 2**30)
# Of a micro-batch. A token: ids, positions, places, targets, slots or mask (int64), weights and advantages. A slot of a
# packed one: its position, and whether it is used.
TOKEN_BYTES, SLOT_BYTES = 5 * 8 + 7 * FLOAT32, 8 + 1


@dataclass(frozen=True)
class Moment:
    """What an update holds at one moment, beside weights, gradients, optimizer and reference; bytes."""

    name: str
    copies: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.copies + self.activations + self.logits


@dataclass(frozen=True)
class SamplerMemory:
    """What the rollout engine needs on this rank; bytes."""

    weights: int = 0
    kv_cache: int = 0
    asleep: int = 0  # what stays while the policy is updated
    least_gpu: int = 0  # the GPU whose share would hold the weights and one sequence


@dataclass(frozen=True)
class DiscriminatorMemory:
    """What the discriminator needs on this rank; bytes."""

    weights: int = 0  # and vLLM's keys and values; there all the time
    scoring: int = 0  # of its largest micro-batch, while it scores; only POLAR's is counted


@dataclass(frozen=True)
class Memory:
    """Bytes that one rank needs, by part."""

    weights: int  # float32, this rank's shard
    gradients: int  # float32, kept from step to step
    optimizer: int  # AdamW's two moments
    reference: int  # the path's first model in the compute type, frozen
    copies: int  # weights cast to the compute type, or gathered from the other ranks
    activations: int  # of one micro-batch, with the masks of all
    logits: int  # blocks of logits, and the gradients of head and embedding
    sampler: SamplerMemory
    discriminator: DiscriminatorMemory

    @property
    def update(self) -> int:
        """While the policy is updated, without sampler and discriminator: what the tests measure."""
        return self.weights + self.gradients + self.optimizer + self.reference + self._step

    @property
    def total(self) -> int:
        """The most at any time: while answers are sampled, while they are scored, or while the policy is updated."""
        resident = self.update - self._step + self.discriminator.weights
        sampling = self.sampler.weights + self.sampler.kv_cache
        return resident + max(max(self._step, self.discriminator.scoring) + self.sampler.asleep, sampling)

    @property
    def _step(self) -> int:
        return self.copies + self.activations + self.logits

    @property
    def needed(self) -> int:
        """What a device must have: the total, and on a GPU enough for the sampler's share of it."""
        return max(self.total, self.sampler.least_gpu)


def laid_out_bytes(batch: Batch) -> int:
    """Bytes of a laid out micro-batch; packed, most of them are its masks."""
    packed = batch.pairs + batch.slots * SLOT_BYTES + batch.answers * batch.prompts * FLOAT32 if batch.prompts else 0
    return batch.positions * TOKEN_BYTES + packed


def by_products(shape: Shape, call: Attended, batch: Batch, *, on_gpu: bool) -> bool:
    """True where scores are products that are kept whole; else a fused kernel computes them by blocks."""
    return bool(batch.prompts) and not on_gpu and FLOAT32 * shape.heads * call.pairs <= PRODUCTS_BYTES


def saved_by_attention(shape: Shape, batch: Batch, *, compute: int, on_gpu: bool) -> int:
    """Bytes that autograd saves between the queries, keys and values of a layer and its attention's output.

    Of products: queries, keys and values in the order of the calls, and the shares, as float32 and as they are
    multiplied. Of a fused kernel: queries, keys and values repeated for every head, output, log-sum-exp by head, and
    the mask as numbers to add.
    """
    saved = batch.positions * shape.queries * compute  # the output
    fused = False
    for call in batch.attended:
        keys, queries = call.n * call.k, call.n * call.q
        if by_products(shape, call, batch, on_gpu=on_gpu):
            if call.n == 1 and call.q == call.k:  # a single prompt's are not copied: what holds all slots' is kept
                keys = batch.slots
            saved += (queries * shape.queries + 2 * keys * shape.keys) * compute
            saved += shape.heads * call.pairs * (FLOAT32 if compute == FLOAT32 else FLOAT32 + compute)
        else:
            saved += 2 * keys * shape.queries * compute + queries * shape.heads * FLOAT32 + call.pairs * compute
            saved += queries * shape.queries * compute if batch.prompts else 0  # the output in the order of the calls
            fused = True
    if fused:
        saved += batch.slots * shape.queries * compute
    if compute < FLOAT32:  # which prompt is each answer's, as numbers; for the keys and for the values
        saved += 2 * batch.answers * batch.prompts * compute
    return saved


def saved_by_layer(shape: Shape, batch: Batch, *, compute: int, on_gpu: bool) -> int:
    """Bytes that autograd saves of one decoder layer; `compute` is an element's size in the matrix products.

    The residual stream is float32. Where the products are not, what q, k and v read is cast once, and so is what gate
    and up read.
    """
    # What each norm normalises; where it is not fused, as on a GPU, also the result before its weight.
    norms = 2 * shape.hidden * FLOAT32 * (1 if on_gpu else 2)
    statistics = 2 * FLOAT32  # a norm's 1/rms
    if shape.head_norms:
        norms += (shape.queries + shape.keys) * (FLOAT32 + (0 if on_gpu else compute))
        statistics += FLOAT32 * (shape.heads + shape.kv_heads)
    mlp = 4 * shape.intermediate * compute  # gate, silu(gate), up, their product
    by_position = norms + statistics + 2 * shape.hidden * compute + mlp
    return batch.positions * by_position + saved_by_attention(shape, batch, compute=compute, on_gpu=on_gpu)


def logits_buffers(
    shape: Shape, *, predicted: int, logits_bytes: int, kept_logits_bytes: int, compute: int, on_gpu: bool
) -> tuple[int, int]:
    """Bytes that logits take at once, in forward and backward: the blocks, and what is kept of all of them."""
    words = words_at_once(shape.vocabulary, tokens=predicted, logits_bytes=logits_bytes, on_gpu=on_gpu)
    last = (shape.vocabulary - 1) % words + 1
    by_word = predicted * compute
    if shape.vocabulary * by_word > kept_logits_bytes:
        by_word = 0
    kept = shape.vocabulary * by_word
    block, casts = FLOAT32 * words * predicted, 0
    if compute < FLOAT32:  # the block of the head, and its gradient before it is written as float32
        casts = 2 * words * shape.hidden * compute
    # Logits and their exponentials, of the last block or of the one before it.
    forward = max(kept + 2 * FLOAT32 * last * predicted, kept - last * by_word + 2 * block)
    backward = kept + block + (words * predicted * compute if compute < FLOAT32 else 0)  # their gradient, and its cast
    return forward + casts, backward + casts


def moments(
    shape: Shape, batch: Batch, *, compute: str, ranks: int, activation_checkpointing: bool, logits_bytes: int,
    kept_logits_bytes: int, on_gpu: bool,
) -> tuple[Moment, ...]:  # fmt: skip
    """The moments of an update at which its memory can be highest."""
    size, tokens = BYTES[compute], batch.positions
    by_layer = saved_by_layer(shape, batch, compute=size, on_gpu=on_gpu)
    states = tokens * shape.hidden * FLOAT32  # a layer's input or output, or its gradient
    rotary = 2 * tokens * shape.head_dim * FLOAT32  # cos and sin, shared by the layers
    final = states if on_gpu else 2 * states  # the last norm's input, and the result before its weight
    picked = batch.predicted * shape.hidden  # elements of the hidden states that predict
    laid_out = batch.number * laid_out_bytes(batch)
    by_layers = shape.layers * (states if activation_checkpointing else by_layer)
    kept = by_layers + rotary + final + picked * size + laid_out
    again = by_layer if activation_checkpointing else 0  # one layer's activations, computed again in its backward
    # The first steps of a layer's backward: gradients of the product, of silu and of up; or the first of them and a
    # weight's gradient, in the compute type and in float32.
    weight = shape.hidden * shape.intermediate * (FLOAT32 if size == FLOAT32 else FLOAT32 + size)
    product = tokens * shape.intermediate * size
    backward = max(2 * product, product + weight) + 2 * states

    head = FLOAT32 * shape.embedding_parameters
    # The head's gradient waits for the embedding's, to be added to it or, by FSDP2, to be summed over the ranks.
    waiting = head if shape.tied or ranks > 1 else 0
    forward_blocks, backward_blocks = logits_buffers(
        shape, predicted=batch.predicted, logits_bytes=logits_bytes, kept_logits_bytes=kept_logits_bytes, compute=size,
        on_gpu=on_gpu,
    )  # fmt: skip
    if ranks == 1:
        casts = size * shape.layers * shape.matrices_of_layer if size < FLOAT32 else 0
        in_forward, at_end = casts, 0
        # Autocast keeps all casts to its end; with checkpointing a layer makes its own again in its backward.
        in_backward = casts // shape.layers if activation_checkpointing else casts
        in_layer = in_backward
    else:
        root, layer = FLOAT32 * shape.root_parameters, size * shape.layer_parameters
        in_forward = in_backward = root + 2 * layer  # this layer, and the next that is fetched meanwhile
        in_layer = in_backward + layer + FLOAT32 * shape.layer_parameters  # its whole gradient, and that in float32
        at_end = root if shape.tied else 2 * root  # and what is sent to the other ranks

    return (
        Moment("logits", in_forward, kept + states + picked * FLOAT32, forward_blocks),
        Moment("gradient of the logits", in_backward, kept + picked * (FLOAT32 + size), backward_blocks + head),
        Moment("backward of the last layer", in_layer, kept + again + backward, waiting),
        Moment("gradient of the embedding", at_end, laid_out + states, waiting + head),
    )


def sampler_memory(
    shape: Shape, spec: SamplerSpec, data: DataSpec, *, kind: str, compute: str, gpu_bytes: int | None,
    tensor_parallel: int,
) -> SamplerMemory:  # fmt: skip
    """What the engine needs on a rank; `gpu_bytes` is the memory of the GPU it runs on, None on CPU.

    Nothing where answers are sampled by servers, or not at all.
    """
    size = BYTES[compute]
    weights = size * shape.parameters // tensor_parallel
    token = 2 * shape.layers * shape.keys * size // tensor_parallel  # keys and values of one token
    if kind == "vllm" and gpu_bytes is not None:
        share = int(VLLM_GPU_SHARE * gpu_bytes)
        least = token * spec.max_model_tokens  # one sequence
        return SamplerMemory(weights, max(least, share - weights), 0, int((weights + least) / VLLM_GPU_SHARE))
    if kind == "vllm":
        weights += size * shape.embedding_parameters // tensor_parallel  # the head, packed for the CPU's products
        cache = int(spec.kv_cache_gib * 2**30)
        return SamplerMemory(weights, cache, weights + cache)
    if kind == "hf":
        # Logits in both types, log-probabilities, probabilities and their float64 sums, of one step.
        choosing = spec.max_sequences * shape.vocabulary * (size + 3 * FLOAT32 + 8)
        one_layer = token // shape.layers * spec.max_sequences * (PROMPT_TOKENS + data.max_new_tokens)
        cache = one_layer * (shape.layers + 1) + choosing  # a layer's cache is copied when it grows
        # On a GPU a graph chooses beside the first token's step, and the next one takes over its memory.
        kept = 0 if gpu_bytes is None else choosing
        return SamplerMemory(weights, cache + kept, weights + kept)
    return SamplerMemory()


def discriminator_memory(
    spec: DiscriminatorSpec, shape: Shape, stage: StageSpec, data: DataSpec, *, machine: MachineSpec, compute: str,
    on_gpu: bool,
) -> DiscriminatorMemory:  # fmt: skip
    """What the discriminator needs on a rank; `shape` is the base model's. Nothing for a POLAR of unknown shape."""
    if isinstance(spec, FeaturesSpec):
        layers = min(pooled_layer(spec.layer, shape.layers), shape.layers) * shape.layer_parameters
        return DiscriminatorMemory(BYTES[compute] * (shape.embedding_parameters + layers))
    if isinstance(spec, ControlSpec):
        return DiscriminatorMemory()
    polar = find_polar_shape(spec)
    if polar is None or machine.discriminator_engine == "servers":
        return DiscriminatorMemory()
    size = BYTES[spec.dtype]
    weights = size * polar.parameters + FLOAT32 * polar.hidden
    if machine.discriminator_engine == "vllm":
        cache = polar_cache_bytes(polar, spec)
        in_attention = (3 * polar.queries + 2 * polar.keys) * spec.micro_batch_tokens * size
        in_layer = scoring_layer(polar, spec.micro_batch_tokens, size=size, in_attention=in_attention)
        return DiscriminatorMemory(weights + cache, in_layer)
    return DiscriminatorMemory(weights, polar_scoring(polar, polar_batch(spec, stage, data), size=size, on_gpu=on_gpu))


def polar_cache_bytes(shape: Shape, spec: PolarSpec) -> int:
    """vLLM's keys and values of one scheduled batch of POLAR's, with a tenth more for blocks that are not full."""
    tokens = max(spec.max_length, spec.micro_batch_tokens) + REENCODED_TOKENS
    return int(1.1 * 2 * shape.layers * shape.keys * BYTES[spec.dtype] * tokens) + 2**20


def scoring_layer(shape: Shape, positions: int, *, size: int, in_attention: int) -> int:
    """Bytes beside the weights while a decoder layer runs without a backward: in its attention or in its MLP.

    `in_attention` are those that its attention takes beyond the layer's own queries, keys and values.
    """
    states = 4 * shape.hidden  # embeddings, the layer's input, the residual stream, and what was normalised of it
    attention = positions * (states + shape.queries + 2 * shape.keys) * size + in_attention
    mlp = positions * (states + 3 * shape.intermediate) * size  # silu(gate), up, their product
    rotary = positions * 2 * shape.head_dim * size
    return max(attention, mlp) + rotary


def polar_scoring(shape: Shape, batch: Batch, *, size: int, on_gpu: bool) -> int:
    """Bytes beside the weights while POLAR scores a packed micro-batch."""
    rows = batch.slots * (shape.queries + 2 * shape.keys) * size  # in the order of the calls
    outputs = batch.slots * shape.queries * size
    answers = batch.attended[-1]
    # Keys and values of each answer with its prompt's, and the prompts' values by answer, from which they were joined.
    joined = answers.n * (2 * answers.k + batch.prompt_tokens) * shape.keys * size
    calls = []
    for call in batch.attended:
        queries, scores = call.n * call.q * shape.queries * size, shape.heads * call.pairs
        if by_products(shape, call, batch, on_gpu=on_gpu):  # scores and shares, also cast; queries by group; the mask
            of_score = 2 * FLOAT32 + (size if size < FLOAT32 else 0)
            calls.append(queries + of_score * scores + call.pairs * FLOAT32)
        else:  # keys and values for every head, output, the mask as numbers
            calls.append(queries + 2 * call.n * call.k * shape.queries * size + call.pairs * size)
    in_order = outputs + batch.positions * shape.queries * size  # outputs end to end, then in the row's order
    in_attention = rows + max(calls[0], joined + outputs + max(calls[-1], in_order))
    in_layer = scoring_layer(shape, batch.positions, size=size, in_attention=in_attention)
    return in_layer + laid_out_bytes(batch)


def rank_memory(
    shape: Shape, batch: Batch, *, compute: str, ranks: int, activation_checkpointing: bool, logits_bytes: int,
    kept_logits_bytes: int, on_gpu: bool, sampler: SamplerMemory, discriminator: DiscriminatorMemory,
) -> Memory:  # fmt: skip
    """What one of the ranks needs to train a model with this largest micro-batch."""
    size, all_weights = BYTES[compute], FLOAT32 * shape.parameters
    highest = max(
        moments(
            shape, batch, compute=compute, ranks=ranks, activation_checkpointing=activation_checkpointing,
            logits_bytes=logits_bytes, kept_logits_bytes=kept_logits_bytes, on_gpu=on_gpu,
        ),
        key=lambda moment: moment.total,
    )  # fmt: skip
    reference = size * shape.parameters // ranks
    return Memory(
        weights=all_weights // ranks,
        gradients=all_weights // ranks,
        optimizer=2 * all_weights // ranks,
        # FSDP2 leaves a model that has no backward with its root group gathered.
        reference=reference if ranks == 1 else reference + size * shape.root_parameters,
        copies=highest.copies,
        activations=highest.activations,
        logits=highest.logits,
        sampler=sampler,
        discriminator=discriminator,
    )


def with_kept_logits(shape: Shape, batch: Batch, *, kept_logits_bytes: int, compute: int) -> list[Batch]:
    """A batch, and where too many of its tokens are predicted to keep their logits: one of which just enough are."""
    fewer = kept_logits_bytes // (shape.vocabulary * compute)
    return [batch, replace(batch, predicted=fewer)] if 0 < fewer < batch.predicted else [batch]


def largest_need(plan: Plan, model: ModelSpec, *, gpu_bytes: int | None) -> tuple[str, Memory] | None:
    """The stage of a plan whose ranks need the most, and what one of them needs; None where the shape is not known."""
    shape, study = find_shape(model), plan.study
    if shape is None:
        return None
    needs = []
    for config in [run.config for run in plan.runs if run.model == model.name]:
        stage = StageSpec(title=config["path"][-1]["name"], **config["path"][-1])
        kind = config["sampler"]["kind"] if stage.draws_rollouts else "none"
        sampler = sampler_memory(
            shape, study.sampler, study.data, kind=kind, compute=config["compute"], gpu_bytes=gpu_bytes,
            tensor_parallel=study.machine.tensor_parallel,
        )  # fmt: skip
        discriminator = discriminator_memory(
            study.discriminator, shape, stage, study.data, machine=study.machine, compute=config["compute"],
            on_gpu=gpu_bytes is not None,
        )  # fmt: skip
        batches = with_kept_logits(
            shape, largest_batch(stage, study.data, study.machine),
            kept_logits_bytes=study.machine.kept_logits_bytes, compute=BYTES[config["compute"]],
        )  # fmt: skip
        for batch in batches:
            memory = rank_memory(
                shape, batch, compute=config["compute"], ranks=study.machine.ranks,
                activation_checkpointing=study.machine.activation_checkpointing,
                logits_bytes=study.machine.logits_bytes, kept_logits_bytes=study.machine.kept_logits_bytes,
                on_gpu=gpu_bytes is not None, sampler=sampler, discriminator=discriminator,
            )  # fmt: skip
            needs.append((stage.name, memory))
    return max(needs, key=lambda need: need[1].needed, default=None)


def refuse_too_large(plan: Plan, *, gpus: Sequence[int], host_bytes: int) -> None:
    """Raise ConfigError where a model of the plan needs more memory than there is.

    `gpus` are the bytes of the GPUs that may be used: each rank has one to itself. Without any, all ranks of a run
    share the host's memory.
    """
    study, ranks = plan.study, plan.study.machine.ranks
    for model in study.models:
        need = largest_need(plan, model, gpu_bytes=min(gpus, default=None))
        if need is None:
            continue
        stage, memory = need
        needed = memory.needed if gpus else ranks * memory.needed
        available = min(gpus) - GPU_RESERVE if gpus else int(HOST_SHARE * host_bytes)
        if needed > available:
            where = "on each GPU" if gpus else f"for its {ranks} rank{'s' if ranks > 1 else ''} together"
            raise ConfigError(
                f"models = {model.name}: training it (stage {stage}) needs {gib(needed)} GiB {where}, "
                f"{gib(available)} GiB can be used here; {remedies(study, memory, on_gpu=bool(gpus))}"
            )


def fit_side_by_side(plan: Plan, *, jobs: int, host_bytes: int) -> int:
    """Tokens of a micro-batch with which `jobs` trainings side by side fit the host's memory: the plan's, or fewer.

    Halved until they fit, or until the longest answer of one prompt would not: what is larger is refused elsewhere.
    """
    machine = plan.study.machine
    smallest = PROMPT_TOKENS + plan.study.data.max_new_tokens
    while machine.micro_batch_tokens // 2 >= smallest:
        tried = replace(plan, study=plan.study.model_copy(update={"machine": machine}))
        found = [largest_need(tried, model, gpu_bytes=None) for model in plan.study.models]
        needed = max((need[1].needed for need in found if need), default=0)
        if jobs * (machine.ranks * needed + LIBRARIES) <= SIDE_BY_SIDE_SHARE * host_bytes:
            break
        machine = machine.model_copy(update={"micro_batch_tokens": machine.micro_batch_tokens // 2})
    return machine.micro_batch_tokens


def remedies(study: Study, memory: Memory, *, on_gpu: bool) -> str:
    """What makes a study smaller, in words: the config's keys with their values now."""
    machine, engine = study.machine, memory.sampler
    if engine.least_gpu > memory.total:
        return f"raise machine.tensor_parallel (now {machine.tensor_parallel}) or sample on servers (docs/training.md)"
    ways = [f"lower machine.micro_batch_tokens (now {machine.micro_batch_tokens})"]
    if on_gpu or machine.ranks > 1:
        ways.insert(0, f"{'raise' if on_gpu else 'lower'} machine.ranks (now {machine.ranks})")
    if not machine.activation_checkpointing:
        ways.insert(0, "set machine.activation_checkpointing to true")
    if engine.asleep > engine.weights and not on_gpu:  # vLLM on CPU
        ways.append(f"lower sampler.kv_cache_gib (now {study.sampler.kv_cache_gib:g})")
    return " or ".join(filter(None, [", ".join(ways[:-1]), ways[-1]]))


def gib(size: int) -> str:
    """Bytes in GiB, for people."""
    return f"{size / 2**30:.2f}"
