"""What a study takes from the Hugging Face hub: fetched beforehand at pinned commits, every file checked.

Only `uniapl fetch` reaches for the network; every stage runs offline, out of the local cache (HF_HOME). A revision
is a commit, so what is fetched cannot change under its name, and each file is compared with the hash that the hub
records for that commit: sha256 of a large file, git's own of a small one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from uniapl.config import PolarSpec, Study, VLLMSpec
from uniapl.shapes import snapshot_folder

COMMIT = re.compile(r"[0-9a-f]{40}")
CHUNK_BYTES = 2**20
# Weights as safetensors alone: nothing that would have to be unpickled, and no code.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model", "LICENSE*", "README.md")


@dataclass(frozen=True)
class Source:
    """A repository of the hub at one commit, and which of its files are wanted (glob patterns)."""

    kind: Literal["model", "dataset"]
    repository: str
    revision: str
    patterns: tuple[str, ...] = MODEL_FILES

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision[:12]}"


@dataclass(frozen=True)
class Fetched:
    """A source in the local cache."""

    source: Source
    folder: Path
    sha256: dict[str, str]  # by file name
    num_bytes: int


def sources_of(study: Study) -> list[Source]:
    """Everything of the hub that a study uses, each once."""
    models = list(study.models)
    if isinstance(study.teacher, VLLMSpec):
        models.append(study.teacher.model)
    found = [Source("model", str(m.location), str(m.revision)) for m in models if m.source == "hub"]
    judge = study.discriminator
    if isinstance(judge, PolarSpec) and judge.source == "hub":
        found.append(Source("model", judge.location, str(judge.revision)))
    training = study.data.if_rlvr
    if training is not None and not training.location:
        found.append(Source("dataset", training.hub, training.revision, ("**/*.parquet", "*.parquet", "README.md")))
    for benchmark in [*study.evaluation.benchmarks.values(), *study.data.benchmarks.values()]:
        if benchmark.hub and not benchmark.location:
            patterns = tuple(pattern.replace("{subject}", "*") for pattern in benchmark.files.values())
            found.append(Source("dataset", benchmark.hub, str(benchmark.revision), patterns))
    return list(dict.fromkeys(found))


def is_cached(source: Source) -> bool:
    """True where a snapshot of the commit, or of what a branch's name last meant, lies in the local cache."""
    return snapshot_folder(source.repository, source.revision, kind=source.kind).is_dir()


def page_of(source: Source) -> str:
    """Where a source and its licence are described."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    return f"{hub}/{'datasets/' if source.kind == 'dataset' else ''}{source.repository}"


def go_online() -> None:
    """Let the hub's library reach for the network in this process; it reads its settings when it is imported."""
    os.environ["HF_HUB_OFFLINE"] = "0"


def fetch(source: Source, *, say: Callable[[str], None]) -> Fetched:
    """Download what is not in the cache yet and check every file. Raise ValueError (one line) for all that can fail."""
    from huggingface_hub import HfApi, snapshot_download

    with _in_words(source):
        say(f"{source}: looking it up")
        if not COMMIT.fullmatch(source.revision):
            commit = str(HfApi().repo_info(source.repository, repo_type=source.kind, revision=source.revision).sha)
            raise ValueError(
                f"{source.repository}: revision '{source.revision}' is no commit, so what it names can change; "
                f"today it names {commit}: pin that in the config"
            )
        files = _recorded(HfApi(), source)
        if not files:
            raise ValueError(f"{source}: none of its files is one of {', '.join(source.patterns)}; mend the patterns")
        size = sum(file.size for file in files)
        say(f"{source}: {len(files)} files, {size / 2**30:.2f} GiB")
        folder = Path(
            snapshot_download(
                source.repository, repo_type=source.kind, revision=source.revision,
                allow_patterns=[file.path for file in files],
            )
        )  # fmt: skip
    sha256 = {file.path: check_file(folder / file.path, file, source) for file in files}
    return Fetched(source, folder, sha256, size)


def _recorded(api: Any, source: Source) -> list[Any]:
    """What the hub records of the wanted files at the commit: path, size, hash."""
    from huggingface_hub import RepoFile
    from huggingface_hub.utils import filter_repo_objects

    tree = api.list_repo_tree(source.repository, recursive=True, revision=source.revision, repo_type=source.kind)
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    return list(filter_repo_objects(files, allow_patterns=list(source.patterns), key=lambda file: file.path))


def check_file(path: Path, recorded: Any, source: Source) -> str:
    """A file's sha256. Raise ValueError where it is not what the hub records; it is removed from the cache then."""
    sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(CHUNK_BYTES):
            sha256.update(block)
            git.update(block)
    expected = recorded.lfs.sha256 if recorded.lfs else recorded.blob_id
    found = sha256.hexdigest() if recorded.lfs else git.hexdigest()
    if found != expected:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise ValueError(
            f"{source}: {recorded.path} is not the file of that commit (hash {found[:12]}, recorded {expected[:12]}); "
            f"it was removed from the cache; fetch again, and do not use the source if it stays so"
        )
    return sha256.hexdigest()


@contextmanager
def _in_words(source: Source) -> Any:
    """Turn what the hub's library raises into one line with a remedy."""
    import httpx2
    from huggingface_hub import constants, errors

    page = page_of(source)
    try:
        yield
    except errors.GatedRepoError:
        raise ValueError(
            f"{source} is gated: accept its licence at {page} and set HF_TOKEN to a token of that account"
        ) from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{source}: no such commit at {page}; mend its revision") from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"{source}: no such {source.kind} at {page}, or it is private; mend its name, or set HF_TOKEN"
        ) from None
    except errors.HfHubHTTPError as error:
        reason = f"status {error.response.status_code}" if error.response is not None else type(error).__name__
        raise ValueError(f"{source}: {page} answers with {reason}; try again later") from None
    except (httpx2.TransportError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise ValueError(
            f"{source}: the hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__}); check the network "
            f"and proxy, or fetch on another machine and copy its cache ({constants.HF_HUB_CACHE})"
        ) from None
