"""What every test shares: no network for the libraries, and GPU tests only where there is a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Side by side (make test): a file's tests stay together, and so do all that read the one smoke study.
    for item in items:
        shared = "smoke" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("smoke" if shared else str(item.path)))
    if Path("/dev/nvidia0").exists():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
