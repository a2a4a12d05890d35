"""Rollouts by vLLM servers on GPUs or nodes of their own, for models whose rollouts dominate.

Token ids go out and come back over HTTP, one request a sample; a prompt's samples go to one server, so that it reads
the prompt once. Weights go over a process group (`uniapl.weight_channel`) to all servers at once. Every push gives them
a version that each answer names, so weights of another run or of a restarted server are noticed. Needs no vLLM here.
"""

from __future__ import annotations

import ipaddress
import os
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit

import httpx
import torch
from torch import Tensor

from uniapl import leases
from uniapl.config import MachineSpec, SamplerSpec
from uniapl.distributed import Ranks
from uniapl.models import load_policy, load_tokenizer
from uniapl.records import Sample
from uniapl.sampler_vllm import check_lengths, sampling_options
from uniapl.weight_channel import DTYPES, Channel, ChannelError, address_towards, open_store, shape_of

CONNECT_RETRIES = 4  # with httpx's back-off: 0, 0.5, 1 and 2 seconds
CONNECT_SECONDS = 10.0
IDLE_SECONDS = 2.0  # a connection is kept; below the 5 seconds after which vLLM closes it
FAILURE_SECONDS = 10.0  # for a server to say why its worker left


class ServerSampler:
    """See `uniapl.sampler.Sampler`. The first rank pushes; every rank asks for its own samples."""

    name = "server"

    def __init__(
        self, model_directory: Path, *, spec: SamplerSpec, dtype: str, machine: MachineSpec, ranks: Ranks
    ) -> None:
        """Raise ValueError where a server does not answer, serves another model, or was started otherwise."""
        self._model_directory, self._dtype, self._ranks = model_directory, dtype, ranks
        self._urls = [url.rstrip("/") for url in machine.servers]
        self._max_model_tokens, self._patience = spec.max_model_tokens, machine.hang_seconds
        self._end_token_id = int(load_tokenizer(model_directory).eos_token_id)
        self._threads = ThreadPoolExecutor(spec.max_sequences * len(self._urls), thread_name_prefix="server")
        limits = httpx.Limits(max_connections=None, keepalive_expiry=IDLE_SECONDS)
        self._client = httpx.Client(
            timeout=httpx.Timeout(self._patience, connect=CONNECT_SECONDS), trust_env=False,
            transport=httpx.HTTPTransport(retries=CONNECT_RETRIES, limits=limits, trust_env=False),
        )  # fmt: skip
        self._leases: list[IO[str]] = []
        self._channel: Channel | None = None
        self._version: str | None = None  # of the weights pushed last; None: the servers' own
        ranks.mark("waiting for the servers")
        if ranks.first:
            with self._stopping_requests():
                described = list(self._threads.map(self._describe, self._urls))
                self._leases = [_lease(url) for url in sorted(self._urls)]
                self._channel = self._join([len(workers) for workers in described], described[0][0]["device"])

    def generate(
        self, prompts: Sequence[list[int]], *, seeds: Sequence[int], max_new_tokens: int, temperature: float
    ) -> list[Sample]:
        check_lengths(prompts, max_new_tokens=max_new_tokens, max_model_tokens=self._max_model_tokens)
        if self._version is None:
            self.push_weights(load_policy(self._model_directory, dtype=self._dtype).named_parameters())
        options = sampling_options(
            max_new_tokens=max_new_tokens, temperature=temperature, end_token_id=self._end_token_id
        )
        place = {prompt: i + self._ranks.rank for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}

        def ask(prompt: list[int], seed: int) -> Sample:
            url = self._urls[place[tuple(prompt)] % len(self._urls)]
            seeded = options | ({} if temperature == 0 else {"seed": seed % 2**63})
            answer = self._post(url, "/inference/v1/generate", {"token_ids": prompt, "sampling_params": seeded})
            return self._sample(url, answer["choices"][0])

        with self._stopping_requests():
            return list(self._threads.map(ask, prompts, seeds))

    def push_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> float:
        started = time.perf_counter()
        dtype = DTYPES[self._dtype]
        version = ""
        if self._channel is None:
            for _ in named_tensors:  # whole tensors are collective calls of all ranks
                pass
        else:
            self._send(self._channel, ((name, tensor.detach().to(dtype)) for name, tensor in named_tensors))
            version = uuid.uuid4().hex
            for url in self._urls:
                self._post(url, "/update_weight_version", {"new_version": version})
                if not self._post(url, "/reset_prefix_cache", None)["success"]:
                    raise ValueError(f"{url} answers somebody else's requests during a push; give this run its own")
        self._version = self._ranks.collect([version])[0]  # no rank asks before the first one has pushed
        return time.perf_counter() - started

    def sleep(self) -> None:
        """Nothing to do: the servers' accelerators are not the trainer's."""

    def wake(self) -> None:
        """See `sleep`."""

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._client.close()
        if self._channel is not None:
            self._channel.close()
        for file in self._leases:
            file.close()

    def _describe(self, url: str) -> list[dict[str, Any]]:
        """What each of a server's workers says of itself. Raise ValueError where it does not fit."""
        from transformers import AutoConfig

        remedy = (
            f"start it with: python -m uniapl.serve {self._model_directory} --port {urlsplit(url).port or 80} "
            f"--dtype {self._dtype} --max-model-len {self._max_model_tokens}"
        )
        workers = self._post(url, "/collective_rpc", {"method": "describe_for_trainer"}, remedy=remedy)["results"]
        expected = shape_of(AutoConfig.from_pretrained(self._model_directory).to_dict()) | {
            "end_token_id": self._end_token_id, "dtype": self._dtype,
            "logprobs_mode": "processed_logprobs", "data_parallel_size": 1,
        }  # fmt: skip
        for key, value in expected.items():
            if workers[0]["checked"][key] != value:
                raise ValueError(f"{url}: {key} is {workers[0]['checked'][key]}, {value} is needed; {remedy}")
        if (room := workers[0]["max_model_tokens"]) < self._max_model_tokens:
            raise ValueError(f"{url}: room for {room} tokens, {self._max_model_tokens} are needed; {remedy}")
        return workers

    def _join(self, num_workers: Sequence[int], device: str) -> Channel:
        """Open the process group with all workers of all servers."""
        hosts = [urlsplit(url) for url in self._urls]
        towards = [address_towards(str(host.hostname), host.port or 80) for host in hosts]
        address = next((a for a in towards if not ipaddress.ip_address(a).is_loopback), towards[0])
        store, port = open_store(address)
        size = 1 + sum(num_workers)
        both = "cuda" if device == "cuda" and torch.cuda.is_available() else "cpu"
        meeting = {"host": address, "port": port, "size": size, "device": both, "timeout_seconds": self._patience}
        joining = []
        for i, url in enumerate(self._urls):
            arguments = meeting | {"first_rank": 1 + sum(num_workers[:i])}
            joining.append(self._call(url, "join_trainer", arguments))
        try:
            channel = Channel(
                store, rank=0, size=size, address=address, device=torch.device(both), timeout_seconds=self._patience
            )
        except RuntimeError as error:
            raise ValueError(f"no process group with {', '.join(self._urls)}: {_cause(joining, error)}") from error
        for future in joining:
            future.result()
        return channel

    def _send(self, channel: Channel, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        receiving = [self._call(url, "receive_weights", {}) for url in self._urls]
        try:
            channel.send(named_tensors)
        except ChannelError as error:
            cause = _cause(receiving, error)
            channel.close()
            raise ValueError(f"the weights were not pushed: {cause}; see its log and start it again") from error
        for future in receiving:
            future.result()

    def _sample(self, url: str, choice: dict[str, Any]) -> Sample:
        """Token ids, their log-probs and why it ended; checked to come from the weights pushed last."""
        versions = {span["version"] for span in choice["weight_versions"] or ()}
        if versions != {self._version}:
            raise ValueError(
                f"{url} has other weights than this run pushed last: another run uses it, or it was started again; "
                f"see that no other run does, then start this one again: it goes on from its last checkpoint"
            )
        if choice["finish_reason"] not in ("stop", "length"):
            raise ValueError(f"{url} gave a request up ({choice['finish_reason']}); see its log, start this run again")
        logprobs = [float(one["logprob"]) for one in choice["logprobs"]["content"]]
        return Sample(choice["token_ids"], logprobs, choice["finish_reason"])

    def _call(self, url: str, method: str, arguments: dict[str, Any]) -> Future[Any]:
        """Let all of a server's workers run a method of `WeightReceiver`."""
        return self._threads.submit(self._post, url, "/collective_rpc", {"method": method, "kwargs": arguments})

    def _post(self, url: str, path: str, body: Any, *, remedy: str = "see its log, and start this run again") -> Any:
        """The server's JSON. Raise ValueError in one line naming the server where there is none."""
        try:
            response = self._client.post(url + path, json=body)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"server {url} does not answer ({reason}); {remedy}") from error
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"server {url} refuses {path} ({_said(response)}); {remedy}")
        return response.json()

    @contextmanager
    def _stopping_requests(self) -> Iterator[None]:
        """After a mistake, do not begin the requests that still wait, so that the process can end."""
        try:
            yield
        except Exception:
            self._threads.shutdown(wait=False, cancel_futures=True)
            raise


def _said(response: httpx.Response) -> str:
    """A server's own words on an error, in short."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = response.text
    return f"{response.status_code}: {' '.join(message.split())[:300]}"


def _cause(futures: Sequence[Future[Any]], error: Exception) -> str:
    """Why the process group broke: what the first server that failed says, else our own end's error."""
    done, _ = wait(futures, timeout=FAILURE_SECONDS, return_when=FIRST_COMPLETED)
    return str(next((e for future in done if (e := future.exception())), error))


def _lease(url: str) -> IO[str]:
    """Take this machine's lease on a server, waiting until no other run of this user has it."""
    folder = Path(tempfile.gettempdir()) / f"uniapl-servers-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return leases.wait(folder / quote(url, safe=""), what=url)
