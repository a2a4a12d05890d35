"""Whether cost grows linearly, and memory not at all with steps: `python -m bench.scale [--output FILE]`, minutes.

The trainer's own step (as in `bench.step`, every group kept) against prompts, rollouts and answer length, one of them
changed at a time, sizes taking turns; the update of random models against their size; the same update on 1 and 2 ranks
that share the same cores; and resident memory over the steps of the smoke study's settings. Lines are least squares.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.step import machine
from bench.timing import seconds_of
from bench.turns import open_sides
from bench.work import make_work
from uniapl.shapes import Shape

ROOT = Path(__file__).resolve().parent.parent
BASE = {"prompts": 4, "rollouts": 4, "new_tokens": 32}  # of the series in which they do not change
CHANGES = {"prompts": "prompts_per_step", "rollouts": "rollouts_per_prompt", "new_tokens": "new_tokens"}
LABELS = {"prompts": "Prompts", "rollouts": "Rollouts a prompt", "new_tokens": "Tokens an answer"}
ROWS, ROW_TOKENS = 4, 512  # of the random models' updates
SETTLED = 20  # steps after which memory has to stay as it is


def random_shape(size: int) -> Shape:
    """A model of 2 + 2 x size layers, 128 wider at each size: 3.6 to 63 million parameters at sizes 1 to 5."""
    heads = 2 + 2 * size
    return Shape(
        layers=heads, hidden=64 * heads, heads=heads, kv_heads=heads // 2, head_dim=64, intermediate=192 * heads,
        vocabulary=4096, tied=True, head_norms=True,
    )  # fmt: skip


def fit(x: Sequence[float], seconds: Sequence[float]) -> dict[str, Any]:
    """The line of least squares through seconds at x, and its R²."""
    from scipy.stats import linregress

    line: Any = linregress(x, seconds)
    return {
        "x": list(x), "seconds": list(seconds), "slope": float(line.slope), "intercept": float(line.intercept),
        "r_squared": float(line.rvalue) ** 2,
    }  # fmt: skip


def steps_by_size(
    series: Mapping[str, Sequence[int]], folder: Path, *, scale: str, model: str | None, repetitions: int
) -> dict[str, Any]:
    """Lines of the whole step's seconds (medians), and of the update's, against each size of `series`."""
    points = [(name, value) for name, values in series.items() for value in values]
    largest = {name: max(values) for name, values in series.items()}
    pool = math.ceil(largest["prompts"] / BASE["prompts"]) * (repetitions + 1)
    work = make_work(scale, folder, model=model, sizes=BASE, kept=True, steps=pool)
    took: dict[tuple[str, int], list[dict[str, Any]]] = {point: [] for point in points}
    with open_sides(("ours",), work) as sides:
        for turn in range(-1, repetitions):
            for name, value in points:
                sizes = BASE | {name: value}
                step = sides["ours"].step(**{CHANGES[key]: size for key, size in sizes.items()})
                if "error" in step:
                    raise ValueError(f"{name} = {value}: {step['error']}")
                if turn >= 0:
                    took[name, value].append(step)
            print(f"  turn {turn + 1} of {repetitions}", flush=True)

    def line(name: str, part: str) -> dict[str, Any]:
        return fit(series[name], [statistics.median(s[part] for s in took[name, value]) for value in series[name]])

    return {name: line(name, "step") | {"label": LABELS[name], "update": line(name, "update")} for name in series}


def updates_on(ranks: int, sizes: Sequence[int], *, threads: int, repetitions: int) -> list[dict[str, float]]:
    """Median seconds of updates of random models, of these sizes, on so many processes that share `threads`."""
    own = ["-m", "bench.scale", "--own-updates", ",".join(map(str, sizes)), "--repetitions", str(repetitions)]
    launch = [sys.executable, "-m", "uniapl.launch", "--ranks", str(ranks), "--threads", str(threads)]
    done = subprocess.run([*launch, *own], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"updates on {ranks} ranks: {done.stderr[-2000:]}")
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[")))


def own_updates(sizes: Sequence[int], *, repetitions: int) -> None:
    """What every rank of `updates_on` does; the first one prints."""
    from bench.shapes import (
        COEFFICIENTS,
        machine_settings,
        random_model,
        random_rows,
        stage_settings,
        train_settings,
        update_flops,
    )
    from uniapl import distributed
    from uniapl.sampler import resolve_compute
    from uniapl.update import make_policy, update

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ranks = distributed.start(timeout_seconds=300, lease=Path(folder) / "lease")
        for size in sizes:
            shape = random_shape(size)
            policy = make_policy(
                random_model(shape, device=distributed.device()), None, None,
                train_settings(), stage_settings(), max_new_tokens=1, compute=resolve_compute("auto"),
                machine=machine_settings(micro_batch_tokens=ROW_TOKENS), ranks=ranks,
            )  # fmt: skip
            sequences = random_rows(shape, rows=ROWS, row_tokens=ROW_TOKENS)
            times = seconds_of(
                lambda policy=policy, sequences=sequences: update(policy, sequences, COEFFICIENTS, step=0),
                repetitions=repetitions, warmups=1,
            )  # fmt: skip
            seconds = statistics.median(times)
            rows.append({"parameters": shape.parameters, "flops": update_flops(shape, sequences), "seconds": seconds})
        if ranks.first:
            print(json.dumps(rows), flush=True)
        distributed.stop(ranks)


def resident_over_steps(folder: Path, *, steps: int) -> list[list[float]]:
    """[step, bytes resident after it] of a training process at the smoke study's settings."""
    work = make_work("smoke", folder, model="tiny_qwen3", sizes={}, kept=False, steps=8)
    found: list[list[float]] = []
    with open_sides(("ours",), work) as sides:
        for step in range(1, steps + 1):
            took = sides["ours"].step()
            if "error" in took:
                raise ValueError(f"step {step} at the smoke study's settings: {took['error']}")
            found.append([step, took["resident_bytes"]])
    return found


def growth(resident: Sequence[Sequence[float]], *, settled: int) -> float:
    """Share by which the memory after the last step is above that after step `settled`."""
    return resident[-1][1] / resident[settled - 1][1] - 1


def numbers(text: str) -> list[int]:
    """Integers with commas."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Entry point."""
    import torch

    parser = argparse.ArgumentParser(description="Measure what a step costs by size.")
    parser.add_argument("--prompts", type=numbers, default=[2, 4, 8, 16])
    parser.add_argument("--rollouts", type=numbers, default=[2, 4, 8, 16])
    parser.add_argument("--new-tokens", type=numbers, default=[16, 32, 64, 128])
    parser.add_argument("--sizes", type=numbers, default=[1, 2, 3, 4, 5], help="of random models")
    parser.add_argument("--ranks", type=numbers, default=[1, 2])
    parser.add_argument("--steps", type=int, default=100, help="over which memory is watched")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--scale", default="laptop", help="whose settings are taken")
    parser.add_argument("--model", help="file in config/models, or a folder, instead of the scale's")
    parser.add_argument("--output", type=Path, help="JSON file for what was found; a figure goes beside it")
    parser.add_argument("--own-updates", type=numbers, help=argparse.SUPPRESS)  # what a rank is started with
    options = parser.parse_args()
    if options.own_updates:
        return own_updates(options.own_updates, repetitions=options.repetitions)
    found = measure(options, threads=torch.get_num_threads())
    if options.output:
        from bench.figures import write_scale
        from uniapl.provenance import write_whole

        write_whole(options.output, json.dumps(found | {"machine": machine()}, indent=1) + "\n")
        write_scale(found["series"], found["resident"], options.output.with_suffix(".svg"))


def measure(options: argparse.Namespace, *, threads: int) -> dict[str, Any]:
    """All measurements, printed as they come."""
    sizes = {"prompts": options.prompts, "rollouts": options.rollouts, "new_tokens": options.new_tokens}
    with tempfile.TemporaryDirectory() as folder:
        print("steps by prompts, rollouts and answer length", flush=True)
        series = steps_by_size(
            sizes, Path(folder) / "steps", scale=options.scale, model=options.model, repetitions=options.repetitions
        )
        print("updates by model size", flush=True)
        models = updates_on(1, options.sizes, threads=threads, repetitions=options.repetitions)
        millions = [row["parameters"] / 1e6 for row in models]
        series["model"] = fit(millions, [row["seconds"] for row in models]) | {"label": "Million parameters"}
        for one in series.values():
            line = f"{one['intercept']:.3f} s + {one['slope']:.4f} s x {one['label'].lower()}"
            print(f"  {line}, R² {one['r_squared']:.4f}", flush=True)
        ranks = {}
        for count in options.ranks:
            (row,) = updates_on(count, options.sizes[-2:-1], threads=threads, repetitions=options.repetitions)
            ranks[count] = row["seconds"]
            print(f"  ranks {count}, {threads} threads in all: {row['seconds']:.2f} s an update", flush=True)
        print(f"memory over {options.steps} steps", flush=True)
        resident = resident_over_steps(Path(folder) / "memory", steps=options.steps)
    settled = min(SETTLED, options.steps)
    grown = growth(resident, settled=settled)
    after = [resident[i - 1][1] / 1e6 for i in (settled, options.steps)]
    print(f"  {after[0]:.0f} MB after step {settled}, {after[1]:.0f} MB after step {options.steps}: {grown:+.1%}")
    return {
        "series": series, "ranks": ranks, "resident": resident, "resident_growth": grown, "threads": threads,
        "base": BASE, "repetitions": options.repetitions,
    }  # fmt: skip


if __name__ == "__main__":
    main()
