"""From a study to directories: what can change a result is in the hash, shared beginnings are made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from uniapl.config import ConfigError
from uniapl.layers import available, load_references, load_study
from uniapl.plan import Plan, Run, in_share, make_plan, stage_of_path, study_index, write_configs
from uniapl.provenance import content_hash, read_config
from uniapl.workflow import study_of, upstream


def plan_of(root: Path, **overrides: Any) -> Plan:
    choices = {"models": "tiny_qwen3", "methods": "sft,grpo,sft.grpo,uniapl"} | overrides
    return make_plan(load_study("smoke", choices), root, sampler="hf", compute="float32")


def run_of(plan: Plan, path: str, variant: str = "main", seed: int = 0) -> Run:
    (run,) = [r for r in plan.runs if (".".join(r.path), r.variant, r.seed) == (path, variant, seed)]
    return run


def test_runs_that_begin_alike_share_the_beginning(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, methods="sft,sft.grpo,sft.uniapl")
    assert [".".join(run.path) for run in plan.runs] == ["sft", "sft.grpo", "sft.uniapl"]  # sft once, parents first
    assert run_of(plan, "sft.grpo").parent is not None
    assert run_of(plan, "sft.grpo").parent == run_of(plan, "sft.uniapl").parent == run_of(plan, "sft")


def test_the_beginning_of_a_path_is_made_even_where_it_is_no_method_of_the_study(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, methods="sft.grpo")
    assert [".".join(run.path) for run in plan.runs] == ["sft", "sft.grpo"]
    assert {e.label for e in plan.evaluations} == {"base", "sft.grpo"}


def test_a_changed_learning_rate_is_another_directory_and_what_does_not_hang_on_it_stays(tmp_path: Path) -> None:
    before, after = plan_of(tmp_path), plan_of(tmp_path, stages={"grpo": {"learning_rate": 2e-3}})
    for path, same in (("sft", True), ("uniapl", True), ("grpo", False), ("sft.grpo", False)):
        assert (run_of(before, path).directory == run_of(after, path).directory) is same, path
    assert before.data == after.data
    assert before.discriminators == after.discriminators


def test_a_changed_beginning_changes_every_path_that_goes_through_it(tmp_path: Path) -> None:
    before, after = plan_of(tmp_path), plan_of(tmp_path, stages={"sft": {"learning_rate": 2e-3}})
    for path, same in (("sft", False), ("sft.grpo", False), ("grpo", True)):
        assert (run_of(before, path).directory == run_of(after, path).directory) is same, path


def test_changed_data_or_compute_changes_every_run_and_titles_none(tmp_path: Path) -> None:
    before = plan_of(tmp_path)
    other_data = plan_of(tmp_path, data={"seed": 1})
    other_title = plan_of(tmp_path, stages={"grpo": {"title": "renamed"}})
    bfloat16 = make_plan(before.study, tmp_path, sampler="hf", compute="bfloat16")
    for run in before.runs:
        path = ".".join(run.path)
        assert run_of(other_data, path).directory != run.directory
        assert run_of(bfloat16, path).directory != run.directory
        assert run_of(other_title, path).directory == run.directory


def test_how_a_teacher_is_reached_is_in_no_hash_and_what_it_is_asked_is(tmp_path: Path) -> None:
    def directory_of(**values: Any) -> Path:
        plan = plan_of(tmp_path, teacher={"name": "qwen3_235b", **values})
        assert "access" not in plan.demonstrations["tiny_qwen3"].config["teacher"]
        return plan.demonstrations["tiny_qwen3"].directory

    base = directory_of()
    for access in ({"url": "https://host/v1"}, {"key_variable": "KEY"}, {"concurrency": 1}, {"prompt_price": 0.5}):
        assert directory_of(access=access) == base
    changes = ({"temperature": 1.0}, {"num_samples": 8}, {"model": "other"}, {"extra_body": {"top_k": 5}})
    assert len({base, *(directory_of(**change) for change in changes)}) == 5


def test_the_editors_directories_keep_their_names(tmp_path: Path) -> None:
    assert plan_of(tmp_path).demonstrations["tiny_qwen3"].directory.name == "tiny_qwen3-c4b5acae"


def test_what_runs_the_discriminator_changes_no_directory_and_the_discriminator_every_runs(tmp_path: Path) -> None:
    before = plan_of(tmp_path, discriminator={"name": "polar_7b"})
    servers = {"discriminator_engine": "servers", "discriminator_servers": ["http://gpu1:8000/pooling"]}
    elsewhere = plan_of(tmp_path, discriminator={"name": "polar_7b"}, machine=servers)
    smaller = plan_of(tmp_path, discriminator={"name": "polar_1_8b"})
    assert [a.directory for a in before.artifacts()] == [a.directory for a in elsewhere.artifacts()]
    assert before.demonstrations == smaller.demonstrations
    assert not {run.directory for run in before.runs} & {run.directory for run in smaller.runs}


def test_a_directory_says_model_path_variant_hash_and_seed(tmp_path: Path) -> None:
    run = run_of(plan_of(tmp_path, seeds="5"), "sft.grpo", seed=5)
    tail = f"smoke/runs/tiny_qwen3/sft.grpo/main-{content_hash(run.config)}/seed5"
    assert run.directory == tmp_path / tail
    assert [stage["name"] for stage in run.config["path"]] == ["sft", "grpo"]
    assert run.config["seed"] == 5


def test_a_path_may_override_its_last_stage_alone(tmp_path: Path) -> None:
    study = load_study("smoke", {"methods": "grpo,grpo.grpo", "paths": {"grpo.grpo": {"steps": 2}}})
    assert stage_of_path(study, ("grpo", "grpo")).steps == 2
    assert stage_of_path(study, ("grpo",)).steps == 3
    plan = make_plan(study, tmp_path, sampler="hf", compute="float32")
    longer = next(r for r in plan.runs if r.path == ("grpo", "grpo"))
    assert [stage["steps"] for stage in longer.config["path"]] == [3, 2]


def test_an_ablations_variants_are_runs_of_their_own_per_seed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, methods="uniapl", ablations="adversarial_as", seeds="0,1,2")
    variants = {(r.variant, r.seed) for r in plan.runs}
    names = [f"adversarial_as.{name}" for name in ("loss", "reward", "both", "loss_1", "reward_1", "reward_scaled")]
    assert variants == {("main", 0), ("main", 1), ("main", 2)} | {(name, seed) for name in names for seed in (0, 1)}
    assert run_of(plan, "uniapl", "adversarial_as.reward").config["path"][0]["adversarial_as"] == "reward"
    assert len({r.directory for r in plan.runs}) == 3 + 6 * 2


def test_variants_are_evaluated_on_what_choices_and_claims_are_made_on(tmp_path: Path) -> None:
    study = study_of("smoke", "ablation_lambda_adv", {"models": ["tiny_qwen3"]})
    plan = make_plan(study, tmp_path, sampler="hf", compute="float32")
    asked = {(e.variant == "main", tuple(e.config["evaluation"]["tasks"])) for e in plan.evaluations}
    assert asked == {(True, ("development", "heldout", "ifbench")), (False, ("development", "heldout"))}
    alone = study.evaluation.model_copy(update={"variant_tasks": None})
    same = make_plan(study.model_copy(update={"evaluation": alone}), tmp_path, sampler="hf", compute="float32")
    main = {e.directory for e in plan.evaluations if e.variant == "main"}
    assert main == {e.directory for e in same.evaluations if e.variant == "main"}, "its hash is not touched"


def test_single_methods_may_have_more_seeds(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, methods="sft,grpo,sft.grpo", seeds="0,1", more_seeds={"sft.grpo": [1, 4]})
    seeds = {path: sorted(e.seed for e in plan.evaluations if e.label == path) for path in ("sft", "grpo", "sft.grpo")}
    assert seeds == {"sft": [0, 1], "grpo": [0, 1], "sft.grpo": [0, 1, 4]}
    assert sorted(r.seed for r in plan.runs if r.path == ("sft",)) == [0, 1, 4]  # the last one for its child alone


def test_a_variants_teacher_and_discriminator_train_it_and_evaluate_nothing(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, methods="sft,uniapl", ablations="teacher,discriminator")
    main, wrong = run_of(plan, "uniapl"), run_of(plan, "uniapl", "teacher.violating")
    assert wrong.config["teacher"] == main.config["teacher"] | {"answers": "violating"}
    assert wrong.reads["demonstrations"] != main.reads["demonstrations"] == plan.demonstrations["tiny_qwen3"]
    assert wrong.reads["discriminator"].reads["demonstrations"] == wrong.reads["demonstrations"]
    length = run_of(plan, "uniapl", "discriminator.length")
    assert length.reads["demonstrations"] == main.reads["demonstrations"]
    assert length.reads["discriminator"].config["discriminator"]["reads"] == "length"
    for evaluation in plan.evaluations:
        assert evaluation.config["teacher"] == main.config["teacher"]
    # a wrong teacher's sft is the parent of its sft.grpo; all that stages read is written
    parent = run_of(plan, "sft.grpo", "teacher.violating").parent
    assert parent == run_of(plan, "sft", "teacher.violating")
    known = {artifact.directory for artifact in plan.artifacts()}
    assert all(read.directory in known for artifact in plan.artifacts() for read in artifact.reads.values())


def test_a_variant_multiplies_the_scales_own_sizes(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, methods="sft.grpo", ablations="switch,rollouts")
    early = run_of(plan, "sft.grpo", "switch.early")
    assert [stage["steps"] for stage in early.config["path"]] == [1, 5]  # of 3 and 3
    assert early.parent is not None
    assert early.parent.variant == "switch.early"
    fewer = run_of(plan, "uniapl", "rollouts.fewer").config["path"][0]
    assert (fewer["rollouts_per_prompt"], fewer["prompts_per_step"]) == (2, 8)


def test_configs_are_written_once_and_their_hash_is_the_directorys(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    write_configs(plan)
    times = {a.config_file: a.config_file.stat().st_mtime_ns for a in plan.artifacts()}
    index_time = plan.study_file.stat().st_mtime_ns
    assert len(times) == len(plan.artifacts()) > 8
    write_configs(plan_of(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert plan.study_file.stat().st_mtime_ns == index_time
    for artifact in plan.artifacts():
        assert read_config(artifact.directory) == json.loads(json.dumps(artifact.config))


def test_a_config_edited_by_hand_is_one_error_that_says_how_to_mend_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    write_configs(plan)
    path = run_of(plan, "grpo").config_file
    path.write_text(path.read_text().replace('"steps": 3', '"steps": 4'))
    with pytest.raises(ConfigError, match=r"was edited: its hash is .* restore it") as raised:
        write_configs(plan)
    assert str(path) in str(raised.value)
    path.unlink()
    write_configs(plan)
    assert read_config(path.parent)["path"][0]["steps"] == 3


def test_the_index_names_every_run_and_evaluation_relative_to_the_root(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    write_configs(plan)
    index = json.loads(plan.study_file.read_text())
    assert [run["path"] for run in index["runs"]] == [["sft"], ["grpo"], ["sft", "grpo"], ["uniapl"]]
    assert index["runs"][2]["parent"] == index["runs"][0]["directory"]
    assert [e["method"] for e in index["evaluations"]] == ["base", "sft", "grpo", "sft.grpo", "uniapl"]
    assert index["evaluations"][0]["run"] is None
    for entry in (*index["runs"], *index["evaluations"]):
        assert (plan.root / entry["directory"] / "config.json").exists()


def test_shares_hold_everything_once_and_a_malformed_one_is_refused() -> None:
    assert [in_share([0, 1, 2, 3, 4], share) for share in ("1of2", "2of2")] == [[0, 1, 2], [3, 4]]
    for share in ("0of2", "3of2", "2", "1of", "-1of2"):
        with pytest.raises(ValueError, match="is not like 1of2"):
            in_share([0], share)


def test_the_index_holds_published_scores_of_the_studys_models_on_its_tasks(tmp_path: Path) -> None:
    def models_of(**overrides: Any) -> dict[str, Any]:
        return study_index(plan_of(tmp_path, **overrides))["references"]["models"]

    assert models_of() == {}
    assert models_of(models="qwen3_0_6b") == {}  # heldout and ifbench have none
    found = models_of(models="qwen3_0_6b,qwen3_4b,tiny_qwen3", evals="heldout,ifeval")
    assert {name: [row["score"] for row in rows] for name, rows in found.items()} == {
        "qwen3_0_6b": [54.5], "qwen3_4b": [81.2],
    }  # fmt: skip


def test_the_index_says_what_each_variant_of_an_ablation_changes(tmp_path: Path) -> None:
    named = "lambda_adv,equal_steps,teacher,discriminator"
    plan = make_plan(load_study("laptop", {"ablations": named}), tmp_path, sampler="hf", compute="float32")
    ablations = study_index(plan)["ablations"]
    changes = {
        f"{name}.{variant}": [tuple(change.values()) for change in changed]
        for name, one in ablations.items()
        for variant, changed in one["variants"].items()
    }
    assert changes["lambda_adv.5"] == [("uniapl", "lambda_adv", 0.2, 5.0)]
    assert changes["equal_steps.half"] == [("sft", "steps", 30, 15), ("sft.grpo", "steps", 30, 15)]
    assert changes["teacher.best_of_n"] == [("teacher", "answers", "edited", "best")]
    assert changes["discriminator.random"] == [
        ("discriminator", "kind", "features", "control"), ("discriminator", "reads", None, "noise"),
    ]  # fmt: skip
    assert ablations["teacher"]["title"].startswith("The expert; best of n without edits")
    assert study_index(plan_of(tmp_path))["ablations"] == {}


def test_every_published_score_names_a_known_model_and_its_source() -> None:
    spec = load_references()
    assert set(spec.models) <= set(available("models"))
    tasks = {row.task for rows in spec.models.values() for row in rows}
    assert tasks <= set(available("evals"))


def test_the_papers_study_is_judged_on_ifeval_and_compares_with_its_own_teacher_only(tmp_path: Path) -> None:
    def compared(**overrides: Any) -> tuple[str, list[str]]:
        study = load_study("paper", overrides)
        index = study_index(make_plan(study, tmp_path, sampler="hf", compute="float32"))
        return index["claims"]["evaluation"], [one["claim"] for one in index["references"]["compared"]]

    assert compared() == ("ifeval", ["C3", "C4"])
    assert compared(teacher="qwen3_235b_vllm") == ("ifeval", ["C3", "C4"])
    assert compared(teacher="editor", data={"autoif": None}) == ("ifeval", ["C3"])
    assert compared(evals="heldout") == ("ifeval", [])  # so that they are not run
    assert load_study("laptop").claims.evaluation == "heldout"


def test_autoifs_prompts_hang_on_the_teacher_and_not_on_how_it_is_reached(tmp_path: Path) -> None:
    def plan(**values: Any) -> Plan:
        return plan_of(tmp_path, teacher={"name": "qwen3_235b", **values}, data={"autoif": {}, "max_prompt_bytes": 99})

    first, elsewhere, warmer = plan(), plan(access={"concurrency": 1}), plan(temperature=1.0)
    assert first.autoif is not None
    assert first.autoif == elsewhere.autoif != warmer.autoif
    assert first.data == elsewhere.data
    assert first.data.directory != warmer.data.directory
    reads = upstream({"all": first})
    assert reads[str(first.data.directory)] == {"autoif": first.autoif.directory}
    assert reads[str(first.autoif.directory)] == {}
    items = {"autoif": {"items": "items.jsonl"}, "max_prompt_bytes": 99}
    assert plan_of(tmp_path, data=items).autoif == plan_of(tmp_path, data=items, teacher="qwen3_235b").autoif


def test_sources_that_a_study_does_not_use_rename_no_directory(tmp_path: Path) -> None:
    used = plan_of(tmp_path).data.config["data"]
    assert not {"autoif", "if_rlvr", "decontaminate_against", "benchmarks"} & set(used)
