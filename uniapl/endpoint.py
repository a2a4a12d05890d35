"""A client of OpenAI-compatible chat endpoints (POST <url>/chat/completions): many requests, each answered once.

Requests go out side by side up to a bound. What may pass by itself (429, 5xx, a time-out, a dropped connection, half an
answer) is tried again after an exponential wait with jitter, or after the wait that the endpoint names; anything else
ends the stage in one line. Every answer is on the disk before it counts (`answer_cache`), so the same command asks
again only for what is missing. The key comes from an environment variable and goes nowhere but into the request.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import tenacity

from uniapl.answer_cache import Answer, AnswerCache, request_key
from uniapl.config import EndpointAccess

RESPONSE_BYTES = 4 * 2**20  # no answer is longer; a response that is ends the stage
SHOWN_CHARACTERS = 300  # of an endpoint's own words in an error
CONNECT_SECONDS = 10.0
IDLE_SECONDS = 2.0  # a connection is kept; below the 5 seconds after which vLLM closes it
LONGEST_RETRY_AFTER_SECONDS = 3600.0  # an endpoint that wants more is out of quota rather than busy
GRACE_SECONDS = 30.0  # for answers in flight, which are paid, once another request has failed for good
PROGRESS_SECONDS = 10.0
REMEDIES = {
    401: "see the key and access.key_variable in the teacher's file",
    403: "see the key and what it may use",
    404: "see model and access.url in the teacher's file",
}  # fmt: skip


class TemporaryError(Exception):
    """An attempt that failed in a way that may pass. `reason` is what the report counts by."""

    def __init__(self, reason: str, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.retry_after_seconds = reason, retry_after_seconds


def chat_request(
    text: str, *, model: str, max_tokens: int, temperature: float, top_p: float, seed: int, extra_body: dict[str, Any]
) -> dict[str, Any]:
    """The body of a request with one user message. `seed` is cut to 31 bits, which every endpoint takes."""
    return {
        "model": model, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens,
        "temperature": temperature, "top_p": top_p, "seed": seed % 2**31, **extra_body,
    }  # fmt: skip


def read_key(variable: str | None) -> str | None:
    """The key that stands in an environment variable; None where none is named. Raise ValueError, never showing it."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"the environment variable {variable} holds no key (access.key_variable of the teacher's file names it); "
            f"set it to the endpoint's key and start again"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(f"the environment variable {variable} holds white space or other characters that no key has")
    return key


def seconds_to_wait(retry_after: str | None, *, now: float) -> float | None:
    """Seconds that a Retry-After header names, as a number or as an HTTP date; None where it says nothing usable.

    `now` is the time in seconds since 1970.
    """
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - now
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if not math.isnan(seconds) else None


class Endpoint:
    """One endpoint and the file of its answers; use it as a context, since one process at a time has the file."""

    def __init__(
        self, access: EndpointAccess, *, cache: Path, name: str = "teacher", start: Callable[[], None] | None = None
    ) -> None:
        """`name` begins the progress lines; `start` is called once, before the first request goes out.

        Raise ValueError where the key is missing; nothing is asked before that.
        """
        self.access, self.name, self._start = access, name, start
        self._key = read_key(access.key_variable)
        self._cache = AnswerCache(cache)
        self._used: dict[str, bool] = {}  # by the request's key: whether this process received the answer
        self._num_attempts, self._retries = 0, Counter[str]()
        self._stopping = False
        self._closed_until = 0.0  # the endpoint named a time before which nobody should ask; time.monotonic()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._cache.close()

    def ask(self, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
        """The answers to requests (`chat_request`), in their order; equal requests share one answer.

        Raise ValueError in one line where a request is refused or was tried in vain; what was answered is kept.
        """
        keys = [request_key(body) for body in bodies]
        missing = {key: body for key, body in zip(keys, bodies, strict=True) if self._cache.get(key) is None}
        for key in keys:
            self._used.setdefault(key, key in missing)
        if missing and self._start is not None:
            self._start()
            self._start = None
        if missing:
            asyncio.run(self._ask_all(missing, num_known=len(set(keys)) - len(missing)))
        return [answer for key in keys if (answer := self._cache.get(key)) is not None]

    def report(self) -> dict[str, Any]:
        """What happened so far: counts, tokens, and the cost where prices are given.

        `used` is about all answers that were returned, `bought` about those of them that this process received.
        """
        return {
            "answers": len(self._used),
            "from_cache": sum(not bought for bought in self._used.values()),
            "attempts": self._num_attempts,
            "retries": dict(sorted(self._retries.items())),
            "used": self._usage(list(self._used)),
            "bought": self._usage([key for key, bought in self._used.items() if bought]),
        }

    def _usage(self, keys: Sequence[str]) -> dict[str, Any]:
        """Tokens and cost of some answers."""
        answers = [answer for key in keys if (answer := self._cache.get(key)) is not None]
        prompt = sum(answer.prompt_tokens or 0 for answer in answers)
        completion = sum(answer.completion_tokens or 0 for answer in answers)
        prices = (self.access.prompt_price, self.access.completion_price)
        cost = None
        if prices[0] is not None and prices[1] is not None:
            cost = round((prompt * prices[0] + completion * prices[1]) / 1e6, 6)
        uncounted = sum(answer.prompt_tokens is None or answer.completion_tokens is None for answer in answers)
        return {
            "prompt_tokens": prompt, "completion_tokens": completion, "answers_without_counts": uncounted, "cost": cost,
        }  # fmt: skip

    async def _ask_all(self, bodies: dict[str, dict[str, Any]], *, num_known: int) -> None:
        """Bring the answers to all requests into the cache."""
        self._stopping = False
        width, began, before = min(self.access.concurrency, len(bodies)), time.monotonic(), len(self._cache)
        waiting = iter(bodies.items())
        limits = httpx.Limits(max_connections=width, max_keepalive_connections=width, keepalive_expiry=IDLE_SECONDS)
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        # A proxy of the environment is for what lies outside.
        outside = urlsplit(self.access.url).hostname not in ("localhost", "127.0.0.1", "::1")
        async with httpx.AsyncClient(
            limits=limits, headers=headers, trust_env=outside, timeout=httpx.Timeout(None, connect=CONNECT_SECONDS)
        ) as client:
            workers = {asyncio.create_task(self._work(client, waiting)) for _ in range(width)}
            pending = workers
            try:
                while pending:
                    done, pending = await asyncio.wait(
                        pending, timeout=PROGRESS_SECONDS, return_when=asyncio.FIRST_EXCEPTION
                    )
                    self._show(len(self._cache) - before, len(bodies), num_known, time.monotonic() - began)
                    for task in done:
                        task.result()
            except (ValueError, OSError):
                self._stopping = True
                if pending:
                    await asyncio.wait(pending, timeout=GRACE_SECONDS)
                raise
            finally:
                for task in workers:
                    task.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    def _show(self, num_done: int, num_all: int, num_known: int, seconds: float) -> None:
        retries = f", tried again: {_counted(self._retries)}" if self._retries else ""
        left = f", {seconds / num_done * (num_all - num_done):.0f} s left" if 0 < num_done < num_all else ""
        print(f"{self.name}: {num_done}/{num_all} answered, {num_known} known before{retries}{left}", flush=True)

    async def _work(self, client: httpx.AsyncClient, waiting: Iterator[tuple[str, dict[str, Any]]]) -> None:
        """Answer one request after the other until none is left; all workers share the iterator."""
        for key, body in waiting:
            if self._stopping:
                return
            self._cache.add(await self._answer(client, key, body))

    async def _answer(self, client: httpx.AsyncClient, key: str, body: dict[str, Any]) -> Answer:
        """One answer, in at most `max_attempts` attempts."""
        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(TemporaryError),
            stop=lambda state: self._stopping or state.attempt_number >= self.access.max_attempts,
            wait=self._wait_seconds, before_sleep=self._count, reraise=True,
        )  # fmt: skip
        try:
            return await attempts(self._attempt, client, key, body)
        except TemporaryError as error:
            raise ValueError(
                f"endpoint {self.access.url} gave no answer in {self.access.max_attempts} attempts (last: {error}); "
                f"see that it runs, then start the same command again: answers so far are in {self._cache.path}"
            ) from None

    def _wait_seconds(self, state: tenacity.RetryCallState) -> float:
        """Between 0 and a bound that doubles with each failure, but at least what the endpoint named."""
        error = state.outcome.exception() if state.outcome else None
        bound = min(
            self.access.longest_wait_seconds, self.access.first_wait_seconds * 2.0 ** min(state.attempt_number - 1, 60)
        )
        named = error.retry_after_seconds if isinstance(error, TemporaryError) else None
        return (named or 0.0) + random.uniform(0, bound)

    def _count(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, TemporaryError):
            self._retries[error.reason] += 1

    async def _attempt(self, client: httpx.AsyncClient, key: str, body: dict[str, Any]) -> Answer:
        """Send one request. Raise TemporaryError where it may be sent again, ValueError where not."""
        while (seconds := self._closed_until - time.monotonic()) > 0:
            await asyncio.sleep(seconds)
        self._num_attempts += 1
        try:
            async with asyncio.timeout(self.access.timeout_seconds):
                response, content = await self._post(client, body)
        except TimeoutError:
            raise TemporaryError("time-out", f"no answer in {self.access.timeout_seconds:g} s") from None
        except httpx.TimeoutException:
            raise TemporaryError("time-out", f"no connection in {CONNECT_SECONDS:g} s") from None
        except httpx.TransportError as error:
            raise TemporaryError("connection", self._clean(str(error) or type(error).__name__)) from None
        if response.status_code != httpx.codes.OK:
            raise self._refusal(response, content)
        answer = read_answer(key, content)
        if answer is None:
            raise TemporaryError("broken answer", f"no whole chat completion: {self._clean(_message(content))}")
        return answer

    async def _post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[httpx.Response, bytes]:
        """The response and its content. Raise ValueError where it is too long to be an answer."""
        content = bytearray()
        data = json.dumps(body).encode()
        async with client.stream("POST", f"{self.access.url}/chat/completions", content=data) as response:
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > RESPONSE_BYTES:
                    raise ValueError(
                        f"endpoint {self.access.url} sends more than {RESPONSE_BYTES} bytes to one request; "
                        f"see that it is a chat endpoint"
                    )
        return response, bytes(content)

    def _refusal(self, response: httpx.Response, content: bytes) -> Exception:
        """What an HTTP status other than 200 means: try again, or give up."""
        status, url = response.status_code, self.access.url
        said = self._clean(_message(content))
        if status not in (408, 429) and status < 500:
            remedy = REMEDIES.get(status, "see the teacher's file")
            return ValueError(f"endpoint {url} refuses a request ({status}: {said}); {remedy}")
        seconds = seconds_to_wait(response.headers.get("retry-after"), now=time.time())
        if seconds is not None and seconds > LONGEST_RETRY_AFTER_SECONDS:
            return ValueError(
                f"endpoint {url} ({status}: {said}) wants no request for {seconds:.0f} s; start the same command again "
                f"then: answers so far are in {self._cache.path}"
            )
        if seconds is not None:
            self._closed_until = max(self._closed_until, time.monotonic() + seconds)
        return TemporaryError(str(status), said, retry_after_seconds=seconds)

    def _clean(self, text: str) -> str:
        """An endpoint's words on one line, in short, and without the key, which some of them repeat."""
        if self._key is not None:
            text = text.replace(self._key, "***")
        return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:SHOWN_CHARACTERS]


def read_answer(key: str, content: bytes) -> Answer | None:
    """The first choice of a chat completion; None where the response is broken. A choice without text is empty."""
    try:
        response = json.loads(content)
        choice = response["choices"][0]
        text, reason = choice["message"].get("content"), choice["finish_reason"]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    if not (text is None or isinstance(text, str)) or not isinstance(reason, str):
        return None
    usage = response.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    whole = (text or "").encode("utf-8", "replace").decode()  # JSON can hold halves of characters, files cannot
    return Answer(
        key, whole, reason[:SHOWN_CHARACTERS], _count_of(counts.get("prompt_tokens")),
        _count_of(counts.get("completion_tokens")),
    )  # fmt: skip


def _count_of(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def _message(content: bytes) -> str:
    """An endpoint's own words on an error."""
    try:
        body = json.loads(content)
        error = body.get("error", body)
        return str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError, RecursionError):
        return content[: 16 * SHOWN_CHARACTERS].decode("utf-8", "replace")


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
