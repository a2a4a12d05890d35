"""Evaluation: `python -m uniapl.evaluate RESULTS/study.json` evaluates every model of a study that has no manifest yet.

Everything goes through lm-eval, greedily, with the suite's tasks (uniapl/tasks) or any of lm-eval's by name. One
engine start serves all models of one architecture; each evaluated model's weights are pushed into it. An answer's
log-prob under the model that gave it is the sampler's own; under another model it is a forward's.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from uniapl import chat, models
from uniapl.config import MachineSpec, SamplerSpec
from uniapl.distributed import device
from uniapl.entry import run_guarded, working_on
from uniapl.evaluate_tasks import CHANGES, OWN_TASKS, load_tasks, task_manager
from uniapl.likelihood import Likelihood, completion_likelihoods
from uniapl.model_card import NATIVE, update_cards
from uniapl.plan import in_share
from uniapl.provenance import code_version, content_hash, read_config, write_manifest, write_whole
from uniapl.records import HELDOUT_LOG, Sample, read_demonstrations, write_jsonl
from uniapl.sampler import Sampler, make_sampler
from uniapl.score import accuracies

RECORDED = (*OWN_TASKS, "ifeval")  # one record a prompt
HELD_OUT = ("heldout", "ifbench", "ifeval")  # every look at these is logged
SCORED = ("development", "heldout")  # answers get log-probs
FOREIGN_MODEL_TOKENS = 4096  # least room for tasks of lm-eval, whose prompts are long
MICRO_BATCH_TOKENS = 4096  # of a scoring forward; speed only
BOOTSTRAPS = 100  # at 0 lm-eval leaves out all standard errors, also those of means, which need none
WHOLE = "1of1"  # the share that is everything


@dataclass(frozen=True)
class Entry:
    """One evaluation of the study's index with its config and the weights that it evaluates."""

    model: str
    method: str
    variant: str
    seed: int
    directory: Path
    config: dict[str, Any]
    weights: Path
    name: str  # of the weights: their folder below the study's root

    @property
    def title(self) -> str:
        """What a progress line calls it."""
        variant = "" if self.variant == "main" else f" {self.variant}"
        return f"{self.model} {self.method}{variant} seed {self.seed}"


@dataclass(frozen=True)
class Engine:
    """What all models of one architecture share: the sampler, the base model and its directories."""

    sampler: Sampler
    tokenizer: Any
    base: Any
    base_weights: Path
    data: Path
    demonstrations: Path
    manager: Any
    max_model_tokens: int
    dtype: str
    expert_under_base: list[Likelihood] = field(default_factory=list)  # computed once, on first use


def read_index(study_file: Path) -> dict[str, Any]:
    """Read the study's index. Raise ValueError where it is missing."""
    if not study_file.is_file():
        raise ValueError(f"{study_file}: no such study; run snakemake, which writes it")
    return json.loads(study_file.read_text(encoding="utf-8"))


def pending(index: dict[str, Any], root: Path, *, share: str) -> list[Entry]:
    """Evaluations of a share (`1of2`) that are not finished. Raise ValueError where a model is not there yet."""
    entries = []
    for row in in_share(index["evaluations"], share):
        directory = root / row["directory"]
        if (directory / "manifest.json").exists():
            continue
        if row["run"]:
            weights, owner = root / row["run"] / "model", root / row["run"]
        else:
            owner = root / index["models"][row["model"]]["directory"]
            weights = models.weights_directory(owner)
        if not (owner / "manifest.json").exists():
            raise ValueError(f"{owner} is not finished, so it cannot be evaluated; run snakemake, which makes it")
        identity = {key: row[key] for key in ("model", "method", "variant", "seed")}
        name = os.path.relpath(weights, root)
        entries.append(
            Entry(**identity, directory=directory, config=read_config(directory), weights=weights, name=name)
        )
    return entries


@contextmanager
def open_engine(
    index: dict[str, Any], root: Path, name: str, config: dict[str, Any], *, machine: MachineSpec
) -> Iterator[Engine]:
    """Start the engine of one base model; closed again at the end."""
    spec = SamplerSpec.model_validate(config["sampler"])
    foreign = any(task not in OWN_TASKS for task in config["evaluation"]["tasks"])
    if foreign:
        spec = spec.model_copy(update={"max_model_tokens": max(FOREIGN_MODEL_TOKENS, spec.max_model_tokens)})
    weights = models.weights_directory(root / index["models"][name]["directory"])
    dtype = config["compute"]
    data = (root / index["data"]).resolve()
    manager = task_manager(data, foreign=foreign)
    sampler = make_sampler(spec, weights, dtype=dtype, machine=machine)
    try:
        yield Engine(
            sampler=sampler,
            tokenizer=models.load_tokenizer(weights),
            base=models.load_policy(weights, dtype=dtype).to(device()),
            base_weights=weights,
            data=data,
            demonstrations=root / index["demonstrations"][name],
            manager=manager,
            max_model_tokens=spec.max_model_tokens,
            dtype=dtype,
        )
    finally:
        sampler.close()
        gc.collect()


def evaluate_one(engine: Engine, entry: Entry) -> dict[str, Any]:
    """Evaluate one model: answers, verdicts, log-probs; writes its directory and returns the tasks' accuracies."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker

    from uniapl.evaluate_lm import EngineLM

    harness: Any = lm_eval
    tracker = EvaluationTracker(output_path=str(entry.directory / NATIVE / "results.json"))

    started = time.perf_counter()
    is_base = entry.weights == engine.base_weights
    model = engine.base if is_base else models.load_policy(entry.weights, dtype=engine.dtype).to(device())
    push_seconds = engine.sampler.push_weights(model.named_parameters())
    lm = EngineLM(
        engine.sampler, engine.tokenizer, policy=lambda: model, max_model_tokens=engine.max_model_tokens,
        micro_batch_tokens=MICRO_BATCH_TOKENS,
    )  # fmt: skip
    tasks = load_tasks(engine.manager, entry.config)
    results = harness.simple_evaluate(
        model=lm, tasks=tasks, task_manager=engine.manager, apply_chat_template=True, bootstrap_iters=BOOTSTRAPS,
        limit=entry.config["evaluation"].get("limit"),
        random_seed=None, numpy_random_seed=None, torch_random_seed=None,
        evaluation_tracker=tracker, model_args={"pretrained": entry.name},
    )  # fmt: skip
    assert results is not None
    answers = results.pop("samples")
    summary: dict[str, Any] = {}
    recorded = [task for task in entry.config["evaluation"]["tasks"] if task in RECORDED]
    for task in recorded:
        samples = answers[task]
        taken = [lm.samples[s["arguments"][0][0], s["arguments"][0][1]["max_gen_toks"]] for s in samples]
        rows = [record(s, sample) for s, sample in zip(samples, taken, strict=True)]
        if task in SCORED:
            add_logprobs(rows, taken, engine, is_base=is_base)
        write_jsonl(entry.directory / f"{task}.jsonl", rows)
        summary[task] = summarize(rows)
    if set(recorded) & set(SCORED):
        write_jsonl(entry.directory / "expert.jsonl", expert_rows(engine, model, is_base=is_base))
    changes = {task: CHANGES[task] for task in entry.config["evaluation"]["tasks"] if task in CHANGES}
    write_whole(entry.directory / "results.json", results_text(results, changes))
    save_native(tracker, results, answers, entry.directory / NATIVE)
    seconds = time.perf_counter() - started
    outputs = {
        "model": entry.model, "method": entry.method, "variant": entry.variant, "seed": entry.seed, "tasks": summary,
        "tokens_generated": sum(len(s.token_ids) for s in lm.samples.values()), "sampler": engine.sampler.name,
        "dtype": engine.dtype, "push_seconds": round(push_seconds, 3), "weight_sha256": models.weight_sha256(model),
    }  # fmt: skip
    write_manifest(entry.directory, config=entry.config, outputs=outputs, seconds=seconds)
    return summary


def record(sample: dict[str, Any], generated: Sample) -> dict[str, Any]:
    """The record of one prompt: the answer, how long it is, and its verdicts."""
    document = sample["doc"]
    return {
        "doc_id": sample["doc_id"],
        "prompt_id": document["prompt_id"],
        "group": document["group"],
        "kinds": [constraint["kind"] for constraint in json.loads(document["constraints"])],
        "response": sample["resps"][0][0],
        "num_tokens": len(generated.token_ids),
        "truncated": generated.finish_reason == "length",
        "status": sample["not_computed"],
        "strict": sample["inst_strict"],
        "loose": sample["inst_loose"],
        "prompt_strict": sample["prompt_strict"],
        "prompt_loose": sample["prompt_loose"],
    }


def add_logprobs(rows: list[dict[str, Any]], samples: list[Sample], engine: Engine, *, is_base: bool) -> None:
    """Add each answer's mean token log-prob under the evaluated model and under the base model, nats a token."""
    own = [sum(s.logprobs) / max(1, len(s.logprobs)) for s in samples]
    base = own
    if not is_base:
        texts = prompt_texts(engine.data)
        pairs = [
            (chat.prompt_ids(engine.tokenizer, texts[row["prompt_id"]]), sample.token_ids)
            for row, sample in zip(rows, samples, strict=True)
        ]
        found = completion_likelihoods(engine.base, pairs, micro_batch_tokens=MICRO_BATCH_TOKENS)
        base = [one.mean_nats for one in found]
    for row, trained, under_base in zip(rows, own, base, strict=True):
        row |= {"logprob_base": round(under_base, 6), "logprob_trained": round(trained, 6)}


def prompt_texts(data: Path) -> dict[str, str]:
    """User messages of the scored splits by prompt id."""
    from uniapl.data import read_prompts

    return {prompt.id: prompt.text for split in SCORED for prompt in read_prompts(data / f"{split}.jsonl")}


def expert_rows(engine: Engine, model: Any, *, is_base: bool) -> list[dict[str, Any]]:
    """The expert's held-out demonstrations (take 0) with their mean token log-probs under both models."""
    texts = prompt_texts(engine.data)
    expert = [
        d for d in read_demonstrations(engine.demonstrations / "demonstrations.jsonl")
        if d.split == "heldout" and d.take == 0 and d.prompt_id in texts
    ]  # fmt: skip
    pairs = [
        (chat.prompt_ids(engine.tokenizer, texts[d.prompt_id]), chat.completion_ids(engine.tokenizer, d.text))
        for d in expert
    ]
    base = engine.expert_under_base
    if not base:
        base += completion_likelihoods(engine.base, pairs, micro_batch_tokens=MICRO_BATCH_TOKENS)
    trained = base if is_base else completion_likelihoods(model, pairs, micro_batch_tokens=MICRO_BATCH_TOKENS)
    return [
        {
            "prompt_id": d.prompt_id, "num_tokens": b.num_tokens,
            "logprob_base": round(b.mean_nats, 6), "logprob_trained": round(t.mean_nats, 6),
        }
        for d, b, t in zip(expert, base, trained, strict=True)
    ]  # fmt: skip


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracies of one task over the prompts that could be judged, the share cut at the cap, and what was left out."""
    return {
        "num_prompts": len(rows),
        **accuracies(rows),
        "truncated_share": sum(row["truncated"] for row in rows) / max(1, len(rows)),
        "mean_tokens": sum(row["num_tokens"] for row in rows) / max(1, len(rows)),
        "not_computed": sum(row["status"] != "ok" for row in rows),
    }


def results_text(results: Any, changes: dict[str, str]) -> str:
    """lm-eval's aggregated results as JSON, and what was changed of its tasks; a number that does not exist is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(one) for one in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)

    kept = {key: plain(results[key]) for key in ("results", "groups", "versions", "n-samples") if key in results}
    return json.dumps(kept | {"changes": changes}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def save_native(tracker: Any, results: dict[str, Any], answers: dict[str, Any], folder: Path) -> None:
    """Let lm-eval write its own file, FOLDER/results_<date>.json, which other tools read.

    Raise ValueError where it did not: it only warns.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of an evaluation that was killed
    tracker.save_results_aggregated(results=results, samples=answers)
    if not list(folder.glob("results_*.json")):
        raise ValueError(f"{folder}: lm-eval wrote no results file; free some disk space and run snakemake again")


def log_heldout(root: Path, entry: Entry, summary: dict[str, Any]) -> None:
    """Append one line per held-out task: how often held-out prompts were looked at is part of the result."""
    lines = []
    for task in HELD_OUT:
        if task in summary:
            line = {
                "time": datetime.now(UTC).isoformat(timespec="seconds"), "model": entry.model,
                "method": entry.method, "variant": entry.variant, "seed": entry.seed, "task": task,
                "config_hash": content_hash(entry.config), "commit": code_version()["commit"],
                "prompt_strict": summary[task]["prompt_strict"],
            }  # fmt: skip
            lines.append(json.dumps(line, sort_keys=True) + "\n")
    with open(root / HELDOUT_LOG, "a", encoding="utf-8") as file:
        file.write("".join(lines))


def shown(summary: dict[str, Any]) -> str:
    """Accuracies in a progress line."""
    return ", ".join(
        f"{task} {one['prompt_strict']:.1%} strict ({one['truncated_share']:.0%} cut)"
        for task, one in summary.items()
        if one["prompt_strict"] is not None
    )


def evaluate_study(study_file: Path, *, share: str = WHOLE, machine: MachineSpec | None = None) -> None:
    """Evaluate what is pending of a share of the models, with one engine start for each base model."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    root, index = study_file.parent, read_index(study_file)
    entries = pending(index, root, share=share)
    started, done = time.perf_counter(), 0
    part = "" if share == WHOLE else f" in share {share}"
    console.print(f"evaluate: {len(entries)} of {len(index['evaluations'])} models to do{part}")
    for name in dict.fromkeys(entry.model for entry in entries):
        group = [entry for entry in entries if entry.model == name]
        begun = time.perf_counter()
        with open_engine(
            index, root, name, group[0].config, machine=machine or MachineSpec.model_validate({})
        ) as engine:
            console.print(f"evaluate: engine {engine.sampler.name} started in {time.perf_counter() - begun:.0f} s")
            for entry in group:
                one = time.perf_counter()
                console.print(f"evaluate {done + 1}/{len(entries)}: {entry.title} ...")
                summary = evaluate_one(engine, entry)
                log_heldout(root, entry, summary)
                done += 1
                left = (time.perf_counter() - started) / done * (len(entries) - done)
                took = f"{time.perf_counter() - one:.0f} s, about {left / 60:.0f} min left"
                console.print(f"evaluate {done}/{len(entries)}: {entry.title}: {shown(summary) or 'done'}; {took}")
    # Of all finished runs, since the base model's scores beside them may be another share's, and since the evaluation
    # before may have been killed just here.
    update_cards(root, [row["run"] for row in index["evaluations"] if row["run"]])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Evaluate every model of a study that has not been evaluated.")
    parser.add_argument("study", type=Path, help="the study's index: RESULTS/study.json")
    parser.add_argument("--share", default=WHOLE, metavar="IofN", help="every N-th model from the I-th")
    parser.add_argument("--machine", help="how this machine executes it: the study's `machine` as JSON")
    arguments = parser.parse_args()
    folder = arguments.study.parent / "evaluations"

    def action() -> None:
        with working_on(folder / f".{arguments.share}.lock", what=f"share {arguments.share} of {folder} is being made"):
            machine = MachineSpec.model_validate_json(arguments.machine) if arguments.machine else None
            evaluate_study(arguments.study, share=arguments.share, machine=machine)

    run_guarded(action)


if __name__ == "__main__":
    main()
