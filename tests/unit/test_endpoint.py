"""The client of chat endpoints against a flaky server: every request answered once, none paid twice, order kept."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.unit.chat_server import Reply, serving
from uniapl.answer_cache import request_key
from uniapl.config import EndpointAccess
from uniapl.endpoint import RESPONSE_BYTES, Endpoint, chat_request, read_answer, read_key, seconds_to_wait

KEY = "sk-Very-Secret-0123456789"


def access_of(url: str, **values: Any) -> EndpointAccess:
    quick = {"first_wait_seconds": 0.02, "longest_wait_seconds": 0.1, "timeout_seconds": 5.0, "concurrency": 4}
    return EndpointAccess.model_validate({"url": url} | quick | values)


def request(index: int) -> dict[str, Any]:
    return chat_request(
        f"Question {index}",
        model="big",
        max_tokens=20,
        temperature=0.7,
        top_p=0.8,
        seed=index,
        extra_body={"top_k": 20},
    )


def number_of(body: dict[str, Any]) -> int:
    return int(body["messages"][0]["content"].split()[1])


def echo(body: dict[str, Any]) -> Reply:
    return Reply(f"Answer {number_of(body)}")


def ask(url: str, cache: Path, bodies: Sequence[dict[str, Any]], **values: Any) -> tuple[list[str], dict[str, Any]]:
    with Endpoint(access_of(url, **values), cache=cache) as endpoint:
        return [answer.text for answer in endpoint.ask(bodies)], endpoint.report()


def free_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


FAILURES = {  # by the request's number: what happens at its first attempt, and what the report calls it
    0: (Reply(status=500, body=b"oops"), "500"),
    1: (Reply(status=503, body=b'{"error": {"message": "starting"}}'), "503"),
    2: (Reply(status=429, headers={"Retry-After": "0"}, body=b"slow down"), "429"),
    3: (Reply("Answer 3", body=Reply("Answer 3").content()[:-9]), "broken answer"),  # truncated, its length is right
    4: (Reply("Answer 4", drop=25), "connection"),  # the body ends before its announced length
    5: (Reply(drop=0), "connection"),  # closed without a word
    6: (Reply(seconds=1.0), "time-out"),
    7: (Reply(body=b'{"error": {"message": "overloaded"}}'), "broken answer"),  # an error with status 200
    8: (Reply(body=b"[" * 100_000), "broken answer"),
}


def test_every_failure_that_may_pass_is_tried_again_and_the_answers_keep_their_order(tmp_path: Path) -> None:
    def reply(body: dict[str, Any], attempt: int) -> Reply:
        index = number_of(body)
        return FAILURES[index][0] if index in FAILURES and attempt == 1 else echo(body)

    with serving(reply) as server:
        texts, report = ask(server.url, tmp_path / "a.jsonl", [request(i) for i in range(30)], timeout_seconds=0.5)
    assert texts == [f"Answer {i}" for i in range(30)]
    assert set(server.attempts.values()) == {1, 2}
    assert [server.attempts[request_key(request(i))] for i in range(12)] == [2] * 9 + [1] * 3
    assert report["retries"] == {"429": 1, "500": 1, "503": 1, "broken answer": 3, "connection": 2, "time-out": 1}
    assert (report["answers"], report["attempts"], report["from_cache"]) == (30, 39, 0)
    assert report["used"]["cost"] is None  # no prices are given
    assert 1 < server.most_in_flight <= 4


def test_a_second_process_asks_for_nothing_that_is_known_and_equal_requests_are_asked_once(tmp_path: Path) -> None:
    with serving(lambda body, _: echo(body)) as server:
        ask(server.url, tmp_path / "a.jsonl", [request(1), request(2)])
        prices = {"prompt_price": 2.0, "completion_price": 4.0}
        bodies = [request(i) for i in (3, 1, 3, 2, 4)]
        texts, report = ask(server.url, tmp_path / "a.jsonl", bodies, **prices)
    assert texts == ["Answer 3", "Answer 1", "Answer 3", "Answer 2", "Answer 4"]
    assert set(server.answered.values()) == {1}
    # Each answer has 10 prompt and 5 completion tokens: 4 cost (40 * 2 + 20 * 4) / 1e6, the 2 new ones half of it.
    assert report == {
        "answers": 4, "from_cache": 2, "attempts": 2, "retries": {},
        "used": {"prompt_tokens": 40, "completion_tokens": 20, "answers_without_counts": 0, "cost": 160e-6},
        "bought": {"prompt_tokens": 20, "completion_tokens": 10, "answers_without_counts": 0, "cost": 80e-6},
    }  # fmt: skip


def test_any_part_of_a_request_makes_it_another_one() -> None:
    changes: tuple[dict[str, Any], ...] = (
        {"model": "small"}, {"max_tokens": 21}, {"temperature": 0.8}, {"top_p": 0.9}, {"seed": 2},
        {"extra_body": {"top_k": 5}},
    )  # fmt: skip
    base: dict[str, Any] = {
        "model": "big", "max_tokens": 20, "temperature": 0.7, "top_p": 0.8, "seed": 1, "extra_body": {"top_k": 20},
    }  # fmt: skip
    bodies = [chat_request("Hello", **base | change) for change in ({}, *changes)] + [chat_request("Hallo", **base)]
    assert len({request_key(body) for body in bodies}) == 8


def test_nobody_asks_before_the_time_that_the_endpoint_names(tmp_path: Path) -> None:
    def reply(body: dict[str, Any], attempt: int) -> Reply:
        limited = number_of(body) == 0 and attempt == 1
        return Reply(status=429, headers={"Retry-After": "1.2"}) if limited else Reply("ok", seconds=0.3)

    with serving(reply) as server:
        ask(server.url, tmp_path / "a.jsonl", [request(i) for i in range(6)], concurrency=2)
    began = server.times[0]
    # The first two are under way when the limit comes; all others wait for its end.
    assert [time_ - began >= 1.15 for time_ in server.times] == [False, False, True, True, True, True, True]
    assert server.times[-1] - began < 4


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("nan", None), ("soon", None), ("", None),
     (formatdate(1030, usegmt=True), 30.0), (formatdate(970, usegmt=True), 0.0)],
)  # fmt: skip
def test_retry_after_is_read_as_seconds_and_as_a_date(header: str | None, seconds: float | None) -> None:
    assert seconds_to_wait(header, now=1000.0) == seconds


def test_an_endpoint_that_fails_for_good_ends_in_one_line_and_what_it_answered_is_kept(tmp_path: Path) -> None:
    down = True

    def reply(body: dict[str, Any], _: int) -> Reply:
        return Reply(status=502, body=b"bad gateway") if down and number_of(body) == 3 else echo(body)

    bodies = [request(i) for i in range(8)]
    with serving(reply) as server:
        with pytest.raises(ValueError, match=r"gave no answer in 3 attempts \(last: 502: bad gateway\); see that it"):
            ask(server.url, tmp_path / "a.jsonl", bodies, max_attempts=3, concurrency=1)
        assert server.attempts[request_key(bodies[3])] == 3
        down = False
        texts, report = ask(server.url, tmp_path / "a.jsonl", bodies)
    assert texts == [f"Answer {i}" for i in range(8)]
    assert report["from_cache"] == 3  # requests 0 to 2; the fourth worked in vain until the first process gave up
    assert set(server.answered.values()) == {1}


def test_answers_in_flight_are_kept_when_another_request_ends_the_stage(tmp_path: Path) -> None:
    def reply(body: dict[str, Any], attempt: int) -> Reply:
        if number_of(body) == 0 and attempt == 1:
            return Reply(status=400, body=b"too long", seconds=0.2)
        return Reply(f"Answer {number_of(body)}", seconds=0.8)

    bodies = [request(i) for i in range(9)]
    with serving(reply) as server:
        with pytest.raises(ValueError, match="400: too long"):
            ask(server.url, tmp_path / "a.jsonl", bodies)
        assert sum(server.attempts.values()) == 4  # nothing new was begun
        texts, report = ask(server.url, tmp_path / "a.jsonl", bodies)
    assert texts == [f"Answer {i}" for i in range(9)]
    assert report["from_cache"] == 3
    assert set(server.answered.values()) == {1}


@pytest.mark.parametrize(
    ("status", "said", "remedy"),
    [(401, "Incorrect API key", "see the key and access.key_variable"), (403, "no access", "what it may use"),
     (404, "The model `big` does not exist.", "see model and access.url"), (400, "too long", "see the teacher's file"),
     (301, "moved", "see the teacher's file")],
)  # fmt: skip
def test_a_refusal_is_one_line_with_the_endpoints_words(tmp_path: Path, status: int, said: str, remedy: str) -> None:
    body = json.dumps({"error": {"message": said, "code": status}}).encode()
    with serving(lambda *_: Reply(status=status, body=body, headers={"Location": "/v2"})) as server:
        with pytest.raises(ValueError, match=re.escape(f"refuses a request ({status}: {said})")) as raised:
            ask(server.url, tmp_path / "a.jsonl", [request(0)])
        assert sum(server.attempts.values()) == 1
    assert remedy in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_quota_that_is_used_up_is_no_reason_to_wait_for_a_day(tmp_path: Path) -> None:
    with (
        serving(lambda *_: Reply(status=429, headers={"Retry-After": "86400"}, body=b"quota")) as server,
        pytest.raises(ValueError, match=r"\(429: quota\) wants no request for 86400 s"),
    ):
        ask(server.url, tmp_path / "a.jsonl", [request(0)])


def test_an_unreachable_endpoint_is_named_with_the_reason(tmp_path: Path) -> None:
    url = free_url()
    with pytest.raises(ValueError, match=r"gave no answer in 2 attempts \(last: connection: ") as raised:
        ask(url, tmp_path / "a.jsonl", [request(i) for i in range(9)], max_attempts=2)
    assert url in str(raised.value)


def test_a_response_without_end_is_refused(tmp_path: Path) -> None:
    with (
        serving(lambda *_: Reply(body=b" " * (RESPONSE_BYTES + 1))) as server,
        pytest.raises(ValueError, match=f"sends more than {RESPONSE_BYTES} bytes"),
    ):
        ask(server.url, tmp_path / "a.jsonl", [request(0)])


def test_the_key_is_sent_and_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEACHER_KEY", f"{KEY}\n")
    said = f"no such key: {KEY} " + "x" * 280 + KEY
    error = json.dumps({"error": {"message": said}}).encode()

    def reply(body: dict[str, Any], attempt: int) -> Reply:
        if number_of(body) == 1:
            return Reply(status=401, body=error)
        return Reply(status=500, body=error) if attempt == 1 else echo(body)

    with serving(reply) as server:
        texts, report = ask(server.url, tmp_path / "a.jsonl", [request(0)], key_variable="TEACHER_KEY")
        assert texts == ["Answer 0"]
        assert server.authorizations == {f"Bearer {KEY}"}
        with pytest.raises(ValueError, match="no such key: ") as refused:
            ask(server.url, tmp_path / "a.jsonl", [request(1)], key_variable="TEACHER_KEY")
    shown = str(refused.value) + repr(refused.value) + json.dumps(report) + "".join(capsys.readouterr())
    shown += "".join(path.read_text() for path in tmp_path.iterdir())
    assert KEY[:8] not in shown


def test_a_missing_key_is_one_error_before_any_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with serving(lambda body, _: echo(body)) as server:
        with pytest.raises(ValueError, match="the environment variable TEACHER_KEY holds no key"):
            ask(server.url, tmp_path / "a.jsonl", [request(0)], key_variable="TEACHER_KEY")
        assert not server.attempts
    monkeypatch.setenv("TEACHER_KEY", "sk-a b")
    with pytest.raises(ValueError, match="TEACHER_KEY holds white space") as raised:
        read_key("TEACHER_KEY")
    assert "sk-a" not in str(raised.value)


def test_without_a_key_none_is_sent(tmp_path: Path) -> None:
    with serving(lambda body, _: echo(body)) as server:
        ask(server.url, tmp_path / "a.jsonl", [request(0)])
    assert server.authorizations == {None}


def test_odd_answers_are_empty_or_broken_but_never_a_crash() -> None:
    def answer(**changes: Any) -> Any:
        choice = {"message": {"content": "x"}, "finish_reason": "stop"} | changes
        return read_answer("k", json.dumps({"choices": [choice]}).encode())

    assert answer().text == "x"
    assert answer().prompt_tokens is None
    assert answer(message={"content": None}).text == ""
    assert answer(message={"content": "\ud83d"}).text == "?"  # half of a character
    for broken in ({"message": None}, {"message": {"content": 3}}, {"finish_reason": None}, {"message": []}):
        assert answer(**broken) is None
    for content in (b"", b"[]", b"{}", b'{"choices": []}', b"nonsense", b'{"choices": 1}'):
        assert read_answer("k", content) is None


CLIENT = """
import sys
from pathlib import Path
from tests.unit.test_endpoint import ask, request
texts, report = ask(sys.argv[1], Path(sys.argv[2]), [request(i) for i in range(60)], timeout_seconds=2)
print(texts)
"""


def test_a_client_that_is_killed_half_way_pays_for_no_kept_answer_again(tmp_path: Path) -> None:
    cache = tmp_path / "a.jsonl"

    def reply(body: dict[str, Any], attempt: int) -> Reply:
        index = number_of(body)
        if attempt == 1 and index % 5 == 0:
            return (Reply(status=500), Reply(status=429, headers={"Retry-After": "0"}), Reply(drop=30))[index % 3]
        return Reply(f"Answer {index}", seconds=0.05)

    def kept() -> list[str]:
        lines = cache.read_bytes().splitlines() if cache.exists() else []
        return [json.loads(line)["key"] for line in lines if line.endswith(b"}")]

    with serving(reply) as server:
        command = [sys.executable, "-c", CLIENT, server.url, str(cache)]
        options: dict[str, Any] = {"cwd": Path(__file__).parents[2], "env": os.environ, "text": True}
        for at_least in (8, 30):  # killed twice
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **options)
            while len(kept()) < at_least:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            time.sleep(0.3)  # until the server is done with what was in flight
            paid = dict(server.answered)
            durable = set(kept())
            assert at_least <= len(durable) < 60
            with open(cache, "ab") as file:  # what a kill in the middle of a write leaves
                file.write(b'{"completion_tokens": 5, "fini')
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=True, **options)
        assert f"{[f'Answer {i}' for i in range(60)]}" in done.stdout
        assert f"60 answered, {len(durable)} known before" not in done.stdout
        assert f"{60 - len(durable)}/{60 - len(durable)} answered, {len(durable)} known before" in done.stdout
        assert {key: server.answered[key] for key in durable} == {key: paid[key] for key in durable}
    assert len(server.answered) == 60
    # Paid twice is at most what was in flight at a kill: 4 requests each time.
    assert sum(server.answered.values()) <= 60 + 2 * 4
    assert len(kept()) == len(set(kept())) == 60
