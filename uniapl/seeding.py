"""Randomness as a function of (seed, stage, step, source, index): no global generator after start-up."""

from __future__ import annotations

import hashlib
import random


def stream_seed(*parts: int | str) -> int:
    """A 63-bit seed from named parts; the same parts give the same seed on every machine."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def stream(*parts: int | str) -> random.Random:
    """A generator of its own for named parts."""
    return random.Random(stream_seed(*parts))
