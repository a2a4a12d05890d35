"""Which runs a study takes from released results, and which it trains again for their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from uniapl import sampler, workflow
from uniapl.config import ConfigError
from uniapl.layers import load_study
from uniapl.plan import Artifact, Plan, make_plan, study_index
from uniapl.released import describe, find_engine, with_released
from uniapl.workflow import Settings, make_plans, read_released, read_settings, study_of, upstream


def a_plan(root: Path, **values: Any) -> Plan:
    return make_plan(load_study("smoke", {"models": "tiny_qwen3"} | values), root, sampler="hf", compute="float32")


def put(folder: Path, plan: Plan, artifacts: list[Artifact]) -> None:
    """The files by which an artifact is known as released."""
    for artifact in artifacts:
        place = folder / artifact.directory.relative_to(plan.root)
        place.mkdir(parents=True)
        names = ("demonstrations.jsonl", "samples.jsonl", "head.safetensors", "prompts.jsonl")
        (place / "config.json").write_text(json.dumps(artifact.config))
        for name in ("manifest.json", *names):
            (place / name).write_text("{}")


def made(plan: Plan) -> set[str]:
    return {f"{'.'.join(r.path)} {r.variant} {r.seed}" for r in plan.runs if r.directory.is_relative_to(plan.root)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "released" / "smoke"


def test_without_a_release_there_is_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"released/laptop/study\.json is missing"):
        read_released(tmp_path / "released" / "laptop")


def test_a_study_that_was_released_whole_makes_nothing(tmp_path: Path, folder: Path) -> None:
    plan = a_plan(tmp_path, methods="sft,sft.grpo,uniapl")
    put(folder, plan, plan.artifacts())
    taken = with_released(plan, folder)
    assert not [a.directory for a in taken.artifacts() if not a.directory.is_relative_to(folder)]
    index = study_index(taken)
    assert all(e["directory"].startswith("../released/smoke/") for e in (*index["runs"], *index["evaluations"]))
    assert describe(taken) == "3 of 3 runs are taken from released results, none made here"
    assert {a.directory.name for a in taken.artifacts()} == {a.directory.name for a in plan.artifacts()}


def test_what_a_new_run_goes_on_from_is_trained_again_with_all_that_goes_on_from_it(
    tmp_path: Path, folder: Path
) -> None:
    old = a_plan(tmp_path, methods="sft,grpo,sft.grpo", seeds="0,1")
    put(folder, old, old.artifacts())
    taken = with_released(a_plan(tmp_path, methods="sft,grpo,sft.grpo,sft.a_grpo", seeds="0,1"), folder)
    # sft.a_grpo is new and goes on from sft, whose weights were not released; so sft.grpo is made again too
    assert made(taken) == {f"{path} main {seed}" for path in ("sft", "sft.grpo", "sft.a_grpo") for seed in (0, 1)}
    assert all(run.parent.directory.is_relative_to(taken.root) for run in taken.runs if run.parent)
    assert describe(taken) == (
        "2 of 8 runs are taken from released results, 2 (sft.a_grpo seed 0, sft.a_grpo seed 1) made here, and,"
        " since weights are not released, 4 again: sft seed 0, sft.grpo seed 0, sft seed 1, sft.grpo seed 1"
    )
    again = {e.label for e in taken.evaluations if e.directory.is_relative_to(taken.root)}
    assert again == {"sft", "sft.grpo", "sft.a_grpo"}
    local = {a.directory for a in (*taken.models.values(), taken.data)}
    assert all(directory.is_relative_to(taken.root) for directory in local), "something is trained: weights are needed"
    assert taken.demonstrations["tiny_qwen3"].directory.is_relative_to(folder)
    assert taken.runs[0].reads["demonstrations"] == taken.demonstrations["tiny_qwen3"]


def test_another_evaluation_needs_the_weights(tmp_path: Path, folder: Path) -> None:
    old = a_plan(tmp_path, methods="grpo")
    put(folder, old, old.artifacts())
    changed = with_released(a_plan(tmp_path, methods="grpo", evals="development,heldout"), folder)
    assert made(changed) == {"grpo main 0"}


def test_an_evaluation_of_more_tasks_will_do_and_nothing_else_of_it_may_differ(tmp_path: Path, folder: Path) -> None:
    old = a_plan(tmp_path, methods="grpo", evals="development,heldout,ifbench")
    put(folder, old, old.artifacts())
    fewer = with_released(a_plan(tmp_path, methods="grpo", evals="development,ifbench"), folder)
    assert not made(fewer)
    assert {e.directory for e in fewer.evaluations} == {
        folder / e.directory.relative_to(old.root) for e in old.evaluations
    }
    longer = {"evaluation": {"tasks": ["development", "ifbench"], "ifbench_max_new_tokens": 5}}
    assert made(with_released(a_plan(tmp_path, methods="grpo", **longer), folder)) == {"grpo main 0"}


def test_a_directory_without_what_stages_read_of_it_is_made(tmp_path: Path, folder: Path) -> None:
    plan = a_plan(tmp_path, methods="grpo")
    put(folder, plan, plan.artifacts())
    name = plan.demonstrations["tiny_qwen3"].directory.name
    (folder / "demonstrations" / name / "demonstrations.jsonl").unlink()
    taken = with_released(plan, folder)
    assert taken.demonstrations["tiny_qwen3"] == plan.demonstrations["tiny_qwen3"]


def test_what_a_teacher_wrote_is_taken_and_the_prompts_are_made_from_it(tmp_path: Path, folder: Path) -> None:
    asked = {"teacher": "qwen3_235b", "data": {"autoif": {}, "max_prompt_bytes": 99}, "discriminator": "polar_7b"}
    plan = a_plan(tmp_path, methods="grpo", **asked)
    assert plan.autoif is not None
    judge, demonstrations = plan.discriminators["tiny_qwen3"], plan.demonstrations["tiny_qwen3"]
    put(folder, plan, [plan.autoif, judge, demonstrations])
    taken = with_released(plan, folder)
    assert study_index(taken)["autoif"] == f"../released/smoke/autoif/{plan.autoif.directory.name}"
    assert taken.demonstrations["tiny_qwen3"].directory.is_relative_to(folder)
    assert taken.data.directory == plan.data.directory, "it is made here"
    reads = upstream({"all": taken})
    assert reads[str(plan.data.directory)] == {"autoif": folder / "autoif" / plan.autoif.directory.name}
    assert str(plan.autoif.directory) not in reads, "a rule would ask the teacher"
    assert taken.discriminators["tiny_qwen3"] == judge, "POLAR has a text to be held against, which is not there"
    (folder / "discriminator" / judge.directory.name / "probe.json").write_text("{}")
    assert with_released(plan, folder).discriminators["tiny_qwen3"].directory.is_relative_to(folder)


def settings_at(tmp_path: Path, source: str, **values: Any) -> Settings:
    words = {"scale": "smoke", "source": source, "results": str(tmp_path), "models": "tiny_qwen3", "methods": "grpo"}
    return read_settings(words | values)


def test_what_is_left_to_the_machine_is_as_it_was_released(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = {"sampler": {"kind": "auto"}, "compute": "auto"}
    old = make_plan(study_of("smoke", "all", settings_at(tmp_path, "run", **left).overrides), tmp_path,
                    sampler="vllm", compute="bfloat16")  # fmt: skip
    put(folder, old, old.artifacts())
    monkeypatch.setattr(workflow, "resolve_compute", lambda wanted: "float32" if wanted == "auto" else wanted)
    monkeypatch.setattr(sampler, "explain_fallback", lambda: "vLLM is not installed: slower")

    def plan(source: str, **values: Any) -> Plan:
        return make_plans(settings_at(tmp_path, source, **left | values), "smoke", "all")["all"]

    assert len(made(plan("run"))) == len(plan("run").runs)
    taken = plan("released+local")
    assert not made(taken)
    workflow.check_sampler(taken)  # which needs none
    own = plan("released+local", compute="float32")
    assert len(made(own)) == len(own.runs), "what the config says is never the release's"
    more = plan("released+local", seeds="1")
    with pytest.raises(ConfigError, match=r"as what is, and .* here: sampler\.kind = 'vllm': vLLM is not installed\. "):
        workflow.check_sampler(more)
    for artifact in more.artifacts():
        artifact.directory.mkdir(parents=True, exist_ok=True)
        artifact.manifest.touch()
    workflow.check_sampler(more)  # nothing is left to be made
    workflow.check_sampler(plan("released+local", sampler={"kind": "hf"}))


def test_releases_that_were_made_differently_say_nothing_of_how_to_make_more(tmp_path: Path, folder: Path) -> None:
    for compute in ("bfloat16", "float32"):
        plan = make_plan(load_study("smoke", {"models": "tiny_qwen3"}), tmp_path, sampler="hf", compute=compute)
        put(folder, plan, [plan.demonstrations["tiny_qwen3"]])
        assert find_engine(folder) == (("hf", "bfloat16") if compute == "bfloat16" else None)
    assert find_engine(tmp_path / "nothing") is None
