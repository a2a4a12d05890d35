"""The one loop: collect -> score -> update -> publish. A stage is coefficients; every method runs through here.

`python -m uniapl.train RUN --model DIR --data DIR --demonstrations DIR --discriminator DIR [--parent RUN]`

Deviates from the paper only where it is silent; docs/paper_map.md lists each choice.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import torch

from uniapl import chat, distributed, models, tracking
from uniapl.checkpoint import Checkpoints, remove_checkpoints
from uniapl.config import DataSpec, MachineSpec, SamplerSpec, StageSpec, TrainSpec, read_discriminator
from uniapl.data import draw, policy_prompts, read_prompts
from uniapl.discriminator import load_discriminator
from uniapl.distributed import ALONE, Ranks, whole_weights
from uniapl.entry import LEASE, Interruption, SharedError, run_stage
from uniapl.model_card import CARD, write_card
from uniapl.provenance import config_hash_of, read_manifest, write_manifest, write_whole
from uniapl.records import Demonstration, Prompt, Rollout, TokenSequence, read_demonstrations, write_jsonl
from uniapl.rollouts import (
    Group,
    Scores,
    collect,
    demonstration_sequences,
    judge,
    kept_rollouts,
    rollout_sequences,
    score,
    summarize,
)
from uniapl.runlog import Clock, Progress, RunLog, metrics_row, read_rows
from uniapl.sampler import Sampler, make_sampler
from uniapl.tracking import Trackers
from uniapl.update import NotFiniteError, Policy, coefficients_at, make_policy, probe, update

FINISHED = "finished.json"  # the manifest under a name that snakemake does not know, and so never removes
PROBED_DEMONSTRATIONS = 8
PROBED_ROLLOUTS = 16  # spread evenly over the step's
AGREEMENT_PROMPTS = 8  # on whose greedy answers sampler and trainer are compared after a push: one may end at once,
AGREEMENT_TOKENS = 24  # and a single token's log-prob is rounded by 0.1 nats in bfloat16
AGREEMENT_NATS = {"float32": 0.01, "bfloat16": 0.1}  # mean difference of its tokens' log-probs that stops the run


class Interrupted(Exception):
    """The running step was given up; the state is that of the step before."""


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
    interruption: Interruption | None = None

    def step(self, step: int) -> tuple[dict[str, Any], list[Group]]:
        """One step, counted from 0: returns the log's row and the groups. Raise Interrupted before anything changed."""
        began = time.perf_counter()
        stage, policy = self.stage, self.policy
        coefficients = coefficients_at(stage, step)
        seed, stage_index = self.seed_parts
        drawn: dict[str, Any] = {"seed": seed, "stage": stage_index, "step": step}
        groups: list[Group] = []
        clock = Clock()
        self.begin(step, "sample")
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
                self.sampler.sleep()
        probing = step % policy.settings.probe_every == 0 or step == stage.steps - 1
        self.begin(step, "score")
        with clock("score"):
            judge(groups)
            if coefficients["adv"] > 0:
                score(groups, self.discriminator, self.expert.demonstrations)
        with clock("probe"):
            if probing and coefficients["adv"] == 0:
                score(groups, self.discriminator, self.expert.demonstrations)
        self.begin(step, "exchange")
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
        policy.ranks.mark(f"step {step + 1}: push")  # not to be given up: the weights are those of this step
        with clock("push"):
            if self.sampler is not None:
                self.push(self.sampler)
        summary = summarize(groups, shift=self.discriminator.shift, scale=self.discriminator.scale)
        row = metrics_row(
            step=step + 1, **summary, **probed, **losses, **clock.seconds(),
            optimizer__learning_rate=policy.optimizer.param_groups[0]["lr"], weights__w_sft=coefficients["sft"],
            weights__w_grpo=coefficients["grpo"], weights__w_adv=coefficients["adv"],
            seconds__step=round(time.perf_counter() - began, 4),
        )  # fmt: skip
        return row, groups

    def begin(self, step: int, what: str) -> None:
        """Note what begins. Raise Interrupted on all ranks where one was asked to stop."""
        self.policy.ranks.mark(f"step {step + 1}: {what}")
        if self.policy.ranks.any(self.interruption is not None and self.interruption.signal is not None):
            raise Interrupted

    def push(self, sampler: Sampler) -> None:
        """Hand the weights to the sampler, awake again."""
        sampler.wake()
        sampler.push_weights(whole_weights(self.policy.model))

    def check_agreement(self) -> None:
        """Raise SharedError where, on fixed prompts, this rank's sampler gives other log-probs than its policy."""
        if self.sampler is None:
            return
        policy = self.policy
        prompts = list(self.expert.prompts.values())[:AGREEMENT_PROMPTS]
        ids = [chat.prompt_ids(policy.tokenizer, prompt.text) for prompt in prompts]
        samples = self.sampler.generate(
            ids, seeds=[0] * len(ids), max_new_tokens=AGREEMENT_TOKENS, temperature=0.0
        )  # greedy log-probs are those at temperature 1
        apart_T: list[torch.Tensor] = []
        for prompt_ids, sample in zip(ids, samples, strict=True):
            sequence = TokenSequence(
                prompt_ids, sample.token_ids, frozenset({"grpo"}), sampler_logprobs=sample.logprobs
            )
            with torch.no_grad():
                logprobs_T, _ = policy.logprobs(policy.layout([sequence]), temperature=1.0)
            apart_T.append((logprobs_T.cpu() - torch.tensor(sample.logprobs)).abs())
        gap = float(torch.cat(apart_T).mean())
        gaps = policy.ranks.collect([gap])
        bound = AGREEMENT_NATS[policy.compute]
        apart = [f"rank {rank}: {gap:.3g}" for rank, gap in enumerate(gaps) if not gap <= bound]
        if apart:
            raise SharedError(
                f"after a push the log-probs of greedy answers differ between sampler and trainer by more than {bound} "
                f"nats a token ({', '.join(apart)}): the {self.sampler.name} sampler has other weights; "
                f"set sampler.kind to hf and report this model"
            )

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
            return update(self.policy, sequences, coefficients, step=step, begin=lambda what: self.begin(step, what))
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


def open_policy(
    start: Path, first: Path, settings: TrainSpec, stage: StageSpec, *, max_new_tokens: int, compute: str,
    ranks: Ranks = ALONE, machine: MachineSpec | None = None,
) -> Policy:  # fmt: skip
    """The policy from `start`, with the path's first model from `first`; sharded where there are several ranks."""
    model = models.load_policy(start, dtype=torch.float32)
    reference = models.load_policy(first, dtype=compute)
    return make_policy(
        model, reference, models.load_tokenizer(first), settings, stage, max_new_tokens=max_new_tokens, compute=compute,
        machine=machine or MachineSpec(), ranks=ranks,
    )  # fmt: skip


def main(
    directory: Path, config: dict[str, Any], *, model: Path, data: Path, demonstrations: Path, discriminator: Path,
    parent: Path | None = None, machine: MachineSpec | None = None,
) -> None:  # fmt: skip
    """Train one stage of one path to its end, from the newest checkpoint if there is one."""
    interruption = Interruption()
    machine = machine or MachineSpec()
    ranks = distributed.start(timeout_seconds=machine.hang_seconds, lease=directory / LEASE)
    with distributed.naming_lost_ranks(ranks):
        name = ".".join(s["name"] for s in config["path"])
        if already_finished(directory, name=name, ranks=ranks):
            return distributed.stop(ranks)
        if lacking := tracking.missing(machine.log_to):
            raise SharedError(lacking)
        stage = StageSpec(title=config["path"][-1]["name"], **config["path"][-1])
        first = models.weights_directory(model)
        start = first if parent is None else parent / "model"
        compute = config["compute"]
        policy = open_policy(
            start, first, TrainSpec(**config["train"]), stage, max_new_tokens=config["data"]["max_new_tokens"],
            compute=compute, ranks=ranks, machine=machine,
        )  # fmt: skip
        engine = SamplerSpec(**config["sampler"])
        sampler = None
        if stage.draws_rollouts:
            sampler = make_sampler(engine, start, dtype=compute, machine=machine, ranks=ranks)
        loop = Loop(
            directory, stage, (config["seed"], len(config["path"]) - 1), policy, sampler,
            load_discriminator(
                discriminator, model, read_discriminator(config["discriminator"]), compute=compute, machine=machine
            ),
            Expert.read(data, demonstrations, DataSpec(**config["data"])), interruption,
        )  # fmt: skip
        checkpoints = Checkpoints(
            directory, config_hash_of(directory), ranks,
            kept=machine.checkpoints_kept, background=policy.device.type == "cuda",
        )  # fmt: skip
        with Trackers(machine.log_to if ranks.first else (), directory, config) as trackers:
            run_steps(loop, checkpoints, trackers, name=name)
        finish(loop, config, name=name, parent=parent)
        if ranks.first:
            clean_up(directory)
        if sampler is not None:
            sampler.close()
        distributed.stop(ranks)


def already_finished(directory: Path, *, name: str, ranks: Ranks) -> bool:
    """True where the run was finished and a snakemake that was killed just then removed the manifest."""
    finished = directory / FINISHED
    if not finished.exists() or not (directory / "model").is_dir():
        return False
    if ranks.first:
        print(f"{name}: finished before; to train it again, remove {directory}", flush=True)
        close(directory)
        clean_up(directory)
    return True


def close(directory: Path) -> None:
    """Give the export its model card, which has no scores yet, and the run its manifest, last."""
    text = (directory / FINISHED).read_text(encoding="utf-8")
    if not (directory / "model" / CARD).exists():
        write_card(directory, json.loads(text))
    write_whole(directory / "manifest.json", text)


def clean_up(directory: Path) -> None:
    """Drop what only an unfinished run needs."""
    (directory / "rollouts.jsonl").unlink(missing_ok=True)
    remove_checkpoints(directory)


def run_steps(loop: Loop, checkpoints: Checkpoints, trackers: Trackers, *, name: str) -> None:
    """All steps from the newest checkpoint on, with log and progress; leaves the process where it was interrupted."""
    policy, ranks = loop.policy, loop.policy.ranks
    ranks.mark("loading the checkpoint")
    done = checkpoints.load_newest(model=policy.model, optimizer=policy.optimizer)
    if loop.sampler is not None:
        ranks.mark("first push")
        loop.push(loop.sampler)
        loop.check_agreement()
    if ranks.first:
        metrics = RunLog(loop.directory / "metrics.jsonl", resumed_step=done)
        kept = RunLog(loop.directory / "rollouts.jsonl", resumed_step=done)
        trackers.start(read_rows(metrics.path))
        progress = Progress(name, done, loop.stage.steps, print)
    for step in range(done, loop.stage.steps):
        try:
            row, groups = loop.step(step)
        except Interrupted:
            save_and_leave(loop, checkpoints, step, name=name)
        if ranks.first:
            metrics.append(row)
            trackers.write(row)
            for rollout in kept_rollouts(step + 1, groups):
                kept.append(rollout)
            progress.line(row)
        if step == done:
            loop.check_agreement()  # the first push of weights that the sampler did not start with
        checkpoints.poll()
        if step + 1 == loop.stage.steps or (step + 1) % policy.settings.checkpoint_every == 0:
            ranks.mark(f"step {step + 1}: checkpoint")
            checkpoints.save(step + 1, model=policy.model, optimizer=policy.optimizer)
    checkpoints.finish()


def save_and_leave(loop: Loop, checkpoints: Checkpoints, step: int, *, name: str) -> NoReturn:
    """Save the state after `step` steps and leave with the code of the interruption."""
    assert loop.interruption is not None
    if step:
        checkpoints.save(step, model=loop.policy.model, optimizer=loop.policy.optimizer)
        checkpoints.finish()
    if loop.policy.ranks.first:
        saved = f"step {step} is saved, the same command goes on from there" if step else "nothing was trained yet"
        print(f"{name}: interrupted; {saved}", flush=True)
    if loop.sampler is not None:
        loop.sampler.close()
    distributed.stop(loop.policy.ranks)
    raise SystemExit(loop.interruption.exit_code())


def finish(loop: Loop, config: dict[str, Any], *, name: str, parent: Path | None) -> None:
    """Export the weights and close the run with its manifest."""
    directory, ranks = loop.directory, loop.policy.ranks
    ranks.mark("export")
    if ranks.first:
        print(f"{name}: exporting the weights", flush=True)
    weights = {n: tensor.cpu() if ranks.first else tensor[:0] for n, tensor in whole_weights(loop.policy.model)}
    if not ranks.first:
        return
    rollouts = read_rows(directory / "rollouts.jsonl")
    pd.DataFrame(rollouts).to_parquet(directory / ".rollouts.tmp")  # the name that `remove_half_written` knows
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
    write_manifest(
        directory, config=config, outputs=json.loads(json.dumps(outputs)), seconds=own["train_seconds"],
        name=FINISHED,
    )  # fmt: skip
    close(directory)


if __name__ == "__main__":
    run_stage(
        main, "Train one stage of one path.",
        inputs=("model", "data", "demonstrations", "discriminator"), optional=("parent",),
        parsed={"machine": MachineSpec.model_validate_json},
    )  # fmt: skip
