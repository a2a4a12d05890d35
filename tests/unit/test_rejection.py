"""Demonstrations of a chat teacher: up to k answers until one passes; the stage against a real local endpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.unit.chat_server import ChatServer, Reply, serving
from uniapl import models
from uniapl.config import DataSpec, EndpointAccess, EndpointSpec, FeaturesSpec
from uniapl.constraints import verify
from uniapl.constraints.edits import mend
from uniapl.data import discriminator_prompts, discriminator_test_prompts, read_prompts
from uniapl.discriminator import make_examples
from uniapl.endpoint import Endpoint
from uniapl.generate import generate_split
from uniapl.layers import load_study
from uniapl.provenance import content_hash, read_config, read_manifest
from uniapl.records import Constraint, Demonstration, Prompt, read_demonstrations, read_jsonl, write_jsonl
from uniapl.seeding import stream
from uniapl.teachers.__main__ import main
from uniapl.teachers.drafts import Draft, Order
from uniapl.teachers.rejection import sample_until_passed, without_thinking

ROOT = Path(__file__).parents[2]
NO_COMMA = Constraint("punctuation:no_comma", {})
ODD = Constraint("words:nonsense", {})


def spec_of(**values: Any) -> EndpointSpec:
    return EndpointSpec.model_validate({"name": "big", "kind": "endpoint", "model": "big-1"} | values)


def made_by(
    replies: dict[str, list[Reply]], tmp_path: Path, *, num_samples: int = 3, constraint: Constraint = NO_COMMA
) -> tuple[list[Demonstration | str], list[Draft], ChatServer]:
    """Ask for answers to the prompts of `replies`, which come one after the other; the cap is 6 words and the end."""
    orders = [Order(Prompt(name, "train", name, (constraint,)), 0) for name in replies]
    given: Counter[str] = Counter()

    def reply(body: dict[str, Any], _: int) -> Reply:
        name = body["messages"][0]["content"]
        given[name] += 1
        return replies[name][given[name] - 1]

    with serving(reply) as server:
        access = EndpointAccess.model_validate({"url": server.url})
        with Endpoint(access, cache=tmp_path / "answers.jsonl") as endpoint:
            made, answers = sample_until_passed(
                orders, spec_of(num_samples=num_samples), endpoint=endpoint, model="big-1", max_tokens=7,
                count_tokens=lambda text: len(text.split()) + 1,
            )  # fmt: skip
    return made, answers, server


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello.", "Hello."),
        ("<think>\nA, b.\n</think>\n\nHello.", "Hello."),
        ("so it is, then</think>Hello.", "Hello."),  # the template opened the block
        ("<think></think>Hel<think>a</think>lo.", "Hello."),
        ("<think>and on, and on", ""),
        ("", ""),
    ],
)
def test_thinking_is_no_part_of_an_answer(text: str, expected: str) -> None:
    assert without_thinking(text) == expected


def test_an_answer_is_asked_for_again_until_one_passes_whole(tmp_path: Path) -> None:
    good = Reply("No comma here.")
    made, answers, server = made_by(
        {
            "first": [good],
            "second": [Reply("One, two."), Reply("<think>One, two.</think>\nThree.")],
            "cut": [Reply("It was", finish_reason="length"), Reply("a b c d e f g"), good],
        },
        tmp_path,
    )
    assert [one.text for one in made if isinstance(one, Demonstration)] == [
        "No comma here.",
        "Three.",
        "No comma here.",
    ]
    second = made[1]
    assert isinstance(second, Demonstration)
    assert second.original == "<think>One, two.</think>\nThree."
    assert (second.edits, second.followed, second.num_tokens, second.truncated) == ((), (True,), 2, False)
    assert [(a.prompt_id, a.index, a.truncated, a.followed) for a in answers] == [
        ("first", 0, False, (True,)), ("second", 0, False, (False,)), ("second", 1, False, (True,)),
        ("cut", 0, True, (True,)), ("cut", 1, True, (True,)), ("cut", 2, False, (True,)),
    ]  # fmt: skip
    assert len({body["seed"] for body in server.bodies}) == 6
    assert {(body["model"], body["max_tokens"], body["temperature"], body["top_p"]) for body in server.bodies} == {
        ("big-1", 7, 0.7, 0.8)
    }


def test_what_passes_in_no_answer_is_dropped_with_its_reason(tmp_path: Path) -> None:
    made, _, _ = made_by({"p": [Reply("One, two."), Reply("Is", finish_reason="length"), Reply("<think>")]}, tmp_path)
    assert made == ["no answer of 3 passed: 1 against a constraint, 1 cut or too long, 1 empty"]


def test_a_prompt_that_cannot_be_judged_is_not_asked_for_again(tmp_path: Path) -> None:
    made, answers, server = made_by({"p": [Reply("One.")]}, tmp_path, constraint=ODD)
    assert isinstance(made[0], str)
    assert made[0].startswith("unavailable: unknown constraint kind")
    assert len(answers) == len(server.bodies) == 1


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model and a few prompts, as the stages before leave them."""
    root = tmp_path_factory.mktemp("inputs")
    study = load_study("smoke")
    models.save_model(*models.build_model(study.models[0]), models.weights_directory(root / "model"))
    for split, count in (("train", 40), ("heldout", 8)):
        write_jsonl(root / "data" / f"{split}.jsonl", generate_split(study.data, split, count))
    return root


def stage(
    inputs: Path, demonstrations: Path, teacher: dict[str, Any], access: dict[str, Any]
) -> tuple[Path, list[str]]:
    """A directory with its config.json, and the command that fills it."""
    study = load_study("smoke", {"teacher": teacher})
    config = {
        "teacher": study.teacher.model_dump(exclude={"access"}), "data": study.data.model_dump(),
        "sampler": {"kind": "hf"}, "compute": "float32",
    }  # fmt: skip
    directory = demonstrations / f"tiny-{content_hash(config)}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    command = [
        sys.executable, "-m", "uniapl.teachers", str(directory), "--model", str(inputs / "model"),
        "--data", str(inputs / "data"), "--access", json.dumps(access),
    ]  # fmt: skip
    return directory, command


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def expert(inputs: Path) -> Any:
    """A teacher that follows all constraints of a prompt in about two answers of three, and fails now and then."""
    prompts = {p.text: p for split in ("train", "heldout") for p in read_prompts(inputs / "data" / f"{split}.jsonl")}

    def reply(body: dict[str, Any], attempt: int) -> Reply:
        rng = stream("teacher", body["seed"])
        if attempt == 1 and rng.random() < 0.1:
            return Reply(status=500)
        prompt = prompts[body["messages"][0]["content"]]
        if rng.random() < 0.33:
            return Reply("No, this is, well, not it!", seconds=0.03)
        text = f"The {rng.choice(['sun', 'moon', 'rain'])} is {rng.choice(['here', 'gone', 'late'])}."
        mended = mend(
            prompt.constraints, text, rng=rng, max_tokens=24, count_tokens=lambda t: len(t) // 3, topic=prompt.topic
        )
        return Reply(mended.text if mended else text, seconds=0.03)

    return reply


TEACHER = {"name": "qwen3_235b", "drafts": "canned"}


@pytest.mark.slow
def test_the_stage_that_is_killed_and_started_again_makes_verified_demonstrations(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-secret-1")
    cache = tmp_path / "answers" / "qwen3_235b.jsonl"
    with serving(expert(inputs)) as server:
        access = {
            "url": server.url, "concurrency": 4, "first_wait_seconds": 0.05, "key_variable": "TEACHER_KEY",
            "prompt_price": 1.0, "completion_price": 1.0,
        }  # fmt: skip
        directory, command = stage(inputs, tmp_path, TEACHER, access)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        while not cache.exists() or cache.read_bytes().count(b"\n") < 20:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.2)
        kept = [json.loads(line)["key"] for line in cache.read_bytes().splitlines(keepends=True) if b"\n" in line]
        paid = dict(server.answered)
        done = run(command)
        assert done.returncode == 0, done.stdout + done.stderr
        assert {key: server.answered[key] for key in kept} == {key: paid[key] for key in kept}
        num_bodies = len(server.bodies)
        other, _ = stage(inputs, tmp_path, TEACHER | {"num_drafts": 5}, access)
        main(other, read_config(other), model=inputs / "model", data=inputs / "data", access=access)
        assert other != directory
        assert len(server.bodies) == num_bodies  # directories that ask the same share the answers, as students do
    body = server.bodies[0]
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert (body["model"], body["max_tokens"]) == ("Qwen/Qwen3-235B-A22B-Instruct-2507", 24)

    manifest = read_manifest(directory)
    demonstrations = read_demonstrations(directory / "demonstrations.jsonl")
    prompts = {p.id: p for s in ("train", "heldout") for p in read_prompts(inputs / "data" / f"{s}.jsonl")}
    dropped = [row for _, row in read_jsonl(directory / "dropped.jsonl")]
    assert len(demonstrations) + len(dropped) == manifest["num_orders"] == 64
    assert len(demonstrations) >= 40
    assert all(verify(prompts[d.prompt_id].constraints, d.text).passed and d.num_tokens <= 24 for d in demonstrations)
    assert all(row["reason"].startswith("no answer of 4 passed: ") for row in dropped)
    assert demonstrations == read_demonstrations(other / "demonstrations.jsonl")
    teacher = manifest["teacher"]
    num_answers = sum(1 for _ in read_jsonl(directory / "teacher_answers.jsonl"))
    assert teacher["answers"] == num_answers > 64
    assert teacher["from_cache"] == len(kept) >= 20
    assert teacher["used"]["cost"] == pytest.approx(15e-6 * num_answers)
    assert teacher["bought"]["cost"] == pytest.approx(15e-6 * (num_answers - len(kept)))
    assert 0 < teacher["first_answer_strict"] < 1
    assert read_manifest(other)["teacher"]["bought"]["cost"] == 0
    everything = "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file()) + done.stdout + done.stderr
    assert "sk-secret-1" not in everything

    # The base model's drafts are there for the discriminator's prompts alone, and it can be trained on them.
    samples = [row for _, row in read_jsonl(directory / "samples.jsonl")]
    data_spec = DataSpec.model_validate(load_study("smoke").data.model_dump())
    train = read_prompts(inputs / "data" / "train.jsonl")
    compared = [*discriminator_prompts(train, data_spec), *discriminator_test_prompts(train, data_spec)]
    assert Counter(row["prompt_id"] for row in samples) == Counter({p.id: 4 for p in compared})
    spec = load_study("smoke").discriminator
    assert isinstance(spec, FeaturesSpec)
    examples = make_examples(compared, demonstrations, samples, num_negatives=spec.num_negatives, seed=0)
    assert len(examples) >= 8
    assert all(len(example.drafts) == 3 for example in examples)


@pytest.mark.slow
def test_a_teacher_that_cannot_be_asked_is_one_line(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    unknown = Reply(status=404, body=b'{"error": {"message": "The model does not exist."}}')
    with serving(lambda *_: unknown) as server:
        access = {"url": server.url, "concurrency": 4}
        directory, command = stage(inputs, tmp_path, TEACHER, access)
        named = access | {"key_variable": "TEACHER_KEY"}
        with pytest.raises(ValueError, match="the environment variable TEACHER_KEY holds no key"):
            main(directory, read_config(directory), model=inputs / "model", data=inputs / "data", access=named)
        assert not server.bodies
        done = run(command)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        (line,) = [one for one in done.stderr.splitlines() if one.startswith("error: ")]
        assert "refuses a request (404: The model does not exist.); see model and access.url" in line
        assert len(server.bodies) <= 4
    assert not (directory / "manifest.json").exists()


@pytest.mark.slow
def test_a_local_teacher_is_served_asked_and_ended(inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    teacher = {
        "name": "qwen3_235b_vllm", "model": "small_qwen3", "drafts": "canned", "num_samples": 2, "temperature": 1.0,
        "top_p": 1.0,
    }  # fmt: skip
    access = {"max_model_tokens": 512, "kv_cache_gib": 0.25, "concurrency": 8, "start_seconds": 280.0}
    directory, command = stage(inputs, tmp_path, teacher, access)
    done = run(command)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = read_manifest(directory)["teacher"]
    answers = [row for _, row in read_jsonl(directory / "teacher_answers.jsonl")]
    assert asked["answers"] == len(answers) > 64
    assert asked["used"]["completion_tokens"] > 64
    assert len({row["text"] for row in answers}) > len(answers) / 2  # each has a seed of its own
    assert read_demonstrations(directory / "demonstrations.jsonl")
    assert not (directory / ".teacher.tmp").exists()
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(directory) in " ".join(p.info["cmdline"] or [])]
