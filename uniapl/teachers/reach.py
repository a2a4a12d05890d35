"""How a chat teacher is reached: an endpoint, or a vLLM server of our own for as long as it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uniapl.config import EndpointSpec, VLLMSpec
from uniapl.endpoint import Endpoint
from uniapl.teachers.local_server import LocalServer

ANSWERS = "answers"  # folder beside the directories that are made of them, a file for each teacher


@contextmanager
def reached(spec: EndpointSpec | VLLMSpec, *, directory: Path) -> Iterator[tuple[Endpoint, str]]:
    """The endpoint of a chat teacher and the teacher's name there; a local one is served meanwhile."""
    cache = directory.resolve().parent / ANSWERS / f"{spec.name}.jsonl"
    if isinstance(spec, EndpointSpec):
        with Endpoint(spec.access, cache=cache) as endpoint:
            yield endpoint, spec.model
    else:
        with (
            LocalServer(spec, directory=directory) as server,
            Endpoint(server.access, cache=cache, start=server.start) as endpoint,
        ):
            yield endpoint, server.model
