"""Config layers: later ones win, and whatever does not fit is one line with file, key, value and remedy."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from uniapl import layers
from uniapl.config import ConfigError, EditorSpec, EndpointSpec, VLLMSpec
from uniapl.hub import sources_of
from uniapl.layers import load_ablation, load_model, load_stage, load_study, merge


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of config/ that a test may spoil."""
    copy = tmp_path / "config"
    shutil.copytree(layers.CONFIG, copy)
    monkeypatch.setattr(layers, "CONFIG", copy)
    return copy


def error_of(scale: str = "smoke", **overrides: Any) -> str:
    """The message of a study that must not resolve: always one line."""
    with pytest.raises(ConfigError) as raised:
        load_study(scale, overrides)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{old!r} is not in {path.name}"
    path.write_text(text.replace(old, new, 1))


def test_later_layers_win_key_by_key_and_lists_are_replaced() -> None:
    merged = merge({"a": {"x": 1, "y": [1, 2]}, "b": 1}, {"a": {"y": [3]}, "c": 2})
    assert merged == {"a": {"x": 1, "y": [3]}, "b": 1, "c": 2}


def test_the_command_line_overrules_the_scale_and_the_scale_the_method() -> None:
    assert load_study("smoke").stages["grpo"].steps == 3  # config/smoke.yaml; its method file says 30
    assert load_stage("grpo", [], "tests").steps == 30
    study = load_study("smoke", {"stages": {"grpo": {"steps": 7}}, "seeds": "3,4"})
    assert study.stages["grpo"].steps == 7
    assert study.stages["sft"].steps == 3
    assert study.seeds == (3, 4)


def test_models_methods_and_evals_are_short_hands() -> None:
    study = load_study("smoke", {"models": "small_qwen3", "methods": "sft,sft.grpo", "evals": "heldout"})
    assert [m.name for m in study.models] == ["small_qwen3"]
    assert study.methods == ("sft", "sft.grpo")
    assert study.evaluation.tasks == ("heldout",)


def test_an_unknown_key_names_file_and_the_key_that_was_meant(config: Path) -> None:
    replace(config / "smoke.yaml", "probe_every:", "probe_evry:")
    message = error_of()
    assert message.startswith("config/smoke.yaml: train.probe_evry = 2: unknown key; did you mean 'probe_every'?")


@pytest.mark.parametrize("key", ["micro_batch_tokens", "packing"])
def test_what_changes_speed_alone_is_no_setting_of_the_training(key: str) -> None:
    assert f"--config: train.{key} = 1: unknown key; " in error_of(train={key: 1})


def test_an_unknown_key_of_a_method_names_its_file(config: Path) -> None:
    with open(config / "methods" / "grpo.yaml", "a") as file:
        file.write("lamda_adv: 0.1\n")
    message = error_of()
    assert message == "config/methods/grpo.yaml: stages.grpo.lamda_adv = 0.1: unknown key; did you mean 'lambda_adv'?"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            {"machine": {"micro_batch_tokens": "many"}},
            ["--config: machine.micro_batch_tokens = 'many'", "valid integer"],
        ),
        ({"stages": {"grpo": {"steps": -1}}}, ["--config: stages.grpo.steps = -1", "greater than or equal to 0"]),
        (
            {"stages": {"uniapl": {"lambda_adv": -0.2}}},
            ["stages.uniapl.lambda_adv = -0.2", "greater than or equal to 0"],
        ),
        ({"stages": {"grpo": {"learning_rate": ".nan"}}}, ["stages.grpo.learning_rate", "'.nan'"]),
        ({"stages": {"grpo": {"rollouts_per_prompt": 1}}}, ["stages.grpo.rollouts_per_prompt = 1", "2"]),
        ({"sampler": {"kind": "sglang"}}, ["--config: sampler.kind = 'sglang'", "'vllm'"]),
    ],
)
def test_a_wrong_value_names_layer_key_and_value(overrides: dict[str, Any], parts: list[str]) -> None:
    message = error_of(**overrides)
    for part in parts:
        assert part in message
    assert message.endswith("change this value")


def test_a_yaml_syntax_error_names_file_and_line(config: Path) -> None:
    (config / "smoke.yaml").write_text("models: [tiny_qwen3]\nstages:\n  sft: {steps: 3\n  grpo: {steps: 3}\n")
    assert re.match(r"config/smoke\.yaml:4: not valid YAML: .*; mend this line", error_of())


def test_yaml_that_is_no_mapping_is_refused(config: Path) -> None:
    (config / "methods" / "grpo.yaml").write_text("- 1\n")
    assert error_of() == "config/methods/grpo.yaml: expected keys and values, found list"


def test_an_unknown_method_names_the_known_ones_and_how_to_add_one() -> None:
    message = error_of(methods="grpo,gropo")
    assert message.startswith(f"--config: unknown method 'gropo'; known: {', '.join(layers.available('methods'))}")
    assert "add config/methods/gropo.yaml" in message
    assert "unknown method 'dpo'" in error_of(methods="sft.dpo")


def test_an_unknown_model_names_the_known_ones() -> None:
    message = error_of(models="tiny_qwen4")
    assert message.startswith("--config: models = 'tiny_qwen4': unknown; known: ")
    assert "tiny_qwen3" in message


def test_a_model_may_be_a_folder_or_a_hub_id(tmp_path: Path) -> None:
    folder = load_model(str(tmp_path), "tests")
    assert (folder.source, folder.location) == ("path", str(tmp_path.resolve()))
    hub = load_model("Some/Model-1B@0123abc", "tests")
    assert (hub.source, hub.location, hub.revision) == ("hub", "Some/Model-1B", "0123abc")


def test_an_unknown_stage_teacher_or_ablation_is_named() -> None:
    assert "stages.gropo: unknown stage" in error_of(stages={"gropo": {"steps": 1}})
    assert "teacher.name = 'oracle': unknown" in error_of(teacher={"name": "oracle"})
    assert "ablations = 'lambda': unknown; known: " in error_of(ablations="lambda")


def test_a_discriminator_is_chosen_by_the_name_of_its_file() -> None:
    polar = load_study("laptop", {"discriminator": {"name": "polar_7b", "dtype": "bfloat16"}}).discriminator
    assert (polar.kind, polar.micro_batch_tokens, polar.seed) == ("polar", 16384, 0)
    assert polar.model_dump()["location"] == "internlm/POLAR-7B"
    assert polar.model_dump()["dtype"] == "bfloat16"
    for name in layers.available("discriminators"):
        load_study("laptop", {"discriminator": {"name": name, **({"layer": 3} if name == "features" else {})}})


def test_keys_of_the_former_discriminator_do_not_reach_the_chosen_one() -> None:
    # config/laptop.yaml gives the features' layer, which POLAR does not have.
    assert load_study("laptop").discriminator.model_dump()["layer"] == 15
    assert "layer" not in load_study("laptop", {"discriminator": {"name": "polar_1_8b"}}).discriminator.model_dump()
    message = error_of("laptop", discriminator={"name": "polar_1_8b", "layer": 15})
    assert message == "--config: discriminator.layer = 15: unknown key; remove it"
    assert load_study("laptop", {"discriminator": {"layer": 7}}).discriminator.model_dump()["layer"] == 7


def test_the_laptops_discriminator_has_the_config_that_released_results_were_hashed_with() -> None:
    assert load_study("laptop").discriminator.model_dump() == {
        "kind": "features", "layer": 15, "num_components": 64, "width": 64, "learning_rate": 1e-3, "weight_decay": 0.1,
        "epochs": 60, "num_negatives": 3, "micro_batch_tokens": 4096, "seed": 0,
    }  # fmt: skip


def test_a_discriminator_that_does_not_fit_is_named(config: Path) -> None:
    assert "discriminator.name = 'polar': unknown; known: " in error_of(discriminator={"name": "polar"})
    assert "discriminator = ['polar_7b']: give the name" in error_of(discriminator=["polar_7b"])
    replace(config / "discriminators" / "polar_7b.yaml", "revision:", "revison:")
    message = error_of(discriminator={"name": "polar_7b"})
    assert message.startswith("config/discriminators/polar_7b.yaml: discriminator.revison = ")
    assert "did you mean 'revision'?" in message
    replace(config / "discriminators" / "polar_1_8b.yaml", "kind: polar", "kind: polr")
    message = error_of(discriminator={"name": "polar_1_8b"})
    assert message.startswith("config/discriminators/polar_1_8b.yaml: discriminator.kind = 'polr': unknown; known: ")
    replace(config / "discriminators" / "polar_7b.yaml", "revison: main", "")
    assert "discriminator: source hub needs 'revision'" in error_of(discriminator={"name": "polar_7b"})


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"stages": {"sft": {"mu": 1.5}}}, "mu = 1.5 is above 1"),
        ({"stages": {"sft": {"mu": {"peak": 0.5, "valley": 1.5}}}}, "mu = 1.5 is above 1"),
        ({"stages": {"sft": {"adversarial_as": "reward"}}}, "adversarial_as: reward needs mu below 1"),
        ({"data": {"autoif": {}}}, "data.autoif asks the teacher, and teacher 'editor' cannot be asked"),
        (
            {"data": {"if_rlvr": {}}},
            "data.max_prompt_bytes = None: with data.autoif or data.if_rlvr it must be at most",
        ),
        ({"data": {"decontaminate_against": ["gsm8"]}}, "data.decontaminate_against = 'gsm8': unknown; known: "),
        ({"data": {"num_policy": 400}}, "num_policy + num_discriminator + num_discriminator_test = 416 is more than"),
    ],
)
def test_an_impossible_combination_is_one_line_that_says_why(overrides: dict[str, Any], reason: str) -> None:
    message = error_of(**overrides)
    assert message.startswith("--config: ")
    assert reason in message


def test_an_override_of_a_path_is_checked_like_the_stage() -> None:
    assert "unknown key; did you mean 'steps'?" in error_of(paths={"grpo.grpo": {"stepz": 1}})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("title: odd\nmethods: [grpo]\nvariant: {a: {}}\n", "variants is missing; add it"),
        ("title: odd\nmethods: [grpo]\nvariants: {a: {stage: {}}}\n", "variants.a.stage = .*unknown key"),
        ("title: odd\nmethods: [grpo]\nvariants: {a: {times: {grpo: {mu: 2}}}}\n", "variants.a.times.grpo.mu"),
        ("title: odd\nmethods: [grpo]\nvariants: {a: {teacher: nobody}}\n", "teacher.name = 'nobody': unknown"),
        ("title: odd\nmethods: [grpo]\nvariants: {a: 3}\n", "expected keys and values"),
    ],
)
def test_an_ablation_that_does_not_fit_is_one_line_with_the_key(config: Path, text: str, reason: str) -> None:
    (config / "ablations" / "odd.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason) as raised:
        load_ablation("odd", [], "tests")
    assert "config/ablations/odd.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_every_scale_resolves_with_every_method_and_ablation(scale: str) -> None:
    study = load_study(scale, {"methods": layers.available("methods"), "ablations": layers.available("ablations")})
    assert set(layers.available("methods")) <= set(study.stages)


def test_another_teacher_is_one_word_and_what_was_said_of_the_first_does_not_count_for_it() -> None:
    for teacher in ("qwen3_235b", {"name": "qwen3_235b"}):
        spec = load_study("smoke", {"teacher": teacher}).teacher
        assert isinstance(spec, EndpointSpec)
        assert (spec.name, spec.model) == ("qwen3_235b", "Qwen/Qwen3-235B-A22B-Instruct-2507")
        assert spec.extra_body["chat_template_kwargs"] == {"enable_thinking": False}
        assert spec.access.url == "http://localhost:8000/v1"
        assert spec.drafts == "model"  # canned ones are what the scale says of the editor
    spec = load_study("smoke", {"teacher": {"num_samples": 2}}).teacher
    assert isinstance(spec, EditorSpec)
    assert (spec.name, spec.drafts, spec.num_samples) == ("editor", "canned", 2)


def test_a_local_teacher_is_a_model_by_name_folder_or_hub_id(tmp_path: Path) -> None:
    for name, source in (("tiny_qwen3", "random"), (str(tmp_path), "path"), ("Some/Model-1B@0123abc", "hub")):
        spec = load_study("smoke", {"teacher": {"name": "qwen3_235b_vllm", "model": name}}).teacher
        assert isinstance(spec, VLLMSpec)
        assert spec.model.source == source
    assert spec.model.revision == "0123abc"
    unknown = error_of(teacher={"name": "qwen3_235b_vllm", "model": "nobody"})
    assert unknown.startswith("--config: teacher.model = 'nobody': unknown; known: ")


def test_every_teacher_of_the_repository_resolves() -> None:
    for name in layers.available("teachers"):
        assert load_study("smoke", {"teacher": name}).teacher.name == name


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (3, "teacher = 3: give the name of a file in config/teachers"),
        ({"kind": "oracle"}, "teacher.kind = 'oracle': unknown; known: editor, endpoint, vllm"),
        ({"name": "qwen3_235b", "access": {"tensor_parallel": 2}}, "teacher.access.tensor_parallel = 2: unknown key"),
        ({"name": "qwen3_235b", "extra_body": {"seed": 1}}, "teacher.extra_body: seed is set by the suite; remove it"),
        ({"name": "qwen3_235b", "access": {"url": "host:8000"}}, "teacher.access.url: is no plain URL"),
        ({"name": "qwen3_235b", "access": {"url": "http://host:80000/v1"}}, "teacher.access.url: Port out of range"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_line(teacher: Any, message: str) -> None:
    assert error_of(teacher=teacher).startswith(f"--config: {message}")


@pytest.mark.parametrize(
    "access",
    [{"key_variable": "sk-SECRET"}, {"key": "sk-SECRET"}, {"api_key": "sk-SECRET"}, {"key_variable": ["sk-SECRET"]},
     {"url": "https://me:sk-SECRET@host/v1"}, {"url": "https://host/v1?key=sk-SECRET"}],
)  # fmt: skip
def test_a_secret_that_somebody_wrote_into_a_file_is_not_shown(access: dict[str, Any]) -> None:
    message = error_of(teacher={"name": "qwen3_235b", "access": access})
    assert message.startswith("--config: teacher.access.")
    assert "SECRET" not in message


def test_the_papers_prompts_are_kept_apart_from_benchmarks_where_a_study_says_they_lie() -> None:
    located = {"location": "elsewhere", "files": {"test": "a.jsonl"}}
    study = load_study("paper", {"evaluation": {"benchmarks": {"gsm8k": located}}})
    assert set(study.data.benchmarks) == {"ifeval", "ifbench", "gsm8k", "humaneval", "mmlu"}
    assert study.data.benchmarks["gsm8k"].location == "elsewhere"
    assert {name for name, spec in study.data.benchmarks.items() if not spec.question} == set()
    assert study.data.autoif is not None
    capped = load_study("paper", {"evaluation": {"benchmarks": {"gsm8k": located | {"max_new_tokens": 9}}}})
    assert capped.evaluation.benchmarks["gsm8k"].max_new_tokens == 9
    assert capped.data == study.data  # how a benchmark is evaluated is no reason to make other prompts
    fetched = [str(source) for source in sources_of(study)]
    assert [one for one in fetched if "IF_multi_constraints_upto5" in one]
    assert not [one for one in fetched if "gsm8k" in one]
