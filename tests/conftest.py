"""What every test shares: no network for the libraries, and GPU tests only where there is a GPU."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:  # files side by side: threads of one would wait, spinning, for the other's
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _sendable(part: object) -> object:
    """A report's part with every lone half of a character escaped, which no message to another process can hold."""
    if isinstance(part, str):
        return part.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(part, dict):
        return {_sendable(key): _sendable(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return type(part)(map(_sendable, part))
    return part


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, object, object]:
    return _sendable((yield))


LONG_FIRST = ("invariance", "workflow")  # folders whose files take minutes: begun last, one would be waited for alone


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name not in LONG_FIRST)
    if Path("/dev/nvidia0").exists():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def eval_data() -> Path:
    """Folder with real benchmark files, beside the repository or where UNIAPL_EVAL_DATA says; skips without it."""
    folder = Path(os.environ.get("UNIAPL_EVAL_DATA") or Path(__file__).parents[2] / "shared/eval-data")
    if not (folder / "ifeval_input_data.jsonl").is_file():
        pytest.skip("real benchmark files are not here: set UNIAPL_EVAL_DATA to a folder with ifeval_input_data.jsonl")
    return folder
