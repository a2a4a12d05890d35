"""Copy what tables and figures are rebuilt from (configs, manifests, records, metrics), and them; no weights.

    python -m uniapl.analysis.release results/laptop

fills results/released/laptop, from which `snakemake tables figures --config source=released` starts. The copy is read
back as a study before it takes the place of an older one.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from uniapl.analysis.collect import read_study
from uniapl.entry import run_guarded
from uniapl.records import HELDOUT_LOG

MOST_BYTES = 10_000_000
RECORDS = ("config.json", "manifest.json", "metrics.jsonl", "results.json", "expert.jsonl", "kinds.csv")


def released_files(root: Path, index: dict[str, Any]) -> list[Path]:
    """Files of a study to be released, relative to its root."""
    directories = [index["data"], *index["demonstrations"].values(), *index["discriminators"].values()]
    directories += [model["directory"] for model in index["models"].values()]
    directories += [entry["directory"] for entry in (*index["runs"], *index["evaluations"])]
    names = [*RECORDS, *(f"{task}.jsonl" for task in index["tasks"])]
    prompts = {f"{index['data']}/{task}.jsonl" for task in index["tasks"]}  # drawn again from the config's seed
    found = [Path(d) / name for d in directories for name in names if f"{d}/{name}" not in prompts]
    for pattern in ("benchmarks/**/*.tsv", "tables/*", "figures/*.png"):
        found += [path.relative_to(root) for path in sorted(root.glob(pattern))]
    return [Path("study.json"), *(path for path in (*found, Path(HELDOUT_LOG)) if (root / path).is_file())]


def release(root: Path, target: Path) -> int:
    """Copy a finished study to `target`; return its size in bytes. Raise ValueError where it is incomplete or big."""
    study = read_study(root)
    files = released_files(root, study.index)
    size = sum((root / path).stat().st_size for path in files)
    if size > MOST_BYTES:
        raise ValueError(f"{root}: its records are {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}")
    modified = [d for d, manifest in study.manifests.items() if manifest.get("code", {}).get("modified")]
    if modified:
        raise ValueError(f"{root / modified[0]} was made by changed code; commit it and run the study again")
    fresh = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    for path in files:
        (fresh / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, fresh / path)
    read_study(fresh)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    return size


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Copy a finished study's records to results/released.")
    parser.add_argument("root", type=Path, help="results/<scale>")
    root: Path = parser.parse_args().root

    def action() -> None:
        target = root.resolve().parent / "released" / root.resolve().name
        size = release(root, target)
        looks = len(read_study(target).heldout_log)
        print(f"{target}: {size / 1e6:.1f} MB; the held-out log has {looks} lines, commit it with the results")

    run_guarded(action)


if __name__ == "__main__":
    main()
