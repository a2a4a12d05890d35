"""Hostile verifier code: none of it succeeds in any back end that is offered, asked by root or by an ordinary user."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sandbox.attacks import ATTACKS, Attack
from tests.sandbox.world import Server, World, in_the_open

ORDINARY_USER = 61234  # any that owns nothing here
# Who asks, and which back end: under Landlock the code is an ordinary user's in both cases.
PAIRS = (("root", "monty"), ("root", "bubblewrap"), ("user", "monty"), ("user", "bubblewrap"), ("user", "landlock"))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """In the system's temporary folder, which other users reach; pytest's own is closed to them."""
    with tempfile.TemporaryDirectory(prefix="uniapl-attacks-") as folder:
        made = World(Path(folder))
        yield made
        made.close()


@pytest.fixture(scope="module")
def servers(world: World) -> Iterator[Callable[[str], Server]]:
    """Starts each at its first use."""
    running: dict[str, Server] = {}

    def server(asker: str) -> Server:
        if asker == "root" and os.getuid() != 0:
            pytest.skip("not run as root")
        if asker not in running or running[asker].process.poll() is not None:
            drop = asker == "user" and os.getuid() == 0
            running[asker] = Server(world, uid=ORDINARY_USER if drop else None)
        return running[asker]

    yield server
    for started in running.values():
        started.close()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name.replace(" ", "_"))
@pytest.mark.parametrize(("asker", "backend"), PAIRS)
def test_no_attack_succeeds(attack: Attack, asker: str, backend: str, servers: Callable[[str], Server]) -> None:
    server = servers(asker)
    works, reason = server.available[backend]
    if not works:
        pytest.skip(f"{backend} is not offered here: {reason}")
    server.world.repair()
    assert server.attack(attack, backend=backend) == []


@pytest.mark.parametrize(
    "attack", [attack for attack in ATTACKS if attack.open_trial], ids=lambda attack: attack.name.replace(" ", "_")
)
def test_the_same_attack_is_seen_where_nothing_confines_it(attack: Attack, world: World) -> None:
    world.repair()
    assert in_the_open(attack, world) != []
    world.repair()


def test_there_are_many_attacks_and_most_were_seen_to_succeed_unconfined() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 40
    assert sum(attack.open_trial for attack in ATTACKS) >= len(ATTACKS) / 2
