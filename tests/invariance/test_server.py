"""A vLLM server of its own behind the sampler's protocol, fed with weights over a process group; and a shared vLLM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.invariance.small_step import Run, Setting, assert_not_vacuous, stage_spec
from tests.invariance.test_ranks import ROOT, launch
from tests.unit.test_sampler import PROMPTS, forward_logprobs, spec_of
from uniapl.config import MachineSpec
from uniapl.models import load_policy, weights_directory
from uniapl.provenance import read_manifest
from uniapl.runlog import read_rows
from uniapl.sampler import make_sampler
from uniapl.sampler_hf import HFSampler
from uniapl.sampler_server import ServerSampler

pytestmark = pytest.mark.slow
GREEDY: dict[str, Any] = {"seeds": [0] * 4, "max_new_tokens": 24, "temperature": 0.0}
START_SECONDS = 300
ENGINE = {"max_sequences": 8, "max_model_tokens": 256, "kv_cache_gib": 0.25}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def url(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on the tiny model, on a free port."""
    pytest.importorskip("vllm")
    address, log = f"http://127.0.0.1:{free_port()}", tmp_path_factory.mktemp("server") / "log"
    model = str(weights_directory(setting.model_directory))
    command = [
        sys.executable, "-m", "uniapl.serve", model, "--port", address.rsplit(":", 1)[1], "--dtype", "float32",
        "--max-model-len", "256", "--max-num-seqs", "8", "--kv-cache-memory-bytes", "256M",
    ]  # fmt: skip
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    with open(log, "w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_healthy(address):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.5)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        finally:
            if any(one.is_dir() for one in Path("/proc").glob(f"{process.pid}")):
                os.killpg(process.pid, signal.SIGKILL)


def is_healthy(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def sampler_of(setting: Setting, *urls: str, dtype: str = "float32", **spec: Any) -> ServerSampler:
    machine = MachineSpec.model_validate({"servers": urls, "hang_seconds": 120})
    engine = spec_of("server").model_copy(update=spec)
    made = make_sampler(engine, weights_directory(setting.model_directory), dtype=dtype, machine=machine)
    assert isinstance(made, ServerSampler)
    return made


def policy_of(setting: Setting) -> Any:
    return load_policy(weights_directory(setting.model_directory), dtype="float32")


def test_a_server_gives_the_tokens_of_the_other_samplers_and_one_stream_per_seed(setting: Setting, url: str) -> None:
    expected = HFSampler(weights_directory(setting.model_directory), max_sequences=8, dtype="float32")
    model = policy_of(setting)
    with closing(sampler_of(setting, url)) as sampler:
        greedy = sampler.generate(PROMPTS, **GREEDY)
        assert [s.token_ids for s in greedy] == [s.token_ids for s in expected.generate(PROMPTS, **GREEDY)]
        options: dict[str, Any] = {"max_new_tokens": 24, "temperature": 0.5}
        sampled = sampler.generate(PROMPTS, seeds=[1, 2, 3, 4], **options)
        for samples, temperature in ((sampled, 0.5), (greedy, 1.0)):
            for prompt, sample in zip(PROMPTS, samples, strict=True):
                forward = forward_logprobs(model, prompt, sample.token_ids, temperature)
                assert sample.logprobs == pytest.approx(forward, abs=1e-3)
                assert (sample.finish_reason == "stop") == (sample.token_ids[-1] == 2)
        assert sampled[0].token_ids != sampled[3].token_ids  # one prompt, two seeds
        again = sampler.generate(PROMPTS, seeds=[1, 2, 3, 4], **options)
        assert [s.token_ids for s in again] == [s.token_ids for s in sampled]
        with pytest.raises(ValueError, match="max_model_tokens is 256; raise it"):
            sampler.generate([[5] * 250], seeds=[0], max_new_tokens=24, temperature=1.0)


def test_pushed_weights_change_the_answers_and_agree_with_a_forward(setting: Setting, url: str) -> None:
    model = policy_of(setting)
    assert model.config.tie_word_embeddings  # the case in which vLLM alone would keep the old head on CPU
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    with closing(sampler_of(setting, url)) as sampler:
        before = sampler.generate(PROMPTS, **GREEDY)
        seconds = sampler.push_weights(model.named_parameters())
        changed = sampler.generate(PROMPTS, **GREEDY)
        assert [s.token_ids for s in changed] != [s.token_ids for s in before]
        for prompt, sample in zip(PROMPTS, changed, strict=True):
            assert sample.logprobs == pytest.approx(forward_logprobs(model, prompt, sample.token_ids, 1.0), abs=1e-3)
        sampler.push_weights(kept.items())
        assert [s.token_ids for s in sampler.generate(PROMPTS, **GREEDY)] == [s.token_ids for s in before]
    assert 0 < seconds < 60


def test_a_server_that_another_run_pushed_to_or_that_was_restarted_is_noticed(setting: Setting, url: str) -> None:
    with closing(sampler_of(setting, url)) as sampler:
        sampler.generate(PROMPTS, **GREEDY)
        httpx.post(f"{url}/update_weight_version", json={"new_version": "default"}).raise_for_status()
        with pytest.raises(ValueError, match="other weights than this run pushed last"):
            sampler.generate(PROMPTS, **GREEDY)


def test_a_push_that_fails_says_why_and_the_server_serves_the_next_run(setting: Setting, url: str) -> None:
    with closing(sampler_of(setting, url)) as sampler:
        first = sampler.generate(PROMPTS, **GREEDY)
        with pytest.raises(ValueError, match=r"the weights were not pushed: server http.*no_such_layer"):
            sampler.push_weights([("model.no_such_layer.weight", torch.zeros(3)), ("model.norm.weight", torch.ones(3))])
    with closing(sampler_of(setting, url)) as sampler:
        assert sampler.generate(PROMPTS, **GREEDY) == first


def test_a_server_that_was_started_otherwise_is_refused_with_the_command_to_start_it(
    setting: Setting, url: str
) -> None:
    with pytest.raises(ValueError, match=r"dtype is float32, bfloat16 is needed; start it with: .*--dtype bfloat16"):
        sampler_of(setting, url, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"room for 256 tokens, 512 are needed; .*--max-model-len 512"):
        sampler_of(setting, url, max_model_tokens=512)


def trained(run: Run, machine: dict[str, Any]) -> list[dict[str, Any]]:
    done = launch(run, ranks=machine["ranks"], machine=machine)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    assert "leaked" not in done.stderr
    rows = read_rows(run.directory / "metrics.jsonl")
    assert_not_vacuous(rows)
    assert rows[-1]["kl/start_nats"] > 1e-3, "the weights did not move, so a push that does nothing would agree"
    assert [row["sampler/gap_nats"] < 1e-3 for row in rows] == [True, True, True]
    return rows


def make_run(root: Path, setting: Setting, kind: str) -> Run:
    stage = stage_spec("grpo", steps=3, rollouts_per_prompt=8)
    return Run(root, setting, stage, config={"sampler": {"kind": kind, **ENGINE}})


def test_two_ranks_train_with_a_server(setting: Setting, url: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, setting, "server")
    trained(run, {"ranks": 2, "servers": [url]})
    assert read_manifest(run.directory)["sampler"] == "server"


def test_two_ranks_train_with_one_vllm_that_they_share(setting: Setting, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    # 3 prompts on 2 ranks: unequal shares of the requests that both give to the engine.
    run = make_run(tmp_path, setting, "vllm")
    trained(run, {"ranks": 2, "tensor_parallel": 2})
    assert read_manifest(run.directory)["sampler"] == "vllm"


def test_a_server_that_does_not_answer_is_one_line_before_anything_is_trained(setting: Setting, tmp_path: Path) -> None:
    run, nowhere = make_run(tmp_path, setting, "server"), f"http://127.0.0.1:{free_port()}"
    done = launch(run, ranks=1, machine={"ranks": 1, "servers": [nowhere]})
    assert done.returncode == 2
    (line,) = [one for one in (done.stdout + done.stderr).splitlines() if "error:" in one]
    assert f"server {nowhere} does not answer" in line
    assert f"start it with: python -m uniapl.serve {weights_directory(setting.model_directory)} --port" in line
    assert "Traceback" not in done.stderr
    assert not (run.directory / "metrics.jsonl").exists()
