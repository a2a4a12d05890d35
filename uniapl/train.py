"""The one loop: collect -> score -> update -> publish. A stage is coefficients; every method runs through here.

`python -m uniapl.train RUN --model DIR --data DIR --demonstrations DIR --discriminator DIR [--parent RUN]`

Deviates from the paper only where it is silent; docs/paper_map.md lists each choice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import torch

from uniapl import chat, distributed, models, tracking
from uniapl.checkpoint import Checkpoints, remove_checkpoints
from uniapl.config import DataSpec, FeaturesSpec, MachineSpec, SamplerSpec, StageSpec, TrainSpec, read_discriminator
from uniapl.cotraining import CotrainedDiscriminator, Judged, told_apart
from uniapl.data import draw, policy_prompts, read_prompts
from uniapl.discriminator import Discriminator, load_discriminator
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
PROBED_PROMPTS = 16  # of the discriminator's test prompts, with one answer each
PRACTICE_ROLLOUTS = 2  # answers to each prompt that a co-trained discriminator learns from
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
    def of(
        cls, prompts: Sequence[Prompt], demonstrations: Sequence[Demonstration], spec: DataSpec, *, where: Path
    ) -> Expert:
        """Policy prompts with their demonstration. Raise ValueError, beginning with `where`, where none is left."""
        policy = policy_prompts(prompts, spec)
        kept = {d.prompt_id: d for d in demonstrations if d.take == 0}
        both = {p.id: p for p in policy if p.id in kept}
        if not both:
            raise ValueError(f"{where}: none of the {len(policy)} policy prompts has a demonstration")
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
    judged: Judged | None = None  # the discriminator's own prompts, where it is held against the policy

    def step(self, step: int) -> tuple[dict[str, Any], list[Group]]:
        """One step, counted from 0: returns the log's row and the groups. Raise Interrupted before anything changed."""
        began = time.perf_counter()
        stage, policy = self.stage, self.policy
        coefficients = coefficients_at(stage, step)
        seed, stage_index = self.seed_parts
        order = seed if stage.data_seed is None else stage.data_seed
        drawn: dict[str, Any] = {"seed": order, "stage": stage_index, "step": step}
        groups: list[Group] = []
        practice: list[Group] = []  # answers that a co-trained discriminator learns from
        tested: list[Group] = []  # answers that measure its AUC
        probing = step % policy.settings.probe_every == 0 or step == stage.steps - 1
        sampling = self.sampler is not None and (coefficients["grpo"] > 0 or coefficients["adv"] > 0)
        testing = sampling and probing and self.judged is not None and bool(self.judged.test)
        learning = coefficients["adv"] > 0 and isinstance(self.discriminator, CotrainedDiscriminator)
        clock = Clock()
        self.begin(step, "sample")
        with clock("sample"):
            if sampling:
                items = list(self.expert.prompts.values())
                prompts = draw(items, source="prompts", count=stage.prompts_per_step, **drawn)
                groups = self._collect(prompts, stage.rollouts_per_prompt, step)
            if learning:
                own = list(self.judged.train.values())
                prompts = draw(own, source="discriminator", count=self.discriminator.prompts_per_step, **drawn)
                practice = self._collect(prompts, PRACTICE_ROLLOUTS, step, "practice")
        with clock("probe"):
            if testing:
                tested = self._collect(list(self.judged.test.values())[:PROBED_PROMPTS], 1, step, "tested")
        with clock("sample"):
            if sampling:
                self.sampler.sleep()
        self.begin(step, "score")
        with clock("score"):
            judge(groups)
            if coefficients["adv"] > 0:
                score(groups, self.discriminator, self.expert.demonstrations)
        with clock("probe"):
            if probing and coefficients["adv"] == 0:
                score(groups, self.discriminator, self.expert.demonstrations)
        self.begin(step, "exchange")
        groups = self._of_all_ranks(groups, self.expert.prompts)
        sequences = rollout_sequences(
            groups, stage, coefficients, tokenizer=policy.tokenizer,
            shift=self.discriminator.shift, scale=self.discriminator.scale,
            demonstrations=self.expert.demonstrations if stage.expert_in_groups else None,
        ) if groups else []  # fmt: skip
        rollouts = [sequence for sequence in sequences if "off_policy" not in sequence.terms]
        if coefficients["sft"] > 0:
            items = list(self.expert.demonstrations.values())
            own = [self.expert.demonstrations[prompt.id] for prompt, _ in groups][: stage.demonstrations_per_step]
            more = stage.demonstrations_per_step - len(own)
            shown = own + draw(items, source="demonstrations", count=more, **drawn)
            sequences += demonstration_sequences(shown, self.expert.prompts, tokenizer=policy.tokenizer)
        with clock("probe"):
            probed = self._probe(rollouts) if probing else {}
            if testing:
                tested = self._of_all_ranks(tested, self.judged.test)
                probed["adv__auc"] = told_apart(self.discriminator, self.judged, tested)
        with clock("score"):
            if learning:
                probed["adv__cotrained_loss"] = self._cotrain(practice)
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

    def others(self) -> dict[str, torch.Tensor] | None:
        """What a checkpoint keeps beside model and optimizer: the state of a discriminator that learns."""
        return self.discriminator.state() if isinstance(self.discriminator, CotrainedDiscriminator) else None

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

    def _collect(self, prompts: list[Prompt], num_rollouts: int, step: int, *use: str) -> list[Group]:
        """Answers to this rank's share of the prompts; `use` names what else than the step's rollouts they are for."""
        assert self.sampler is not None
        policy = self.policy
        return collect(
            self.sampler, policy.ranks.share(prompts), tokenizer=policy.tokenizer, num_rollouts=num_rollouts,
            seed_parts=(*self.seed_parts, step, *use), max_new_tokens=policy.max_new_tokens,
            temperature=policy.settings.temperature,
        )  # fmt: skip

    def _cotrain(self, practice: list[Group]) -> float:
        """One step of the discriminator's head, on the first rank, whose weights all take; returns its loss."""
        assert self.judged is not None
        assert isinstance(self.discriminator, CotrainedDiscriminator)
        ranks, told = self.policy.ranks, []
        practice = self._of_all_ranks(practice, self.judged.train)
        if ranks.first:
            loss = self.discriminator.learn(self.judged, practice)
            told = [{"loss": loss, "weights": self.discriminator.weights() if ranks.size > 1 else {}}]
        told = ranks.collect(told)
        if not ranks.first:
            self.discriminator.agree(told[0]["weights"])
        return told[0]["loss"]

    def _of_all_ranks(self, groups: list[Group], prompts: dict[str, Prompt]) -> list[Group]:
        """The ranks' groups in the order of their prompts, on every rank."""
        ranks = self.policy.ranks
        if ranks.size == 1:
            return groups
        rows = [{"prompt": prompt.id, "rollouts": [asdict(r) for r in group]} for prompt, group in groups]
        return [(prompts[row["prompt"]], [Rollout.read(r) for r in row["rollouts"]]) for row in ranks.collect(rows)]

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
        judge = read_discriminator(config["discriminator"])
        data_spec, prompts = DataSpec(**config["data"]), read_prompts(data / "train.jsonl")
        shown = read_demonstrations(demonstrations / "demonstrations.jsonl")
        loop = Loop(
            directory, stage, (config["seed"], len(config["path"]) - 1), policy, sampler,
            load_discriminator(discriminator, model, judge, compute=compute, machine=machine),
            Expert.of(prompts, shown, data_spec, where=demonstrations), interruption,
            Judged.of(prompts, shown, data_spec),
        )  # fmt: skip
        if isinstance(judge, FeaturesSpec) and judge.cotrained_prompts:
            assert isinstance(loop.discriminator, Discriminator)
            loop.discriminator = CotrainedDiscriminator(loop.discriminator, judge)
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
    state = {"model": policy.model, "optimizer": policy.optimizer, "others": loop.others()}
    done = checkpoints.load_newest(**state)
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
            checkpoints.save(step + 1, **state)
    checkpoints.finish()


def save_and_leave(loop: Loop, checkpoints: Checkpoints, step: int, *, name: str) -> NoReturn:
    """Save the state after `step` steps and leave with the code of the interruption."""
    assert loop.interruption is not None
    if step:
        checkpoints.save(step, model=loop.policy.model, optimizer=loop.policy.optimizer, others=loop.others())
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
