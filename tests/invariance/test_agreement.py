"""Sampler and trainer are compared after a push, on enough tokens to tell rounding from other weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.invariance.small_step import HashDiscriminator, Setting, stage_spec
from uniapl.entry import SharedError
from uniapl.records import Sample

OFF_NATS = 0.05  # five times what is allowed of the mean in float32


class OffSampler:
    """A sampler whose first answer is its first token alone, and whose log-probs are off for as many answers."""

    name = "off"

    def __init__(self, sampler: Any, *, num_off: int) -> None:
        self._sampler, self._num_off = sampler, num_off

    def generate(self, prompts: Sequence[list[int]], **options: Any) -> list[Sample]:
        first, *others = self._sampler.generate(prompts, **options)
        samples = [Sample(first.token_ids[:1], first.logprobs[:1], "stop"), *others]
        assert sum(len(one.token_ids) for one in others) > 24
        return [
            replace(one, logprobs=[value - OFF_NATS for value in one.logprobs]) if i < self._num_off else one
            for i, one in enumerate(samples)
        ]


@pytest.mark.parametrize(("num_off", "agrees"), [(1, True), (8, False)])
def test_one_rounded_token_is_no_disagreement_and_other_weights_are(
    setting: Setting, tmp_path: Path, num_off: int, agrees: bool
) -> None:
    loop: Any = setting.loop(tmp_path, stage_spec("grpo"), HashDiscriminator())
    loop.sampler = OffSampler(loop.sampler, num_off=num_off)
    if agrees:
        loop.check_agreement()
    else:
        with pytest.raises(SharedError, match="differ between sampler and trainer"):
            loop.check_agreement()
