"""What every room's tests share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def funpack_program() -> str:
    """Path of cfitsio's funpack; its absence is a failure in CI."""
    program = shutil.which("funpack")
    if program is None:
        message = "funpack is not installed (package libcfitsio-bin)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return program


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real archive data that lie beside the checkout; their absence is a failure in CI."""
    data = SHARED / "data"
    if not data.is_dir():
        message = f"no real data at {data}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return data
