"""Copy what tables and figures are rebuilt from (configs, manifests, records, metrics), and them; no weights.

    python -m uniapl.analysis.release results/laptop [--partial]

fills results/released/laptop, from which `snakemake tables figures --config source=released` starts, and where
`source=released+local` finds what need not be made. The copy is read back as a study before it takes the place of an
older one. With `--partial` a study that is still being made is copied as far as it is finished, and its index says what
is not run. Demonstrations and the heads of discriminators are copied too, so that others train on the same ones. What
variants logged and answered is gzipped, since they are many.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

from uniapl.analysis.collect import MAIN, read_study
from uniapl.entry import run_guarded
from uniapl.provenance import write_whole
from uniapl.records import HELDOUT_LOG, stored
from uniapl.released import released_folder

MOST_BYTES = 40_000_000
OWN_PROMPTS = {"development.jsonl", "heldout.jsonl"}
NAMES = ("directory", "run", "parent", "demonstrations", "discriminator")  # keys of directories in entries of the index
RECORDS = (
    "config.json", "manifest.json", "metrics.jsonl", "results.json", "expert.jsonl", "kinds.csv",
    "demonstrations.jsonl", "samples.jsonl", "dropped.jsonl", "head.safetensors", "probe.json",
)  # fmt: skip


def own_name(directory: str) -> str:
    """A directory of the index without the folder of released results that it was taken from."""
    return re.sub(r"^\.\./released/[^/]+/", "", directory)


def finished_part(root: Path, index: dict[str, Any]) -> dict[str, Any]:
    """The index of what is finished, and what is not: `not_run`."""

    def finished(directory: str) -> bool:
        return (root / directory / "manifest.json").is_file()

    kept: dict[str, Any] = {k: [e for e in index[k] if finished(e["directory"])] for k in ("runs", "evaluations")}
    if "others" in index:
        kept["others"] = [directory for directory in index["others"] if finished(directory)]
    left = [e for e in index["evaluations"] if not finished(e["directory"])]
    kept["not_run"] = [{key: e[key] for key in ("model", "method", "variant", "seed")} for e in left]
    return index | kept


def with_own_names(index: dict[str, Any]) -> dict[str, Any]:
    """The index with all directories below one root."""

    def renamed(entry: dict[str, Any]) -> dict[str, Any]:
        return {k: own_name(v) if k in NAMES and v else v for k, v in entry.items()}

    changed: dict[str, Any] = {kind: [renamed(e) for e in index[kind]] for kind in ("runs", "evaluations")}
    for kind in ("demonstrations", "discriminators"):
        changed[kind] = {name: own_name(directory) for name, directory in index[kind].items()}
    changed["models"] = {name: renamed(model) for name, model in index["models"].items()}
    changed |= {kind: own_name(index[kind]) for kind in ("data", "autoif") if kind in index}
    if "others" in index:
        changed["others"] = [own_name(directory) for directory in index["others"]]
    return index | changed


def released_files(root: Path, index: dict[str, Any]) -> dict[Path, Path]:
    """Files of a study to be released: where each goes, relative to the release, and where it is."""
    directories = [index["data"], *index["demonstrations"].values(), *index["discriminators"].values()]
    directories += [model["directory"] for model in index["models"].values()] + index.get("others", [])
    directories += [entry["directory"] for entry in (*index["runs"], *index["evaluations"])]
    answers = {f"{task}.jsonl" for task in index["tasks"]}
    of_variants = {e["directory"] for e in (*index["runs"], *index["evaluations"]) if e["variant"] != MAIN}
    files = {}
    for directory in directories:
        prompts = OWN_PROMPTS if directory == index["data"] else answers  # a benchmark's prompts are not ours to copy
        for name in sorted({*RECORDS, *prompts}):
            packed = ".gz" if directory in of_variants and name.endswith(".jsonl") else ""
            files[Path(own_name(directory)) / f"{name}{packed}"] = stored(root / directory / name)
    taken = {root / name.removesuffix(own_name(name)) for name in directories if name != own_name(name)}
    for source in (*sorted(taken), root):  # a job that was taken from a release was measured there
        files |= {path.relative_to(source): path for path in sorted(source.glob("benchmarks/**/*.tsv"))}
    for pattern in ("tables/*", "figures/*.png"):
        files |= {path.relative_to(root): path for path in sorted(root.glob(pattern))}
    files[Path(HELDOUT_LOG)] = root / HELDOUT_LOG
    return {target: path for target, path in files.items() if path.is_file()}


def release(root: Path, target: Path, *, partial: bool = False) -> int:
    """Copy a finished study to `target`; return its size in bytes. Raise ValueError where it is incomplete or big."""
    if not (root / "study.json").is_file():
        raise ValueError(f"{root}/study.json is missing; run snakemake, which writes it")
    index = json.loads((root / "study.json").read_text(encoding="utf-8"))
    if partial:
        index = finished_part(root, index)
    files = released_files(root, index)
    fresh = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    for place, path in files.items():
        (fresh / place).parent.mkdir(parents=True, exist_ok=True)
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        (fresh / place).write_bytes(gzip.compress(data, mtime=0) if place.suffix == ".gz" else data)
    text = json.dumps(with_own_names(index), indent=2, sort_keys=True, ensure_ascii=False)
    write_whole(fresh / "study.json", text + "\n")
    size = sum(path.stat().st_size for path in fresh.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        shutil.rmtree(fresh)
        raise ValueError(f"{root}: its records are {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}")
    study = read_study(fresh)
    modified = [d for d, manifest in study.manifests.items() if manifest.get("code", {}).get("modified")]
    if modified:
        raise ValueError(f"{root / modified[0]} was made by changed code; commit it and run the study again")
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    return size


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Copy a finished study's records to results/released.")
    parser.add_argument("root", type=Path, help="results/<scale>")
    parser.add_argument("--partial", action="store_true", help="of a study that is not finished, what is")
    options = parser.parse_args()
    root: Path = options.root

    def action() -> None:
        target = released_folder(root.resolve())
        size = release(root, target, partial=options.partial)
        study = read_study(target)
        left = len(study.index.get("not_run", []))
        print(
            f"{target}: {size / 1e6:.1f} MB; {len(study.index['evaluations'])} evaluations, {left} not run; the "
            f"held-out log has {len(study.heldout_log)} lines, commit it with the results"
        )

    run_guarded(action)


if __name__ == "__main__":
    main()
