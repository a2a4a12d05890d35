"""IF-RLVR's rows: what can be judged is read, what cannot is counted by its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from uniapl.if_rlvr import load, prompt_of, rows_of
from uniapl.records import Constraint, Prompt


def row(*pairs: tuple[str, Any], key: str = "1", text: str = "Describe tea.") -> dict[str, Any]:
    truth = [{"instruction_id": [kind for kind, _ in pairs], "kwargs": [kwargs for _, kwargs in pairs]}]
    return {"key": key, "messages": [{"role": "user", "content": text}], "ground_truth": repr(truth)}


COMMAS = ("punctuation:no_comma", None)
WORDS = ("length_constraints:number_words", {"relation": "at least", "num_words": 30, "capital_frequency": None})


def test_kinds_and_parameters_are_read_without_those_that_are_none() -> None:
    made = prompt_of(row(COMMAS, WORDS))
    assert isinstance(made, Prompt)
    assert made.id == "if-rlvr-1"
    assert made.constraints == (
        Constraint("punctuation:no_comma", {}),
        Constraint("length_constraints:number_words", {"relation": "at least", "num_words": 30}),
    )


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (row(COMMAS, ("paragraphs:paragraphs2", None)), "no verifier for paragraphs:paragraphs2"),
        (
            row(("length_constraints:number_words", {"relation": "at least"})),
            "parameters of length_constraints:number_words do not decide the verdict",
        ),
        (row(COMMAS) | {"ground_truth": "[__import__('os').system('true')]"}, "ground truth cannot be read"),
        (row(COMMAS) | {"ground_truth": "[" * 5000}, "ground truth cannot be read"),
        (row(COMMAS) | {"ground_truth": "[{'instruction_id': ['a'], 'kwargs': []}]"}, "ground truth cannot be read"),
        (row(*[COMMAS] * 9), "ground truth cannot be read"),
        (row(COMMAS, text="x" * 20_001), "empty or too long"),
        (row(COMMAS) | {"messages": [{"role": "user", "content": "a"}] * 2}, "not one user message"),
    ],
)
def test_a_row_that_cannot_be_judged_names_its_reason(broken: dict[str, Any], reason: str) -> None:
    assert prompt_of(broken) == reason


def test_the_data_card_counts_what_was_left_out() -> None:
    prompts, card = load([row(COMMAS), row(WORDS), row(WORDS, key="2"), row(("copy:copy", None), key="3")])
    assert [prompt.id for prompt in prompts] == ["if-rlvr-1", "if-rlvr-2"]
    assert card == {"rows": 4, "kept": 2, "left_out": {"key came before": 1, "no verifier for copy:copy": 1}}


def test_rows_come_out_of_parquet_files(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist([row(COMMAS), row(WORDS, key="2")]), tmp_path / "train-0.parquet")
    assert [one["key"] for one in rows_of(tmp_path)] == ["1", "2"]


def test_a_folder_without_the_data_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no parquet file of IF-RLVR's training set; run: uniapl fetch"):
        list(rows_of(tmp_path))
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="fetch it again"):
        list(rows_of(tmp_path))
    parquet.write_table(pa.Table.from_pylist([{"key": "1"}]), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="column 'ground_truth' is missing"):
        list(rows_of(tmp_path))
