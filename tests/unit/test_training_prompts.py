"""The mixture of training prompts: where each is from, what filters left of it, and what overlaps with a benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from uniapl import data
from uniapl.config import BenchmarkSpec, DataSpec
from uniapl.constraints import functions
from uniapl.provenance import file_sha256
from uniapl.records import Constraint, Prompt, write_jsonl
from uniapl.training_prompts import as_markdown, make_training_prompts

LOWER = "def evaluate(response):\n    return response.islower()"
QUESTION = "A farmer has 17 sheep, and all but 9 of them run away; how many sheep are left on the farm?"


def autoif_prompt(number: int, text: str) -> Prompt:
    constraint = Constraint(functions.KIND, {"functions": [LOWER]}, "Use lower case.")
    return Prompt(f"autoif-{number}", "train", f"{text}\nUse lower case.", (constraint,))


def row(number: int, kind: str = "punctuation:no_comma") -> dict[str, Any]:
    truth = [{"instruction_id": [kind], "kwargs": [None]}]
    return {
        "key": f"k{number}", "messages": [{"role": "user", "content": f"Describe tea number {number}."}],
        "ground_truth": repr(truth),
    }  # fmt: skip


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Any]:
    """A benchmark, IF-RLVR's rows and AutoIF's prompts, small."""
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k/test.jsonl").write_text(json.dumps({"question": QUESTION, "answer": "9"}) + "\n")
    (tmp_path / "rlvr").mkdir()
    rows = [*(row(number) for number in range(6)), row(9, "copy:copy"), row(10, "format:title_case")]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rlvr/train.parquet")
    prompts = [autoif_prompt(0, "Why milk?"), autoif_prompt(1, QUESTION), autoif_prompt(2, "WHY, milk!")]
    return {
        "benchmark": {
            "name": "gsm8k", "title": "GSM8K", "location": str(tmp_path / "gsm8k"), "files": {"test": "test.jsonl"},
            "question": "test.question",
        },
        "rlvr": str(tmp_path / "rlvr"),
        "autoif": (prompts, {
            "sha256": "c0ffee", "items": "items.jsonl", "items_sha256": "beef",
            "steps": [{"step": "items whose functions and cases agree", "before": 5, "after": 3}],
        }),
    }  # fmt: skip


def spec_of(sources: dict[str, Any], **fields: Any) -> DataSpec:
    numbers = {"train": 20, "development": 2, "heldout": 2, "policy": 25, "discriminator": 3, "discriminator_test": 3}
    made = {
        "max_new_tokens": 256, "kinds": "ifeval", "autoif": {}, "decontaminate_against": ["gsm8k"],
        "if_rlvr": {"location": sources["rlvr"], "max_prompts": 5},
    }  # fmt: skip
    spec = DataSpec.model_validate(made | {f"num_{name}": n for name, n in numbers.items()} | fields)
    return spec.model_copy(update={"benchmarks": {"gsm8k": BenchmarkSpec.model_validate(sources["benchmark"])}})


def test_every_filter_is_counted_and_what_overlaps_is_left_out(sources: dict[str, Any]) -> None:
    prompts, cards, report = make_training_prompts(spec_of(sources), sources["autoif"])
    last = "without duplicates and overlap with benchmarks"
    assert {card.name: card.steps for card in cards} == {
        "generated": [("generated", 20, 20), (last, 20, 20)],
        "AutoIF": [("items whose functions and cases agree", 5, 3), (last, 3, 1)],
        "IF-RLVR": [
            ("rows that can be judged", 8, 7), ("without kinds that are kept for held-out prompts", 7, 6),
            ("drawn (data.if_rlvr.max_prompts)", 6, 5), (last, 5, 5),
        ],
    }  # fmt: skip
    assert cards[2].left_out == {"no verifier for copy:copy": 1}
    assert cards[2].sha256 == {"train.parquet": file_sha256(Path(sources["rlvr"]) / "train.parquet")}
    assert len(prompts) == 26
    assert report is not None
    assert (report["duplicates"], report["left_out"]) == (1, [{"benchmark": "gsm8k", "by": "words", "rows": 1}])
    page = as_markdown(cards, {"train.jsonl": "0123"}, report)
    assert "* licence: ODC-BY" in page
    assert "| gsm8k | words | 1 |" in page


def test_a_mixture_is_shuffled_alike_each_time_and_a_single_source_not_at_all(sources: dict[str, Any]) -> None:
    first, second = (make_training_prompts(spec_of(sources), sources["autoif"])[0] for _ in range(2))
    assert first == second
    generated = [one.id for one in first if one.id.startswith("train-")]
    assert generated != sorted(generated)
    assert any(not one.id.startswith("train-") for one in first[:20])  # sources are mixed, not end to end
    alone, cards, report = make_training_prompts(
        spec_of(sources, autoif=None, if_rlvr=None, decontaminate_against=(), num_policy=14), None
    )
    assert [one.id for one in alone] == [f"train-{number:05d}" for number in range(20)]
    assert (len(cards), report) == (1, None)


def test_prompts_that_might_not_fit_the_sampler_are_left_out_and_counted(sources: dict[str, Any]) -> None:
    _, cards, _ = make_training_prompts(spec_of(sources, max_prompt_bytes=40), sources["autoif"])
    step = "of at most 40 bytes (data.max_prompt_bytes)"
    assert [one for one in cards[1].steps if one[0] == step] == [(step, 3, 2)]
    assert [one for one in cards[2].steps if one[0] == step] == [(step, 7, 7)]


def test_too_few_prompts_and_missing_sources_are_one_line_with_the_remedy(
    sources: dict[str, Any], tmp_path: Path
) -> None:
    few = spec_of(sources, num_train=4, num_discriminator=5, num_discriminator_test=5, num_policy=2)
    with pytest.raises(ValueError, match="only 10 training prompts are left, of which 10 are the discriminator's"):
        make_training_prompts(few, sources["autoif"])
    with pytest.raises(ValueError, match=r"mend data\.if_rlvr\.location, or set data\.if_rlvr to null"):
        make_training_prompts(spec_of(sources | {"rlvr": str(tmp_path / "no")}), sources["autoif"])
    with pytest.raises(ValueError, match=r"uniapl fetch --scale paper, or set data\.if_rlvr to null"):
        make_training_prompts(spec_of(sources, if_rlvr={"hub": "owner/none"}), sources["autoif"])
    broken = {"benchmark": sources["benchmark"] | {"question": "test.text"}}
    with pytest.raises(ValueError, match="GSM8K: none of its 1 rows has a 'text'; mend its 'question'"):
        make_training_prompts(spec_of(sources | broken), sources["autoif"])


def test_the_stage_writes_the_mixture_and_its_card(sources: dict[str, Any], tmp_path: Path) -> None:
    autoif = tmp_path / "autoif"
    autoif.mkdir()
    write_jsonl(autoif / "prompts.jsonl", sources["autoif"][0])
    (autoif / "manifest.json").write_text(json.dumps(sources["autoif"][1]))
    directory = tmp_path / "data"
    data.make_data(directory, {"data": spec_of(sources).model_dump()}, autoif=autoif)
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["num_policy"] == 20  # 26, less the discriminator's 6
    assert [card["name"] for card in manifest["cards"]] == ["generated", "AutoIF", "IF-RLVR", "IFBench"]
    page = (directory / "data_card.md").read_text()
    assert "Apache" in page.partition("## IFBench")[2]
    assert len(page) < 5000
    train = data.read_prompts(directory / "train.jsonl")
    assert sum(one.constraints[0].kind == functions.KIND for one in train) == 1
