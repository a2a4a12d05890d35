"""The claim table: the paper's statements C1 to C9, what this study measured of each, and a verdict by one rule.

Every claim that can be measured becomes a quantity q whose positive direction is the claim's, with an interval and a
margin that stands in config before the run. Supported: the interval lies above the margin and, where there is a p,
Holm's adjusted p is below 1 - confidence. Not supported: the interval lies below the margin. Inconclusive: neither.
Beside it stands the smallest true q that a study like this one would call supported four times in five.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from uniapl.analysis import comparisons
from uniapl.analysis.capability import general_score
from uniapl.analysis.cells import NOT_RUN
from uniapl.analysis.collect import MAIN, Study
from uniapl.analysis.comparisons import COLUMNS, HELDOUT, Evaluation
from uniapl.analysis.crossed import MeanError
from uniapl.analysis.labels import BASE, BASELINE, UNIAPL, p_value, plain_number, with_interval
from uniapl.analysis.outputs import ADVERSARIAL_AS, LAMBDA, general_tasks
from uniapl.analysis.stats import EMPTY, Estimate, holm

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"

# Statements and sources as docs/paper_map.md quotes them: [A] the abstract on arXiv, [O] OpenReview.
STATEMENTS = {
    "C1": ("UniAPL beats GRPO by 5.77 points on Qwen3-0.6B", "[A] [O]"),
    "C2": ("UniAPL beats GRPO by 3.75 points on Qwen3-4B", "[A] [O]"),
    "C3": (
        "with UniAPL, 0.6B matches a 32B model (arXiv) / a 4B model (OpenReview): the two abstracts differ",
        "[A] / [O]",
    ),
    "C4": ("with UniAPL, 4B outperforms the teacher", "[A] [O]"),
    "C5": ("response lengths of UniAPL models are distributed like the expert's, closer than those of GRPO", "[A]"),
    "C6": ("the same for log-probabilities", "[A]"),
    "C7": ("the adversarial term works better as a separate loss than inside the reward", "[O]"),
    "C8": ("performance degrades when lambda_adv is too large", "[O]"),
    "C9": ("general capability is kept or improved", "[O]"),
}
QWEN_SIZES = {"C1": ("qwen3_0_6b", "Qwen3-0.6B"), "C2": ("qwen3_4b", "Qwen3-4B")}
PAPER_GAINS = {"C1": 5.77, "C2": 3.75}  # points, as the two statements say
NORMAL = 1e6  # degrees of freedom with which t is normal
MATCHES = "with UniAPL, 0.6B matches"


@dataclass(frozen=True)
class Finding:
    """One row of the claim table. `quantity` and `margin` are in `unit`; `p_holm` is filled in over the whole table.

    `measured` tells the quantity, `beside` what the verdict does not rest on.
    """

    claim: str
    model: str
    statement: str
    source: str
    measured: str
    quantity: Estimate
    margin: float
    unit: str
    tolerance: str
    reason: str = ""
    beside: str = ""
    p_holm: float = math.nan
    smallest_seen: float = math.nan
    verdict: str = NOT_RUN


def verdict(quantity: Estimate, margin: float, p_holm: float, *, confidence: float) -> str:
    """Supported, not supported or inconclusive; not run where nothing was measured."""
    if not (math.isfinite(quantity.low) and math.isfinite(quantity.high)):
        return NOT_RUN
    significant = not math.isfinite(p_holm) or p_holm < 1 - confidence
    if quantity.low > margin and significant:
        return SUPPORTED
    return NOT_SUPPORTED if quantity.high < margin else INCONCLUSIVE


def findings(study: Study) -> list[Finding]:
    """All rows of the claim table, p-values adjusted over all of them by Holm."""
    rows = [*_against_grpo(study), *_reference_models(study), *_distributions(study)]
    for model in study.index["models"]:
        rows += [_loss_or_reward(study, model), _too_large(study, model), _general(study, model)]
    confidence = study.claims.confidence
    adjusted = holm([row.quantity for row in rows], confidence=confidence)
    family = sum(math.isfinite(p) for p in adjusted)
    closed, limit = [], study.index.get("limit")  # a trial decides nothing
    for row, p_holm in zip(rows, adjusted, strict=True):
        decided = verdict(row.quantity, row.margin, p_holm, confidence=confidence)
        if decided != NOT_RUN and limit:
            decided, row = NOT_RUN, replace(row, reason=f"only the first {limit} questions of each task were asked")
        seen = _smallest_supported(row, confidence=confidence, family=family)
        closed.append(replace(row, p_holm=p_holm, smallest_seen=seen, verdict=decided))
    return sorted(closed, key=lambda row: int(row.claim[1]))


def _smallest_supported(row: Finding, *, confidence: float, family: int) -> float:
    """The smallest true quantity that a design like this one calls supported with 80% power; NaN where not known.

    The interval must pass the margin, and p the strictest of Holm's levels, that of the smallest of `family` p-values.
    """
    passed = row.margin + row.quantity.smallest_seen(confidence=confidence)
    if not math.isfinite(row.quantity.p):
        return passed
    return max(passed, row.quantity.smallest_seen(confidence=1 - (1 - confidence) / family, strict=True))


def _has(study: Study, model: str, *methods: str, variant: str = MAIN) -> bool:
    return all(study.evaluations(model, method, variant) for method in methods)


def _row(claim: str, model: str, reason: str, tolerance: str = "—") -> Finding:
    statement, source = STATEMENTS[claim]
    return Finding(claim, model, statement, source, "—", EMPTY, math.nan, "", tolerance, reason)


def _points(estimate: Estimate) -> str:
    shown = with_interval(estimate.value, estimate.low, estimate.high, 1, scale=100, signed=True)
    tested = f", {p_value(estimate.p)} ({estimate.test})" if math.isfinite(estimate.p) else ""
    return f"{shown} points{tested}"


def _against_paper(claim: str, gain: Estimate) -> str:
    """Where the paper's own gain lies; only of its own models."""
    paper = PAPER_GAINS.get(claim)
    if paper is None or not math.isfinite(gain.low):
        return ""
    where = "in" if 100 * gain.low <= paper <= 100 * gain.high else "outside of"
    return f"; the paper's {paper:+.2f} lies {where} the interval"


def _above(margin: float) -> str:
    return f"the whole interval above {plain_number(margin, 1) if margin else '0'}"


def _on(of: Evaluation) -> str:
    """What a measured accuracy is called; the held-out prompts need no name."""
    return "prompt strict" if of == HELDOUT else f"prompt strict on {of.title}"


def _missing(study: Study, model: str, of: Evaluation, *methods: str) -> str:
    """Why a comparison cannot be made; empty where it can."""
    if _has(study, model, *methods) and of.task in study.index["tasks"]:
        return ""
    return f"{' or '.join(methods)} was not trained or {of.prompts} were not evaluated"


def _against_grpo(study: Study) -> Iterator[Finding]:
    """C1 and C2 on the paper's models, and the same comparison on every other model as its analogue."""
    margin = study.claims.gain_points
    tolerance = _above(margin)
    of = comparisons.claimed_on(study)
    paper_models = {prefix: claim for claim, (prefix, _) in QWEN_SIZES.items()}
    for claim, (prefix, title) in QWEN_SIZES.items():
        if not any(model.startswith(prefix) for model in study.index["models"]):
            yield _row(claim, "—", f"needs {title}, which is not in this study", tolerance)
    for model in study.index["models"]:
        claim = next((c for prefix, c in paper_models.items() if model.startswith(prefix)), None)
        label = claim or f"C1-{study.index['scale']}"
        statement = (
            STATEMENTS[claim][0] if claim else f"analogue of C1 at this scale: UniAPL beats GRPO on the {of.prompts}"
        )
        source = STATEMENTS[claim][1] if claim else "(ours)"
        row = Finding(label, model, statement, source, "—", EMPTY, margin, "points", tolerance)
        if reason := _missing(study, model, of, UNIAPL, BASELINE):
            yield replace(row, reason=reason)
            continue
        gain = comparisons.difference(study, model, UNIAPL, BASELINE, of, "prompt_strict")
        measured = f"UniAPL − GRPO, {_on(of)}: {_points(gain)}{_against_paper(label, gain)}"
        yield replace(row, measured=measured, quantity=gain.scaled(100))


def _reference_models(study: Study) -> Iterator[Finding]:
    """C3 (against a 32B model's published score, and the study's 4B model) and C4 (the teacher's published score)."""
    smaller, larger = (_first_model(study, QWEN_SIZES[claim][0]) for claim in ("C1", "C2"))
    if smaller is None:
        yield _row("C3", "—", "needs Qwen3-0.6B and scores of a 32B and a 4B model, which are not in this study")
    else:
        margin = study.claims.match_margin_points
        tolerance = f"a score lower by at most {plain_number(margin, 1)} points, the whole interval"
        row = replace(_row("C3", smaller, "", tolerance), margin=-margin, unit="points")
        yield _against_published(study, replace(row, source="[A]", statement=f"{MATCHES} a 32B model"))
        yield _against_larger(study, replace(row, source="[O]", statement=f"{MATCHES} a 4B model"), larger)
    if larger is None:
        yield _row(
            "C4", "—",
            "needs Qwen3-4B and the paper's teacher; this study's teacher passes every verifier by construction",
        )  # fmt: skip
    else:
        margin = study.claims.gain_points
        row = replace(_row("C4", larger, "", _above(margin)), margin=margin, unit="points")
        yield _against_published(study, row)


def _first_model(study: Study, prefix: str) -> str | None:
    return next((model for model in study.index["models"] if model.startswith(prefix)), None)


def _against_published(study: Study, row: Finding) -> Finding:
    """UniAPL minus a published score. The interval is that of our accuracy alone: the other's is not published."""
    of = comparisons.claimed_on(study)
    compared = [one for one in (study.index.get("references") or {}).get("compared", ()) if one["claim"] == row.claim]
    published = next((one for one in compared if one["task"] == of.task), None)
    if reason := _missing(study, row.model, of, UNIAPL):
        return replace(row, reason=reason)
    if published is None:
        return replace(row, reason=f"no published score of the other model on {of.prompts} is known for this study")
    if limit := study.index.get("limit"):
        return replace(row, reason=f"only the first {limit} questions were asked, the published score is over all")
    ours = comparisons.accuracy(study, row.model, UNIAPL, of, "prompt_strict")
    gap = ours.scaled(100).shifted(-published["score"])
    shown = with_interval(gap.value, gap.low, gap.high, 1, signed=True)
    measured = (
        f"UniAPL − {published['title']}'s published {plain_number(published['score'], 1)}%, {_on(of)}: {shown} points"
        f" (interval of ours only). Source: {published['source']}"
    )
    return replace(row, measured=measured, quantity=gap)


def _against_larger(study: Study, row: Finding, larger: str | None) -> Finding:
    """UniAPL on the smaller model minus the larger base model of the same study, paired by prompt."""
    of = comparisons.claimed_on(study)
    if larger is None:
        return replace(row, reason="needs Qwen3-4B, which is not in this study")
    if reason := _missing(study, row.model, of, UNIAPL) or _missing(study, larger, of, BASE):
        return replace(row, reason=reason)
    gain = comparisons.difference(study, row.model, UNIAPL, BASE, of, "prompt_strict", other_model=larger)
    measured = f"UniAPL − {study.models[larger]} untrained, {_on(of)}: {_points(gain)}"
    # p is against equality, and the claim is about a margin: the interval decides
    return replace(row, measured=measured, quantity=replace(gain.scaled(100), p=math.nan))


def _distributions(study: Study) -> Iterator[Finding]:
    """C5 on length; C6 on log-prob under the base model, that under the trained model told beside it (our choice)."""
    margin = study.claims.distance_margin
    for claim, column, unit in (("C5", "num_tokens", "tokens"), ("C6", "logprob_base", "nats")):
        tolerance = (
            f"Wasserstein distance to the expert smaller than GRPO's by more than {plain_number(margin, 2)} {unit}"
        )
        for model in study.index["models"]:
            row = replace(_row(claim, model, "", tolerance), margin=margin, unit=unit)
            if not _has(study, model, UNIAPL, BASELINE) or "heldout" not in study.index["tasks"]:
                yield replace(row, reason="uniapl or grpo was not trained or held-out prompts were not evaluated")
                continue
            quantity, measured, beside = _closer(study, model, column, unit)
            if column == "logprob_base":
                measured = f"under the base model: {measured}"
                beside += f"; {_not_by_length(study, model, column)}. Under the trained models: "
                beside += "; ".join(_closer(study, model, "logprob_trained", unit)[1:])
                beside += f"; {_not_by_length(study, model, 'logprob_trained')}"
            if quantity.n == 0:
                yield replace(
                    row, reason=f"no held-out prompt has both answers and a demonstration with {COLUMNS[column]}"
                )
                continue
            yield replace(row, quantity=quantity, measured=measured, beside=beside)


def _closer(study: Study, model: str, column: str, unit: str) -> tuple[Estimate, str, str]:
    """The reduction of the Wasserstein distance, in words too, and that of the Kolmogorov-Smirnov distance."""
    quantity, largest_gap = comparisons.reduction(study, model, UNIAPL, BASELINE, column)
    ours, theirs = (comparisons.distances(study, model, method, column)[0] for method in (UNIAPL, BASELINE))
    digits = 1 if unit == "tokens" else 3
    return (
        quantity,
        (
            f"W to the expert {plain_number(ours.value, digits)} (UniAPL) and {plain_number(theirs.value, digits)}"
            f" (GRPO) {unit}, reduction {_reduced(quantity, digits)}"
        ),
        f"KS, reduction {_reduced(largest_gap, 2)}",
    )


def _not_by_length(study: Study, model: str, column: str) -> str:
    """The reduction among log-probs that length does not explain."""
    alike = comparisons.reduction(study, model, UNIAPL, BASELINE, column, without_length=True)[0]
    return f"of what length does not explain, {_reduced(alike, 3)}"


def _reduced(quantity: Estimate, digits: int) -> str:
    shown = with_interval(quantity.value, quantity.low, quantity.high, digits, signed=True)
    return f"{shown}, {p_value(quantity.p)} ({quantity.test})"


# Of the ablation adversarial_as: each way centred only with the main run's lambda_adv and with 1, and divided by the
# group's std as the main run is, which itself is the loss.
WAYS = {
    "loss": (MAIN, "adversarial_as.loss", "adversarial_as.loss_1"),
    "reward": ("adversarial_as.reward", "adversarial_as.reward_1", "adversarial_as.reward_scaled"),
}
CENTRED = {"adversarial_as.loss": "adversarial_as.reward", "adversarial_as.loss_1": "adversarial_as.reward_1"}


def _unfinished(study: Study, model: str, ablation: str) -> str:
    """Why an ablation says nothing: none of its variants was run, or not all of them; empty where it is whole."""
    name = ablation.removesuffix(".")
    wanted = sum(n for (of, _, v), n in study.not_run.items() if of == model and v.startswith(ablation))
    there = sum(e["model"] == model and e["variant"].startswith(ablation) for e in study.index["evaluations"])
    if not there:
        return f"the ablation {name} was not run"
    return f"{wanted} of {wanted + there} models of the ablation {name} were not run" if wanted else ""


def _best(study: Study, model: str, way: str) -> str | None:
    """The variant of a way that did best on the choices' split; None where none of the ablation's was run."""
    split = comparisons.chosen_on(study)
    found = {name: comparisons.seed_accuracies(study, model, UNIAPL, split, variant=name) for name in WAYS[way]}
    found = {name: by_seed for name, by_seed in found.items() if by_seed}
    if set(found) <= {MAIN}:
        return None
    shared = set.intersection(*map(set, found.values()))  # the main run has more seeds than its variants
    return max(found, key=lambda name: sum(found[name][seed] for seed in shared))


def _loss_or_reward(study: Study, model: str) -> Finding:
    """C7: the best variant of each way, chosen on the development prompts, compared on the held-out ones."""
    margin = study.claims.gain_points
    row = replace(_row("C7", model, "", _above(margin)), margin=margin, unit="points")
    if reason := _unfinished(study, model, ADVERSARIAL_AS):
        return replace(row, reason=reason)
    loss, reward = (_best(study, model, way) for way in WAYS)
    if loss is None or reward is None:
        return replace(row, reason="the ablation adversarial_as was run in one way only")
    of = HELDOUT if "heldout" in study.index["tasks"] else comparisons.chosen_on(study)
    gain = comparisons.difference(study, model, UNIAPL, UNIAPL, of, "prompt_strict", variant=loss, other_variant=reward)
    names = " − ".join(_way(name) for name in (loss, reward))
    chosen = (
        f"chosen on {comparisons.chosen_on(study).title.lower()} prompts"
        if of != comparisons.chosen_on(study)
        else "best weights"
    )
    alike = "; the two are the same loss but for a tenth of the weight, so that this is chance (docs/paper_map.md)"
    measured = (
        f"as {names} ({chosen}), prompt strict, {of.title.lower()} prompts: {_points(gain)}"
        f"{alike if CENTRED.get(loss) == reward else ''}"
    )
    return replace(row, quantity=gain.scaled(100), measured=measured)


def _way(variant: str) -> str:
    if variant == MAIN:
        return "loss, rewards scaled"
    return variant.removeprefix(ADVERSARIAL_AS).replace("_1", ", weight 1").replace("_scaled", ", scaled")


def lambda_variants(study: Study, model: str) -> dict[float, str]:
    """Variants of the ablation lambda_adv of UniAPL by their value, ascending."""
    names = {
        e["variant"]
        for e in study.index["evaluations"]
        if e["model"] == model and e["method"] == UNIAPL and e["variant"].startswith(LAMBDA)
    }
    numbers = {name: name.removeprefix(LAMBDA) for name in names}
    return dict(sorted((float(text), name) for name, text in numbers.items() if text.replace(".", "", 1).isdigit()))


def _too_large(study: Study, model: str) -> Finding:
    """C8: the main run, whose lambda_adv was chosen beforehand, against the largest lambda_adv of the ablation."""
    margin = study.claims.degrade_points
    tolerance = f"a loss of more than {plain_number(margin, 1)} points, the whole interval"
    row = replace(_row("C8", model, "", tolerance), margin=margin, unit="points")
    if reason := _unfinished(study, model, LAMBDA):
        return replace(row, reason=reason)
    variants = lambda_variants(study, model)
    if not variants or not _has(study, model, UNIAPL):
        return replace(row, reason="uniapl was not trained with a number for lambda_adv")
    largest = max(variants)
    split = comparisons.chosen_on(study)
    lost = comparisons.difference(study, model, UNIAPL, UNIAPL, split, "prompt_strict", other_variant=variants[largest])
    measured = f"main run − lambda_adv = {largest:g}, prompt strict, {split.title.lower()} prompts: {_points(lost)}"
    return replace(row, quantity=lost.scaled(100), measured=measured)


def _general(study: Study, model: str) -> Finding:
    """C9: mean over lm-eval's general tasks of UniAPL minus base, unpaired.

    Its variance is lm-eval's over the questions, and where UniAPL has several seeds that of their mean, with as many
    degrees of freedom as Satterthwaite gives.
    """
    margin = study.claims.kept_margin_points
    tolerance = f"a loss of at most {plain_number(margin, 1)} points, the whole interval"
    row = replace(_row("C9", model, "", tolerance), margin=-margin, unit="points")
    tasks = general_tasks(study.index)
    if not tasks:
        return replace(row, reason="no general capability task (MMLU and the like) was evaluated")
    if not _has(study, model, UNIAPL, BASE):
        return replace(row, reason="uniapl was not trained")
    changes = {task: _general_change(study, model, task) for task in tasks}
    known = {task: change for task, change in changes.items() if change is not None}
    if not known:
        return replace(row, reason="lm-eval's results hold no accuracy with a standard error for the general tasks")
    value = 100 * sum(change for change, *_ in known.values()) / len(known)
    questions, between = (sum(change[part] for change in known.values()) / len(known) ** 2 for part in (1, 2))
    df = (len(study.evaluations(model, UNIAPL)) - 1) * ((questions + between) / between) ** 2 if between else NORMAL
    kept = MeanError(value, 100 * math.sqrt(questions + between), df, df)
    low, high = kept.interval(study.claims.confidence)
    what = "change of lm-eval's accuracies, mean of the general tasks"
    sides = ((model, UNIAPL, MAIN), (model, BASE, MAIN))
    source = comparisons.records_of(study, what, *sides, files=["results.json"], selection=", ".join(known))
    how = "t, unpaired, over questions and seeds" if between else "normal, unpaired"
    quantity = Estimate(value, low, high, len(known), how, source=source, design=kept)
    shown = with_interval(value, quantity.low, quantity.high, 1, signed=True)
    return replace(row, quantity=quantity, measured=f"UniAPL − base, mean of {', '.join(known)}: {shown} points")


def _general_change(study: Study, model: str, task: str) -> tuple[float, float, float] | None:
    """(mean over seeds of UniAPL) - base, its variance over questions and over seeds; None where lm-eval gave none."""
    ours, base = (general_score(study, model, method, task) for method in (UNIAPL, BASE))
    if ours is None or base is None:
        return None
    return ours.value - base.value, ours.variance + base.variance, ours.seed_variance
