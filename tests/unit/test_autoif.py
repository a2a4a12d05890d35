"""AutoIF's steps: replies that are read or left out, functions and cases that check each other, the whole order."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.chat_server import Reply, serving
from uniapl.answer_cache import Answer
from uniapl.autoif import replies
from uniapl.autoif.cross_check import Thresholds, cross_check, distinct
from uniapl.autoif.pipeline import Pipeline
from uniapl.autoif.published import prompts_of, read_items
from uniapl.autoif.replies import Written
from uniapl.config import AutoIFSpec, EndpointSpec
from uniapl.constraints import verify
from uniapl.constraints.functions import judge_calls
from uniapl.data import read_prompts
from uniapl.provenance import content_hash

LIMITS = Thresholds(min_functions=2, min_cases=2, agreement=0.8)


def reply(source: str, *cases: tuple[object, object]) -> str:
    body = {"func": source, "cases": [{"input": text, "output": output} for text, output in cases]}
    return f"Here it is:\n```json\n{json.dumps(body)}\n```\n"


def test_a_function_and_its_cases_are_read_and_what_is_no_case_is_left_out() -> None:
    source = "def evaluate(response):\n    return response.islower()"
    text = reply(source, ("abc", True), ("ABC", "false"), ("x", "maybe"), (3, True), ("y", 1))
    assert replies.written(text) == Written(source, (("abc", True), ("ABC", False)))


@pytest.mark.parametrize(
    "text",
    [
        "no JSON at all", reply("def check(response):\n    return True"), reply("def evaluate(response:\n  return"),
        '```json\n["evaluate"]\n```', '```json\n{"cases": []}\n```',
        reply("def evaluate(r): return '" + "x" * 9000 + "'"),
    ],
)  # fmt: skip
def test_a_reply_without_a_usable_function_is_left_out(text: str) -> None:
    assert replies.written(text) is None


def test_a_function_whose_line_breaks_are_escaped_twice_is_read() -> None:
    found = replies.written(reply("def evaluate(response):\\n    return True"))
    assert found is not None
    assert found.source == "def evaluate(response):\n    return True"


def test_items_of_a_list_are_read_without_their_bullets() -> None:
    text = 'Sure:\n- Use "x" twice\n* Write lines\n 3. End with a dot\nno item\n- ' + "y" * 301
    assert replies.listed(text) == ['Use "x" twice', "Write lines", "End with a dot"]


@pytest.mark.parametrize(
    ("text", "score"),
    [("good\nScore: 9", 9), ("Score: 3\nbut\nscore: 10.", 10), ("Score: 9\nthanks", None), ("11", None)],
)
def test_a_score_stands_in_the_last_line(text: str, score: int | None) -> None:
    assert replies.scored(text) == score


def test_a_text_that_two_cases_judge_differently_is_no_case() -> None:
    functions, cases = distinct([Written("f", (("a", True), ("b", False))), None, Written("f", (("a", False),))])
    assert functions == ["f"]
    assert cases == [("b", False)]


def test_functions_and_cases_that_nobody_agrees_with_are_dropped() -> None:
    cases = [("a", True), ("b", False), ("c", True)]
    # Nobody gives case c's verdict, so it goes. Of the other two f passes both, g one (0.5), h none.
    table = [[True, False, False], [True, True, None], [None, None, None]]
    checked = cross_check("say a", ["f", "g", "h"], cases, table, LIMITS)
    assert checked is not None
    assert (checked.functions, checked.accuracies) == (("f",), (1.0,))
    assert checked.cases == (("a", True), ("b", False))
    assert cross_check("say a", ["h"], cases, [[None] * 3], LIMITS) is None


LOWER = ["def evaluate(response):\n    return response == response.lower()", "def evaluate(r): return r.islower()"]


class Teacher:
    """Answers every request of the pipeline, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def __call__(self, todo: Sequence[tuple[str, int]]) -> list[Answer]:
        self.asked += todo
        return [Answer(str(seed), self.reply(text, turn), "stop", None, None) for turn, (text, seed) in enumerate(todo)]

    def reply(self, text: str, turn: int) -> str:
        if "new instructions about the form" in text:
            return "- Write everything in lower case!\n- write EVERYTHING in lower case\n- Say something kind"
        if "Write a Python function" in text:
            if "Write everything in lower case" not in text:
                return "I cannot."
            return reply(LOWER[turn % 2], (f"fine {turn}", True), (f"Not {turn}", False))
        if "checks whether the text" in text:
            return "Use lower case only."
        if text.startswith("A: "):
            return "entailment"
        if "different messages that a user might send" in text:
            topic = re.search(r"an assistant about (.+?):", text)
            return f"- Tell me why people like {topic and topic.group(1)} so much.\n- short"
        if "Score: N" in text:
            return "Well.\nScore: 9" if "honey" in text else "Hm.\nScore: 2"
        return "bees make honey" if "beekeeping" in text else "a fine thing" if "bread" in text else "No Idea"


def test_the_whole_order_keeps_what_agrees_and_can_be_answered() -> None:
    teacher = Teacher()
    numbers = {"augmentations": 2, "min_functions": 2, "min_cases": 4, "answers_per_prompt": 1}
    spec = AutoIFSpec.model_validate(numbers | {"queries_per_instruction": 500})
    pipeline = Pipeline(spec, teacher, judge_calls)
    (prompt,) = pipeline.make()
    # Of all topics only beekeeping gets an answer that passes and a score above 8.
    assert prompt.text == "Tell me why people like beekeeping so much.\nWrite everything in lower case!"
    (constraint,) = prompt.constraints
    assert sorted(constraint.kwargs["functions"]) == sorted(LOWER)
    counts = {row["step"]: (row["before"], row["after"]) for row in pipeline.counts}
    # 30 seeds, and twice a list of three of which two are the same but for case and punctuation.
    assert counts["instructions without duplicates"] == (36, 32)
    assert counts["instructions with enough functions and cases"] == (32, 1)
    assert counts["instructions without a contradiction"] == (1, 1)
    assert counts["prompts with an answer that serves the query"] == (2, 1)
    assert len(set(teacher.asked)) == len(teacher.asked), "the same request was made twice"


def test_the_same_pipeline_asks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    teachers = [Teacher(), Teacher()]
    spec = AutoIFSpec.model_validate({"augmentations": 1, "min_functions": 2, "min_cases": 4})
    for teacher in teachers:
        Pipeline(spec, teacher, judge_calls).make()
    assert teachers[0].asked == teachers[1].asked


NUMBERS = {"augmentations": 1, "min_functions": 2, "min_cases": 4, "answers_per_prompt": 1}


def stage(root: Path, url: str, **numbers: Any) -> tuple[Path, list[str]]:
    """The stage's directory with its config, and its command."""
    teacher = {"kind": "endpoint", "name": "clever", "model": "m", "num_samples": 1, "temperature": 0.7, "top_p": 0.8}
    spec = EndpointSpec.model_validate(teacher).model_dump(exclude={"access"})
    config = {"autoif": AutoIFSpec.model_validate(NUMBERS | numbers).model_dump(), "teacher": spec}
    directory = root / "autoif" / content_hash(config)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    access = {"url": url, "max_attempts": 1, "concurrency": 4}
    return directory, [sys.executable, "-m", "uniapl.autoif", str(directory), "--access", json.dumps(access)]


def test_the_stage_goes_on_where_it_was_stopped_and_asks_nothing_twice(tmp_path: Path) -> None:
    teacher, refuse = Teacher(), [True]

    def answer(body: dict[str, Any], attempt: int) -> Reply:
        text = body["messages"][0]["content"]
        if refuse[0] and "checks whether the text" in text:  # half-way
            return Reply(status=400, body=b"no more")
        return Reply(teacher.reply(text, body["seed"]))

    with serving(answer) as server:
        directory, command = stage(tmp_path, server.url, queries_per_instruction=500)
        first = subprocess.run(command, capture_output=True, text=True)
        assert first.returncode == 2
        assert "Traceback" not in first.stderr
        before = sum(server.answered.values())
        refuse[0] = False
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert set(server.answered.values()) == {1}
    assert 100 < before < sum(server.answered.values())
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["teacher"]["from_cache"] == before
    assert [row["step"] for row in manifest["steps"]][-1] == "at most data.autoif.max_prompts"
    prompts = read_prompts(directory / "prompts.jsonl")
    assert len(prompts) == manifest["num_prompts"] > 0
    assert manifest["sandbox"]["backends"]
    assert verify(prompts[0].constraints, "all low").followed == (True,)


def items_file(tmp_path: Path, **changed: Any) -> Path:
    row = {
        "instruction": "Use lower case.", "prompt": "Please answer.\n[instruction] Use lower case.\n[Query] Why tea?",
        "eval_func": [[LOWER[0], 1.0], [LOWER[1], 0.9], ["def evaluate(r: return", 1.0]],
        "cases": [["fine", True], ["Not", False], ["odd", "maybe"]], "gpt-answer": ["Tea.", "it is warm"],
    }  # fmt: skip
    rows = [row | changed, row | {"gpt-answer": ["Never."], "prompt": "[Query] Why milk?"}]
    path = tmp_path / "query_rft.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def test_items_made_before_need_no_teacher(tmp_path: Path) -> None:
    items = read_items(items_file(tmp_path))
    counts: list[dict[str, Any]] = []
    (prompt,) = prompts_of(items, judge_calls, AutoIFSpec.model_validate({}), counts)
    assert prompt.text == "Why tea?\nUse lower case."
    assert prompt.constraints[0].kwargs == {"functions": LOWER}
    assert [(one["before"], one["after"]) for one in counts] == [(2, 2), (2, 1), (1, 1)]
    assert len(prompts_of(items, judge_calls, AutoIFSpec.model_validate({"answers_per_prompt": 0}), [])) == 2
    some: list[dict[str, Any]] = []
    prompts_of(items, judge_calls, AutoIFSpec.model_validate({"answers_per_prompt": 0, "max_prompts": 1}), some)
    assert (some[-1]["before"], some[-1]["after"]) == (2, 1)  # the card says how many were left out


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"prompt": "no mark"}, r":1: no AutoIF item \(its prompt has no \[Query\]"),
        ({"eval_func": ["abc"]}, ":1: no AutoIF item"),
        ({"cases": [[f"{i}", True] for i in range(65)]}, "more than 64"),
    ],
)
def test_a_row_that_is_no_item_is_named(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_items(items_file(tmp_path, **changed))


def test_the_authors_own_items_are_checked_anew(eval_data: Path) -> None:
    items = read_items(eval_data / "autoif_sample" / "query_rft.jsonl")
    counts: list[dict[str, Any]] = []
    kept = prompts_of(items, judge_calls, AutoIFSpec.model_validate({"answers_per_prompt": 0}), counts)
    assert (len(items), len(kept)) == (20, 16)  # four have no case that could be checked
    # "Use only words that have exactly 4 syllables": none of the published answers does.
    assert prompts_of(items, judge_calls, AutoIFSpec.model_validate({}), counts) == []
