"""Kill training at random moments, give the same command again, and compare with a study that was left alone.

    make soak        or: python -m tests.soak --kills 200 --work build/soak --log docs/measurements/soak.jsonl

A round trains a small study at smoke scale through Snakemake (`uniapl`, and `sft.grpo`, whose second stage starts from
the first one's weights), on 1 rank and on 2 in turn. Again and again a process is killed with SIGKILL: the trainer, one
of its ranks, their launcher or Snakemake, in a phase that is drawn before. Nothing is cleaned up or unlocked between.
When the command has come to its end, the weights must be equal bit for bit to those of the undisturbed study, the logs
equal but for times, and nothing that was finished may have been trained again. Through vLLM (`--sampler vllm`), which
is not batch-invariant, the log-probs of sampler and trainer must agree within the bound after every push instead.

It may be stopped and goes on where it was; every kill is a line of the log.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from tests.invariance.small_step import assert_not_vacuous, timeless
from tests.workflow.conftest import copy_project
from uniapl.leases import Owner
from uniapl.provenance import code_version, file_sha256
from uniapl.runlog import read_rows
from uniapl.train import AGREEMENT_NATS, FINISHED

PHASES = ("start", "sample", "score", "exchange", "update", "push", "checkpoint", "export", "any")
ANY_SECONDS = 15.0  # after the command, within which "any" strikes
START_SECONDS = 6.0  # after the first rank, within which "start" strikes: imports, loading, first push
LONGEST_PHASE_SECONDS = 0.1  # within which a kill follows the beginning of its phase
PATIENCE_SECONDS = 300.0
STEPS = 6
STUDY = {
    "scale": "smoke", "models": "tiny_qwen3", "methods": "uniapl,sft.grpo",
    "stages": json.dumps({
        "sft": {"steps": STEPS}, "grpo": {"steps": STEPS, "learning_rate": 1e-4, "rollouts_per_prompt": 8},
        "uniapl": {"steps": STEPS, "learning_rate": 1e-4, "rollouts_per_prompt": 8},
    }),
    "train": json.dumps({"checkpoint_every": 2}), "machine": json.dumps({"micro_batch_tokens": 300}),
}  # fmt: skip


@dataclass
class Study:
    """One results directory of a project's copy, made by one command."""

    project: Path
    results: str
    ranks: int
    sampler: str

    @property
    def runs(self) -> Path:
        return self.project / self.results / "smoke" / "runs"

    def directories(self) -> list[Path]:
        """The run directories."""
        return sorted(path.parent for path in self.runs.glob("*/*/*/seed0/config.json"))

    def start(self) -> subprocess.Popen[bytes]:
        """The one command, in the background."""
        config = STUDY | {"results": self.results, "ranks": self.ranks, "sampler": json.dumps({"kind": self.sampler})}
        words = [f"{key}={value}" for key, value in config.items()]
        command = [sys.executable, "-m", "snakemake", "runs", "--cores", "1", "--config", *words]
        environment = os.environ | {"PYTHONPATH": str(self.project), "CUDA_VISIBLE_DEVICES": ""}
        with open(self.project / f"{self.results}.log", "ab") as log:
            return subprocess.Popen(command, cwd=self.project, env=environment, stdout=log, stderr=log)

    def make(self) -> None:
        """Run the command to its end."""
        done = self.start().wait()
        assert done == 0, f"the study failed by itself ({done}): {self.tail()}"

    def tail(self) -> str:
        """The end of what the command printed."""
        return (self.project / f"{self.results}.log").read_text(encoding="utf-8", errors="replace")[-3000:]

    def doing(self, command: subprocess.Popen[bytes]) -> tuple[str, str]:
        """Which run the command has in progress and what it does: its method and its lease's note; empty without one.

        What an orphan of the command before does is not what this one does.
        """
        for directory in self.directories():
            lease = directory / "lock"
            owner = Owner.read(lease.read_text(encoding="utf-8")) if lease.exists() else None
            if owner is not None and command.pid in ancestors(owner.process.pid):
                return directory.parents[1].name, owner.doing
        return "", ""

    def finished(self) -> dict[str, str]:
        """What closes each finished run, by its directory: rewritten where a run is trained again."""
        return {str(d): (d / FINISHED).read_text() for d in self.directories() if (d / FINISHED).exists()}


def ancestors(pid: int) -> list[int]:
    """Ids of the processes above one; none where it ended."""
    try:
        return [process.pid for process in psutil.Process(pid).parents()]
    except psutil.NoSuchProcess:
        return []


def phase_of(doing: str) -> str:
    """The phase in a lease's note: `step 3: update, micro-batch 2` is update; before the first step it is start."""
    if doing == "export":
        return doing
    _, _, part = doing.partition(": ")
    return part.partition(",")[0] or "start"


def victims(command: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """What may be killed now, by name: snakemake, the launcher and the ranks of a run in progress."""
    found = {"snakemake": psutil.Process(command.pid)}
    for process in found["snakemake"].children(recursive=True):
        try:
            words, rank = process.cmdline(), process.environ().get("RANK", "0")
        except psutil.Error:
            continue
        if not words or "python" not in words[0] or "uniapl.train" not in words:
            continue
        found["launcher" if "uniapl.launch" in words else f"rank {rank}"] = process
    return found


def wait_for(phase: str, study: Study, command: subprocess.Popen[bytes], draw: random.Random) -> None:
    """Until a moment within the phase, or the command's end."""
    latest = {"any": ANY_SECONDS, "start": START_SECONDS}.get(phase, LONGEST_PHASE_SECONDS)
    began = time.monotonic()
    while command.poll() is None and time.monotonic() - began < PATIENCE_SECONDS:
        if phase == "any" or (
            "rank 0" in victims(command) if phase == "start" else phase_of(study.doing(command)[1]) == phase
        ):
            until = time.monotonic() + draw.uniform(0, latest)
            while command.poll() is None and time.monotonic() < until:
                time.sleep(0.001)
            return
        time.sleep(0.02 if phase == "start" else 0.002)


def kill_one(study: Study, draw: random.Random) -> dict[str, Any] | None:
    """Start the command and kill one of its processes; None where it came to its end before."""
    began = time.monotonic()
    command = study.start()
    phase = draw.choice(PHASES)
    wait_for(phase, study, command, draw)
    if command.poll() is not None:
        assert command.returncode == 0, f"the command failed by itself ({command.returncode}): {study.tail()}"
        return None
    run, doing = study.doing(command)
    possible = victims(command)
    name = draw.choice(sorted(possible))
    try:
        possible[name].kill()
    except psutil.NoSuchProcess:
        name = "none"  # it ended by itself in between
    code = command.wait(timeout=PATIENCE_SECONDS)
    return {
        "killed": name, "run": run, "doing": doing, "phase": phase_of(doing) if run else "between runs",
        "exit_code": code, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def differences(study: Study, undisturbed: Study) -> list[str]:
    """What is not as in the undisturbed study, in words."""
    found = []
    for ours, theirs in zip(study.directories(), undisturbed.directories(), strict=True):
        name = str(ours.relative_to(study.runs))
        assert ours.relative_to(study.runs) == theirs.relative_to(undisturbed.runs)
        rows, expected = (timeless(read_rows(d / "metrics.jsonl")) for d in (ours, theirs))
        if study.sampler == "hf":
            for file in ("model/model.safetensors", "rollouts.parquet"):
                if file_sha256(ours / file) != file_sha256(theirs / file):
                    found.append(f"{name}: {file} differs")
            if rows != expected:
                found.append(f"{name}: metrics.jsonl differs")
        elif [row["step"] for row in rows] != [row["step"] for row in expected]:
            found.append(f"{name}: other steps are logged")
        bound = AGREEMENT_NATS["float32"]
        far = [row["step"] for row in rows if row["sampler/gap_nats"] is not None and row["sampler/gap_nats"] > bound]
        if far:
            found.append(f"{name}: sampler and trainer differ by more than {bound} nats in steps {far}")
        if (ours / "checkpoints").exists() or list(ours.glob(".*")):
            found.append(f"{name}: something half written is left")
    return found


def assert_worth_comparing(undisturbed: Study) -> None:
    """Groups have spread, gradients are there, and the weights of every run moved."""
    weights = {file_sha256(d / "model/model.safetensors") for d in undisturbed.directories()}
    assert len(weights) == len(undisturbed.directories()) == 3
    for directory in undisturbed.directories():
        rows = read_rows(directory / "metrics.jsonl")
        assert_not_vacuous([row | {"groups/flat_share": row["groups/flat_share"] or 0.0} for row in rows])


def soak(project: Path, log: Path, *, kills: int, sampler: str, seed: int, ranks: tuple[int, ...]) -> Iterator[str]:
    """Rounds until the log has so many kills through this sampler; yields lines to print."""
    lines = [row for row in read_rows(log) if row["sampler"] == sampler] if log.exists() else []
    done = sum("killed" in row for row in lines)
    rounds = sum("equal" in row for row in lines)
    said = {"sampler": sampler, "commit": code_version()["commit"]}

    def write(**values: Any) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        at = {"time": datetime.now(UTC).isoformat(timespec="seconds")}
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(at | said | values) + "\n")

    for number in itertools.count(rounds):
        world = ranks[number % len(ranks)]
        undisturbed = Study(project, f"undisturbed-{sampler}-{world}", world, sampler)
        study = Study(project, f"round-{sampler}-{world}", world, sampler)
        yield f"round {number + 1}: {world} ranks, sampler {sampler}"
        if not undisturbed.finished():
            undisturbed.make()
        assert_worth_comparing(undisturbed)
        prepare(study, undisturbed)
        finished: dict[str, str] = {}
        killed = 0
        while True:
            draw = random.Random(f"{seed} {sampler} {done}")
            event = kill_one(study, draw) if done < kills else study.make()
            again = [run for run, text in finished.items() if study.finished().get(run) != text]
            assert not again, f"finished runs were trained again: {again}"
            finished |= study.finished()
            if event is None:
                break
            done, killed = done + 1, killed + 1
            write(kill=done, round=number + 1, ranks=world, **event)
            yield f"kill {done}/{kills}: {event['killed']} in {event['run']} {event['doing'] or event['phase']}"
        wrong = differences(study, undisturbed)
        write(round=number + 1, ranks=world, kills=killed, runs=len(finished), equal=not wrong, differences=wrong)
        assert not wrong, "\n".join(wrong)
        shutil.rmtree(study.runs)
        yield f"round {number + 1}: {killed} kills, equal to the undisturbed study"
        if done >= kills:
            return


def prepare(study: Study, undisturbed: Study) -> None:
    """What the runs start from, as the undisturbed study has it; a round that was stopped goes on as it is."""
    root, source = study.runs.parent, undisturbed.runs.parent
    if root.exists():
        return
    unfinished = root.with_name(f".{root.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished, ignore=shutil.ignore_patterns("runs", "logs", "benchmarks"))
    unfinished.rename(root)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--ranks", default="1,2", help="ranks of the rounds, in turn")
    parser.add_argument("--sampler", choices=("hf", "vllm"), default="hf")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/soak"))
    parser.add_argument("--log", type=Path, default=Path("docs/measurements/soak.jsonl"))
    options = parser.parse_args()
    ranks = tuple(int(number) for number in options.ranks.split(","))
    project = copy_project(options.work.resolve() / "project")
    for line in soak(
        project, options.log, kills=options.kills, sampler=options.sampler, seed=options.seed, ranks=ranks
    ):
        print(f"{datetime.now():%H:%M:%S} {line}", flush=True)


if __name__ == "__main__":
    main()
