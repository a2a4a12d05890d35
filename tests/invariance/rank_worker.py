"""What test_ranks.py starts on each rank: `uniapl.train` with a stand-in discriminator and, if asked, a faulty rank.

`python -m tests.invariance.rank_worker --samples FILE --fault FAULT --weights FILE DIR`: samples are kept in FILE,
or replayed from it where it exists; FAULT is local_counts, flat_step (no group of the third step has spread, on any
rank), nan, nan_gradient or hang; the trainer's last weights are kept before export.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tests.invariance.small_step import HashDiscriminator
from uniapl import train, update
from uniapl.config import MachineSpec
from uniapl.distributed import whole_weights
from uniapl.entry import run_stage
from uniapl.records import Sample


class Awake:
    """What a sampler on CPU does when it is told to sleep."""

    name = "hf"

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


class Recorder(Awake):
    """A sampler whose samples are kept by their seeds."""

    def __init__(self, sampler: Any, file: Path) -> None:
        self.sampler, self.file, self.samples = sampler, file, {}

    def generate(self, prompts: Sequence[list[int]], *, seeds: Sequence[int], **options: Any) -> list[Sample]:
        made: list[Sample] = self.sampler.generate(prompts, seeds=seeds, **options)
        self.samples |= {str(seed): asdict(sample) for seed, sample in zip(seeds, made, strict=True)}
        self.file.write_text(json.dumps(self.samples))
        return made

    def push_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> float:
        return float(self.sampler.push_weights(named_tensors))


class Replay(Awake):
    """Gives the recorded samples of another run, whatever the weights."""

    def __init__(self, file: Path) -> None:
        self.samples = json.loads(file.read_text())

    def generate(self, prompts: Sequence[list[int]], *, seeds: Sequence[int], **_: Any) -> list[Sample]:
        return [Sample(**self.samples[str(seed)]) for seed in seeds]

    def push_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> float:
        for _ in named_tensors:
            pass
        return 0.0


def break_rank(fault: str) -> None:
    """Do on purpose what the tests must notice."""
    if fault == "local_counts":
        real = update.term_counts

        def local(sequences: Any, **options: Any) -> dict[str, float]:
            rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            return real(sequences[rank::size], **options)

        update.term_counts = local  # type: ignore[assignment]
    real_loss, real_judge = update.sft_loss, train.judge
    if fault == "flat_step":
        calls = itertools.count(1)

        def flat(groups: Any) -> None:
            real_judge(groups)
            if next(calls) == 3:
                for rollout in (rollout for _, rollouts in groups for rollout in rollouts):
                    rollout.reward = 0.0

        train.judge = flat
    if os.environ.get("RANK") != "1":
        return
    if fault == "nan":
        update.sft_loss = lambda *a, **k: real_loss(*a, **k) * float("nan")  # type: ignore[assignment]
    if fault == "nan_gradient":

        def faulty(logprobs_T: Tensor, *arguments: Any, **options: Any) -> Tensor:
            logprobs_T = logprobs_T * 1
            logprobs_T.register_hook(lambda gradient: gradient * float("nan"))
            return real_loss(logprobs_T, *arguments, **options)

        update.sft_loss = faulty  # type: ignore[assignment]
    if fault == "hang":

        def hanging(groups: Any) -> None:
            real_judge(groups)
            time.sleep(600)

        train.judge = hanging


def keep_weights(file: Path) -> None:
    """Write the weights that the trainer has in memory when it is about to export them."""
    real = train.finish

    def finish(loop: Any, *arguments: Any, **options: Any) -> None:
        kept = {name: weight.clone() for name, weight in whole_weights(loop.policy.model)}
        if loop.policy.ranks.first:
            save_file(kept, file)
        real(loop, *arguments, **options)

    train.finish = finish


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--fault", default="")
    parser.add_argument("--weights", type=Path)
    own, rest = parser.parse_known_args()
    sys.argv = [sys.argv[0], *rest]
    train.load_discriminator = lambda *_, **__: HashDiscriminator()  # type: ignore[assignment]
    if own.samples:
        train.Loop.check_agreement = lambda _: None  # type: ignore[method-assign]
        real = train.make_sampler
        train.make_sampler = lambda *a, **k: (  # type: ignore[assignment]
            Replay(own.samples) if own.samples.exists() else Recorder(real(*a, **k), own.samples)
        )
    break_rank(own.fault)
    if own.weights:
        keep_weights(own.weights)
    run_stage(
        train.main, __doc__ or "", inputs=("model", "data", "demonstrations", "discriminator"),
        parsed={"machine": MachineSpec.model_validate_json},
    )  # fmt: skip


if __name__ == "__main__":
    main()
