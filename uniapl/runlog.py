"""What a run says while it trains: metrics.jsonl (one object a step, public names), times, a progress line a step."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uniapl.provenance import write_whole
from uniapl.records import read_lines, stored

METRICS = {
    "step": "gradient steps made, counted from 1",
    "reward/mean": "mean verifiable reward of the step's rollouts",
    "reward/fraction": "mean share of constraints that hold",
    "reward/status_not_ok": "share of rollouts whose reward could not be computed",
    "groups/flat_share": "share of groups without spread in reward",
    "length/mean_tokens": "mean completion tokens of the rollouts",
    "length/truncated_share": "share of rollouts cut at the cap",
    "diversity/distinct_2": "distinct bigrams as a share of all, in the first 16 tokens of a prompt's rollouts",
    "entropy/mean_nats": "mean token entropy of the policy on the rollouts in the forward, nats",
    "kl/start_nats": "k3 estimate of KL(policy, path's first model) per rollout token, nats; every probe_every steps",
    "probe/sft_nats": "mean negative log-prob per token of a fixed set of demonstrations; every probe_every steps",
    "loss/total": "the weighted sum whose gradient is taken",
    "loss/sft": "L_sft / N_sft",
    "loss/grpo": "L_grpo / N_grpo",
    "loss/off_policy": "L_off / N_grpo: LUFFY's term on the expert's answers in the groups",
    "loss/adv": "L_adv / N_adv",
    "loss/kl": "L_kl / N_kl",
    "adv/score_mean": "mean discriminator score of the rollouts; each step where w_adv > 0, else every probe_every",
    "adv/utility_mean": "mean of log sigmoid((s - b) / tau)",
    "adv/auc": "share of pairs, a demonstration and the policy's answer, that the discriminator ranks right, on prompts"
    " of its own; every probe_every steps",
    "adv/cotrained_loss": "Bradley-Terry loss that a co-trained head's step is taken on",
    "sampler/gap_nats": "mean |log pi_old - log pi_sampler| over the rollout tokens in the forward, nats",
    "sampler/clipped_share": "share of those tokens whose importance weight was truncated",
    "grad/norm": "global gradient norm before clipping",
    "optimizer/learning_rate": "learning rate of the step",
    "weights/w_sft": "mu",
    "weights/w_grpo": "1 - mu",
    "weights/w_adv": "lambda_adv",
    "tokens/generated": "completion tokens sampled in the step",
    "tokens/trained": "completion tokens in the differentiated forward",
    "seconds/sample": "time in the sampler",
    "seconds/score": "time in verifiers and discriminator",
    "seconds/probe": "time in probes, which do not train",
    "seconds/update": "time in forward, backward and optimizer",
    "seconds/push": "time to hand the weights to the sampler",
    "seconds/step": "the whole step",
}
TIMES = tuple(name for name in METRICS if name.startswith("seconds/"))


class RunLog:
    """Appends rows to a JSON-lines file; opening it drops rows after the resumed step."""

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        self.path = path
        kept = [row for row in read_rows(path) if row["step"] <= resumed_step] if path.exists() else []
        write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))

    def append(self, row: dict[str, Any]) -> None:
        """Write one row and hand it to the disk."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a log or its gzipped copy; a last line that was cut by a kill is left out."""
    rows = []
    for line in read_lines(stored(path)):
        try:
            rows.append(json.loads(line))
        except ValueError:  # a cut object, or half of a character
            break
    return rows


def metrics_row(**values: float | int | None) -> dict[str, float | int | None]:
    """A full row in the order of METRICS; keys are given with `__` for `/`. Non-finite numbers become null."""
    named = {name.replace("__", "/"): value for name, value in values.items()}
    assert not set(named) - set(METRICS), f"unlisted metrics: {set(named) - set(METRICS)}"
    row = {name: named.get(name) for name in METRICS}
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}


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
