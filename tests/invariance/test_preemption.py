"""A preempted run of the laptop study's own size: SIGTERM leaves a whole checkpoint in time."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.invariance.small_step import Run, Setting
from tests.invariance.test_ranks import start
from uniapl import models
from uniapl.layers import load_study
from uniapl.leases import Owner
from uniapl.sampler import resolve_compute, resolve_kind

GRACE_SECONDS = 60


def doing(run: Run) -> str:
    """What the run does, as it notes it in its lease."""
    lease = run.directory / "lock"
    owner = Owner.read(lease.read_text()) if lease.exists() else None
    return owner.doing if owner else ""


@pytest.fixture(scope="module")
def laptop(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    directory = tmp_path_factory.mktemp("smollm2")
    models.main(directory, {"model": load_study("laptop").models[0].model_dump()})
    return Setting(directory, setting.prompts, setting.demonstrations, setting.of_discriminator)


@pytest.mark.slow
def test_sigterm_in_the_middle_of_an_update_saves_the_step_before_within_a_minute(
    laptop: Setting, tmp_path: Path
) -> None:
    study = load_study("laptop")
    stage = study.stages["uniapl"].model_copy(update={"steps": 3, "demonstrations_per_step": 8})
    sizes = {"num_policy": len(laptop.prompts), "num_discriminator": 1, "num_discriminator_test": 1}
    data = study.data.model_copy(update=sizes | {"kinds": "coin_flip"}).model_dump()
    config = {
        "train": study.train.model_dump(), "data": data, "compute": resolve_compute("auto"),
        "sampler": study.sampler.model_dump() | {"kind": resolve_kind(study.sampler, study.machine)},
    }  # fmt: skip
    # Many micro-batches, so that the update goes on for long enough to be met in its middle on a busy machine.
    run = Run(tmp_path, laptop, stage, config=config, micro_batch_tokens=256)
    with start(run, ranks=1) as process:
        while process.poll() is None and not doing(run).startswith("step 2: update, micro-batch 2"):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        output, errors = process.communicate(timeout=600)
    took = time.monotonic() - asked
    assert process.returncode == 75, output[-2000:] + errors[-2000:]
    assert took < GRACE_SECONDS
    assert "uniapl: interrupted; step 1 is saved" in output
    (saved,) = (run.directory / "checkpoints").iterdir()
    assert json.loads((saved / "COMPLETE").read_text())["step"] == 1
