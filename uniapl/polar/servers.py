"""POLAR on servers of its own: vLLM's `/pooling` or SGLang's `/classify`, several of them sharing the texts.

Token ids go out, so every server scores the same tokens. A request that fails is sent again, to the next server, after
a pause that doubles; what fails for good is an error and never a score.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx

from uniapl.config import PolarSpec
from uniapl.records import TokenSequence
from uniapl.seeding import stream

ATTEMPTS = 8  # as POLAR's own client
FIRST_PAUSE_SECONDS = 0.25  # doubled after every failure: 32 seconds in all
CONNECT_SECONDS = 10.0
REQUESTS_AT_ONCE = 4  # of each server
LEAST_SCORES_TO_JUDGE = 16  # so many logits of texts are not all between 0 and 1 by chance


class UnusableAnswerError(Exception):
    """A server's answer that holds no scores; the next attempt may get one that does."""


class ServersEngine:
    """See `uniapl.polar.discriminator.PolarEngine`."""

    def __init__(self, urls: Sequence[str], spec: PolarSpec, *, patience_seconds: float) -> None:
        self._urls, self._request_tokens = list(urls), spec.micro_batch_tokens
        self._client = httpx.Client(
            timeout=httpx.Timeout(patience_seconds, connect=CONNECT_SECONDS), trust_env=False,
            limits=httpx.Limits(max_connections=None),
        )  # fmt: skip
        self._threads = ThreadPoolExecutor(REQUESTS_AT_ONCE * len(self._urls), thread_name_prefix="polar")

    def scores(self, sequences: Sequence[TokenSequence]) -> list[float]:
        requests = list(split_requests(sequences, most_tokens=self._request_tokens))
        futures = [self._threads.submit(self._ask, number, ids) for number, ids in enumerate(requests)]
        try:
            found = [score for future in futures for score in future.result()]
        finally:
            for future in futures:  # after a mistake, those that still wait
                future.cancel()
        if len(set(found)) >= LEAST_SCORES_TO_JUDGE and all(0 <= score <= 1 for score in found):
            raise ValueError(
                f"the servers ({', '.join(self._urls)}) give probabilities, POLAR's scores are logits; start vLLM "
                f"with --pooler-config '{{\"use_activation\": false}}'"
            )
        return found

    def close(self) -> None:
        """Let go of the connections."""
        self._threads.shutdown(cancel_futures=True)
        self._client.close()

    def _ask(self, number: int, token_ids: list[list[int]]) -> list[float]:
        """One request's scores. Raise ValueError after the last attempt, or where a server refuses it."""
        reason = ""
        for attempt in range(ATTEMPTS):
            url = self._urls[(number + attempt) % len(self._urls)]
            if attempt:
                jitter = stream(number, "polar", attempt).uniform(0.5, 1.5)
                time.sleep(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * jitter)
            try:
                response = self._client.post(url, json=request_of(url, token_ids))
                if response.status_code == httpx.codes.OK:
                    return scores_of(url, response.json(), count=len(token_ids))
                reason = f"{url}: {response.status_code}: {' '.join(response.text.split())[:200]}"
                if response.status_code < 500 and response.status_code not in (408, 429):
                    break
            except httpx.HTTPError as error:
                reason = f"{url}: {str(error) or type(error).__name__}"
            except (ValueError, UnusableAnswerError) as error:  # JSON that ends too early is a ValueError
                reason = f"{url}: its answer holds no scores ({str(error)[:200]})"
        raise ValueError(f"POLAR: no scores from machine.discriminator_servers ({reason}); see the server's log")


def split_requests(sequences: Sequence[TokenSequence], *, most_tokens: int) -> Iterator[list[list[int]]]:
    """Token ids in order, cut into requests of at most `most_tokens`, at least one sequence each."""
    request: list[list[int]] = []
    tokens = 0
    for sequence in sequences:
        if request and tokens + sequence.num_tokens > most_tokens:
            yield request
            request, tokens = [], 0
        request.append(sequence.prompt_ids + sequence.completion_ids)
        tokens += sequence.num_tokens
    if request:
        yield request


def request_of(url: str, token_ids: list[list[int]]) -> dict[str, Any]:
    """The body that an endpoint takes: vLLM's with the sigmoid off that it would put behind a reward model."""
    if urlsplit(url).path == "/classify":
        return {"input_ids": token_ids}
    return {"input": token_ids, "task": "token_classify", "use_activation": False, "encoding_format": "float"}


def scores_of(url: str, answer: Any, *, count: int) -> list[float]:
    """The scores in an endpoint's answer, in the order of the request. Raise UnusableAnswerError where it has none."""
    try:
        if urlsplit(url).path == "/classify":
            scores = [item["embedding"][0] for item in answer]
        else:  # a value for each token; the last one stands at the reward token
            scores = [item["data"][-1][0] for item in sorted(answer["data"], key=lambda item: item["index"])]
    except (KeyError, IndexError, TypeError) as error:
        raise UnusableAnswerError(f"{type(error).__name__}: {error}") from None
    if len(scores) != count:
        raise UnusableAnswerError(f"{len(scores)} scores for {count} texts")
    if not all(isinstance(score, (int, float)) and not isinstance(score, bool) for score in scores):
        raise UnusableAnswerError("a score that is no number")
    return [float(score) for score in scores]
