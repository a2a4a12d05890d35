"""The replication kit: what stages take from it, the same bytes twice, and no results."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.unit.conftest import build_study
from uniapl.analysis.kit import SPLITS, contents, main, pack, prompt_rows
from uniapl.plan import Artifact
from uniapl.released import find_released

REPOSITORY = Path(__file__).resolve().parents[2]


def make(root: Path) -> Path:
    index: dict[str, Any] = build_study(root, methods=("grpo",)) | {"autoif": "autoif/00000000"}
    (root / "study.json").write_text(json.dumps(index))
    for split in SPLITS:
        (root / index["data"] / f"{split}.jsonl").write_text(json.dumps({"id": f"{split}-0", "text": "Say it."}) + "\n")
    (root / index["autoif"]).mkdir(parents=True)
    for name in ("config.json", "manifest.json", "prompts.jsonl"):
        (root / index["autoif"] / name).write_text("{}\n")
    for directory in (*index["demonstrations"].values(), *index["discriminators"].values()):
        (root / directory / "config.json").write_text("{}")
    (root / index["data"] / "config.json").write_text('{"data": {"autoif": {"items": null}}}')
    for name in ("demonstrations.jsonl", "samples.jsonl"):
        (root / index["demonstrations"]["smollm2_135m"] / name).write_text("{}\n")
    (root / index["discriminators"]["smollm2_135m"] / "head.safetensors").write_bytes(b"head")
    return root


def test_stages_find_what_was_made_with_the_teacher_in_an_unpacked_kit(tmp_path: Path) -> None:
    root = make(tmp_path / "laptop")
    packed = pack(contents(root, REPOSITORY))
    assert packed == pack(contents(root, REPOSITORY))
    (tmp_path / "kit.tar.gz").write_bytes(packed)
    with tarfile.open(tmp_path / "kit.tar.gz") as archive:
        archive.extractall(tmp_path / "released", filter="data")
    folder = tmp_path / "released" / "laptop"
    for kind in ("demonstrations", "discriminator"):
        wanted = Artifact(root / kind / "smollm2_135m-00000000", {})
        assert find_released(wanted, root, folder) == folder / kind / "smollm2_135m-00000000"
    assert find_released(Artifact(root / "autoif/00000000", {}), root, folder) == folder / "autoif/00000000"
    text = hashlib.sha256(b"Say it.").hexdigest()
    assert f"heldout,heldout-0,{text}" in (folder / "prompts.csv").read_text().splitlines()
    assert (folder / "locks/lock.txt").read_text() == (REPOSITORY / "requirements/lock.txt").read_text()
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert "runs/smollm2_135m/grpo/main-00000000/seed0/config.json" in files
    assert not any(name.endswith(("heldout.jsonl", "metrics.jsonl")) for name in files), "no results, no prompts"
    assert "study.json" not in files, "it would pass for a release"
    assert "Not made" not in (folder / "README").read_text()


def test_a_kit_lacks_nothing(tmp_path: Path) -> None:
    root = make(tmp_path / "laptop")
    index = (root / "study.json").read_text()
    (root / "study.json").write_text(index.replace('"autoif"', '"other"'))
    with pytest.raises(ValueError, match="does not say where AutoIF's prompts are"):
        contents(root, REPOSITORY)
    (root / "study.json").write_text(index)
    (root / "autoif/00000000/prompts.jsonl").unlink()
    with pytest.raises(ValueError, match=r"prompts\.jsonl is missing; run snakemake again"):
        contents(root, REPOSITORY)
    (root / "demonstrations/smollm2_135m-00000000/demonstrations.jsonl").unlink()
    with pytest.raises(ValueError, match=r"demonstrations\.jsonl is missing; run snakemake again"):
        contents(root, REPOSITORY)


def test_the_kit_of_a_study_in_pieces_holds_what_is_finished_and_says_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path / "laptop")
    made, begun, later = "demonstrations/smollm2_135m-1", "demonstrations/smollm2_135m-2", "discriminator/m-3"
    for directory, names in ((made, ("manifest.json", "demonstrations.jsonl")), (begun, ("demonstrations.jsonl",))):
        (root / directory).mkdir()
        for name in ("config.json", *names):
            (root / directory / name).write_text("{}\n")
    index = json.loads((root / "study.json").read_text()) | {"others": [made, begun, later]}
    (root / "study.json").write_text(json.dumps(index))
    monkeypatch.setattr("sys.argv", ["kit", str(root), "--output", str(tmp_path / "kit.tar.gz")])
    main()
    with tarfile.open(tmp_path / "kit.tar.gz") as archive:
        archive.extractall(tmp_path / "released", filter="data")
    folder = tmp_path / "released" / "laptop"
    assert (folder / made / "demonstrations.jsonl").is_file()
    assert not (folder / begun).exists()
    packed = json.loads((folder / "index.json").read_text())
    assert (packed["others"], packed["not_made"]) == ([made], [begun, later])
    assert (folder / "README").read_text().endswith(f"so that your study makes them:\n{begun}\n{later}\n")
    assert [line for line in capsys.readouterr().out.splitlines() if "not made" in line] == [
        f"not made yet: {begun}", f"not made yet: {later}",
    ]  # fmt: skip
    for directory in (made, *index["demonstrations"].values()):
        (root / directory / "manifest.json").unlink()
    with pytest.raises(ValueError, match="holds no finished demonstrations"):
        contents(root, REPOSITORY)


def test_a_kit_is_packed_from_a_release_whose_other_prompts_are_made_again(tmp_path: Path) -> None:
    released = REPOSITORY / "results/released/laptop"
    files = contents(released, REPOSITORY)
    rows = files["laptop/prompts.csv"].decode().splitlines()
    assert Counter(row.partition(",")[0] for row in rows[1:]) == {
        "train": 2000, "development": 200, "heldout": 200, "ifbench": 294,
    }  # fmt: skip
    assert any(name.endswith("demonstrations.jsonl") for name in files)
    data = released / json.loads((released / "study.json").read_text())["data"]
    first = json.loads((data / "heldout.jsonl").read_text().splitlines()[0])
    assert f"heldout,{first['id']},{hashlib.sha256(first['text'].encode()).hexdigest()}" in rows
    for name in ("config.json", "manifest.json"):
        (tmp_path / name).write_text((data / name).read_text().replace('"train.jsonl": "', '"train.jsonl": "0'))
    with pytest.raises(ValueError, match=r"train\.jsonl made again is not the study's"):
        prompt_rows(tmp_path, None)
