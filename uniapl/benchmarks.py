"""Where a benchmark's data lies: config/evals/NAME.yaml names the pinned source, a study or a command may name files.

The hub's local cache only; nothing is downloaded here.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from uniapl.config import BenchmarkSpec
from uniapl.layers import CONFIG, available, read_yaml, shown, validate
from uniapl.provenance import file_sha256


def load_benchmark(name: str) -> BenchmarkSpec:
    """The spec of config/evals/NAME.yaml. Raise ConfigError for a name without one."""
    path = CONFIG / "evals" / f"{name}.yaml"
    return validate(BenchmarkSpec, [(shown(path), {"name": name} | read_yaml(path))], ("evals", name))


def known_benchmarks() -> list[str]:
    """Names of all benchmarks that config/evals describes."""
    return available("evals")


def prompt_file(name: str, given: Path | None = None) -> Path:
    """The file of a benchmark that is one file: `given`, a package's, or the hub's cached one at the pinned revision.

    Raise ValueError with the remedy where it is missing.
    """
    if given is not None:
        if not given.is_file():
            raise ValueError(f"{given}: no such file; --data names a prompt file in {name}'s format")
        return given
    spec = load_benchmark(name)
    if spec.package:
        try:
            return Path(str(metadata.distribution(spec.package).locate_file(str(spec.file))))
        except metadata.PackageNotFoundError:
            raise ValueError(
                f"package {spec.package} is missing, which ships {spec.title}'s prompts; install it"
            ) from None
    return cached_file(spec, str(spec.file))


def cached_file(spec: BenchmarkSpec, file: str) -> Path:
    """A file of the hub's data set, at the pinned revision, in the local cache. Raise ValueError where it is not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(str(spec.hub), file, revision=spec.revision, repo_type="dataset")
    if not isinstance(found, str):
        command = f"hf download {spec.hub} {file} --repo-type dataset --revision {spec.revision}"
        raise ValueError(
            f"{spec.title}'s prompts are not in the local Hugging Face cache; give --data FILE, or run: {command}"
        )
    return Path(found)


def known_source(name: str, path: Path) -> tuple[str, bool]:
    """What a benchmark's file is: the source whose bytes these are, or its sha256, and whether it is a known one."""
    digest = file_sha256(path)
    known = load_benchmark(name).known
    return (f"{known[digest]}, sha256 {digest[:8]}", True) if digest in known else (f"sha256 {digest}", False)
