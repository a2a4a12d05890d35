"""Table 5: what the study stands on. Counts of the prompt sets, the teacher's yield, the discriminator's AUCs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from uniapl.analysis.collect import Study
from uniapl.analysis.labels import plain_number
from uniapl.analysis.render import Block, Table
from uniapl.analysis.sources import SOURCE, Source

USABLE_AUC = 0.6  # without length features
NO_SIGNAL = "the adversarial term carries no usable signal in this study"

# Kept by write_manifest for every directory; provenance, not facts of the study.
PROVENANCE = {"config_hash", "code", "packages", "python", "hardware", "seconds", "peak_memory_bytes"}
HIDDEN = ("sha256", "seconds", "per_kind", "kinds", "unseen_kinds", "seen_kinds", "files")
LABELS = {
    "auc": "AUC, teacher's against base model's answers",
    "auc_without_length": "AUC without length features",
    "auc_length_only": "AUC of length alone",
    "auc_interval": "95% interval of the AUC",
    "auc_without_length_interval": "95% interval of the AUC without length",
    "auc_length_matched": "AUC, drafts of the demonstration's length only",
    "auc_train": "AUC on the head's training prompts",
    "num_pairs_length_matched": "pairs of equal length",
    "num_components": "principal components under the head",
    "score_mean_demonstrations": "mean score, demonstrations",
    "score_mean_base": "mean score, base model's answers",
    "usable": "usable (AUC without length at least 0.6)",
    "shift": "b, subtracted from scores",
    "scale": "tau, divides scores",
    "num_pairs": "Bradley-Terry pairs, training",
    "num_test_pairs": "Bradley-Terry pairs, test",
    "num_prompts": "prompts",
    "num_test_prompts": "prompts, test",
    "counts.train": "training prompts",
    "counts.development": "development prompts",
    "counts.heldout": "held-out prompts",
    "counts.ifbench": "IFBench prompts",
    "unseen.train": "training prompts with unseen kinds",
    "unseen.development": "development prompts with unseen kinds",
    "unseen.heldout": "held-out prompts with unseen kinds",
    "unseen.ifbench": "IFBench prompts with unseen kinds",
    "num_orders": "demonstrations ordered (prompts x takes)",
    "num_demonstrations": "demonstrations kept, all verified",
    "kept_share": "share of the ordered demonstrations kept",
    "enough_kept": "at least 90% kept",
    "dropped": "demonstrations dropped, could not be mended",
    "edited_share": "share of the demonstrations that were edited",
    "base_prompt_strict": "prompt accuracy of the base model's drafts",
    "truncated_share_base": "share of drafts cut at the cap",
    "truncated_share_demonstrations": "share of demonstrations cut at the cap",
    "tokens_generated": "tokens generated for drafts",
    "teacher.answers": "answers of the teacher",
    "teacher.from_cache": "answers that were paid for before this run",
    "teacher.attempts": "requests sent, repeated ones included",
    "teacher.first_answer_strict": "prompt accuracy of the teacher's first answers",
    "teacher.truncated_share": "share of the teacher's answers cut or too long",
    "teacher.used.prompt_tokens": "prompt tokens of all answers",
    "teacher.used.completion_tokens": "completion tokens of all answers",
    "teacher.used.cost": "cost of all answers, by the prices of the teacher's file",
    "teacher.bought.cost": "cost of the answers that this run asked for",
}


def facts_of(manifest: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float | str]]:
    """Scalar facts of a manifest, nested names joined by dots; provenance, hashes and tables per kind are left out."""
    for key, value in manifest.items():
        name = f"{prefix}{key}"
        if (not prefix and key in PROVENANCE) or any(part in key for part in HIDDEN):
            continue
        if isinstance(value, dict):
            yield from facts_of(value, f"{name}.")
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        elif isinstance(value, list) and len(value) == 2 and all(isinstance(end, (int, float)) for end in value):
            yield name, f"[{plain_number(value[0], 3)}, {plain_number(value[1], 3)}]"
        elif isinstance(value, (int, float)) and math.isfinite(value):
            yield name, float(value)


def no_signal(study: Study, model: str) -> str | None:
    """The sentence on a discriminator that cannot tell teacher from student but by length; None where it can."""
    auc = study.manifests[study.index["discriminators"][model]].get("auc_without_length")
    if auc is None or auc >= USABLE_AUC:
        return None
    value = plain_number(float(auc), 3)
    return f"{study.models[model]}: AUC without length features is {value}, below {USABLE_AUC}: {NO_SIGNAL}."


def table5(study: Study) -> Table:
    """Data, teacher and discriminator as their manifests state them."""
    records: list[dict[str, Any]] = []
    sections = [_section("Data", "", study, study.index["data"], "", records)]
    notes = []
    for model, title in study.models.items():
        suffix = f", {title}" if len(study.models) > 1 else ""
        sections.append(_section("Teacher", model, study, study.index["demonstrations"][model], suffix, records))
        sections.append(_section("Discriminator", model, study, study.index["discriminators"][model], suffix, records))
        sentence = no_signal(study, model)
        if sentence:
            notes.append(sentence)
    columns = ("part", "model", "name", "value")
    return Table(
        5,
        "Data, teacher and discriminator",
        (Block(("Fact", "Value"), tuple(sections)),),
        columns,
        tuple(records),
        tuple(notes),
    )


def _section(
    part: str, model: str, study: Study, directory: str, suffix: str, records: list[dict[str, Any]]
) -> tuple[str, tuple[tuple[str, str], ...]]:
    rows = []
    for name, value in facts_of(study.manifests[directory]):
        source = Source("stated in the manifest", (directory,), ("manifest.json",), name)
        records.append({"part": part.lower(), "model": model, "name": name, "value": value, SOURCE: source})
        rows.append((LABELS.get(name, name.replace("_", " ").replace(".", ", ")), _shown(value)))
    return f"{part}{suffix}", tuple(rows)


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value == int(value) else plain_number(value, 3)
