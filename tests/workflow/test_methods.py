"""Every method and three ablations, from prompts to weights at smoke scale, all in this process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uniapl import data, discriminator, models, train
from uniapl.layers import available
from uniapl.plan import Artifact, Plan, Run, make_plan, write_configs
from uniapl.provenance import read_manifest
from uniapl.runlog import read_rows
from uniapl.teachers import __main__ as teachers
from uniapl.workflow import study_of, target_values

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STAGES: dict[str, Any] = {
    "data": data.make_data, "models": models.main, "demonstrations": teachers.main, "discriminator": discriminator.main,
    "runs": train.main,
}  # fmt: skip
ABLATIONS = ("discriminator", "rollouts", "switch")


def make(artifact: Artifact, root: Path) -> None:
    """Fill one directory as its rule does."""
    stage = STAGES[artifact.directory.relative_to(root).parts[0]]
    stage(artifact.directory, artifact.config, **{option: read.directory for option, read in artifact.reads.items()})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    """The plan of the targets `matrix` and three ablations with one model and seed, its runs trained."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    one = {"models": ["tiny_qwen3"], "seeds": [0], "more_seeds": {}, "ablations": list(ABLATIONS)}
    plan = make_plan(
        study_of("smoke", "matrix", one), tmp_path_factory.mktemp("results"), sampler="hf", compute="float32"
    )
    write_configs(plan)
    for artifact in plan.artifacts():
        if artifact not in plan.evaluations:
            make(artifact, plan.root)
    yield plan
    for number, handler in handlers.items():
        signal.signal(number, handler)


def rows(run: Run) -> list[dict[str, Any]]:
    return read_rows(run.directory / "metrics.jsonl")


def test_every_method_of_the_matrix_is_trained(trained: Plan) -> None:
    main = {".".join(run.path): run for run in trained.runs if run.variant == "main"}
    assert set(main) == set(target_values("matrix")["methods"])
    assert {path.rpartition(".")[2] for path in main} == set(available("methods"))
    for path, run in main.items():
        assert read_manifest(run.directory)["cumulative_steps"] == sum(s["steps"] for s in run.config["path"]), path
        assert any(row["grad/norm"] > 0 for row in rows(run)), path  # a step whose groups are all flat has none


def test_methods_differ_in_the_terms_that_they_train_on(trained: Plan) -> None:
    terms = {
        ".".join(run.path): {t for t in ("sft", "grpo", "off_policy", "adv") if rows(run)[-1][f"loss/{t}"] is not None}
        for run in trained.runs
        if run.variant == "main"
    }
    assert terms["sft"] == terms["dft"] == {"sft"}
    assert terms["grpo"] == {"grpo"}
    assert terms["luffy"] == {"grpo", "off_policy"}
    assert terms["chord_mu"] == terms["chord_phi"] == {"sft", "grpo"}
    assert terms["uniapl"] == {"sft", "grpo", "adv"}
    assert terms["a_sft"] == {"sft", "adv"}


def test_three_ablations_are_trained_each_variant_unlike_the_main_run(trained: Plan) -> None:
    weights = {(".".join(run.path), run.variant): read_manifest(run.directory)["weight_sha256"] for run in trained.runs}
    found = {variant for _, variant in weights if variant != "main"}
    assert {variant.partition(".")[0] for variant in found} == set(ABLATIONS)
    assert len(set(weights.values())) == len(weights), "no two runs end with the same weights"
