"""The tiny model, prompts and demonstrations that the invariance tests share."""

from __future__ import annotations

import pytest

from tests.invariance.small_step import Setting, make_setting


@pytest.fixture(scope="session")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make_setting(tmp_path_factory.mktemp("model"))
