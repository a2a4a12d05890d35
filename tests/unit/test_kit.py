"""The replication kit: what stages take from it, the same bytes twice, and no results."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from tests.unit.conftest import build_study
from uniapl.analysis.kit import SPLITS, contents, pack
from uniapl.plan import Artifact
from uniapl.released import find_released

REPOSITORY = Path(__file__).resolve().parents[2]


def make(root: Path) -> Path:
    index = build_study(root, methods=("grpo",))
    for split in SPLITS:
        (root / index["data"] / f"{split}.jsonl").write_text(json.dumps({"id": f"{split}-0", "text": "Say it."}) + "\n")
    for directory in (*index["demonstrations"].values(), *index["discriminators"].values()):
        (root / directory / "config.json").write_text("{}")
    (root / index["data"] / "config.json").write_text('{"data": {"autoif": null}}')
    for name in ("demonstrations.jsonl", "samples.jsonl"):
        (root / index["demonstrations"]["smollm2_135m"] / name).write_text("{}\n")
    (root / index["discriminators"]["smollm2_135m"] / "head.safetensors").write_bytes(b"head")
    return root


def test_stages_find_demonstrations_and_discriminators_in_an_unpacked_kit(tmp_path: Path) -> None:
    root = make(tmp_path / "laptop")
    packed = pack(contents(root, REPOSITORY))
    assert packed == pack(contents(root, REPOSITORY))
    (tmp_path / "kit.tar.gz").write_bytes(packed)
    with tarfile.open(tmp_path / "kit.tar.gz") as archive:
        archive.extractall(tmp_path / "released", filter="data")
    folder = tmp_path / "released" / "laptop"
    for kind in ("demonstrations", "discriminator"):
        wanted = Artifact(root / kind / "smollm2_135m-00000000", {})
        assert find_released(wanted, root, [folder]) == folder / kind / "smollm2_135m-00000000"
    text = hashlib.sha256(b"Say it.").hexdigest()
    assert f"heldout,heldout-0,{text}" in (folder / "prompts.csv").read_text().splitlines()
    assert (folder / "locks/lock.txt").read_text() == (REPOSITORY / "requirements/lock.txt").read_text()
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert "runs/smollm2_135m/grpo/main-00000000/seed0/config.json" in files
    assert not any(name.endswith(("heldout.jsonl", "metrics.jsonl")) for name in files), "no results, no prompts"
    assert "study.json" not in files, "it would pass for a release"


def test_a_kit_lacks_nothing(tmp_path: Path) -> None:
    root = make(tmp_path / "laptop")
    (root / "data/00000000/config.json").write_text('{"data": {"autoif": {"items": null}}}')
    with pytest.raises(ValueError, match="the teacher wrote AutoIF's prompts"):
        contents(root, REPOSITORY)
    (root / "data/00000000/config.json").write_text('{"data": {"autoif": {"items": "a.jsonl"}}}')
    (root / "data/00000000/train.jsonl").unlink()
    with pytest.raises(ValueError, match=r"train\.jsonl is missing; make the study here first"):
        contents(root, REPOSITORY)
    (root / "demonstrations/smollm2_135m-00000000/demonstrations.jsonl").unlink()
    with pytest.raises(ValueError, match=r"demonstrations\.jsonl is missing; run snakemake again"):
        contents(root, REPOSITORY)
