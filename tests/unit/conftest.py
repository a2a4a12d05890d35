"""A small synthetic study for the tests of analysis and report: 20 held-out prompts, 8 of IFBench, verdicts by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

NUM_HELDOUT, NUM_IFBENCH, CAP = 20, 8, 40
STEPS = 6  # of a stage, where nothing else is said
# Held-out prompts (of 20) that each method solves: the first n of them; IFBench likewise (of 8).
SOLVED = {"base": 4, "sft": 6, "grpo": 8, "sft.grpo": 9, "uniapl": 16, "grpo.grpo": 8}
SOLVED_IFBENCH = {"base": 0, "sft": 1, "grpo": 1, "sft.grpo": 1, "uniapl": 2, "grpo.grpo": 1}
# Answers are the expert's length plus this many tokens; log-probs differ from the expert's by a hundredth of it.
LONGER = {"base": 15, "sft": 2, "grpo": 10, "sft.grpo": 6, "uniapl": 1, "grpo.grpo": 12}
TRAINED = {"train": {"temperature": 1.0, "sampler_clip": 2.0}, "data": {"max_new_tokens": CAP}}  # of a run's config
PROVENANCE = {
    "config_hash": "01234567", "code": {"commit": "c0ffee" * 6 + "c0ff", "modified": False}, "python": "3.11.2",
    "packages": {"torch": "2.11.0"}, "seconds": 2.5, "peak_memory_bytes": 1 << 30,
    "hardware": {"cpu": "a processor", "instructions": ["avx2"], "cores": 2, "memory_bytes": 1 << 34, "gpus": []},
}  # fmt: skip


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _expert_tokens(i: int) -> int:
    return 10 + i % 5


def _answers(method: str, solved: int, task: str, seed: int) -> list[dict[str, Any]]:
    """Prompt i has two instructions (IFBench: one); a solved prompt follows all, another none but the first."""
    rows = []
    for i in range(NUM_HELDOUT if task != "ifbench" else NUM_IFBENCH):
        passed = i < solved
        followed = [passed] if task == "ifbench" else [True, passed]
        kinds = ["custom:kind"] if task == "ifbench" else ["always:met", "seen:kind" if i % 2 == 0 else "unseen:kind"]
        tokens = _expert_tokens(i) + LONGER.get(method, 3) + (seed % 2)
        rows.append({
            "doc_id": i, "prompt_id": f"{task}-{i}", "group": "seen" if i % 2 == 0 else "unseen", "kinds": kinds,
            "response": "x", "num_tokens": tokens, "truncated": method == "base" and i < 3, "status": "ok",
            "strict": followed, "loose": followed, "prompt_strict": passed, "prompt_loose": passed,
            "logprob_base": -1.0 - 0.01 * tokens, "logprob_trained": -0.9 - 0.01 * tokens,
        })  # fmt: skip
    if task == "ifbench":
        unknown = {"status": "unavailable: POS tagger", "strict": [None], "loose": [None]}
        rows[-1] |= unknown | {"prompt_strict": None, "prompt_loose": None}
    return rows


def _metrics(steps: int, stage: str) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, steps + 1):
        drawn, probed = stage != "sft", step % 2 == 0
        rows.append({
            "step": step, "reward/mean": 0.1 * step if drawn else None, "sampler/gap_nats": 0.01 if drawn else None,
            "entropy/mean_nats": 1.5 - 0.1 * step if drawn else None, "adv/score_mean": 0.2 if probed else None,
            "length/mean_tokens": 20.0 + step if drawn else None, "kl/start_nats": 0.01 * step if probed else None,
            "adv/auc": 0.9 - 0.1 * step if probed and stage == "uniapl" else None,
            "diversity/distinct_2": 0.5 + 0.01 * step if drawn else None,
        })  # fmt: skip
    return rows


def build_study(
    root: Path,
    *,
    methods: Sequence[str] = ("sft", "grpo", "sft.grpo", "uniapl", "grpo.grpo"),
    seeds: Sequence[int] = (0,),
    models: Sequence[str] = ("smollm2_135m",),
    variants: dict[str, int] | None = None,
    other_variants: Mapping[tuple[str, str], tuple[int, Sequence[int]]] | None = None,
    auc: float = 0.8,
    solved: dict[str, int] | None = None,
    tasks: Sequence[str] = ("heldout", "ifbench"),
    results: dict[str, Any] | None = None,
    references: dict[str, Any] | None = None,
    compared: Sequence[dict[str, Any]] = (),
    claims: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a finished study below root and return its index.

    `variants`: ablations of uniapl, and the prompts each solves; `other_variants`: by method and variant the prompts it
    solves and the steps of its stages.
    """
    index: dict[str, Any] = {
        "scale": "laptop", "tasks": list(tasks), "max_new_tokens": CAP, "ifbench_max_new_tokens": CAP,
        "claims": {"confidence": 0.95, "kept_margin_points": 2.0, "distance_margin": 0.0, "degrade_points": 2.0,
                   "match_margin_points": 2.0, "equivalence_points": 5.0, "num_resamples": 199, "seed": 0}
        | (claims or {}),
        "models": {m: {"title": f"model {m}", "directory": f"models/{m}-00000000"} for m in models},
        "data": "data/00000000",
        "demonstrations": {m: f"demonstrations/{m}-00000000" for m in models},
        "discriminators": {m: f"discriminator/{m}-00000000" for m in models},
        "stages": {"sft": "SFT", "grpo": "GRPO", "uniapl": "UniAPL"}, "evaluations": [], "runs": [],
        "limit": None, "references": {"tolerance_points": 5.0, "models": references or {}, "compared": list(compared)},
    }  # fmt: skip
    _json(root / index["data"] / "manifest.json", PROVENANCE | {"counts": {"train": 40, "heldout": NUM_HELDOUT}})
    for model in models:
        _json(root / f"models/{model}-00000000/manifest.json", PROVENANCE | {"num_parameters": 1_000_000})
        _json(root / f"demonstrations/{model}-00000000/manifest.json", PROVENANCE | {"num_demonstrations": 38})
        kinds = root / f"demonstrations/{model}-00000000/kinds.csv"
        kinds.write_text("kind,base_accuracy,teacher_accuracy\nseen:kind,0.25,1.0\n")
        judged = {"auc": 0.9, "auc_without_length": auc, "auc_length_only": 0.6, "usable": auc >= 0.6}
        _json(root / f"discriminator/{model}-00000000/manifest.json", PROVENANCE | judged)
        _evaluate(root, index, model, "base", "main", 0, (SOLVED | (solved or {}))["base"], results)
        for seed in seeds:
            for method in methods:
                _train(root, index, model, method, "main", seed)
                _evaluate(root, index, model, method, "main", seed, (SOLVED | (solved or {}))[method], results)
            for variant, passed in (variants or {}).items():
                _train(root, index, model, "uniapl", variant, seed)
                _evaluate(root, index, model, "uniapl", variant, seed, passed, results)
            for (method, variant), (passed, steps) in (other_variants or {}).items():
                path = method.split(".")
                for length in range(1, len(path) + 1):
                    _train(root, index, model, ".".join(path[:length]), variant, seed, steps=steps[:length])
                _evaluate(root, index, model, method, variant, seed, passed, results)
    _json(root / "study.json", index)
    return index


def _train(
    root: Path, index: dict[str, Any], model: str, method: str, variant: str, seed: int, *,
    steps: Sequence[int] | None = None,
) -> None:  # fmt: skip
    path = method.split(".")
    steps = steps or [STEPS] * len(path)
    directory = f"runs/{model}/{method}/{variant}-00000000/seed{seed}"
    parent = f"runs/{model}/{'.'.join(path[:-1])}/{variant}-00000000/seed{seed}" if len(path) > 1 else None
    index["runs"].append(
        {"model": model, "path": path, "variant": variant, "seed": seed, "directory": directory, "parent": parent}
    )
    _jsonl(root / directory / "metrics.jsonl", _metrics(steps[-1], path[-1]))
    stages = [_stage(name, number) for name, number in zip(path, steps, strict=True)]
    _json(root / directory / "config.json", TRAINED | {"path": stages})
    costs = {"steps": STEPS, "tokens_generated": 600, "tokens_trained": 700, "train_seconds": 12.5}  # of one stage
    costs = {f"cumulative_{key}": type(value)(value * sum(steps) / STEPS) for key, value in costs.items()}
    _json(root / directory / "manifest.json", PROVENANCE | costs)


def _stage(name: str, steps: int) -> dict[str, Any]:
    mu, weight = {"sft": (1.0, 0.0), "grpo": (0.0, 0.0)}.get(name, (0.1, 0.2))
    return {
        "name": name, "steps": steps, "mu": mu, "lambda_adv": weight, "adversarial_as": "loss", "w_kl": 0.0,
        "sft_weighting": "none", "prompts_per_step": 8, "rollouts_per_prompt": 8, "demonstrations_per_step": 8,
        "learning_rate": 1e-5,
    }  # fmt: skip


def _evaluate(
    root: Path, index: dict[str, Any], model: str, method: str, variant: str, seed: int, solved: int,
    results: dict[str, Any] | None,
) -> None:  # fmt: skip
    directory = f"evaluations/{model}/{method}/{variant}-00000000/seed{seed}"
    entry = {"model": model, "method": method, "variant": variant, "seed": seed, "directory": directory, "run": None}
    index["evaluations"].append(entry)
    counts = {}
    for task in index["tasks"]:
        if task in ("heldout", "development", "ifbench", "ifeval"):
            rows = _answers(method, SOLVED_IFBENCH.get(method, 1) if task == "ifbench" else solved, task, seed)
            _jsonl(root / directory / f"{task}.jsonl", rows)
            counts[task] = {"num_prompts": len(rows)}
    expert = [
        {
            "prompt_id": f"heldout-{i}",
            "num_tokens": n,
            "logprob_base": -1.0 - 0.01 * n,
            "logprob_trained": -0.9 - 0.01 * n,
        }
        for i, n in ((i, _expert_tokens(i)) for i in range(NUM_HELDOUT - 2))
    ]
    _jsonl(root / directory / "expert.jsonl", expert)
    _json(root / directory / "results.json", {"results": (results or {}).get(method, {})})
    _json(root / directory / "manifest.json", PROVENANCE | {"tasks": counts})


def records(directory: Path, number: int) -> list[dict[str, str]]:
    """Rows of a table's csv."""
    with open(directory / f"table{number}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def study_builder() -> Callable[..., dict[str, Any]]:
    return build_study
