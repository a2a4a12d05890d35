"""The fixed discriminator D(x, y*, y): how much an answer behaves like the expert's reference answer.

Paper (reviews): POLAR, which scores a candidate trajectory against a reference trajectory, kept fixed during RL; kind
`polar` (`uniapl.polar`). Its contract holds for all kinds: texts in, unbounded scores out, higher = closer to the
expert's behaviour. Kind `features`, at laptop scale: a small head reads pooled states of the frozen base model for
candidate and reference; it is trained once with a Bradley-Terry loss, -log sigmoid(s(positive) - s(negative)). A
positive is a second, independent demonstration of the same prompt, never the reference itself; a negative is a raw
draft of the base model for that prompt. Prompts for the head, for AUC, b and tau, and for RL are disjoint.
`python -m uniapl.discriminator DIR --model MODELDIR --data DATADIR --demonstrations DEMODIR [--machine JSON]`
"""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, gelu, logsigmoid
from transformers import AutoModel

from uniapl import chat, models
from uniapl.attention import decoder_states
from uniapl.batch import scoring_batches
from uniapl.config import (
    ControlSpec,
    DataSpec,
    DiscriminatorSpec,
    FeaturesSpec,
    HeadSpec,
    MachineSpec,
    PolarSpec,
    pooled_layer,
    read_discriminator,
)
from uniapl.data import discriminator_prompts, discriminator_test_prompts, read_prompts
from uniapl.discriminator_measures import Group, Item, measure, shift_and_scale
from uniapl.distributed import device
from uniapl.entry import run_stage
from uniapl.polar.discriminator import Polar, PolarDiscriminator, describe, fixed_polar, open_polar, write_probe
from uniapl.provenance import read_manifest, write_manifest
from uniapl.records import Demonstration, Prompt, TokenSequence, read_demonstrations, read_jsonl
from uniapl.seeding import stream, stream_seed

HEAD_FILE = "head.safetensors"
PAIRS_PER_STEP = 32  # Bradley-Terry pairs in one step of AdamW on the head
LEAST_SPREAD = 0.02  # components that vary less than this share of the first are left out
MOST_DEVIATIONS = 4.0  # a feature counts at most as far from its mean as this
USABLE_AUC = 0.6  # below it, without length, the report says that the adversarial term carries no usable signal


class FrozenStates:
    """The base model's first layers, and the pooled states of answers after their rendered prompt."""

    def __init__(self, model_directory: Path, *, layer: int | None, micro_batch_tokens: int, dtype: str) -> None:
        weights = models.weights_directory(model_directory)
        model = AutoModel.from_pretrained(weights, dtype=getattr(torch, dtype), local_files_only=True)
        layer = pooled_layer(layer, len(model.layers))
        if layer > len(model.layers):
            raise ValueError(
                f"discriminator.layer = {layer}: the model has {len(model.layers)} layers; choose at most that"
            )
        model.layers = model.layers[:layer]
        model.norm = torch.nn.Identity()  # the final norm belongs to the last layer's states
        model.config.num_hidden_layers = layer
        self.model = model.to(device()).eval().requires_grad_(False)
        self.tokenizer = models.load_tokenizer(weights)
        self.micro_batch_tokens = micro_batch_tokens

    @torch.inference_mode()
    def pool(self, prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
        """Pooled states of texts as answers to user texts: (len(texts), 2D), float32, on the CPU.

        The first D are the mean over the answer's tokens, the last D the end token's. A prompt is run once for all of
        its texts. The end token is appended to every text, cut ones too, so that an empty text has a state and its
        presence tells nothing.
        """
        ids_of = {prompt: chat.prompt_ids(self.tokenizer, prompt) for prompt in dict.fromkeys(prompts)}
        # One more token stands behind each answer: the states that predict are then those of the answer's own tokens.
        answers = [[*chat.completion_ids(self.tokenizer, text), 0] for text in texts]
        sequences = [
            TokenSequence(ids_of[prompt], answer, frozenset()) for prompt, answer in zip(prompts, answers, strict=True)
        ]
        pooled: list[Tensor] = [torch.empty(0)] * len(sequences)
        for indices, micro in scoring_batches(
            sequences, micro_tokens=self.micro_batch_tokens, packing=True, device=self.model.device
        ):
            states_TD = decoder_states(self.model, micro).float()
            for index, states_SD in zip(indices, states_TD.split([len(answers[i]) for i in indices]), strict=True):
                pooled[index] = torch.cat([states_SD[1:].mean(0), states_SD[-1]])
        return torch.stack(pooled).cpu()


class ControlNumbers:
    """In the place of states, two numbers of a text: of its length in tokens, or noise that hangs on the text alone."""

    def __init__(self, model_directory: Path, spec: ControlSpec) -> None:
        self.spec, self.tokenizer = spec, models.load_tokenizer(models.weights_directory(model_directory))

    def pool(self, prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
        """As `FrozenStates.pool`: (len(texts), 2)."""
        if self.spec.reads == "length":
            lengths = [len(chat.completion_ids(self.tokenizer, text)) for text in texts]
            return torch.tensor([[float(length), math.log1p(length)] for length in lengths])
        rows = []
        for prompt, text in zip(prompts, texts, strict=True):
            rng = stream(self.spec.seed, "discriminator", "noise", prompt, text)
            rows.append([rng.gauss(0, 1), rng.gauss(0, 1)])
        return torch.tensor(rows)


def open_states(model: Path, spec: FeaturesSpec | ControlSpec, *, compute: str) -> FrozenStates | ControlNumbers:
    """What a head reads of texts."""
    if isinstance(spec, ControlSpec):
        return ControlNumbers(model, spec)
    return FrozenStates(model, layer=spec.layer, micro_batch_tokens=spec.micro_batch_tokens, dtype=compute)


def fit_projection(states_ND: Tensor, num_components: int) -> dict[str, Tensor]:
    """Fixed statistics of states and their first principal components, scaled to about unit variance on these states.

    Components that hardly vary here are damped, since elsewhere they may vary more.
    """
    mean_D, std_D = states_ND.mean(0), states_ND.std(0)
    std_D = std_D.clamp_min(1e-2 * float(std_D.max()) + 1e-8)
    _, values, axes = torch.linalg.svd((states_ND - mean_D) / std_D, full_matrices=False)
    kept = min(num_components, int((values > LEAST_SPREAD * values[0]).sum()))
    deviations = values[:kept] / (len(states_ND) - 1) ** 0.5
    scale = 1 / (deviations.square() + 0.1 * deviations.square().mean()).sqrt()
    return {"state_mean": mean_D, "state_std": std_D, "projection": (axes[:kept] * scale[:, None]).T.contiguous()}


def project(head: dict[str, Tensor], states_ND: Tensor) -> Tensor:
    """Pooled states in the head's own coordinates."""
    return (states_ND - head["state_mean"]) / head["state_std"] @ head["projection"]


def pair_features(candidates_NC: Tensor, references_NC: Tensor) -> Tensor:
    """What the head reads: [c, r, |c - r|, c * r, cos(c, r)], N rows."""
    cosine_N1 = cosine_similarity(candidates_NC, references_NC, dim=-1)[:, None]
    difference_NC, product_NC = (candidates_NC - references_NC).abs(), candidates_NC * references_NC
    return torch.cat([candidates_NC, references_NC, difference_NC, product_NC, cosine_N1], dim=-1)


def head_scores(head: dict[str, Tensor], candidates_NC: Tensor, references_NC: Tensor) -> Tensor:
    """One score a row, from projected states: a standardised linear map, one hidden layer, one number."""
    features_NF = (pair_features(candidates_NC, references_NC) - head["feature_mean"]) / head["feature_std"]
    features_NF = features_NF.clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS)  # no score runs away on unheard-of texts
    hidden_NW = gelu(features_NF @ head["hidden_weight"] + head["hidden_bias"])
    return hidden_NW @ head["output_weight"]


@dataclass(frozen=True)
class Triple:
    """One Bradley-Terry pair: row numbers of reference, positive and negative in one table of states."""

    reference: int
    positive: int
    negative: int


def train_head(states_ND: Tensor, triples: Sequence[Triple], spec: HeadSpec) -> dict[str, Tensor]:
    """Fit the head: minimise the mean of -log sigmoid(s(positive) - s(negative)) with AdamW on the CPU."""
    head = fit_projection(states_ND, spec.num_components if isinstance(spec, FeaturesSpec) else states_ND.shape[1])
    rows_NC = project(head, states_ND)
    references, positives, negatives = (
        rows_NC[[getattr(triple, name) for triple in triples]] for name in ("reference", "positive", "negative")
    )
    features_NF = torch.cat([pair_features(positives, references), pair_features(negatives, references)])
    head["feature_mean"], head["feature_std"] = features_NF.mean(0), features_NF.std(0).clamp_min(1e-3)

    generator = torch.Generator().manual_seed(stream_seed(spec.seed, "discriminator", "head") % 2**31)
    num_features = features_NF.shape[1]
    weights = {
        "hidden_weight": torch.randn(num_features, spec.width, generator=generator) / num_features**0.5,
        "hidden_bias": torch.zeros(spec.width),
        "output_weight": torch.randn(spec.width, generator=generator) / spec.width**0.5,
    }
    head |= {name: weight.requires_grad_(True) for name, weight in weights.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=spec.learning_rate, weight_decay=spec.weight_decay)
    for _ in range(spec.epochs):
        for chosen in torch.randperm(len(triples), generator=generator).split(PAIRS_PER_STEP):
            margin = head_scores(head, positives[chosen], references[chosen])
            margin = margin - head_scores(head, negatives[chosen], references[chosen])
            optimizer.zero_grad()
            (-logsigmoid(margin).mean()).backward()
            optimizer.step()
    return {name: tensor.detach() for name, tensor in head.items()}


# DEVIATION: discriminator: a head over the frozen base model's states instead of POLAR; fixed, as in the paper.
class Discriminator:
    """D with its fixed b (`shift`) and tau (`scale`): B_k comes from log sigmoid((s_k - b) / tau)."""

    def __init__(
        self, states: FrozenStates | ControlNumbers, head: dict[str, Tensor], *, shift: float, scale: float
    ) -> None:
        self.states, self.head, self.shift, self.scale = states, head, shift, scale

    def score(self, prompts: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[float]:
        """Score candidates against references, all for user texts `prompts`; higher = closer to the expert."""
        if not len(prompts) == len(references) == len(candidates):
            raise ValueError(
                f"score needs lists of one length, got {len(prompts)}, {len(references)}, {len(candidates)}"
            )
        if not prompts:
            return []
        place = {pair: index for index, pair in enumerate(dict.fromkeys(zip(prompts, references, strict=True)))}
        texts = [*(reference for _, reference in place), *candidates]
        states = project(self.head, self.states.pool([*(prompt for prompt, _ in place), *prompts], texts))
        reference_rows = [place[pair] for pair in zip(prompts, references, strict=True)]
        return head_scores(self.head, states[len(place) :], states[reference_rows]).tolist()


def load_discriminator(
    directory: Path, model_directory: Path, spec: DiscriminatorSpec, *, compute: str, machine: MachineSpec
) -> Discriminator | PolarDiscriminator:
    """Load a fixed discriminator. Raise ValueError where its directory was never finished, or POLAR is another now."""
    manifest = read_manifest(directory)
    if isinstance(spec, PolarSpec):
        polar = open_polar(spec, machine)
        return fixed_polar(polar, directory, shift=manifest["shift"], scale=manifest["scale"])
    states = open_states(model_directory, spec, compute=compute)
    return Discriminator(states, load_file(directory / HEAD_FILE), shift=manifest["shift"], scale=manifest["scale"])


@dataclass(frozen=True)
class Example:
    """All texts of one prompt: two independent demonstrations and raw drafts of the base model."""

    prompt: Prompt
    demonstrations: tuple[Item, Item]
    drafts: tuple[Item, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        return (*self.demonstrations, *self.drafts)


def make_examples(
    prompts: Sequence[Prompt],
    demonstrations: Sequence[Demonstration],
    samples: Sequence[dict[str, Any]],
    *,
    num_negatives: int | None,
    seed: int,
) -> list[Example]:
    """Prompts with two different demonstrations and at least one raw draft.

    A draft that a demonstration was made of, or that equals one, is no negative. `num_negatives` are drawn
    per prompt; None keeps all.
    """
    takes = {(d.prompt_id, d.take): d for d in demonstrations}
    drafts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for sample in samples:
        drafts[sample["prompt_id"]].append(sample)
    examples = []
    for prompt in prompts:
        first, second = takes.get((prompt.id, 0)), takes.get((prompt.id, 1))
        if first is None or second is None or first.text == second.text:
            continue
        taken = {first.text, second.text, first.original, second.original}
        raw = [s for s in drafts[prompt.id] if s["text"] not in taken]
        if num_negatives is not None:
            raw = stream(seed, "discriminator", "negatives", prompt.id).sample(raw, min(num_negatives, len(raw)))
        if raw:
            positives = (Item(first.text, first.num_tokens, False), Item(second.text, second.num_tokens, False))
            negatives = tuple(Item(s["text"], s["num_tokens"], s["truncated"]) for s in raw)
            examples.append(Example(prompt, positives, negatives))
    return examples


def make_triples(examples: Sequence[Example]) -> list[Triple]:
    """Pairs of every example, both demonstrations taking turns as reference; rows count over all examples' items."""
    triples, start = [], 0
    for example in examples:
        for reference, positive in ((0, 1), (1, 0)):
            for negative in range(2, len(example.items)):
                triples.append(Triple(start + reference, start + positive, start + negative))
        start += len(example.items)
    return triples


def score_groups(head: dict[str, Tensor], states_ND: Tensor, examples: Sequence[Example]) -> list[Group]:
    """Scores of every example's texts against each of its demonstrations; `states_ND` holds all items in order."""
    groups, start = [], 0
    for example in examples:
        rows_NC = project(head, states_ND[start : start + len(example.items)])
        for reference, positive in ((0, 1), (1, 0)):
            chosen = [positive, *range(2, len(example.items))]
            scores = head_scores(head, rows_NC[chosen], rows_NC[reference].expand(len(chosen), -1)).tolist()
            groups.append(Group(example.prompt.id, tuple(example.items[i] for i in chosen), tuple(scores)))
        start += len(example.items)
    return groups


def _pooled(states: FrozenStates | ControlNumbers, examples: Sequence[Example]) -> Tensor:
    items = [(example.prompt.text, item.text) for example in examples for item in example.items]
    return states.pool([prompt for prompt, _ in items], [text for _, text in items])


@dataclass(frozen=True)
class Fixed:
    """What a kind of discriminator gives to be measured, and its own facts for the manifest."""

    train: list[Group]
    test: list[Group]
    scoring_seconds: float
    outputs: dict[str, Any]


def polar_groups(polar: Polar, examples: Sequence[Example]) -> list[Group]:
    """POLAR's scores of every example's texts against each of its demonstrations."""
    rows = [
        (example, reference, [positive, *range(2, len(example.items))])
        for example in examples
        for reference, positive in ((0, 1), (1, 0))
    ]
    asked = [(e.prompt.text, e.items[reference].text, e.items[i].text) for e, reference, chosen in rows for i in chosen]
    scores = iter(polar.score(*(list(column) for column in zip(*asked, strict=True))))
    return [
        Group(e.prompt.id, tuple(e.items[i] for i in chosen), tuple(itertools.islice(scores, len(chosen))))
        for e, _, chosen in rows
    ]


def unscored_groups(examples: Sequence[Example]) -> list[Group]:
    """The lengths of every example's texts, one group for each of its demonstrations as reference."""
    pairs = [(example, (positive, *range(2, len(example.items)))) for example in examples for positive in (1, 0)]
    return [Group(example.prompt.id, tuple(example.items[i] for i in chosen), ()) for example, chosen in pairs]


def _train_features(
    directory: Path, spec: FeaturesSpec | ControlSpec, train: Sequence[Example], test: Sequence[Example], *,
    model: Path, compute: str,
) -> Fixed:  # fmt: skip
    states = open_states(model, spec, compute=compute)
    triples, train_states = make_triples(train), _pooled(states, train)
    head = train_head(train_states, triples, spec)
    scoring = time.monotonic()
    test_groups = score_groups(head, _pooled(states, test), test)
    seconds = time.monotonic() - scoring
    save_file(head, directory / HEAD_FILE)
    outputs = {"num_pairs": len(triples), "num_components": head["projection"].shape[1]}
    return Fixed(score_groups(head, train_states, train), test_groups, seconds, outputs)


def _fix_polar(directory: Path, spec: PolarSpec, train: Sequence[Example], test: Sequence[Example], *,
               machine: MachineSpec) -> Fixed:  # fmt: skip
    polar = open_polar(spec, machine)
    scoring = time.monotonic()
    test_groups = polar_groups(polar, test)
    seconds = time.monotonic() - scoring
    first = test[0]
    write_probe(
        directory, prompt=first.prompt.text, reference=first.items[0].text, candidate=first.items[1].text,
        score=test_groups[0].scores[0],
    )  # fmt: skip
    return Fixed(unscored_groups(train), test_groups, seconds, {"checkpoint": describe(spec, machine)})


def main(
    directory: Path, config: dict[str, Any], *, model: Path, data: Path, demonstrations: Path,
    machine: MachineSpec | None = None,
) -> None:  # fmt: skip
    """Train the head where there is one, measure scores on prompts of their own, fix b and tau, write the directory."""
    started = time.monotonic()
    spec, data_spec = read_discriminator(config["discriminator"]), DataSpec(**config["data"])
    prompts = read_prompts(data / "train.jsonl")
    head_prompts, test_prompts = (
        discriminator_prompts(prompts, data_spec),
        discriminator_test_prompts(prompts, data_spec),
    )
    expert = read_demonstrations(demonstrations / "demonstrations.jsonl")
    samples = [row for _, row in read_jsonl(demonstrations / "samples.jsonl")]
    num_negatives = None if isinstance(spec, PolarSpec) else spec.num_negatives
    train = make_examples(head_prompts, expert, samples, num_negatives=num_negatives, seed=spec.seed)
    test = make_examples(test_prompts, expert, samples, num_negatives=None, seed=spec.seed)
    for name, examples in (("num_discriminator", train), ("num_discriminator_test", test)):
        if len(examples) < 2:
            raise ValueError(
                f"{demonstrations}: {len(examples)} prompts have two demonstrations and a draft; raise data.{name}"
            )

    if isinstance(spec, PolarSpec):
        fixed = _fix_polar(directory, spec, train, test, machine=machine or MachineSpec())
    else:
        fixed = _train_features(directory, spec, train, test, model=model, compute=config["compute"])
    figures = measure(fixed.train, fixed.test, seed=spec.seed)
    usable = figures["auc_without_length"] >= USABLE_AUC
    shift, scale = shift_and_scale(fixed.test)
    num_scored = sum(len(group.items) for group in fixed.test)
    outputs = figures | fixed.outputs | {
        "usable": usable,
        "shift": shift,
        "scale": scale,
        "num_prompts": len(train),
        "num_test_prompts": len(test),
        "num_prompts_without_pair": len(head_prompts) + len(test_prompts) - len(train) - len(test),
        "num_test_pairs": len(make_triples(test)),
        "seconds_per_text": round(fixed.scoring_seconds / num_scored, 5),
    }  # fmt: skip
    write_manifest(directory, config=config, outputs=outputs, seconds=time.monotonic() - started)
    verdict = "usable" if usable else f"NOT usable: below {USABLE_AUC}"
    print(
        f"discriminator: AUC {outputs['auc']:.3f}, without length {outputs['auc_without_length']:.3f} ({verdict}), "
        f"length alone {outputs['auc_length_only']:.3f}, on {len(test)} prompts",
        flush=True,
    )


if __name__ == "__main__":
    run_stage(
        main, "Make and measure the fixed discriminator.", inputs=("model", "data", "demonstrations"),
        parsed={"machine": MachineSpec.model_validate_json},
    )  # fmt: skip
