"""What a study takes from released results instead of making it: `--config source=released+local`.

A released directory has the same name as the one that would be made, since both are named by their config's hash; the
study's index then names the released one, and no rule makes it. Released runs come without weights. So a run is taken
where its evaluation is released too and nothing that is still to be trained goes on from it; else it is trained again,
with all that goes on from it, so that no result stands beside weights that it does not come from. An evaluation may
have been released with more tasks than the study asks for. The hash holds what samples and the type of matrix products:
where the config leaves them to the machine (`auto`), they are the release's and not what would fit here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from uniapl.autoif import PROMPTS
from uniapl.plan import Artifact, Evaluation, Plan, Run

# Beside the manifest, what later stages read of a directory.
READ: dict[str, tuple[str, ...]] = {
    "autoif": (PROMPTS,),
    "demonstrations": ("demonstrations.jsonl", "samples.jsonl"),
    "discriminator": ("head.safetensors",),
}
READ_OF_POLAR = ("probe.json",)  # which has no head


def released_folder(root: Path) -> Path:
    """Where results of a study below `root` (results/SCALE) are released."""
    return root.parent / "released" / root.name


def find_released(artifact: Artifact, root: Path, folder: Path) -> Path | None:
    """Where in `folder` an artifact was released, with all that stages read of it."""
    place = artifact.directory.relative_to(root)
    polar = artifact.config.get("discriminator", {}).get("kind") == "polar" and place.parts[0] == "discriminator"
    needed = ("manifest.json", "config.json", *(READ_OF_POLAR if polar else READ.get(place.parts[0], ())))
    if all((folder / place / name).is_file() for name in needed):
        return folder / place
    return _of_more_tasks(artifact, folder / place) if isinstance(artifact, Evaluation) else None


def _of_more_tasks(evaluation: Evaluation, place: Path) -> Path | None:
    """The same evaluation but for tasks beside its own: its name has another hash, since its config has them."""
    named, seed = place.parent, place.name
    wanted = evaluation.config["evaluation"]["tasks"]
    for path in sorted(named.parent.glob(f"{named.name.rpartition('-')[0]}-*/{seed}/config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        same = config | {"evaluation": config["evaluation"] | {"tasks": wanted}} == evaluation.config
        if same and set(wanted) <= set(config["evaluation"]["tasks"]) and (path.parent / "manifest.json").is_file():
            return path.parent
    return None


def find_engine(folder: Path) -> tuple[str, str] | None:
    """What sampled all that was released, and the type of matrix products; None where there is not one such pair."""
    texts = (path.read_text(encoding="utf-8") for path in folder.glob("demonstrations/*/config.json"))
    found = {(config["sampler"]["kind"], config["compute"]) for config in map(json.loads, texts)}
    return found.pop() if len(found) == 1 else None


def again(plan: Plan, found: dict[Path, Path]) -> set[Path]:
    """Directories of the runs that have to be trained here; `found` says where directories were released."""
    trained = {run.directory for run in plan.runs if run.directory not in found}
    trained |= {e.run.directory for e in plan.evaluations if e.run and e.directory not in found}
    while True:
        more = {run.parent.directory for run in plan.runs if run.parent and run.directory in trained}
        more |= {run.directory for run in plan.runs if run.parent and run.parent.directory in trained}
        if more <= trained:
            return trained
        trained |= more


def with_released(plan: Plan, folder: Path) -> Plan:
    """The plan with the directories of what is taken from `folder`, a scale's released results."""
    places = {a.directory: find_released(a, plan.root, folder) for a in plan.artifacts()}
    found = {directory: place for directory, place in places.items() if place is not None}
    trained = again(plan, found)
    bases = [e for e in plan.evaluations if e.run is None]
    kept = {run.directory for run in plan.runs} - trained
    kept |= {e.directory for e in plan.evaluations if e.run is None or e.run.directory not in trained}
    kept |= {a.directory for a in (*plan.demonstrations.values(), *plan.discriminators.values(), *plan.others)}
    kept |= {plan.autoif.directory} if plan.autoif else set()
    if not trained and all(e.directory in found for e in bases):  # else weights and prompts are needed here
        kept |= {a.directory for a in (*plan.models.values(), plan.data)}
    made: dict[Path, Any] = {}

    def moved(artifact: Any) -> Any:
        if artifact.directory not in made:
            changes: dict[str, Any] = {"reads": {option: moved(read) for option, read in artifact.reads.items()}}
            if artifact.directory in kept & set(found):
                changes["directory"] = found[artifact.directory]
            if isinstance(artifact, Run):
                changes["parent"] = moved(artifact.parent) if artifact.parent else None
            if isinstance(artifact, Evaluation):
                changes["run"] = moved(artifact.run) if artifact.run else None
            made[artifact.directory] = replace(artifact, **changes)
        return made[artifact.directory]

    def named(artifacts: dict[str, Artifact]) -> dict[str, Artifact]:
        return {name: moved(artifact) for name, artifact in artifacts.items()}

    return replace(
        plan, data=moved(plan.data), autoif=moved(plan.autoif) if plan.autoif else None,
        models=named(plan.models), demonstrations=named(plan.demonstrations),
        discriminators=named(plan.discriminators), others=[moved(a) for a in plan.others],
        runs=[moved(run) for run in plan.runs], evaluations=[moved(e) for e in plan.evaluations],
    )  # fmt: skip


def describe(plan: Plan) -> str:
    """How many runs are taken from released results, and which are made here: new ones, and released ones again."""
    made = [run for run in plan.runs if not run.manifest.is_file() or plan.makes(run)]
    again = [run for run in made if find_released(run, plan.root, released_folder(plan.root))]
    new = [run for run in made if run not in again]
    said = (
        f"{len(plan.runs) - len(made)} of {len(plan.runs)} runs are taken from released results, {_few(new)} made here"
    )
    if not again:
        return said
    return f"{said}, and, since weights are not released, {len(again)} again: {', '.join(map(_name, again))}"


def _few(runs: Sequence[Run]) -> str:
    names = [_name(run) for run in runs]
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return f"{len(names)} ({shown})" if names else "none"


def _name(run: Run) -> str:
    variant = "" if run.variant == "main" else f"{run.variant} "
    return f"{'.'.join(run.path)} {variant}seed {run.seed}"
