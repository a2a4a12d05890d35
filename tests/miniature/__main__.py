"""Make the miniature: `python -m tests.miniature --eval-data FOLDER [--configfile FILE] [snakemake's options]`.

Writes the tiny checkpoints and a link to the real benchmark files below results/miniature/in of the current folder, a
project, and runs Snakemake there with paper.yaml. Further config files shorten it (short.yaml).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tests.miniature.checkpoints import write_checkpoints
from uniapl.entry import run_guarded

HERE = Path(__file__).resolve().parent
INPUTS = Path("results/miniature/in")
NEEDED = ("ifeval_input_data.jsonl", "gsm8k_test.jsonl", "gsm8k_train_first100.jsonl", "mmlu.zip",
          "autoif_sample/query_rft.jsonl")  # fmt: skip


def write_inputs(project: Path, eval_data: Path) -> None:
    """Checkpoints and benchmark files. Raise ValueError naming the files that are missing."""
    missing = [name for name in NEEDED if not (eval_data / name).is_file()]
    if missing:
        raise ValueError(
            f"{eval_data} lacks {', '.join(missing)}; give a folder with these real files: "
            f"make miniature EVAL_DATA=FOLDER (docs/paper_scale.md)"
        )
    folder = project / INPUTS
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "eval-data"
    link.unlink(missing_ok=True)
    link.symlink_to(eval_data.resolve(), target_is_directory=True)
    write_checkpoints(folder)


def command(*more: str, configs: tuple[Path, ...] = ()) -> list[str]:
    """Snakemake's words; `configs` overrule paper.yaml."""
    files = [str(HERE / "paper.yaml"), *map(str, configs)]
    return [sys.executable, "-m", "snakemake", "--cores", "all", *more, "--configfile", *files]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Run the paper's config on tiny random models and a few real rows.")
    parser.add_argument("--eval-data", type=Path, required=True, metavar="FOLDER", help="real benchmark files")
    parser.add_argument("--configfile", type=Path, action="append", default=[], help="config that overrules paper.yaml")
    arguments, options = parser.parse_known_args()
    run_guarded(lambda: write_inputs(Path.cwd(), arguments.eval_data))
    raise SystemExit(subprocess.run(command(*options, configs=tuple(arguments.configfile)), check=False).returncode)


if __name__ == "__main__":
    main()
