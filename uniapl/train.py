"""The one loop: collect -> score -> update -> publish. A stage is coefficients; every method runs through here.

`python -m uniapl.train RUN --model DIR --data DIR --demonstrations DIR --discriminator DIR [--parent RUN]`

Deviates from the paper only where it is silent; docs/paper_map.md lists each choice.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from uniapl import checkpoint, distributed, models
from uniapl.config import DataSpec, DiscriminatorSpec, SamplerSpec, StageSpec, TrainSpec
from uniapl.data import draw, policy_prompts, read_prompts
from uniapl.discriminator import load_discriminator
from uniapl.distributed import ALONE, Ranks, whole_weights
from uniapl.entry import run_stage
from uniapl.provenance import config_hash_of, read_manifest, write_manifest
from uniapl.records import Demonstration, Prompt, Rollout, TokenSequence, read_demonstrations, write_jsonl
from uniapl.rollouts import (
    Group,
    Scores,
    collect,
    demonstration_sequences,
    judge,
    rollout_sequences,
    score,
    utilities,
)
from uniapl.runlog import RunLog, metrics_row, read_rows
from uniapl.sampler import Sampler, make_sampler
from uniapl.update import NotFiniteError, Policy, coefficients_at, probe, update

KEPT_ROLLOUTS = 8  # rollouts a step that are kept for reading
PROBED_DEMONSTRATIONS = 8
PROBED_ROLLOUTS = 16  # spread evenly over the step's
COLLECTIVE_TIMEOUT_SECONDS = 1800.0  # a rank that is silent for longer ends the run


@dataclass
class Expert:
    """What the steps draw from: prompts that have a demonstration, and the demonstrations."""

    prompts: dict[str, Prompt]
    demonstrations: dict[str, Demonstration]

    @classmethod
    def read(cls, data: Path, demonstrations: Path, spec: DataSpec) -> Expert:
        """Policy prompts with their demonstration. Raise ValueError where none is left."""
        prompts = policy_prompts(read_prompts(data / "train.jsonl"), spec)
        kept = {d.prompt_id: d for d in read_demonstrations(demonstrations / "demonstrations.jsonl") if d.take == 0}
        both = {p.id: p for p in prompts if p.id in kept}
        if not both:
            raise ValueError(f"{demonstrations}: none of the {len(prompts)} policy prompts has a demonstration")
        return cls(both, {i: kept[i] for i in both})


@dataclass
class Loop:
    """A run in progress: who samples, who scores, who learns, and where it is written."""

    directory: Path
    stage: StageSpec
    seed_parts: tuple[int | str, ...]
    policy: Policy
    sampler: Sampler | None  # None where the stage draws no rollouts
    discriminator: Scores
    expert: Expert

    def step(self, step: int) -> tuple[dict[str, Any], list[Group]]:
        """One step, counted from 0: returns the log's row and the groups."""
        began = time.perf_counter()
        stage, policy = self.stage, self.policy
        coefficients = coefficients_at(stage, step)
        seed, stage_index = self.seed_parts
        drawn: dict[str, Any] = {"seed": seed, "stage": stage_index, "step": step}
        groups: list[Group] = []
        clock = Clock()
        with clock("sample"):
            if self.sampler is not None and (coefficients["grpo"] > 0 or coefficients["adv"] > 0):
                items = list(self.expert.prompts.values())
                prompts = draw(items, source="prompts", count=stage.prompts_per_step, **drawn)
                groups = collect(
                    self.sampler, policy.ranks.share(prompts), tokenizer=policy.tokenizer,
                    num_rollouts=stage.rollouts_per_prompt,
                    seed_parts=(*self.seed_parts, step), max_new_tokens=policy.max_new_tokens,
                    temperature=policy.settings.temperature,
                )  # fmt: skip
        probing = step % policy.settings.probe_every == 0 or step == stage.steps - 1
        with clock("score"):
            judge(groups)
            if coefficients["adv"] > 0:
                score(groups, self.discriminator, self.expert.demonstrations)
        with clock("probe"):
            if probing and coefficients["adv"] == 0:
                score(groups, self.discriminator, self.expert.demonstrations)
        groups = self._of_all_ranks(groups)
        sequences = rollout_sequences(
            groups, stage, coefficients, tokenizer=policy.tokenizer,
            shift=self.discriminator.shift, scale=self.discriminator.scale,
        ) if groups else []  # fmt: skip
        rollouts = list(sequences)
        if coefficients["sft"] > 0:
            items = list(self.expert.demonstrations.values())
            own = [self.expert.demonstrations[prompt.id] for prompt, _ in groups][: stage.demonstrations_per_step]
            more = stage.demonstrations_per_step - len(own)
            shown = own + draw(items, source="demonstrations", count=more, **drawn)
            sequences += demonstration_sequences(shown, self.expert.prompts, tokenizer=policy.tokenizer)
        with clock("probe"):
            probed = self._probe(rollouts) if probing else {}
        with clock("update"):
            losses = self._update(sequences, coefficients, step)
        with clock("push"):
            if self.sampler is not None and losses["grad__norm"] is not None:
                self.sampler.push_weights(whole_weights(policy.model))
        row = metrics_row(
            step=step + 1, **self._summary(groups), **probed, **losses, **clock.seconds(),
            optimizer__learning_rate=policy.optimizer.param_groups[0]["lr"], weights__w_sft=coefficients["sft"],
            weights__w_grpo=coefficients["grpo"], weights__w_adv=coefficients["adv"],
            seconds__step=round(time.perf_counter() - began, 4),
        )  # fmt: skip
        return row, groups

    def _of_all_ranks(self, groups: list[Group]) -> list[Group]:
        """The step's groups in the order of its prompts, on every rank."""
        ranks = self.policy.ranks
        if ranks.size == 1:
            return groups
        rows = [{"prompt": prompt.id, "rollouts": [asdict(r) for r in group]} for prompt, group in groups]
        return [
            (self.expert.prompts[row["prompt"]], [Rollout.read(r) for r in row["rollouts"]])
            for row in ranks.collect(rows)
        ]

    def _update(self, sequences: list[TokenSequence], coefficients: dict[str, float], step: int) -> dict[str, Any]:
        """Update; where it is not finite, keep the step's sequences beside the log."""
        try:
            return update(self.policy, sequences, coefficients, step=step)
        except NotFiniteError as error:
            path = self.directory / f"not_finite_step_{step + 1:06d}.jsonl"
            if self.policy.ranks.first:
                write_jsonl(path, [asdict(s) | {"terms": sorted(s.terms)} for s in sequences])
            raise NotFiniteError(f"{error}; its sequences are in {path}") from error

    def _probe(self, rollouts: list[TokenSequence]) -> dict[str, float | None]:
        fixed = list(self.expert.demonstrations.values())[:PROBED_DEMONSTRATIONS]
        demonstrations = demonstration_sequences(fixed, self.expert.prompts, tokenizer=self.policy.tokenizer)
        some = rollouts[:: max(1, len(rollouts) // PROBED_ROLLOUTS)]
        return probe(self.policy, some, demonstrations)

    def _summary(self, groups: list[Group]) -> dict[str, float | None]:
        """What the log says of the rollouts."""
        rollouts = [r for _, group in groups for r in group]
        if not rollouts:
            return {"tokens__generated": 0}
        rewards = [r.reward for r in rollouts if r.reward is not None]
        fractions = [r.fraction for r in rollouts if r.fraction is not None]
        spread = [len({r.reward for r in group}) > 1 for _, group in groups]
        scores = [r.adversarial_score for r in rollouts if r.adversarial_score is not None]
        summary: dict[str, float | None] = {
            "reward__mean": mean(rewards),
            "reward__fraction": mean(fractions),
            "reward__status_not_ok": mean([float(r.status != "ok") for r in rollouts]),
            "groups__flat_share": 1 - sum(spread) / len(spread),
            "length__mean_tokens": mean([float(len(r.sample.token_ids)) for r in rollouts]),
            "length__truncated_share": mean([float(r.sample.finish_reason == "length") for r in rollouts]),
            "tokens__generated": sum(len(r.sample.token_ids) for r in rollouts),
        }
        if scores:
            utility_PK = utilities(groups, shift=self.discriminator.shift, scale=self.discriminator.scale)
            summary["adv__score_mean"] = mean(scores)
            summary["adv__utility_mean"] = mean([u for group in utility_PK for u in group])
        return summary


def mean(values: list[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return sum(values) / len(values) if values else None


class Clock:
    """Seconds of the named parts of a step."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._name, self._began = "", 0.0

    def __call__(self, name: str) -> Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + time.perf_counter() - self._began

    def seconds(self) -> dict[str, float]:
        """By the log's names."""
        return {f"seconds__{name}": round(value, 4) for name, value in self._seconds.items()}


class Interruption:
    """SIGINT and SIGTERM are remembered, so that the running step ends and is saved."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: object) -> None:
        self.signal = number

    def exit_code(self) -> int:
        """As shells say it: 128 + signal."""
        return 128 + (self.signal or signal.SIGTERM)  # another rank's signal counts as SIGTERM here


def lock_run(directory: Path) -> Any:
    """Hold the run directory for this process. Raise ValueError naming the owner where another one holds it."""
    file = open(directory / "lock", "a+")  # noqa: SIM115 (held until the process ends)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise ValueError(
            f"{directory} is being trained by process {file.read().strip()}; wait for it or stop it"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()} on {os.uname().nodename}")
    file.flush()
    return file


def open_policy(
    start: Path, first: Path, settings: TrainSpec, stage: StageSpec, *, max_new_tokens: int, compute: str,
    ranks: Ranks = ALONE,
) -> Policy:  # fmt: skip
    """The policy from `start`, with the path's first model from `first`; sharded where there are several ranks."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = models.load_policy(start, dtype=torch.float32).to(device)
    model.train()
    reference = models.load_policy(first, dtype=compute).to(device).eval().requires_grad_(False)
    for one in (model, reference):
        distributed.shard(one, ranks)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.learning_rate, betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.weight_decay, fused=True,
    )  # fmt: skip
    tokenizer = models.load_tokenizer(first)
    return Policy(model, optimizer, tokenizer, reference, device, settings, stage, max_new_tokens, compute, ranks)


def main(
    directory: Path, config: dict[str, Any], *, model: Path, data: Path, demonstrations: Path, discriminator: Path,
    parent: Path | None = None,
) -> None:  # fmt: skip
    """Train one stage of one path to its end, from the newest checkpoint if there is one."""
    interruption = Interruption()
    ranks = distributed.start(timeout_seconds=COLLECTIVE_TIMEOUT_SECONDS)
    lock = lock_run(directory) if ranks.first else None
    ranks.wait()
    stage, settings = StageSpec(title=config["path"][-1]["name"], **config["path"][-1]), TrainSpec(**config["train"])
    first = models.weights_directory(model)
    start = first if parent is None else parent / "model"
    compute = config["compute"]
    policy = open_policy(
        start, first, settings, stage, max_new_tokens=config["data"]["max_new_tokens"], compute=compute, ranks=ranks
    )
    fingerprint = config_hash_of(directory)
    done = checkpoint.load_newest(directory, model=policy.model, optimizer=policy.optimizer, fingerprint=fingerprint)
    sampler = None
    if stage.draws_rollouts:
        sampler = make_sampler(SamplerSpec(**config["sampler"]), start, dtype=compute)
        if done:
            sampler.push_weights(whole_weights(policy.model))
    loop = Loop(
        directory, stage, (config["seed"], len(config["path"]) - 1), policy, sampler,
        load_discriminator(discriminator, model, DiscriminatorSpec(**config["discriminator"]), compute=compute),
        Expert.read(data, demonstrations, DataSpec(**config["data"])),
    )  # fmt: skip
    name = ".".join(s["name"] for s in config["path"])
    run_steps(loop, done=done, name=name, interruption=interruption, fingerprint=fingerprint)
    finish(loop, config, name=name, parent=parent)
    distributed.stop(ranks)
    if lock is not None:
        lock.close()


def run_steps(loop: Loop, *, done: int, name: str, interruption: Interruption, fingerprint: str) -> None:
    """All steps from `done` on, with log, progress and checkpoints; leaves the process where it was interrupted."""
    policy, ranks = loop.policy, loop.policy.ranks
    if ranks.first:
        metrics = RunLog(loop.directory / "metrics.jsonl", resumed_step=done)
        kept = RunLog(loop.directory / "rollouts.jsonl", resumed_step=done)
        progress = Progress(name, done, loop.stage.steps, print)
    for step in range(done, loop.stage.steps):
        row, groups = loop.step(step)
        if ranks.first:
            metrics.append(row)
            for rollout in kept_rollouts(step + 1, groups):
                kept.append(rollout)
            progress.line(row)
        last = step + 1 == loop.stage.steps
        interrupted = ranks.any(interruption.signal is not None)
        if interrupted or (not last and (step + 1) % loop.policy.settings.checkpoint_every == 0):
            checkpoint.save(
                loop.directory, step=step + 1, model=policy.model, optimizer=policy.optimizer, fingerprint=fingerprint,
                ranks=ranks,
            )  # fmt: skip
        if interrupted:
            if ranks.first:
                print(f"{name}: interrupted; step {step + 1} is saved, the same command goes on from there", flush=True)
            raise SystemExit(interruption.exit_code())


def kept_rollouts(step: int, groups: Iterable[Group]) -> list[dict[str, Any]]:
    """Rows for reading: the first rollouts of a step with their reward breakdown."""
    rows = [
        {
            "step": step, "prompt_id": prompt.id, "index": r.index, "text": r.text, "reward": r.reward,
            "status": r.status, "fraction": r.fraction,
            "followed": [None if f is None else bool(f) for f in r.followed],
            "adversarial_score": r.adversarial_score, "num_tokens": len(r.sample.token_ids),
            "truncated": r.sample.finish_reason == "length",
        }
        for prompt, group in groups
        for r in group
    ]  # fmt: skip
    return rows[:KEPT_ROLLOUTS]


class Progress:
    """One plain line a step with the time left, readable in a terminal and in a log."""

    def __init__(self, name: str, done: int, steps: int, write: Callable[..., None]) -> None:
        self.name, self.done, self.steps, self.write = name, done, steps, write
        self.began = time.perf_counter()
        start = f"from step {done}" if done else "from the start"
        write(f"{name}: {steps} steps, {start}", flush=True)

    def line(self, row: dict[str, Any]) -> None:
        """Say where the run is."""
        made = row["step"] - self.done
        left = (time.perf_counter() - self.began) / made * (self.steps - row["step"])
        shown = [
            ("reward", "reward/mean"),
            ("tokens", "length/mean_tokens"),
            ("sft", "loss/sft"),
            ("adv", "adv/score_mean"),
        ]
        values = "  ".join(f"{label} {row[key]:.3g}" for label, key in shown if row[key] is not None)
        seconds = f"{row['seconds/step']:.1f} s/step"
        minutes, rest = divmod(int(left), 60)
        self.write(
            f"{self.name}: step {row['step']}/{self.steps}  {values}  {seconds}  {minutes}:{rest:02d} left",
            flush=True,
        )


def finish(loop: Loop, config: dict[str, Any], *, name: str, parent: Path | None) -> None:
    """Export the weights and close the run with its manifest."""
    directory, ranks = loop.directory, loop.policy.ranks
    if ranks.first:
        print(f"{name}: exporting the weights", flush=True)
    weights = {n: tensor.cpu() if ranks.first else tensor[:0] for n, tensor in whole_weights(loop.policy.model)}
    if not ranks.first:
        return
    rollouts = read_rows(directory / "rollouts.jsonl")
    pd.DataFrame(rollouts).to_parquet(directory / ".rollouts.tmp")
    (directory / ".rollouts.tmp").replace(directory / "rollouts.parquet")
    models.save_model(loop.policy.model, loop.policy.tokenizer, directory / "model", weights=weights)
    rows = read_rows(directory / "metrics.jsonl")
    own = {
        "tokens_generated": sum(row["tokens/generated"] or 0 for row in rows),
        "tokens_trained": sum(row["tokens/trained"] or 0 for row in rows),
        "train_seconds": round(sum(row["seconds/step"] for row in rows), 3),
        "steps": len(rows),
    }
    before = read_manifest(parent) if parent else {}
    cumulative = {f"cumulative_{key}": value + before.get(f"cumulative_{key}", 0) for key, value in own.items()}
    outputs = {
        **own, **cumulative, "path": [s["name"] for s in config["path"]], "seed": config["seed"],
        "sampler": loop.sampler.name if loop.sampler else None, "world_size": ranks.size,
        "weight_sha256": models.weight_sha256(weights), "final": rows[-1] if rows else None,
    }  # fmt: skip
    write_manifest(directory, config=config, outputs=json.loads(json.dumps(outputs)), seconds=own["train_seconds"])
    (directory / "rollouts.jsonl").unlink(missing_ok=True)
    checkpoint.remove_all(directory)


if __name__ == "__main__":
    run_stage(
        main, "Train one stage of one path.",
        inputs=("model", "data", "demonstrations", "discriminator"), optional=("parent",),
    )  # fmt: skip
