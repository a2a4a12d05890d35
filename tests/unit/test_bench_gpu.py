"""The GPU bench at a tiny size on CPU: what its file says, and operations counted by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.shapes import ANSWERS, SHAPES, machine_settings, random_model, random_rows, update_flops
from uniapl.estimate.batches import Batch
from uniapl.estimate.gpus import peak_flops
from uniapl.estimate.memory import DiscriminatorMemory, SamplerMemory, rank_memory
from uniapl.sampler import explain_fallback

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = ("pydantic", "if_verifiable", "lm_eval", "snakemake", "vllm", "gguf", "datasets", "matplotlib", "statsmodels")
ON_A_BARE_MACHINE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({FOREIGN!r}))
runpy.run_module("bench.gpu", run_name="__main__", alter_sys=True)
"""


def measured(file: Path, *options: str, bare: bool) -> dict[str, Any]:
    """The file of a run at the tiny size."""
    start = ["-c", ON_A_BARE_MACHINE] if bare else ["-m", "bench.gpu"]
    command = [
        sys.executable, *start, "--output", str(file), "--shape", "tiny", "--repetitions", "2", "--compute", "float32",
        *options,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(file.read_text())


def test_the_update_is_timed_with_torch_and_transformers_alone(tmp_path: Path) -> None:
    result = measured(tmp_path / "gpu.json", "--tokens", "64,128", "--step-tokens", "256", bare=True)
    assert result["torch"] == torch.__version__
    assert {"device", "driver", "cuda", "memory_bytes", "transformers", "python", "code", "settings"} <= set(result)
    assert result["product"]["flops_per_second"] == result["rates"]["measured"] > 0
    short, long = result["update"]["tiny"]
    assert [row["status"] for row in (short, long)] == ["ok", "ok"]
    assert [(row["row_tokens"], row["rows"], row["tokens"]) for row in (short, long)] == [(64, 4, 256), (128, 2, 256)]
    # A layer: 32 x (2 x 128 for queries and output + 2 x 64 for keys and values + 3 x 64) = 18,432 weights; the head
    # 300 x 32 = 9,600. 256 positions, 224 of them answers: 6 x (2 x 18,432 x 256 + 9,600 x 224) = 69,525,504.
    # Seen pairs in a row of 8 + 7 x 8: 36 + 7 x (8 x 8 + 36) = 736; of 16 + 7 x 16: 136 + 7 x (16 x 16 + 136) = 2,880.
    # Each costs 12 x 2 layers x 4 heads x 32 = 3,072.
    assert short["flops"] == 69_525_504 + 3_072 * 4 * 736
    assert long["flops"] == 69_525_504 + 3_072 * 2 * 2_880
    for row in (short, long):
        assert 0 < row["seconds_least"] <= row["seconds_median"] <= row["seconds_most"]
        assert row["tokens_per_second"] == pytest.approx(256 / row["seconds_median"])
        assert row["mfu_measured"] == pytest.approx(row["flops_per_second"] / result["rates"]["measured"])
        assert row["mfu_stated"] is None
    assert result["rollouts"]["tiny"] == {"status": "vLLM is not installed"}


@pytest.mark.slow
def test_rollouts_and_a_whole_step_are_timed_where_vllm_is_installed(tmp_path: Path) -> None:
    if reason := explain_fallback():
        pytest.skip(f"vLLM cannot run here: {reason}")
    sizes = ["--prompts", "2", "--answers", "2", "--prompt-tokens", "16", "--new-tokens", "8"]
    found = measured(tmp_path / "gpu.json", "--parts", "rollouts", *sizes, bare=False)["rollouts"]["tiny"]
    assert found["status"] == "ok"
    assert 4 <= found["sample"]["tokens"] <= 2 * 2 * 8
    assert set(found["step"]) == {"whole", "sample", "sleep", "update", "wake", "push"}
    assert found["push"]["seconds_median"] > 0
    assert found["sampler_gap_nats"] < 1e-4  # in float32; the engine has the weights of the last update


@pytest.mark.parametrize(("name", "parameters"), [("qwen3_0_6b", 596_049_920), ("qwen3_4b", 4_022_468_096)])
def test_the_true_sizes_are_those_of_the_published_models(name: str, parameters: int) -> None:
    shape = SHAPES[name]
    model = random_model(shape, device=torch.device("meta"))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert shape.parameters == parameters


def test_memory_measured_on_a_gpu_is_within_2_percent_of_the_estimate() -> None:
    for name, row in updates_of("gpu_h200"):
        answers = row["micro_batch_tokens"] // row["row_tokens"] * ANSWERS
        length = row["row_tokens"] // (ANSWERS + 1)
        batch = Batch(
            row["micro_batch_tokens"], answers * length, row["tokens"] // row["micro_batch_tokens"], answers=answers,
            answer_tokens=length, prompts=answers // ANSWERS, prompt_tokens=length,
        )  # fmt: skip
        memory = rank_memory(
            SHAPES[name], batch, compute="bfloat16", ranks=1, activation_checkpointing=row["activation_checkpointing"],
            logits_bytes=machine_settings().logits_bytes, kept_logits_bytes=0, on_gpu=True, sampler=SamplerMemory(),
            discriminator=DiscriminatorMemory(),
        )  # fmt: skip
        expected = memory.update - memory.reference  # the bench has no reference
        assert row["peak_memory_bytes"] == pytest.approx(expected, rel=0.02), name


def test_the_page_shows_what_was_measured_on_a_gpu() -> None:
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    for record in ("gpu_h200", "gpu_h200_before"):
        for name, row in updates_of(record):
            line = (
                f"| {name} | {row['row_tokens']:,} | {row['micro_batch_tokens']:,} | {row['tokens_per_second']:,.0f} | "
                f"{row['mfu_stated']:.1%} | {row['mfu_measured']:.1%} | {row['peak_memory_bytes'] / 2**30:.1f} |"
            )
            assert line in page


@pytest.mark.parametrize("record", ["step_h200", "step_h200_first"])
def test_the_page_shows_the_steps_that_were_measured_on_a_gpu(record: str) -> None:
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    for side in json.loads((ROOT / f"docs/measurements/{record}.json").read_text())["cases"]["grpo"]["sides"].values():
        cells = [
            f"{part['seconds_median']:.2f} [{part['seconds_least']:.2f}, {part['seconds_most']:.2f}]"
            for part in (side["seconds"][name] for name in ("sample", "update", "step"))
        ]
        cells += [f"{side['ratios'][name]:.2f}" for name in ("sample", "update", "step") if "ratios" in side]
        assert f"| {' | '.join(cells)} |" in page


def updates_of(record: str) -> list[tuple[str, dict[str, Any]]]:
    """Model and row of each update in a record of docs/measurements."""
    found = json.loads((ROOT / f"docs/measurements/{record}.json").read_text(encoding="utf-8"))
    return [(name, row) for name, rows in found["update"].items() for row in rows]


def test_operations_of_a_document_grow_with_its_square_alone() -> None:
    shape = SHAPES["qwen3_0_6b"]
    one, two = (update_flops(shape, random_rows(shape, rows=rows, row_tokens=1024)) for rows in (1, 2))
    assert two == 2 * one


def test_stated_rates_are_found_by_the_name_of_the_device() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("an unknown device") is None
