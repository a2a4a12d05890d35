"""The ranks of one training run: start-up under torchrun, FSDP2, and the few things that ranks tell each other.

Every rank knows the whole step: prompts, rewards and token sequences are gathered as JSON, so advantages, denominators
and the cut into micro-batches are computed from the same numbers everywhere. Divided are the rollouts (by prompt), the
scoring, the forwards (by micro-batch), and what FSDP2 shards: weights, gradients, optimizer. Nothing is unpickled.
Every rank notes in torchrun's store what it is doing, so that the one that hangs can be named.
"""

from __future__ import annotations

import datetime
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from uniapl import leases
from uniapl.entry import LostRankError, end_lost

COLLECTIVES = ("gloo", "Gloo", "NCCL", "ProcessGroup")  # words in the errors of collective calls
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is; one process needs no torchrun and makes no collective call."""

    rank: int = 0
    size: int = 1
    store: Any = field(default=None, compare=False, repr=False)
    lease: Path | None = field(default=None, compare=False, repr=False)  # where a run's first rank notes what it does
    held: IO[str] | None = field(default=None, compare=False, repr=False)  # another rank's own lease
    marks: list[tuple[int, str, float]] = field(default_factory=list, compare=False, repr=False)  # what this rank began

    @property
    def first(self) -> bool:
        """True on the rank that writes the run's files and speaks to the user."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This rank's items: every `size`-th, so that like neighbours are spread."""
        return list(items[self.rank :: self.size])

    def collect(self, own: Sequence[Any]) -> list[Any]:
        """All ranks' shares of JSON values in the order from before `share`, on every rank."""
        if self.size == 1:
            return list(own)
        shares = self._gather(list(own))
        return [shares[i % self.size][i // self.size] for i in range(sum(map(len, shares)))]

    def sums(self, values: Sequence[float]) -> list[float]:
        """Elementwise sums over ranks, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """True on all ranks where it is true on one."""
        return self.sums([float(flag)])[0] > 0

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def mark(self, what: str) -> None:
        """Note what this rank begins, for the other ranks and in the lease; all begin the same things in one order."""
        if self.first and self.lease is not None:
            leases.note(self.lease, what)
        if self.size > 1:
            number = self.marks[-1][0] + 1 if self.marks else 1
            self.marks[:] = [(number, what, time.time())]
            self.store.set(f"mark/{self.rank}", json.dumps(self.marks[-1]))

    def late(self) -> dict[int, str]:
        """The ranks that the others wait for, and what they do, in words; all of them where they are equally far."""
        marks = {rank: json.loads(self.store.get(f"mark/{rank}")) for rank in range(self.size)}
        behind = min(number for number, _, _ in marks.values())
        return {
            rank: f"rank {rank} hangs in '{what}' since {time.time() - at:.0f} seconds"
            for rank, (number, what, at) in marks.items()
            if number == behind
        }

    def waited_too_long(self) -> LostRankError:
        """What to raise where the ranks wait for each other in vain; one of those that wait says it."""
        late = self.late()
        waiting = set(range(self.size)) - set(late)
        message = f"the ranks waited for each other too long: {', '.join(late.values())}"
        return LostRankError(message, silent=self.rank != min(waiting or late))

    def _gather(self, value: Any) -> list[Any]:
        payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(payload)]))
        longest = max(int(length) for length in lengths)
        padded = torch.cat([payload, payload.new_zeros(longest - len(payload))])
        received = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(received, padded)
        pairs = zip(received, lengths, strict=True)
        return [json.loads(bytes(piece[: int(length)].numpy()).decode()) for piece, length in pairs]


ALONE = Ranks()


def device() -> torch.device:
    """Where this rank's models run: its GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def start(*, timeout_seconds: float, lease: Path) -> Ranks:
    """Join torchrun's other processes, if there are any; a collective call that hangs longer ends the run.

    `lease` is the one that the first rank holds.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks(lease=lease)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    timeout = datetime.timedelta(seconds=2 * timeout_seconds)
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size, timeout=timeout
    )
    held = None if rank == 0 else leases.hold(lease.with_name(f"{lease.name}.{rank}"), what=f"{lease.parent} is made")
    ranks = Ranks(rank, size, dist.PrefixStore("ranks", store), lease, held)
    ranks.mark("start")
    threading.Thread(target=watch_ranks, args=(ranks, timeout_seconds), name="watch_ranks", daemon=True).start()
    return ranks


def watch_ranks(ranks: Ranks, timeout_seconds: float) -> None:
    """End this process once it has waited too long for a rank that is behind it.

    A collective call's own time-out comes later, and on GPUs it would end the process without a word.
    """
    while True:
        time.sleep(min(5.0, timeout_seconds / 4))
        if time.time() - ranks.marks[-1][2] <= timeout_seconds:
            continue
        try:
            if ranks.rank not in ranks.late():
                end_lost(ranks.waited_too_long())
        except dist.DistError as error:  # the launcher, which keeps the marks, is gone
            end_lost(LostRankError(str(error), silent=True))


@contextmanager
def naming_lost_ranks(ranks: Ranks) -> Iterator[None]:
    """Turn a collective call's failure into LostRankError: silent where a rank died, else with the rank that hangs."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if ranks.size == 1 or not (isinstance(error, dist.DistError) or any(name in said for name in COLLECTIVES)):
            raise
        timed_out = "timed out" in said.lower() or "timeout" in said.lower()
        raise ranks.waited_too_long() if timed_out else LostRankError(said, silent=True) from error


def stop(ranks: Ranks) -> None:
    """Leave the group, after all ranks came here."""
    if ranks.size > 1:
        dist.barrier()
        dist.destroy_process_group()


def shard(model: nn.Module, ranks: Ranks, *, compute: str) -> None:
    """Spread a Hugging Face causal language model over the ranks, in place, one group a layer and one for the rest.

    Gradients are summed over ranks, not averaged: the loss is already divided by global counts. Layers are gathered in
    the type of the matrix products, so that no cast copy of them is kept for the backward; sums over ranks are float32.
    The rest (embedding, norm, head) is gathered as it is, so that the residual stream has the type it has on one rank.
    """
    if ranks.size == 1:
        return
    layers = MixedPrecisionPolicy(getattr(torch, compute), torch.float32, cast_forward_inputs=False)
    for layer in model.get_decoder().layers:  # type: ignore[operator]
        fully_shard(layer, mp_policy=layers)
    fully_shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.under_forward = lambda function, *arguments: function(*arguments)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "under_forward")


def under_forward(model: Any, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function that uses a model's parts (decoder, output head) with its weights gathered as in its forward."""
    if not isinstance(model, FSDPModule):
        return function(*arguments)
    result: Result = model.under_forward(function, *arguments)  # type: ignore[operator]
    if model.training and not torch.is_grad_enabled():  # type: ignore[attr-defined]
        model.reshard()  # FSDP2 leaves the root group gathered for a backward that does not come
    return result


def whole(tensor: Tensor) -> Tensor:
    """A parameter's or a norm's full value; a collective call where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and full values of all parameters, one at a time; every rank must take all of them, in order."""
    for name, parameter in model.named_parameters():
        yield name, whole(parameter.detach())
