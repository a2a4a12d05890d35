"""Seeds are functions of named parts."""

from __future__ import annotations

import subprocess
import sys

from uniapl.seeding import stream, stream_seed


def test_the_same_parts_give_the_same_seed_in_every_process() -> None:
    here = stream_seed(0, 1, 2, "rollout", "train-00003", 4)
    code = "from uniapl.seeding import stream_seed; print(stream_seed(0, 1, 2, 'rollout', 'train-00003', 4))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(there.stdout) == here


def test_seeds_fit_63_bits_and_differ_in_every_part() -> None:
    parts = [(0, 1, 2), (1, 0, 2), (0, 12), (0, "1", 2), (0, 1, 2, 0), ("0/1/2",), (2, 1, 0)]
    seeds = [stream_seed(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_streams_of_different_names_are_independent_of_the_order_of_use() -> None:
    first, second = stream(0, "a"), stream(0, "b")
    expected = first.random(), second.random()
    second, first = stream(0, "b"), stream(0, "a")
    drawn = second.random(), first.random()
    assert drawn == expected[::-1]
    assert expected[0] != expected[1]
