"""POLAR's scores: our decoder against InternLM2 written out by hand and against vLLM's; files that are refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.tiny_polar import HEADS, HIDDEN, KV_HEADS, LAYERS, write_checkpoint
from uniapl.config import MachineSpec, PolarSpec
from uniapl.polar.checkpoint import read_polar_config
from uniapl.polar.discriminator import Polar, open_polar
from uniapl.sampler import explain_fallback

ROOT = Path(__file__).resolve().parents[2]
AGREEMENT = 1e-4
PROMPTS = [
    "Write about the oven.",
    "中国的首都是什么？",
    "Write about the oven.",
    "What is 3?",
    "Write about the oven.",
]
REFERENCES = ["Flour and yeast.", "北京。", "Flour and yeast.", "There are 3 letters.", "Flour and yeast."]
CANDIDATES = ["Flour and dough.", "上海，不是北京。", "", "moon " * 90, "<think>a</think> orbit"]
SIZES: dict[str, Any] = {"max_length": 384, "max_response_length": 64, "micro_batch_tokens": 512}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("polar") / "tiny")


def spec_of(directory: Path, **changes: Any) -> PolarSpec:
    values = {"source": "path", "location": str(directory), "dtype": "float32"} | SIZES | changes
    return PolarSpec.model_validate(values)


def opened(directory: Path, *, machine: dict[str, Any] | None = None, **changes: Any) -> Polar:
    return open_polar(spec_of(directory, **changes), MachineSpec.model_validate(machine or {}))


@pytest.fixture(scope="module")
def polar(checkpoint: Path) -> Polar:
    return opened(checkpoint)


@pytest.fixture(scope="module")
def scores(polar: Polar) -> list[float]:
    return polar.score(PROMPTS, REFERENCES, CANDIDATES)


def by_hand(directory: Path, ids: list[int]) -> float:
    """InternLM2's reward model in a few lines, from its own tensors: one sequence, the head at its last token."""
    weights = {name: tensor.double() for name, tensor in load_file(directory / "model.safetensors").items()}
    size, group = HIDDEN // HEADS, HEADS // KV_HEADS
    x_TD = weights["model.tok_embeddings.weight"][torch.tensor(ids)]
    length = len(ids)
    angles_TH = torch.outer(torch.arange(length).double(), 1e6 ** -(torch.arange(0, size, 2).double() / size))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[name]

    def turn(x: torch.Tensor) -> torch.Tensor:  # pairs are a half of the head apart
        a, b = x[..., : size // 2], x[..., size // 2 :]
        return torch.cat([a * angles_TH.cos() - b * angles_TH.sin(), b * angles_TH.cos() + a * angles_TH.sin()], -1)

    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        fused = norm(x_TD, f"{layer}attention_norm.weight") @ weights[f"{layer}attention.wqkv.weight"].T
        heads = []
        for k in range(KV_HEADS):  # of each key head: its query heads, key, value
            block = fused[:, k * (group + 2) * size : (k + 1) * (group + 2) * size].split(size, dim=-1)
            key, value = turn(block[group]), block[group + 1]
            for query in block[:group]:
                seen = (turn(query) @ key.T / size**0.5).masked_fill(torch.ones(length, length).triu(1) > 0, -1e9)
                heads.append(seen.softmax(-1) @ value)
        x_TD = x_TD + torch.cat(heads, -1) @ weights[f"{layer}attention.wo.weight"].T
        h_TD = norm(x_TD, f"{layer}ffn_norm.weight")
        gate = torch.nn.functional.silu(h_TD @ weights[f"{layer}feed_forward.w1.weight"].T)
        up = h_TD @ weights[f"{layer}feed_forward.w3.weight"].T
        x_TD = x_TD + (gate * up) @ weights[f"{layer}feed_forward.w2.weight"].T
    return float(norm(x_TD[-1], "model.norm.weight") @ weights["v_head.weight"][0])


def test_scores_are_those_of_internlm2_written_out_by_hand(checkpoint: Path, polar: Polar, scores: list[float]) -> None:
    texts = polar.text_format.texts(PROMPTS, REFERENCES, CANDIDATES)
    for text, score in zip(texts, scores, strict=True):
        ids = polar.text_format.tokenizer.encode(text.whole)  # of the whole text, not of its two parts
        assert score == pytest.approx(by_hand(checkpoint, ids), abs=AGREEMENT)
    assert max(scores) - min(scores) > 0.5  # else agreement would mean little


def test_a_score_does_not_depend_on_what_is_scored_beside_it(checkpoint: Path, scores: list[float]) -> None:
    narrow = opened(checkpoint, micro_batch_tokens=1)  # one text a forward
    assert narrow.score(PROMPTS, REFERENCES, CANDIDATES) == pytest.approx(scores, abs=AGREEMENT)
    backwards = narrow.score(PROMPTS[::-1], REFERENCES[::-1], CANDIDATES[::-1])
    assert backwards[::-1] == pytest.approx(scores, abs=AGREEMENT)


def test_equal_texts_have_one_score_and_no_texts_none(polar: Polar) -> None:
    first, second, third = polar.score(["W."] * 3, ["flour"] * 3, ["oven", "<think>x</think>oven", "moon"])
    assert first == second != third
    assert polar.score([], [], []) == []
    with pytest.raises(ValueError, match="lists of one length"):
        polar.score(["a"], ["b"], [])


def test_a_checkpoint_in_several_files_scores_alike(tmp_path: Path, scores: list[float]) -> None:
    assert opened(write_checkpoint(tmp_path / "cut", shards=3)).score(PROMPTS, REFERENCES, CANDIDATES) == scores


def test_half_precision_stays_near(checkpoint: Path, scores: list[float]) -> None:
    for dtype in ("float16", "bfloat16"):
        half = opened(checkpoint, dtype=dtype).score(PROMPTS, REFERENCES, CANDIDATES)
        assert half == pytest.approx(scores, abs=0.3), dtype
        assert half != scores


def test_a_score_that_is_not_finite_is_an_error(polar: Polar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polar.engine, "scores", lambda sequences: [float("inf")] * len(sequences))
    with pytest.raises(ValueError, match=r"POLAR gave the score inf; set discriminator\.dtype"):
        polar.score(["a"], ["b"], ["c"])


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not None}))


def spoil(directory: Path, case: str) -> None:
    weights, config = directory / "model.safetensors", directory / "config.json"
    tensors = load_file(weights)
    wqkv = "model.layers.1.attention.wqkv.weight"
    if case == "only .bin":
        weights.unlink()
        (directory / "pytorch_model.bin").write_bytes(b"")
    elif case == "no weights":
        weights.unlink()
    elif case == "cut file":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif case == "missing tensor":
        save_file({name: t for name, t in tensors.items() if name != wqkv}, weights)
    elif case == "unknown tensor":
        save_file(tensors | {"output.weight": torch.zeros(2)}, weights)
    elif case == "other shape":
        save_file(tensors | {wqkv: tensors[wqkv][:-32].contiguous()}, weights)
    elif case == "other norm":
        save_file(tensors | {"model.norm.weight": torch.ones(3)}, weights)
    elif case == "index elsewhere":
        index = {"weight_map": {"v_head.weight": "../secret.safetensors"}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    elif case == "sizes of a giant":
        rewrite(config, hidden_size=2**20)
    elif case == "another model":
        rewrite(config, model_type="llama")
    elif case == "another head":
        rewrite(config, architectures=["InternLM2ForCausalLM"])
    elif case == "other scaling":
        rewrite(config, rope_scaling={"type": "yarn", "factor": 2.0})
    elif case == "no size":
        rewrite(config, intermediate_size=None)
    elif case == "size of words":
        rewrite(config, num_hidden_layers="three")
    elif case == "too few positions":
        rewrite(config, max_position_embeddings=128)
    elif case == "other reward token":
        rewrite(config, reward_token_id=5)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("only .bin", r"as \.bin files, which run code when they are read; take a revision with safetensors"),
        ("no weights", r"lacks model\.safetensors; fetch the whole checkpoint again"),
        ("cut file", r"is no safetensors file \(.*\); fetch it again"),
        ("missing tensor", r"lacks weights, of decoder\.layers\.1\.self_attn\.k_proj\.weight first; fetch"),
        ("unknown tensor", r"has a tensor 'output\.weight', which POLAR does not have"),
        ("other shape", r"wqkv\.weight does not have the shape that config\.json says"),
        ("other norm", r"model\.norm\.weight does not have the shape"),
        ("index elsewhere", "names no files of its folder; fetch"),
        ("sizes of a giant", "speaks of more weights than the files hold"),
        ("another model", "model_type is 'llama', 'internlm2' is needed"),
        ("another head", "'InternLM2ForRewardModel'] is needed"),
        ("other scaling", "rope_scaling = .* is not known here"),
        ("no size", "has no 'intermediate_size'; it is not POLAR's"),
        ("size of words", "has a size that is no number"),
        ("too few positions", "max_length = 384 is more than the checkpoint's 128 positions; lower it"),
        ("other reward token", "the tokenizer's reward token is .*, config.json says 5"),
    ],
)
def test_a_checkpoint_that_is_not_polars_is_one_clear_error(tmp_path: Path, case: str, message: str) -> None:
    directory = write_checkpoint(tmp_path / "spoilt")
    spoil(directory, case)
    with pytest.raises(ValueError, match=message) as raised:
        opened(directory)
    assert "\n" not in str(raised.value)


def test_a_checkpoint_that_is_not_here_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"the folder .* does not exist; mend discriminator\.location"):
        opened(tmp_path / "absent")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="run: hf download nobody/POLAR-0B --revision abc"):
        opened(tmp_path, source="hub", location="nobody/POLAR-0B", revision="abc")


def test_dynamic_rotary_scaling_is_plain_within_the_positions_of_the_checkpoint(checkpoint: Path) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    plain = read_polar_config(checkpoint, max_length=384).llama
    assert plain.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    scaled = LlamaConfig.from_dict(
        plain.to_dict() | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}}
    )
    for length, same in ((32768, True), (32769, False)):
        positions = torch.tensor([[0, length - 1]])
        angles = [LlamaRotaryEmbedding(config)(torch.zeros(1), positions)[0] for config in (plain, scaled)]
        assert torch.equal(*angles) is same


needs_vllm = pytest.mark.skipif(explain_fallback() is not None, reason=f"vLLM cannot run here: {explain_fallback()}")


@pytest.mark.slow
@needs_vllm
def test_vllms_own_internlm2_gives_the_same_scores(checkpoint: Path, scores: list[float]) -> None:
    through_vllm = opened(checkpoint, machine={"discriminator_engine": "vllm"})
    assert through_vllm.score(PROMPTS, REFERENCES, CANDIDATES) == pytest.approx(scores, abs=AGREEMENT)
    through_vllm.engine.close()  # type: ignore[attr-defined]


@pytest.fixture
def server(checkpoint: Path, tmp_path: Path) -> Iterator[str]:
    """`python -m uniapl.polar.server` on a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = ["--dtype", "float32", "--max-model-len", "448", "--max-num-batched-tokens", "512"]
    command = [sys.executable, "-m", "uniapl.polar.server", str(checkpoint), "--port", str(port), *words]
    command += ["--kv-cache-memory-bytes", "64M"]
    log = tmp_path / "log"
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=os.environ)
    try:
        deadline = time.monotonic() + 300
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/pooling"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.slow
@needs_vllm
def test_a_vllm_server_gives_the_same_scores(checkpoint: Path, server: str, scores: list[float]) -> None:
    machine = {"discriminator_engine": "servers", "discriminator_servers": [server]}
    remote = opened(checkpoint, machine=machine, micro_batch_tokens=100)  # several requests
    assert remote.score(PROMPTS, REFERENCES, CANDIDATES) == pytest.approx(scores, abs=AGREEMENT)
