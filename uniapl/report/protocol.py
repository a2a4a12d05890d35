"""How a study is judged: prompts, seeds, statistics, corrections and tolerances, and what each ablation changes.

Numbers and names come from the study's index, config and manifests; the words on statistics say what analysis.stats
does with as many seeds as the study has.
"""

from __future__ import annotations

from typing import Any

from uniapl.analysis import comparisons
from uniapl.analysis.cells import POWER_OF_FEW, several_seeds
from uniapl.analysis.collect import MAIN, Study
from uniapl.analysis.crossed import POWER, SEEDS_BOUND
from uniapl.analysis.facts import USABLE_AUC
from uniapl.analysis.labels import BASE, GENERAL, TASKS
from uniapl.analysis.outputs import figure_numbers, has_references, table_numbers
from uniapl.config import ClaimSpec

SPLITS = {"train": "training", "development": "development", "heldout": "held-out"}
FAMILIES = {  # tables whose p-values are adjusted, and over what
    2: "all claims that have a p",
    6: "all rows with more than one seed, or all where no method has more",
    9: "all cells, likewise",
    10: "each column of a model, against its best",
    11: "all rows of a model",
    12: "all cells of a model",
    13: "all pairs of a model",
}


def protocol(study: Study) -> list[tuple[str, str]]:
    """What was done, a row for each choice; a row that says nothing of this study is left out."""
    rows = (
        ("Prompt sets", _splits(study)),
        ("Evaluations", _asked(study)),
        ("Training seeds", "; ".join(_seeds(study))),
        ("Chosen and judged on", _judged_on(study)),
        ("Accuracies", _accuracies()),
        ("Intervals", _intervals(study)),
        ("Differences", _differences(study)),
        ("Distances", _distances(study)),
        ("Several tests", _families(study)),
        ("Power", _power()),
    )
    return [row for row in rows if row[1]]


def tolerances(study: Study) -> list[tuple[str, str, str]]:
    """Settings of the analysis with what they mean, as the config that stood before the run has them."""
    rows = [
        (f"claims.{name}", _shown(getattr(study.claims, name)), field.description or "")
        for name, field in ClaimSpec.model_fields.items()
    ]
    if has_references(study.index):
        value = study.index["references"]["tolerance_points"]
        meaning = "Table 7: largest difference from a published score that needs no explanation, in points."
        rows.append(("tolerance_points", _shown(value), meaning))
    return [*rows, ("usable AUC", _shown(USABLE_AUC), "Least AUC without length features of a discriminator of use.")]


def ablations(study: Study) -> list[tuple[str, ...]]:
    """Each ablation's title, then its variants and what they change; none in an index that does not say."""
    planned = {e["variant"] for e in (*study.index["evaluations"], *study.index.get("not_run", ()))}
    rows: list[tuple[str, ...]] = []
    for name, ablation in study.index.get("ablations", {}).items():
        variants = {f"{name}.{title}": changed for title, changed in ablation["variants"].items()}
        if planned & set(variants):
            rows.append((ablation["title"],))
            rows += [(code, "; ".join(_change(study, c) for c in changed)) for code, changed in variants.items()]
    return rows


def trace_command(study: Study) -> str:
    """The command that traces a cell of Table 1: prompt strict accuracy of the last method."""
    of, model = comparisons.evaluations(study)[0], next(iter(study.models))
    row = f"model={model},method={study.methods(model)[-1]},task={of.task},group={of.group}"
    return f"uniapl trace 1 --root ROOT --row {row} --column prompt_strict"


def _splits(study: Study) -> str:
    manifest = study.manifests[study.index["data"]]
    counts, unseen = manifest.get("counts", {}), manifest.get("unseen", {})
    parts = []
    for split in (*(s for s in SPLITS if s in counts), *(s for s in counts if s not in SPLITS)):
        part = f"{counts[split]:,} {SPLITS.get(split, TASKS.get(split, split))}"
        if split == "train" and "num_policy" in manifest:
            part += f" (methods are trained on {manifest['num_policy']:,} of them)"
        if unseen.get(split):
            part += f" ({unseen[split]:,} with a constraint kind that no training prompt has)"
        parts.append(part)
    return ", ".join(parts)


def _asked(study: Study) -> str:
    """Tasks with their numbers of prompts, and how answers are drawn."""
    sizes: dict[str, int] = {}
    for entry in study.index["evaluations"]:
        for task, told in study.manifests[entry["directory"]]["tasks"].items():
            sizes[task] = max(sizes.get(task, 0), told.get("num_prompts", 0))
    named = [
        f"{TASKS.get(task, GENERAL.get(task, task))}{f' ({sizes[task]:,} prompts)' if sizes.get(task) else ''}"
        for task in study.index["tasks"]
    ]
    cap = f"at most {study.index['max_new_tokens']} tokens"
    if "ifbench" in study.index["tasks"]:
        cap += f", on IFBench {study.index['ifbench_max_new_tokens']}"
    return f"{', '.join(named)}; one greedy answer to each prompt, of {cap}"


def _seeds(study: Study) -> list[str]:
    """Methods by their training seeds, and how many seeds the ablations' variants have."""
    methods: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for model, title in study.models.items():
        for method in study.methods(model):
            seeds = tuple(sorted(study.seeds(model, method)))
            if method != BASE:
                name = f"{title}: " if len(study.models) > 1 else ""
                methods.setdefault((name, seeds), []).append(study.label(method))
    found = [f"{name}{', '.join(map(str, seeds))} ({', '.join(labels)})" for (name, seeds), labels in methods.items()]
    varied = {(e["model"], e["method"], e["variant"]) for e in study.index["evaluations"] if e["variant"] != MAIN}
    numbers = sorted({len(study.evaluations(*one)) for one in varied})
    if numbers:
        several = " to ".join(dict.fromkeys(map(str, (numbers[0], numbers[-1]))))
        found.append(f"ablations' variants: {several} each")
    return found


def _judged_on(study: Study) -> str:
    chosen, claimed, tasks = comparisons.chosen_on(study), comparisons.claimed_on(study), study.index["tasks"]
    found = []
    if claimed.task in tasks:
        found.append(f"C1 to C4, Table 13, Table 11, Figure 5 and the summary above: {claimed.prompts}")
    if "heldout" in tasks:
        found.append("C5, C6 and distances: held-out prompts that the expert answered")
    ablated = [f"Table {n}" for n in (6, 9) if n in table_numbers(study.index)]
    ablated += [f"Figure {n}" for n in (8, 9) if n in figure_numbers(study.index)]
    if ablated:
        found.append(f"C8, {', '.join(ablated)}: {chosen.prompts}")
        if "heldout" in tasks and chosen.task != "heldout":
            found.append(f"C7: variants chosen on {chosen.prompts}, compared on held-out ones")
    return "; ".join(found)


def _accuracies() -> str:
    return (
        "Prompt strict: share of the prompts whose answer follows every constraint; instruction strict: share of the"
        " constraints that are followed. Loose: the answer may also be read without its first or last line, or its"
        " asterisks. A prompt without a verdict for some seed is left out, and never counted as failed."
    )


def _intervals(study: Study) -> str:
    alone = "Wilson's interval for a share of prompts, and the BCa bootstrap over prompts for the rest"
    level = f"{study.claims.confidence:.0%} intervals."
    if not several_seeds(study):
        return f"{level} There is one training seed: {alone}. They say nothing of other seeds."
    return (
        f"{level} Several seeds are crossed with the prompts, both random: two-way t interval with Satterthwaite's"
        " degrees of freedom, whose variance is never taken below half of what prompts and error alone give; beside it"
        f" in each .csv the crossed bootstrap ({study.claims.num_resamples:,} draws of seeds and of prompts). One seed,"
        f" as the base model's: {alone}."
    )


def _differences(study: Study) -> str:
    alone = (
        "BCa bootstrap interval over prompts; p of McNemar's exact test for prompts, of a permutation test that"
        " exchanges the two within prompts for constraints"
    )
    if not several_seeds(study):
        return f"Paired by prompt: {alone}."
    return (
        "Paired by prompt and by training seed, the base model beside every seed: two-way t interval and test of the"
        f" paired differences. With one seed: {alone}."
    )


def _distances(study: Study) -> str:
    if "heldout" not in study.index["tasks"]:
        return ""
    alone = "bootstrap over prompts, and a permutation test that exchanges the two methods within prompts"
    how = (
        "two-way t interval of the linearised distance, the bootstrap of the distance itself beside it; with one seed"
        f" {alone}"
    )
    said = how if several_seeds(study) else alone
    return (
        "Wasserstein-1 and Kolmogorov-Smirnov, between a method's answers and the expert's to the same prompts, in"
        f" tokens and in mean log-prob of a token: {said}."
    )


def _families(study: Study) -> str:
    there = [f"Table {n}: {over}" for n, over in FAMILIES.items() if n in table_numbers(study.index)]
    strict = (
        f" Over several seeds Holm adjusts a stricter p (in each .csv), whose degrees of freedom are those at the upper"
        f" {SEEDS_BOUND:.0%} bound of the seeds' mean square where these are fewer."
    )
    said = f"p adjusted by Holm within a table. {'; '.join(there)}. Other p-values stand as they are."
    return said + strict * several_seeds(study)


def _power() -> str:
    return (
        f"“{POWER:.0%} power from”: the smallest true difference that a study with these seeds and prompts finds"
        f" {POWER:.0%} of the time by its own p (noncentral t; {POWER_OF_FEW}); beside a claim, also with its tolerance"
        " passed and by the strict p at the first of Holm's levels."
    )


def _change(study: Study, change: dict[str, Any]) -> str:
    """`UniAPL: lambda_adv 0.2 → 5`; a key that the main run does not have, or not set, is told by its value alone."""
    of = change["of"] if change["of"] in ("teacher", "discriminator") else study.label(change["of"])
    key, before, after = change["key"], change["main"], _shown(change["variant"])
    return f"{of}: {key} {after}" if before is None else f"{of}: {key} {_shown(before)} → {after}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(one)}" for key, one in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
