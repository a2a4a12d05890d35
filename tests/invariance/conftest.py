"""The tiny model, prompts and demonstrations that the invariance tests share."""

from __future__ import annotations

import pytest

from tests.invariance.small_step import MAX_NEW_TOKENS, Setting
from uniapl import models
from uniapl.config import ModelSpec
from uniapl.generate import generate_split
from uniapl.layers import load_study
from uniapl.records import Demonstration


@pytest.fixture(scope="session")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    study = load_study("smoke")
    spec: ModelSpec = next(m for m in study.models if m.name == "tiny_qwen3")
    directory = tmp_path_factory.mktemp("model")
    models.main(directory, {"model": spec.model_dump()})
    data = study.data.model_copy(update={"max_new_tokens": MAX_NEW_TOKENS})
    prompts = generate_split(data, "train", 16)
    demonstrations = [
        Demonstration(p.id, p.split, 0, f"Here is {p.topic}, in {i + 3} plain words.", "", (), (True,), 10)
        for i, p in enumerate(prompts)
    ]
    return Setting(directory, prompts, demonstrations)
