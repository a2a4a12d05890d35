"""A local chat endpoint for tests, on a real socket, that can misbehave in every way that endpoints do."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from uniapl.answer_cache import request_key


@dataclass(frozen=True)
class Reply:
    """What the server does with one request. `drop` closes the connection after that many bytes of the body."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # instead of a completion with `text`
    seconds: float = 0.0  # before it answers
    drop: int | None = None
    finish_reason: str = "stop"

    def content(self) -> bytes:
        if self.body is not None:
            return self.body
        message = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


class ChatServer(ThreadingHTTPServer):
    """`reply(body, attempt)` decides; attempts at equal requests count from 1."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, reply: Callable[[dict[str, Any], int], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply = reply
        self.lock = threading.Lock()
        self.attempts, self.answered = Counter[str](), Counter[str]()
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: set[str | None] = set()
        self.times: list[float] = []  # of arrival, time.monotonic()
        self.in_flight = self.most_in_flight = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error of the server."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, key = self.server, request_key(body)
        with server.lock:
            server.attempts[key] += 1
            attempt = server.attempts[key]
            server.bodies.append(body)
            server.authorizations.add(self.headers.get("Authorization"))
            server.times.append(time.monotonic())
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            self._send(server.reply(body, attempt), key)
        finally:
            with server.lock:
                server.in_flight -= 1

    def _send(self, reply: Reply, key: str) -> None:
        time.sleep(reply.seconds)
        content = reply.content()
        if self.path != "/v1/chat/completions":
            reply, content = Reply(status=404), b"no such path"
        if reply.drop == 0:
            self.close_connection = True
            return
        with suppress(ConnectionError):
            self.send_response(reply.status)
            for name, value in ({"Content-Length": str(len(content))} | reply.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: reply.drop])
            self.wfile.flush()
            if reply.drop is not None:
                self.close_connection = True
            elif reply.status == 200:
                with self.server.lock:
                    self.server.answered[key] += 1

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@contextmanager
def serving(reply: Callable[[dict[str, Any], int], Reply]) -> Iterator[ChatServer]:
    """A server in a thread, for as long as the context lasts."""
    server = ChatServer(reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
