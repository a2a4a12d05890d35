"""POLAR's endpoints against a flaky server of our own: everything scored once, in order, or an error; never a 0."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import ValidationError

from uniapl.config import MachineSpec, PolarSpec
from uniapl.polar import servers as polar_servers
from uniapl.polar.servers import ServersEngine, request_of, scores_of, split_requests
from uniapl.records import TokenSequence

SEQUENCES = [TokenSequence([1, 2 + i], [7] * (i % 3) + [9], frozenset()) for i in range(20)]


def logit(ids: list[int]) -> float:
    """What the server makes of a text."""
    return ids[1] - 11.5


EXPECTED = [logit([*s.prompt_ids, *s.completion_ids]) for s in SEQUENCES]
Reply = Callable[[int, dict[str, Any]], tuple[int, bytes] | None]


def pooling(body: dict[str, Any]) -> Any:
    """vLLM's answer: a value for each token; out of order, as it may be."""
    rows = [{"index": i, "data": [[0.0]] * (len(ids) - 1) + [[logit(ids)]]} for i, ids in enumerate(body["input"])]
    return {"data": rows[::-1]}


def classify(body: dict[str, Any]) -> Any:
    """SGLang's answer."""
    return [{"embedding": [logit(ids)]} for ids in body["input_ids"]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Reply], tuple[str, list[dict[str, Any]]]]]:
    """Start a server that answers a request's number and body with status and bytes; None drops the connection."""
    monkeypatch.setattr(polar_servers, "FIRST_PAUSE_SECONDS", 0.001)
    running: list[ThreadingHTTPServer] = []

    def start(reply: Reply) -> tuple[str, list[dict[str, Any]]]:
        seen: list[dict[str, Any]] = []
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    seen.append(body)
                    number = len(seen)
                answer = reply(number, body)
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(answer[1])))
                self.end_headers()
                self.wfile.write(answer[1])

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}", seen

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def engine(*urls: str, tokens: int = 8) -> ServersEngine:
    spec = PolarSpec.model_validate({"source": "path", "location": "x", "micro_batch_tokens": tokens})
    return ServersEngine(urls, spec, patience_seconds=5.0)


def good(body: dict[str, Any]) -> bytes:
    return json.dumps(pooling(body) if "input" in body else classify(body)).encode()


def test_scores_come_in_order_from_both_kinds_of_endpoint(serve: Any) -> None:
    for path in ("/pooling", "/classify"):
        url, seen = serve(lambda number, body: (200, good(body)))
        assert engine(url + path).scores(SEQUENCES) == EXPECTED
        assert sum(len(body.get("input") or body["input_ids"]) for body in seen) == len(SEQUENCES)
        assert len(seen) > 5
    assert engine(url + "/pooling").scores([]) == []


def test_vllm_is_asked_for_logits_not_for_probabilities() -> None:
    assert request_of("http://h/pooling", [[1]])["use_activation"] is False


def test_a_flaky_server_scores_everything_in_the_end(serve: Any) -> None:
    def flaky(number: int, body: dict[str, Any]) -> tuple[int, bytes] | None:
        faults: list[tuple[int, bytes] | None] = [
            (500, b"overload"), (429, b""), None, (200, good(body)[:-9]), (200, b"{}"), (200, b'{"data": []}'),
            (200, json.dumps({"data": [{"index": 0, "data": [[None]]}]}).encode()), (503, b""),
        ]  # fmt: skip
        return faults[number // 2 % len(faults)] if number % 2 else (200, good(body))

    url, seen = serve(flaky)
    assert engine(url + "/pooling").scores(SEQUENCES) == EXPECTED
    assert len(seen) > len(list(split_requests(SEQUENCES, most_tokens=8)))


def test_another_server_takes_over_from_one_that_is_gone(serve: Any) -> None:
    url, _ = serve(lambda number, body: (200, good(body)))
    assert engine("http://127.0.0.1:9/pooling", url + "/pooling").scores(SEQUENCES) == EXPECTED


@pytest.mark.parametrize(
    ("reply", "message", "requests"),
    [
        (lambda n, body: (500, b"out of memory"), r"500: out of memory", 8),
        (lambda n, body: (404, b"no such model"), r"404: no such model", 1),
        (lambda n, body: (200, b"[]"), "holds no scores", 8),
        (lambda n, body: (200, json.dumps({"data": [{"index": 0, "data": [["0"]]}]}).encode()), "no number", 8),
        (lambda n, body: None, "Server disconnected", 8),
    ],
)
def test_what_fails_for_good_is_an_error_and_no_score(serve: Any, reply: Reply, message: str, requests: int) -> None:
    url, seen = serve(reply)
    with pytest.raises(ValueError, match=rf"no scores from machine\.discriminator_servers .*{message}.*log") as raised:
        engine(url + "/pooling", tokens=1).scores(SEQUENCES[:1])
    assert "\n" not in str(raised.value)
    assert len(seen) == requests


def test_probabilities_are_recognised(serve: Any) -> None:
    def sigmoid(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
        rows = [{"index": i, "data": [[1 / (1 + ids[1])]]} for i, ids in enumerate(body["input"])]
        return 200, json.dumps({"data": rows}).encode()

    url, _ = serve(sigmoid)
    with pytest.raises(ValueError, match="give probabilities, POLAR's scores are logits; start vLLM with"):
        engine(url + "/pooling").scores(SEQUENCES)


def test_requests_hold_at_most_so_many_tokens_but_at_least_one_text() -> None:
    # Lengths 3, 4, 5, 3, 4, 5: of at most 8 tokens.
    cut = list(split_requests(SEQUENCES[:6], most_tokens=8))
    assert [[len(ids) for ids in request] for request in cut] == [[3, 4], [5, 3], [4], [5]]
    assert [len(request) for request in split_requests(SEQUENCES[:3], most_tokens=1)] == [1, 1, 1]


def test_too_few_scores_are_no_scores() -> None:
    with pytest.raises(polar_servers.UnusableAnswerError, match="1 scores for 2 texts"):
        scores_of("http://h/classify", [{"embedding": [1.0]}], count=2)


@pytest.mark.parametrize(
    "machine",
    [
        {"discriminator_engine": "servers"},
        {"discriminator_servers": ["http://h:1/pooling"]},
        {"discriminator_engine": "servers", "discriminator_servers": ["http://h:1/v1/embeddings"]},
        {"discriminator_engine": "servers", "discriminator_servers": ["http://me:secret@h:1/pooling"]},
    ],
)
def test_servers_and_engine_must_fit_together(machine: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MachineSpec.model_validate(machine)
