"""New weights on their way from a trainer to vLLM servers: a process group of their own, one tensor after the other.

The trainer's first rank is rank 0 and the workers of all servers are the others; the default group of either side is
not touched. A header names each tensor (JSON), then the tensor itself is broadcast, through NCCL where both sides have
CUDA, else through gloo. Nothing is unpickled. `WeightReceiver` is what `python -m uniapl.serve` adds to vLLM's workers.
"""

from __future__ import annotations

import datetime
import json
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed
from torch import Tensor

c10d: Any = torch.distributed  # its stubs lack the stores and the options of process groups

HEADER_BYTES = 512
JOIN_SECONDS = 60.0  # for all ends to meet
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ChannelError(Exception):
    """The other side left the process group, or keeps this one waiting for too long."""


class Channel:
    """One end of the process group. Every end must make the same calls: `send` on rank 0, `receive` on the others."""

    def __init__(
        self, store: Any, *, rank: int, size: int, address: str, device: torch.device, timeout_seconds: float
    ) -> None:
        """Join and wait for the others. `address` is this machine's own, `device` is where the tensors are.

        A broadcast may take `timeout_seconds`, the time in which the trainer comes to it included.
        """
        self.device = device
        joining = datetime.timedelta(seconds=JOIN_SECONDS)
        if device.type == "cuda":
            options = c10d.ProcessGroupNCCL.Options()
            options._timeout = joining
            self._group: Any = c10d.ProcessGroupNCCL(store, rank, size, options)
        else:
            options = c10d.ProcessGroupGloo._Options()
            options._timeout = joining
            options._devices = [c10d.ProcessGroupGloo.create_device(hostname=address)]
            self._group = c10d.ProcessGroupGloo(store, rank, size, options)
        self._from_trainer = c10d.BroadcastOptions()
        self._from_trainer.rootRank = 0
        self._from_trainer.timeout = datetime.timedelta(seconds=timeout_seconds)

    def send(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Broadcast all tensors, one at a time. Raise ChannelError where a receiver is gone."""
        for name, tensor in named_tensors:
            dtype = str(tensor.dtype).removeprefix("torch.")
            self._send_header({"name": name, "shape": list(tensor.shape), "dtype": dtype})
            self._broadcast(tensor.detach().to(self.device).contiguous())
        self._send_header({})

    def receive(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that rank 0 sends, each in memory of its own. Raise ChannelError where rank 0 is gone."""
        while header := self._receive_header():
            tensor = torch.empty(header["shape"], dtype=DTYPES[header["dtype"]], device=self.device)
            self._broadcast(tensor)
            yield header["name"], tensor

    def close(self) -> None:
        """Leave the group, which ends the calls of those who wait for this end."""
        self._group = None

    def _send_header(self, header: dict[str, Any]) -> None:
        text = json.dumps(header).encode()
        assert len(text) <= HEADER_BYTES, f"a parameter's name is too long: {header}"
        padded = torch.frombuffer(bytearray(text.ljust(HEADER_BYTES)), dtype=torch.uint8)
        self._broadcast(padded.to(self.device))

    def _receive_header(self) -> dict[str, Any]:
        padded = torch.empty(HEADER_BYTES, dtype=torch.uint8, device=self.device)
        self._broadcast(padded)
        return json.loads(bytes(padded.tolist()))

    def _broadcast(self, tensor: Tensor) -> None:
        try:
            self._group.broadcast([tensor], self._from_trainer).wait()
        except RuntimeError as error:
            raise ChannelError(str(error).split(". ")[0]) from error


def address_towards(host: str, port: int) -> str:
    """This machine's own address on the way to another one; nothing is sent."""
    family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def open_store(address: str) -> tuple[Any, int]:
    """A store on a free port of one of this machine's addresses, over which the ends of a channel meet."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family)
    port = int(listener.getsockname()[1])
    timeout = datetime.timedelta(seconds=JOIN_SECONDS)
    store = c10d.TCPStore(
        address, port, is_master=True, wait_for_workers=False, timeout=timeout, master_listen_fd=listener.detach()
    )
    return store, port


class WeightReceiver:
    """Mixed into each of vLLM's workers by `--worker-extension-cls`; called through `/collective_rpc`."""

    _trainer: Channel | None = None

    def describe_for_trainer(self: Any) -> dict[str, Any]:
        """What a trainer must know before it samples here."""
        from vllm.tokenizers import cached_tokenizer_from_config

        model = self.vllm_config.model_config
        return {
            "device": self.device.type,
            "max_model_tokens": model.max_model_len,
            "checked": {
                **shape_of(model.hf_text_config.to_dict()),
                "end_token_id": getattr(cached_tokenizer_from_config(model), "eos_token_id", None),
                "dtype": str(model.dtype).removeprefix("torch."),
                "logprobs_mode": model.logprobs_mode,
                "data_parallel_size": self.vllm_config.parallel_config.data_parallel_size,
            },
        }

    def join_trainer(
        self: Any, host: str, port: int, first_rank: int, size: int, device: str, timeout_seconds: float
    ) -> None:
        """Meet the trainer and the other servers' workers at the trainer's store; an earlier trainer is left."""
        self._trainer = None
        timeout = datetime.timedelta(seconds=JOIN_SECONDS)
        self._trainer = Channel(
            c10d.TCPStore(host, port, is_master=False, timeout=timeout), rank=first_rank + self.rank, size=size,
            address=address_towards(host, port), timeout_seconds=timeout_seconds,
            device=self.device if device == "cuda" else torch.device(device),
        )  # fmt: skip

    def receive_weights(self: Any) -> None:
        """Replace the weights by those that the trainer sends now; after a mistake this end leaves the channel."""
        from uniapl.sampler_vllm import repack_head

        if self._trainer is None:
            raise ValueError("no trainer has joined this server")
        try:
            with torch.no_grad():
                self.reload_weights(weights_iterator=self._trainer.receive())
                if self.device.type == "cpu":
                    repack_head(self)
        except Exception:
            self._trainer.close()
            self._trainer = None
            raise


def shape_of(config: dict[str, Any]) -> dict[str, Any]:
    """What tells models of one family apart, out of a Hugging Face config."""
    keys = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")
    return {key: config.get(key) for key in keys}
