"""Fixtures of the engine's tests."""

from __future__ import annotations

import pytest
from simulated_night import Night, make_night


@pytest.fixture(scope="session")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    return make_night(tmp_path_factory.mktemp("night"))
