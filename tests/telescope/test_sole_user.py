"""The lock file of a directory that only one may work in."""

from __future__ import annotations

from pathlib import Path

import pytest

from prepipe.errors import ConfigError, StorageError
from prepipe.files import is_in_use, sole_user, storage_errors


def test_a_look_tells_whether_the_lock_is_held_and_does_not_disturb(tmp_path: Path) -> None:
    lock = tmp_path / "push.lock"
    assert not is_in_use(lock)
    assert not lock.exists()
    with sole_user(lock):
        assert is_in_use(lock)
        with pytest.raises(ConfigError, match="in use by process"), sole_user(lock):
            pass
    assert not is_in_use(lock)


def test_a_missing_file_is_said_not_to_exist(tmp_path: Path) -> None:
    missing = tmp_path / "gone.fits"
    with pytest.raises(StorageError, match=r"gone\.fits does not exist"), storage_errors(missing):
        missing.stat()
