"""What the tests of the link share: a real server, and places on both sides."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from private_sshd import PrivateSshd, need_sshd


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSshd]:
    need_sshd()
    server = PrivateSshd(tmp_path_factory.mktemp("sshd"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def own_sshd(tmp_path: Path) -> Iterator[PrivateSshd]:
    """One that a test may kill."""
    need_sshd()
    home = tmp_path / "sshd"
    home.mkdir()
    server = PrivateSshd(home)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    path = tmp_path / "landing"
    path.mkdir()
    return path


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


@pytest.fixture
def raw(tmp_path: Path, shared_data: Path) -> Path:
    source = shared_data / "decam_raw" / "history_reduced_c4d_200306_000415_ori.fits.fz"
    path = tmp_path / "raw" / "DECam_00941420.fits.fz"
    path.parent.mkdir()
    path.write_bytes(source.read_bytes())
    return path


@pytest.fixture
def root() -> None:
    """Skip who may not mount; in CI that is a failure."""
    if os.geteuid() != 0:
        message = "mounting a small disk needs root"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
