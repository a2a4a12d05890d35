"""`uniapl estimate --scale`: formulas by hand, sums, errors, and the released study as a measure of it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.shapes import random_rows, update_flops
from uniapl import evaluate_lm, rollouts, train
from uniapl.autoif import pipeline
from uniapl.cli import app
from uniapl.config import AutoIFSpec, ConfigError, EvalSpec, MachineSpec, StageSpec, TrainSpec
from uniapl.estimate.disk import disk_of
from uniapl.estimate.gpus import GPU, find_gpu
from uniapl.estimate.jobs import DRAFTS_PER_CALL, KEPT_ROLLOUTS
from uniapl.estimate.released import read_released_speed
from uniapl.estimate.speed import LAYER_SECONDS, Engine, GPUSpeed, Throughput, read_bench
from uniapl.estimate.study import (
    RELEASED,
    Estimate,
    Options,
    estimate,
    plan_of,
    speed_of,
    teacher_lines,
)
from uniapl.estimate.teacher import BACK_TRANSLATIONS, INSTRUCTIONS_PER_REQUEST, autoif_requests, num_orders, totals
from uniapl.estimate.work import (
    DEFAULT_NEW_TOKENS,
    MIXTURES,
    PROBED_DEMONSTRATIONS,
    PROBED_ROLLOUTS,
    Judge,
    Lengths,
    Network,
    Sampling,
    evaluation_work,
    training_work,
    update_step,
)
from uniapl.layers import CONFIG, load_study, read_overrides
from uniapl.shapes import Shape
from uniapl.teachers import drafts
from uniapl.workflow import make_plans, read_settings

# A layer has 8 (2 x 8 + 2 x 4 + 3 x 16) = 576 weights, so both 1,152; the head 32 x 8 = 256. Queries 2 layers x 8 = 16
# wide, keys and values 2 x 2 x 4 = 16.
TINY = Shape(
    layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, intermediate=16, vocabulary=32, tied=True, head_norms=True
)
NETWORK = Network.of(TINY)
LENGTHS = Lengths(prompt_tokens=2, answer_share=0.5, evaluation_share=0.5, demonstration_share=0.25, trained_share=0.5)
TRAIN = TrainSpec.model_validate({"probe_every": 2})
MACHINE = MachineSpec.model_validate({"micro_batch_tokens": 64})
JUDGE = Judge(Network.of(TINY, layers=1, head=False), is_polar=False)


def stage(**changes: Any) -> StageSpec:
    """GRPO on 2 prompts with 3 answers each, unless said otherwise."""
    values = {"name": "s", "title": "S", "steps": 4, "mu": 0.0, "prompts_per_step": 2, "rollouts_per_prompt": 3}
    return StageSpec.model_validate(values | {"demonstrations_per_step": 5, "learning_rate": 1e-5} | changes)


def found(scale: str, *words: str, **options: Any) -> Estimate:
    """The estimate of a scale with `--config` words."""
    chosen = Options(**options)
    plan, place = plan_of(scale, chosen, read_overrides(words))
    return estimate(plan, place, speed_of(plan, place, chosen))


def test_a_forward_and_an_update_by_hand():
    # 2 x 1,152 x 10 + 2 x 256 x 4 + 4 x 16 x 55 = 23,040 + 2,048 + 3,520
    assert NETWORK.forward_flops(positions=10, predicted=4, pairs=55) == 28_608
    assert NETWORK.training_flops(positions=10, predicted=4, pairs=55, recomputed=False) == 3 * 28_608
    # once more without the head: 23,040 + 3,520
    assert NETWORK.training_flops(positions=10, predicted=4, pairs=55, recomputed=True) == 3 * 28_608 + 26_560


def test_one_step_of_a_tiny_stage_by_hand():
    # UniAPL, answers of 4, demonstrations of 2, prompts of 2. Two rows of a prompt and 3 answers: 2 x (2 + 12) = 28
    # positions; 5 demonstrations: 5 x (2 + 2) = 20. Predicted 24 + 10. A prompt has 3 pairs, an answer 4 x 2 + 10 = 18,
    # a demonstration 10: 2 x 3 + 6 x 18 + 5 x 10 = 164.
    step = update_step(NETWORK, stage(mu=0.1, lambda_adv=0.2), MACHINE, max_new_tokens=8, lengths=LENGTHS)
    assert (step.positions, step.predicted) == (48, 34)
    assert step.flops == 3 * (2 * 1152 * 48 + 2 * 256 * 34 + 4 * 16 * 164)
    # GRPO alone: half of the groups have a gradient. SFT alone: the demonstrations.
    step = update_step(NETWORK, stage(), MACHINE, max_new_tokens=8, lengths=LENGTHS)
    assert (step.positions, step.predicted) == (14, 12)
    step = update_step(NETWORK, stage(mu=1.0), MACHINE, max_new_tokens=8, lengths=LENGTHS)
    assert (step.positions, step.predicted) == (20, 10)
    # Rows of at most 8 tokens hold one answer each (2 + 4, not 2 + 8), so the prompt is repeated.
    short = MachineSpec.model_validate({"micro_batch_tokens": 8})
    step = update_step(NETWORK, stage(lambda_adv=0.2), short, max_new_tokens=8, lengths=LENGTHS)
    assert step.positions == 6 * (2 + 4)


def test_an_update_has_the_operations_that_the_bench_counts():
    sequences = random_rows(TINY, rows=3, row_tokens=64)  # a prompt of 8 and 7 answers of 8
    lengths = Lengths(8, 1.0, 1.0, 1.0, 1.0)
    spec = stage(prompts_per_step=3, rollouts_per_prompt=7)
    step = update_step(NETWORK, spec, MACHINE, max_new_tokens=8, lengths=lengths)
    assert step.flops == update_flops(TINY, sequences)


def test_a_run_scores_where_its_terms_and_probes_want_it():
    # `features` reads a prompt of 2, a demonstration of 2 and 3 answers of 4 for each of 2 prompts: 32 positions of 576
    # weights. Pairs by prompt: 3 + 2 x 2 + 3 and 3 (4 x 2 + 10) = 64. Width of the queries in one layer: 8.
    judged = 2 * 576 * 32 + 4 * 8 * 128
    assert JUDGE.flops(prompts=2, references=1, candidates=3, prompt=2, reference=2, answer=4) == judged
    # A probe, at steps 0, 2 and 3: 6 rollouts of 2 + 4 through two models, 8 demonstrations of 2 + 2 through one.
    rollout = 2 * 1152 * 6 + 2 * 256 * 4 + 4 * 16 * 21
    demonstration = 2 * 1152 * 4 + 2 * 256 * 2 + 4 * 16 * 10
    probe = 12 * rollout + 8 * demonstration

    def scoring(**changes: Any) -> float:
        work = training_work(NETWORK, JUDGE, stage(**changes), TRAIN, MACHINE, max_new_tokens=8, lengths=LENGTHS)
        return work.scoring_flops

    assert scoring() == 3 * (judged + probe)
    assert scoring(lambda_adv=0.2) == 4 * judged + 3 * probe
    assert scoring(mu=1.0) == 3 * 8 * demonstration  # no rollouts
    assert scoring(w_kl=0.1) == 3 * (judged + probe) + 4 * 6 * rollout


def test_polar_reads_the_reference_once_and_the_prompt_before_each_answer():
    polar = Judge(Network.of(TINY, head=False), is_polar=True)
    # Two rows of 2 + 2 ahead and 3 times 2 + 4 behind: 44 positions. Pairs by row: 10 + 3 (6 x 4 + 21) = 145.
    flops = polar.flops(prompts=2, references=1, candidates=3, prompt=2, reference=2, answer=4)
    assert flops == 2 * 1152 * 44 + 4 * 16 * 290


def test_decoding_is_bound_by_bytes_launches_or_operations():
    # 4 prompts of 2, 8 answers of 4 with a cap of 8, two engines: 4 answers and 2 prompts each, in 8 steps.
    sampling = Sampling(NETWORK, prompts=4, answers=8, prompt_tokens=2, answer_tokens=4, cap=8, times=3)
    assert sampling.tokens == 96
    # 8 steps x (1,152 + 256) weights and 16 tokens x context 2 + 2 x 16 elements, of 2 bytes
    read = 2 * (8 * 1408 + 16 * 4 * 16)
    assert sampling.decode_bytes(answers=4, at_once=4, size=2) == read
    # two at once: 16 / 2 steps are as many; one at once: 16
    assert sampling.decode_bytes(answers=4, at_once=1, size=2) == 2 * (16 * 1408 + 16 * 4 * 16)
    engine = Engine(2, 1, max_sequences=64, cache_bytes=1e9)

    def seconds(gpu: GPU, engine: Engine) -> float:
        return GPUSpeed(gpu).sampling_seconds("runs", "m", sampling, engine)

    slow_memory = GPU("slow memory", 1e30, 100.0, 1)  # half of 100 bytes a second
    assert seconds(slow_memory, engine) == pytest.approx(3 * read / 50)
    assert seconds(slow_memory, Engine(2, 2, 64, 1e9)) == pytest.approx(3 * read / 100)  # of two GPUs each
    # room for one sequence: 2 bytes x 16 x (2 + 4)
    assert seconds(slow_memory, Engine(2, 1, 64, 192.0)) == pytest.approx(3 * 2 * (16 * 1408 + 16 * 4 * 16) / 50)
    assert seconds(GPU("fast", 1e30, 1e30, 1), engine) == pytest.approx(3 * 8 * 2 * LAYER_SECONDS)
    # prompts: 2 (2 x 1,152 x 2 + 2 x 256 + 4 x 16 x 3); answers: 2 x 1,152 x 16 + 2 x 256 x 16 + 4 x 16 x 16 x 4
    flops = 2 * (4608 + 512 + 192) + 36_864 + 8192 + 4096
    assert seconds(GPU("slow", 100.0, 1e30, 1), engine) == pytest.approx(3 * flops / 25)


def test_training_takes_its_operations_or_the_known_throughput():
    work = training_work(NETWORK, JUDGE, stage(), TRAIN, MACHINE, max_new_tokens=8, lengths=LENGTHS)
    gpu = GPU("a GPU", 1000.0, 1.0, 1)
    assert GPUSpeed(gpu).training_seconds("m", work, gpus=2) == pytest.approx(4 * work.update.flops / (0.15 * 2000))
    known = GPUSpeed(gpu, known={"m": Throughput("stated", training=7.0, sampling=5.0)})
    assert known.training_seconds("m", work, gpus=2) == 4 * 14 / (7 * 2)
    assert known.training_seconds("another", work, gpus=2) == GPUSpeed(gpu).training_seconds("m", work, gpus=2)
    assert work.sampling is not None
    # 6 answers of 4 tokens by two engines in each of 4 steps, at 5 tokens a second
    assert known.sampling_seconds("runs", "m", work.sampling, Engine(2, 1, 64, 1e9)) == 4 * 12 / 5


def test_the_mixture_of_experts_has_the_size_in_its_name():
    network = MIXTURES["Qwen/Qwen3-235B-A22B-Instruct-2507"]
    assert network.parameters == pytest.approx(235e9, rel=0.005)
    embedding = 2 * network.head_weights
    assert network.layer_weights + embedding == pytest.approx(22e9, rel=0.02)


def test_an_evaluation_by_hand():
    data = load_study("laptop").data.model_copy(update={"num_heldout": 10, "max_new_tokens": 8})
    spec = EvalSpec(tasks=("heldout", "mmlu", "gsm8k", "new_task"), limit=2)
    work = evaluation_work(NETWORK, spec, data, is_base=True, lengths=LENGTHS)
    assert [(s.answers, s.prompt_tokens, s.cap) for s in work.samplings] == [(2, 2, 8), (2, 1085, 256)]
    # 57 subjects x 2 questions x 4 choices of 745 + 1 tokens, and 2 demonstrations of 2 + 2
    choice = 2 * 1152 * 746 + 2 * 256 + 4 * 16 * (746 * 747 / 2)
    demonstration = 2 * 1152 * 4 + 2 * 256 * 2 + 4 * 16 * 10
    assert work.scoring_flops == 456 * choice + 2 * demonstration
    assert work.left_out == ("new_task",)
    answer = 2 * 1152 * 6 + 2 * 256 * 4 + 4 * 16 * 21  # of a trained model also its answers under the base model
    trained = evaluation_work(NETWORK, spec, data, is_base=False, lengths=LENGTHS)
    assert trained.scoring_flops - work.scoring_flops == pytest.approx(2 * answer)


def test_constants_are_those_of_the_code_that_cannot_be_imported_there():
    assert (train.PROBED_DEMONSTRATIONS, train.PROBED_ROLLOUTS) == (PROBED_DEMONSTRATIONS, PROBED_ROLLOUTS)
    assert (rollouts.KEPT_ROLLOUTS, drafts.DRAFTS_PER_CALL) == (KEPT_ROLLOUTS, DRAFTS_PER_CALL)
    assert evaluate_lm.DEFAULT_NEW_TOKENS == DEFAULT_NEW_TOKENS
    assert pipeline.INSTRUCTIONS_PER_REQUEST == INSTRUCTIONS_PER_REQUEST
    assert pipeline.BACK_TRANSLATIONS == BACK_TRANSLATIONS


def seconds_of(estimated: Estimate, rule: str) -> float:
    """Of all jobs of a rule."""
    return sum(line.job_seconds or 0.0 for line in estimated.lines if line.rule == rule)


def test_the_laptop_study_is_estimated_within_15_percent_of_what_it_took():
    estimated = found("laptop")
    assert estimated.total("wall_seconds") == pytest.approx(20 * 60 + 5, rel=0.15)  # docs/timing.md
    took = json.loads((CONFIG.parent / "docs/measurements/study.json").read_text())["rules"]
    for rule in ("models", "demonstrations", "discriminator", "runs", "evaluate"):
        assert seconds_of(estimated, rule) == pytest.approx(took[rule]["seconds"], rel=0.3), rule


def test_a_method_that_was_not_measured_is_estimated_within_a_third(tmp_path: Path):
    shutil.copytree(RELEASED, tmp_path / "laptop")
    index = json.loads((RELEASED / "study.json").read_text())
    index["runs"] = [run for run in index["runs"] if run["path"][-1] not in ("uniapl", "a_sft", "a_grpo")]
    (tmp_path / "laptop/study.json").write_text(json.dumps(index))
    plan, place = plan_of("laptop", Options(), {})
    estimated = estimate(plan, place, read_released_speed(tmp_path / "laptop"))
    (line,) = [line for line in estimated.lines if line.what == "smollm2_135m uniapl"]
    assert line.job_seconds == pytest.approx(464.6, rel=1 / 3)  # docs/measurements/study.json


def test_without_a_released_study_a_cpu_has_no_throughput(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no released study with runs.*give --gpus"):
        read_released_speed(tmp_path)


def test_totals_are_sums_and_jobs_those_of_the_plan():
    estimated = found("paper", gpus=8)
    jobs = {rule: sum(line.jobs for line in estimated.lines if line.rule == rule) for rule in ("runs", "evaluate")}
    assert jobs == {"runs": len(estimated.plan.runs), "evaluate": 1}
    assert sum(line.jobs for line in estimated.lines) == 22  # and `all` itself
    for name in ("gpu_seconds", "wall_seconds", "generated", "trained", "requests"):
        assert estimated.total(name) == pytest.approx(sum(getattr(line, name) or 0.0 for line in estimated.lines))
    for line in estimated.lines:
        assert line.gpu_seconds is None or line.gpu_seconds == line.gpus * float(line.job_seconds or 0.0)
    grpo = next(line for line in estimated.lines if line.what == "qwen3_4b grpo")
    assert grpo.generated == grpo.trained == 500 * 64 * 8 * 512  # steps, prompts, answers, half of 1,024 tokens
    assert grpo.wall_seconds == pytest.approx(grpo.job_seconds)  # a run has all GPUs, so one comes after the other


def run_jobs(estimated: Estimate) -> int:
    return sum(line.jobs for line in estimated.lines if line.rule == "runs")


def test_other_targets_have_the_jobs_that_their_dry_runs_plan():
    # The numbers are those of tests/workflow/test_dry_runs.py.
    whole = {target: found("laptop", target=target) for target in ("all", "matrix", "ablations", "ablation_compute")}
    assert {target: run_jobs(one) for target, one in whole.items()} == {
        "all": 5, "matrix": 47, "ablations": 154, "ablation_compute": 3 * 4,  # variant, GRPO, its second stage, UniAPL
    }  # fmt: skip
    hours = {target: one.total("job_seconds") for target, one in whole.items()}
    assert hours["all"] < hours["ablation_compute"] < hours["matrix"] < hours["ablations"]
    with pytest.raises(ConfigError, match=r"target 'ablation_nothing': unknown; known: all, matrix, ablations, "):
        found("laptop", target="ablation_nothing")


def test_what_is_released_is_not_counted_where_the_workflow_takes_it():
    words = ("source=released+local", f"results={RELEASED.parent.parent}")
    left = found("laptop", *words, target="matrix")
    assert {line.rule for line in left.lines} == {"tables", "figures", "report"}
    assert (left.disk.base_models, left.disk.runs, left.disk.checkpoints, left.asked) == (0, 0, 0, ())
    settings = read_settings(read_overrides([*words, "scale=laptop"]))
    planned = make_plans(settings, "laptop", "ablations")["ablations"]
    made = [run for run in planned.runs if run.directory.is_relative_to(planned.root)]
    left, whole = found("laptop", *words, target="ablations"), found("laptop", target="ablations")
    assert 0 < run_jobs(left) == len(made) < run_jobs(whole)
    assert left.disk.runs == 4 * 134_515_008 * len(made)
    assert left.total("job_seconds") < whole.total("job_seconds")
    others = [artifact for artifact in planned.others if artifact.directory.is_relative_to(planned.root)]
    jobs = sum(line.jobs for line in left.lines if "variants" in line.what)
    assert jobs == len(others) < len(planned.others), "a teacher and discriminators of variants are released"


def test_more_gpus_are_faster_and_more_steps_slower():
    walls = [found("paper", gpus=gpus).total("wall_seconds") for gpus in (1, 2, 4, 8, 16)]
    assert walls == sorted(walls, reverse=True)
    assert len(set(walls)) == 5
    words = [f"stages={{grpo: {{steps: {steps}}}}}" for steps in (100, 500, 900)]
    hours = [found("paper", word, gpus=8).total("gpu_seconds") for word in words]
    assert hours == sorted(set(hours))
    assert found("paper", gpus=8, gpu="h200").total("gpu_seconds") < found("paper", gpus=8).total("gpu_seconds")
    assert found("paper", gpus=8, answer_share=0.25).total("generated") == found("paper", gpus=8).total("generated") / 2


def test_runs_stand_side_by_side_where_their_ranks_leave_room():
    one, two = found("paper", "ranks=8", gpus=8), found("paper", "ranks=4", gpus=8)
    runs = [line for line in two.lines if line.rule == "runs"]
    assert sum(line.wall_seconds or 0.0 for line in runs) == pytest.approx(seconds_of(two, "runs") / 2)
    assert two.disk.checkpoints == 2 * one.disk.checkpoints
    # No faster than the longest chain, GRPO's two stages, however many GPUs there are.
    many = found("paper", "ranks=1", "models=qwen3_0_6b", "methods=grpo.grpo,sft", gpus=8)
    runs = [line for line in many.lines if line.rule == "runs"]
    chain = sum(line.job_seconds or 0.0 for line in runs if "grpo" in line.what)
    assert sum(line.wall_seconds or 0.0 for line in runs) == pytest.approx(chain)


def test_the_teacher_is_asked_once_for_all_students():
    estimated = found("paper", gpus=8)
    orders = 44_000 + 500 + 2 * (2000 + 500)
    assert num_orders(estimated.plan.study) == orders
    autoif, demonstrations = estimated.asked
    # up to 4 answers, each passing in 8 of 10: 1 + 0.2 + 0.04 + 0.008
    assert demonstrations.requests == pytest.approx(1.248 * orders)
    assert (demonstrations.least, demonstrations.most) == (orders, 4 * orders)
    assert demonstrations.completion_tokens == pytest.approx(1.248 * orders * 512)
    assert estimated.total("requests") == pytest.approx(autoif.requests + demonstrations.requests)
    assert found("laptop").asked == ()


def test_autoifs_requests_by_hand():
    spec = AutoIFSpec(augmentations=2, functions_per_instruction=3, queries_per_instruction=5, answers_per_prompt=2)
    parts = autoif_requests(spec, LENGTHS)
    # 30 seeds and half of 2 x 50: 80 instructions, half of them checked; 72 topics; 5 x 2 answers, 8 of 10 scored.
    assert [part.number for part in parts] == [2, 3 * 80, 3 * 40, 3 * 40, 72, 400, pytest.approx(320)]
    assert [part.least for part in parts] == [2, 3 * 30, 0, 0, 72, 0, 0]
    assert [part.most for part in parts] == [2, 3 * 130, 3 * 130, 3 * 130, 72, 1300, 1300]
    assert (parts[5].prompt_tokens, parts[5].completion_tokens) == (2, 1024)
    items = found("paper", "data={autoif: {items: a.jsonl}}", gpus=8)  # made before, so nobody is asked
    assert [one.rule for one in items.asked] == ["demonstrations"]


PRICES = "prompt_price: 0.5, completion_price: 2.0"


def test_a_price_is_shown_only_with_its_source_and_date():
    def said(access: str) -> str:
        words = (f"teacher={{name: qwen3_235b, access: {{{access}}}}}", "data={autoif: null}")
        return " ".join(teacher_lines(found("paper", *words, gpus=8)))

    assert "price not stated: multiply by your provider's, or set teacher.access.prompt_price, " in said("")
    assert "set teacher.access.price_source, teacher.access.price_date (of" in said(PRICES)
    assert "set teacher.access.price_date (of" in said(f"{PRICES}, price_source: a list")
    whole = said(f"{PRICES}, price_source: 'a list, USD', price_date: 2026-01-31")
    # 61,776 requests of 100 and 512 tokens: 6.1776 M x 0.5 + 31.6293 M x 2; at most 4 / 1.248 of it
    assert "price 66.35 expected, 212.65 at most, at 0.5 and 2 for a million" in whole
    assert "(a list, USD, 2026-01-31)" in whole


def test_a_local_teacher_has_hours_and_weights():
    endpoint, local = found("paper", gpus=8), found("paper", "teacher=qwen3_235b_vllm", gpus=8)
    first, second = [line for line in local.lines if line.rule == "demonstrations"]
    assert (first.gpus, first.requests, second.requests) == (8, endpoint.asked[1].requests, 0)
    assert totals(endpoint.asked).requests == totals(local.asked).requests
    autoif = [[line.job_seconds for line in one.lines if line.rule == "autoif"] for one in (endpoint, local)]
    assert autoif[0] == [None]  # an endpoint's time is not known
    assert autoif[1][0] is not None
    assert first.job_seconds is not None
    assert second.job_seconds is not None
    assert first.job_seconds > second.job_seconds + 3600
    assert local.disk.hub - endpoint.disk.hub == 2 * MIXTURES["Qwen/Qwen3-235B-A22B-Instruct-2507"].parameters


def test_disk_by_hand():
    # 134.5 million parameters: the model and 5 runs in float32; 2 runs at once with 2 checkpoints of 12 bytes each.
    disk = disk_of(plan_of("laptop", Options(), {})[0], runs_at_once=2, text_tokens=1000)
    parameters = 134_515_008
    assert (disk.base_models, disk.runs, disk.checkpoints) == (4 * parameters, 20 * parameters, 48 * parameters)
    assert (disk.texts, disk.hub) == (4000, 0)
    # In the hub's cache two bytes for each parameter of both students and POLAR's 7.36 billion.
    paper = disk_of(plan_of("paper", Options(), {})[0], runs_at_once=1)
    assert paper.base_models == pytest.approx(2 * (596.0e6 + 4022.5e6), rel=1e-3)
    assert paper.hub - paper.base_models == pytest.approx(2 * 7.36e9, rel=0.01)


def a_bench(file: Path, **changes: Any) -> Path:
    """A file as `python -m bench.gpu` writes it, of what an estimate reads."""
    rows = [{"status": "ok", "row_tokens": n, "tokens_per_second": n * 2.0} for n in (1024, 4096, 8192)]
    content = {
        "device": "NVIDIA H100 80GB HBM3", "memory_bytes": 85e9,
        "update": {"qwen3_0_6b": rows, "qwen3_4b": [{"status": "out of memory", "row_tokens": 1024}]},
        "rollouts": {"qwen3_0_6b": {"status": "ok", "sample": {"tokens_per_second": 3000.0}}},
    }  # fmt: skip
    file.write_text(json.dumps(content | changes))
    return file


def test_a_bench_file_goes_before_assumptions(tmp_path: Path):
    file = a_bench(tmp_path / "bench.json")
    throughputs = read_bench(file, row_tokens=4096)
    assert list(throughputs) == ["qwen3_0_6b"]
    assert (throughputs["qwen3_0_6b"].training, throughputs["qwen3_0_6b"].sampling) == (8192.0, 3000.0)
    assumed, measured = found("paper", gpus=8), found("paper", gpus=8, bench=file)
    for old, new in zip(assumed.lines, measured.lines, strict=True):
        changed = old.rule == "evaluate" or ("qwen3_0_6b" in old.what and old.rule in ("runs", "demonstrations"))
        assert (old.job_seconds != new.job_seconds) == changed, old.what
    said = " ".join(measured.speed.assumptions())
    assert (
        "qwen3_0_6b: 8,192 tokens/s of training and 3,000 tokens/s of sampling on each GPU, measured by bench" in said
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"memory_bytes": None}, "holds nothing that was measured on a GPU"),
        ({"update": {}, "rollouts": {}}, "holds nothing that was measured on a GPU"),
        ({"update": []}, "no file of python -m bench.gpu"),
    ],
)
def test_another_file_than_a_gpus_bench_is_refused(changes: dict[str, Any], expected: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=expected):
        read_bench(a_bench(tmp_path / "bench.json", **changes), row_tokens=4096)


def command(*words: str) -> Any:
    return CliRunner().invoke(app, ["estimate", *words])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--scale", "nothing"], "--scale = 'nothing': unknown; known: smoke, laptop, paper"),
        (["--scale", "paper", "--gpus", "0"], "--gpus = 0: give at least 1"),
        (["--model", "qwen3_4b", "--gpus", "-1"], "--gpus = -1: give at least 1"),
        (["--scale", "paper", "--gpu", "H9"], "--gpu = 'H9': unknown; known: H100 PCIe, H100 NVL, H100"),
        (["--scale", "paper", "--config", "models=a/b"], "models = b: its shape is not known"),
        (["--scale", "paper", "--config", "discriminator={name: polar_7b, location: a/b}"], "shape of this POLAR"),
        (["--scale", "paper", "--config", "teacher={name: qwen3_235b_vllm, model: a/b}"], "teacher.model = a/b"),
        (["--scale", "paper", "--config", "ranks=16", "--gpus", "8"], "machine.ranks = 16 is more than --gpus 8"),
        (["--scale", "paper", "--config", "teacher=qwen3_235b_vllm", "--gpus", "4"], "more than --gpus 4"),
        (
            ["--scale", "paper", "--config", "teacher=qwen3_235b_vllm", "--gpu", "rtx 4090"],
            "does not fit so many GPUs of 24 GiB",
        ),
        (["--scale", "laptop", "--config", "teacher=qwen3_235b_vllm"], "give --gpus, or another teacher"),
        (["--scale", "paper", "--config", "compute=float32"], "the rates of GPUs are those of bfloat16"),
        (["--scale", "paper", "--config", "steps"], "--config 'steps': give key=value"),
        (["--scale", "paper", "--config", "stepz=1"], "stepz"),
        (["--model", "qwen3_4b", "--config", "ranks=2"], "--config ranks: another option says it"),
        (["--scale", "paper", "--config", "scale=laptop"], "--config scale: another option says it"),
        (["--scale", "laptop", "--answer-share", "0.5"], "--answer-share is of GPUs"),
        (["--scale", "laptop", "--config", "source=released"], "source = 'released': nothing is made then"),
        (["--scale", "paper", "--tokens-per-second-train", "5"], "of one model, the study has qwen3_0_6b, qwen3_4b"),
        (["--scale", "paper", "--bench", "nothing.json"], "--bench nothing.json: No such file"),
        (["--scale", "paper", "--gpu", "4090"], "qwen3_0_6b needs"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], expected: str):
    done = command(*words)
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert expected in line
    assert "Traceback" not in done.output


def test_stated_throughputs_are_said_with_the_hours():
    one = ["--scale", "paper", "--config", "models=qwen3_4b"]
    done = command(*one, "--tokens-per-second-train", "6000", "--tokens-per-second-rollout", "4000")
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "qwen3_4b: 6,000 tokens/s of training and 4,000 tokens/s of sampling on each GPU, as stated" in said
    assert "estimated, not measured" in said


def test_gpus_are_found_by_their_names():
    assert find_gpu("h100").flops == 989e12
    assert find_gpu("H100 PCIe").flops == 756e12
    assert find_gpu("4090") is find_gpu("RTX 4090")


PAGE = (CONFIG.parent / "docs" / "paper_scale.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", [["--scale", "laptop"], ["--scale", "paper", "--gpus", "8"]])
def test_the_page_shows_what_the_command_prints(words: list[str]):
    done = command(*words)
    assert f"uniapl estimate {' '.join(words)}" in PAGE
    printed = done.output[done.output.index(f"scale {words[1]} on ") :]
    missing = [line for line in printed.splitlines() if line.strip() and line.rstrip() not in PAGE]
    assert not missing, "paste the command's output into docs/paper_scale.md"


def test_the_scale_says_the_hours_that_the_command_prints():
    estimated = found("paper")
    (hours,) = re.findall(r"an estimated (\d+) GPU hours", load_study("paper").cost)
    assert float(hours) == pytest.approx(estimated.total("gpu_seconds") / 3600, rel=0.02)
