"""What every room's tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from batch_systems import pbspro, quick_to_lose, slurm, system  # noqa: F401
from postgresql_server import Server, binaries

SHARED = Path(__file__).resolve().parents[2] / "shared"


def installed(program: str, package: str) -> str:
    """Path of a program; its absence is a failure in CI."""
    path = shutil.which(program)
    if path is None:
        message = f"{program} is not installed (package {package})"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def funpack_program() -> str:
    """Path of cfitsio's funpack."""
    return installed("funpack", "libcfitsio-bin")


@pytest.fixture(scope="session")
def fpack_program() -> str:
    """Path of cfitsio's fpack."""
    return installed("fpack", "libcfitsio-bin")


@pytest.fixture(scope="session")
def fitsverify_program() -> str:
    """Path of HEASARC's fitsverify."""
    return installed("fitsverify", "fitsverify")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real archive data that lie beside the checkout; their absence is a failure in CI."""
    data = SHARED / "data"
    if not data.is_dir():
        message = f"no real data at {data}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return data


@pytest.fixture(scope="session")
def postgresql_programs() -> Path:
    """Where PostgreSQL's programs are; their absence is a failure in CI."""
    programs = binaries()
    if programs is None:
        message = "PostgreSQL is not installed (package postgresql)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return programs


@pytest.fixture(scope="session")
def postgresql(postgresql_programs: Path) -> Iterator[Server]:
    """A real PostgreSQL."""
    server = Server(postgresql_programs)
    yield server
    server.close()


@pytest.fixture
def postgresql_url(postgresql: Server) -> str:
    """A place in it where no table is yet."""
    return postgresql.new_schema()


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a journal can be, in turn: a file, and a schema of a real server."""
    if request.param == "sqlite":
        return tmp_path / "below" / "journal.sqlite"
    url: str = request.getfixturevalue("postgresql_url")
    return url
