"""What went wrong in a study, or was left out of it, as far as its records tell.

Claims that did not hold, answers without a verdict, demonstrations that the teacher gave up, runs that were resumed,
and the runs of the plan that a study still being made lacks. What is not recorded is not told.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from uniapl.analysis.cells import NOT_RUN
from uniapl.analysis.claims import INCONCLUSIVE, NOT_SUPPORTED
from uniapl.analysis.collect import MAIN, Study
from uniapl.analysis.labels import TASKS
from uniapl.provenance import read_manifest
from uniapl.records import read_jsonl

NOT_COMPUTED = "reward/status_not_ok"


def failures(study: Study, verdicts: Sequence[tuple[str, str]]) -> list[str]:
    """A sentence for each thing that failed, or that was looked for and did not. `verdicts`: of the claim table."""
    return [
        *_claims(verdicts),
        *_not_judged(study),
        *_without_reward(study),
        *_dropped(study),
        *_without_pair(study),
        *_resumed(study),
    ]


def not_run(study: Study) -> list[str]:
    """Runs of the plan that a study still being made lacks, a line for each variant."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for entry in study.index.get("not_run", ()):
        found.setdefault((entry["model"], entry["method"], entry["variant"]), []).append(entry["seed"])
    return [
        f"{study.models[model]}, {study.label(method)}{'' if variant == MAIN else f', {variant}'}: "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        for (model, method, variant), seeds in found.items()
    ]


def _claims(verdicts: Sequence[tuple[str, str]]) -> Iterator[str]:
    for verdict in (NOT_SUPPORTED, INCONCLUSIVE, NOT_RUN):
        claims = [claim for claim, told in verdicts if told == verdict]
        yield f"Claims {verdict}: {', '.join(claims) or 'none'}."


def _not_judged(study: Study) -> Iterator[str]:
    """Prompts without a verdict, by task and reason."""
    frame = study.answers.loc[~study.answers["status"].isin(("ok", None))]
    for (task, status), rows in frame.groupby(["task", "status"]):
        prompts = len(set(rows["prompt_id"]))
        of = len(set(study.answers.loc[study.answers["task"] == task, "prompt_id"]))
        asked = len(rows[["model", "method", "variant", "seed"]].drop_duplicates())
        yield (
            f"{TASKS[str(task)]}: {prompts} of {of} prompts could not be judged ({status}), in {_counted(asked)}; they"
            " are in no accuracy."
        )
    if set(study.answers["status"]) == {"ok"}:
        yield "Every answer could be judged."


def _counted(evaluations: int) -> str:
    return f"{evaluations} evaluation{'s' * (evaluations != 1)}"


def _without_reward(study: Study) -> Iterator[str]:
    """Rollouts of training whose reward could not be computed."""
    if NOT_COMPUTED not in study.metrics:
        return
    known = study.metrics.loc[study.metrics[NOT_COMPUTED].notna()]
    lacking = known.loc[known[NOT_COMPUTED].astype(float) > 0]
    runs = lacking[["model", "method", "variant", "seed"]].drop_duplicates()
    if len(lacking):
        most = lacking[NOT_COMPUTED].astype(float).max()
        yield (
            f"Training: rewards could not be computed in {len(runs)} runs, of at most {most:.1%} of a step's answers."
        )
    elif len(known):
        yield "Training: every reward could be computed."


def _dropped(study: Study) -> Iterator[str]:
    """Demonstrations that no edit or further answer could mend, of the study's teacher and of other experts."""
    others = [d for d in study.index.get("others", ()) if "demonstrations/" in d]
    made = [d for d in others if (study.root / d / "manifest.json").is_file()]
    manifests = study.manifests | {d: read_manifest(study.root / d) for d in made}
    for directory in (*study.index["demonstrations"].values(), *made):
        manifest = manifests[directory]
        if "dropped" not in manifest:
            continue
        path = study.root / directory / "dropped.jsonl"
        rows = [row for _, row in read_jsonl(path)] if manifest["dropped"] and path.is_file() else []
        reasons = Counter(str(row["reason"]) for row in rows)
        told = ", ".join(f"{reason} ({number})" for reason, number in sorted(reasons.items()))
        yield (
            f"Demonstrations dropped, since no fitting answer was found: {manifest['dropped']:,} of"
            f" {manifest['num_orders']:,} ({directory}){f': {told}' if told else ''}."
        )


def _without_pair(study: Study) -> Iterator[str]:
    for directory in study.index["discriminators"].values():
        left = study.manifests[directory].get("num_prompts_without_pair")
        if left:
            yield f"Discriminator ({directory}): {left} prompt{'s' * (left != 1)} gave no pair to train on."


def _resumed(study: Study) -> Iterator[str]:
    """Runs whose steps took longer than their last job, which must therefore have gone on from a checkpoint."""
    measured, resumed = 0, []
    for entry in study.index["runs"]:
        path = study.root / "benchmarks" / f"{entry['directory']}.tsv"
        steps = study.manifests[entry["directory"]].get("train_seconds")
        if steps is None or not path.is_file():
            continue
        with path.open(encoding="utf-8", newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file, delimiter="\t"))
        measured += 1
        if rows and float(rows[-1]["s"]) < steps:
            resumed.append(entry["directory"])
    if resumed:
        yield f"Interrupted and resumed from a checkpoint, at least: {', '.join(resumed)}."
    elif measured:
        yield (
            f"No run is known to have been interrupted: of {measured} that were timed, none has steps that took longer"
            " than its last job."
        )
