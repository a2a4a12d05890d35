"""Where a benchmark's rows come from: config/evals/NAME.yaml names the pinned source, a study may name files.

Read are a package's files, the hub's at a pinned commit out of the local cache, or a folder or zip archive; nothing is
downloaded, unpacked to disk or executed here. A single file may also lie in a shared folder, known by its sha256.
"""

from __future__ import annotations

import csv
import fnmatch
import gzip
import io
import json
import os
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from uniapl.config import BenchmarkSpec
from uniapl.layers import CONFIG, load_benchmark
from uniapl.provenance import file_sha256

DATA_FOLDER = "UNIAPL_EVAL_DATA"  # environment variable: a folder with benchmark files
MOST_BYTES = 1 << 30  # of one file, unpacked: what claims more is no benchmark


def prompt_file(name: str, given: Path | None = None) -> Path:
    """The file of a benchmark in IFEval's format: `given`, the pinned source's, or one with the same bytes nearby.

    Raise ValueError with the remedy where there is none.
    """
    if given is not None:
        if not given.is_file():
            raise ValueError(f"{given}: no such file; --data names a prompt file in {name}'s format")
        return given
    spec = load_benchmark(name)
    try:
        path = _folder(spec, f"give --data FILE, set {DATA_FOLDER}, or") / next(iter(spec.files.values()))
        if not path.is_file():
            raise ValueError(f"{spec.title}: {path} is missing; give --data FILE, or fetch it again")
        return path
    except ValueError:
        nearby = known_file(spec)
        if nearby is None:
            raise
        return nearby


def known_file(spec: BenchmarkSpec) -> Path | None:
    """A file whose sha256 is a known one, in the folder of benchmark files that several projects may share."""
    folder = Path(os.environ.get(DATA_FOLDER) or CONFIG.parent.parent / "shared/eval-data")
    return next((path for path in sorted(folder.glob("*.jsonl")) if file_sha256(path) in spec.known), None)


def known_source(name: str, path: Path) -> tuple[str, bool]:
    """What a benchmark's file is: the source whose bytes these are, or its sha256, and whether it is a known one."""
    digest = file_sha256(path)
    known = load_benchmark(name).known
    return (f"{known[digest]}, sha256 {digest[:8]}", True) if digest in known else (f"sha256 {digest}", False)


def split_files(spec: BenchmarkSpec, split: str, *, subject: str = "") -> list[tuple[str, bytes]]:
    """Names and contents of a split's files. Raise ValueError naming the benchmark and the remedy where none is."""
    pattern = spec.files[split].replace("{subject}", subject)
    root = _folder(spec, "set evaluation.benchmarks, or")
    if root.is_file():
        found = list(_members(root, pattern))
    else:
        found = [(str(path), path.read_bytes()) for path in sorted(root.glob(pattern)) if path.is_file()]
    if not found:
        raise ValueError(f"{spec.title}: {root} holds no {pattern} ({split}); mend its 'files', or fetch it again")
    return found


def read_split(spec: BenchmarkSpec, split: str, *, subject: str = "") -> list[dict[str, Any]]:
    """The rows of a split. Raise ValueError naming the file that is missing or broken."""
    rows: list[dict[str, Any]] = []
    for name, content in split_files(spec, split, subject=subject):
        try:
            rows += _rows(name, content, spec.columns)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{spec.title}: {name} cannot be read: {' '.join(str(error).split())[:200]}") from None
    return rows


def _folder(spec: BenchmarkSpec, otherwise: str) -> Path:
    """What `files` are relative to: a folder, or a zip archive."""
    if spec.location:
        root = CONFIG.parent / spec.location
        if not root.is_dir() and not zipfile.is_zipfile(root):
            raise ValueError(f"{spec.title}: {root} is neither a folder nor a zip archive; mend its 'location'")
        return root
    if spec.package:
        try:
            return Path(str(metadata.distribution(spec.package).locate_file("")))
        except metadata.PackageNotFoundError:
            raise ValueError(f"package {spec.package} is missing, which ships {spec.title}; install it") from None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(str(spec.hub), repo_type="dataset", revision=spec.revision, local_files_only=True)
    except LocalEntryNotFoundError:
        command = f"hf download {spec.hub} --repo-type dataset --revision {spec.revision}"
        raise ValueError(f"{spec.title} is not in the local Hugging Face cache; {otherwise} run: {command}") from None
    return Path(found)


def _members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Members of a zip archive whose names fit a pattern."""
    with zipfile.ZipFile(archive) as file:
        for info in sorted(file.infolist(), key=lambda one: one.filename):
            if fnmatch.fnmatchcase(info.filename, pattern):
                if info.file_size > MOST_BYTES:
                    raise ValueError(f"{archive}: {info.filename} has {info.file_size} bytes; no benchmark is so large")
                yield f"{archive}/{info.filename}", file.read(info)


def _rows(name: str, content: bytes, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of one file by the end of its name."""
    if name.endswith(".gz"):
        with gzip.open(io.BytesIO(content)) as file:
            unpacked = file.read(MOST_BYTES + 1)
        if len(unpacked) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes unpacked")
        return _rows(name.removesuffix(".gz"), unpacked, columns)
    if name.endswith(".parquet"):
        import pyarrow.parquet

        return pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    text = content.decode("utf-8-sig")
    if name.endswith(".csv"):
        return list(csv.DictReader(io.StringIO(text, newline=""), fieldnames=columns or None))
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    raise ValueError("its name ends in none of .jsonl, .csv, .parquet, each also with .gz")
