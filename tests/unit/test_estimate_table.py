"""`uniapl estimate`'s table of memory: what it prints and refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from uniapl.cli import app
from uniapl.config import SamplerSpec
from uniapl.estimate.memory import remedies, sampler_memory
from uniapl.estimate.table import assumptions, on_gpus
from uniapl.layers import load_model, load_study
from uniapl.shapes import find_shape

GIB = 2**30


def command(*words: str) -> Any:
    return CliRunner().invoke(app, ["estimate", *words])


def test_transformers_on_a_gpu_keeps_what_it_chose_in_and_is_told_apart_from_vllm_on_a_cpu() -> None:
    shape, data = find_shape(load_model("qwen3_0_6b", "test")), load_study("paper").data
    spec = SamplerSpec.model_validate({"kind": "hf"})
    on_cpu, on_gpu = (
        sampler_memory(shape, spec, data, kind="hf", compute="bfloat16", gpu_bytes=gpu_bytes, tensor_parallel=1)
        for gpu_bytes in (None, 80 * GIB)
    )
    choosing = spec.max_sequences * shape.vocabulary * 22  # bytes of a word: 2 + 3 * 4 + 8
    assert (on_gpu.kv_cache - on_cpu.kv_cache, on_gpu.asleep - on_cpu.asleep) == (choosing, choosing)
    row = on_gpus("qwen3_0_6b", ranks=1, gpu_bytes=80 * GIB, overrides={})
    held = replace(row.memory, sampler=on_gpu)
    assert "kv_cache" not in remedies(row.plan.study, held, on_gpu=True)
    assert any("only the update on one H200" in line for line in assumptions(replace(row, memory=held)))


def test_the_command_prints_a_table_with_its_assumptions():
    done = command("--model", "qwen3_0_6b", "--gpu-memory-gib", "60")
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.output.splitlines() if line.strip().startswith("qwen3_0_6b")]
    assert [row[1] for row in rows] == ["1", "2", "4", "8"]
    assert [row[-1] for row in rows] == ["yes"] * 4
    assert "only the update on one H200 has been measured" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model", "qwen3_4b", "--gpus", "1"], "error: qwen3_4b needs"),
        (["--scale", "laptop", "--kv-cache-gib", "100000"], "lower sampler.kv_cache_gib (now 100000)"),
        (["--model", "someone/something"], "the shape of something is not known"),
        (["--model", "nothing"], "models = 'nothing': unknown"),
        ([], "either --model, for its memory on GPUs, or --scale"),
        (["--model", "qwen3_4b", "--scale", "laptop"], "either --model, for its memory on GPUs, or --scale"),
    ],
)
def test_what_cannot_fit_or_be_estimated_is_one_line_and_exit_code_2(words: list[str], expected: str):
    done = command(*words)
    assert done.exit_code == 2
    (line,) = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert expected in line
    assert "Traceback" not in done.output


def test_4b_fits_on_8_gpus_of_80_gib():
    assert command("--model", "qwen3_4b", "--gpus", "8", "--gpu-memory-gib", "80").exit_code == 0


def test_the_table_says_what_the_discriminator_column_counts():
    done = command("--model", "qwen3_4b", "--gpus", "8", "--discriminator", "polar_7b")
    assert "discriminator: internlm/POLAR-7B in float16 through transformers, whole on every rank" in done.output
