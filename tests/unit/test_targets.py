"""Targets of the Snakefile: which one a command line names, and what each ablation's plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from uniapl.analysis.collect import MAIN
from uniapl.config import ConfigError
from uniapl.layers import available, load_ablation
from uniapl.plan import Plan
from uniapl.workflow import chosen_target, make_plans, plan_study, read_settings, study_of

COMMAND = ("snakemake", "-n", "--cores", "all", "--config", "scale=laptop", "methods=grpo")


def test_the_command_line_names_one_target_or_all():
    assert chosen_target(COMMAND) == "all"
    for target in ("matrix", "ablations"):
        assert chosen_target((*COMMAND, target)) == target
    with pytest.raises(ConfigError, match=r"targets ablation_seeds, matrix: name one of them"):
        chosen_target((*COMMAND, "matrix", "ablation_seeds"))


def tried(plan: Plan) -> dict[str, set[tuple[str, str, int]]]:
    """Variant, method and seed of all evaluations of trained models, those of main runs apart."""
    rows = [(e.variant, e.label, e.seed) for e in plan.evaluations if e.run]
    return {kind: {row for row in rows if (row[0] == MAIN) == (kind == MAIN)} for kind in (MAIN, "variants")}


@pytest.mark.parametrize("name", available("ablations"))
def test_an_ablations_target_has_its_variants_and_the_main_runs_that_they_are_held_against(name: str, tmp_path: Path):
    target = f"ablation_{name}"
    assert chosen_target((*COMMAND, target)) == target
    settings = read_settings({"scale": "laptop", "results": str(tmp_path)})
    study = study_of("laptop", target, settings.overrides)
    ablation = load_ablation(name, [], target)
    assert study.seeds == tuple(range(ablation.num_seeds))
    found = tried(plan_study(study, settings))
    assert found["variants"] == {
        (f"{name}.{variant}", method, seed)
        for variant in ablation.variants
        for method in ablation.methods
        for seed in study.seeds
    }
    beside = {*ablation.methods, *ablation.beside}
    assert found[MAIN] == {(MAIN, method, seed) for method in beside for seed in study.seeds}


def test_an_ablations_plan_is_made_beside_those_whose_directories_the_rules_fill(tmp_path: Path):
    settings = read_settings({"scale": "laptop", "results": str(tmp_path)})
    plans = make_plans(settings, "laptop", "ablation_lambda_adv")
    assert list(plans) == ["all", "matrix", "ablations", "ablation_lambda_adv"]
    own, whole = ({run.directory for run in plans[target].runs} for target in ("ablation_lambda_adv", "ablations"))
    assert own < whole, "what one ablation trains is trained once, whichever target asks for it"
