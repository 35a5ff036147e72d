"""A repository that several share has one writer at a time, among threads and among processes."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from prepipe.engines.stack.repository import LOCK, sole_writer, tried_again
from prepipe.errors import ConfigError, EngineError, StorageError

HOLDER = """
import sys
from pathlib import Path
from prepipe.engines.stack.repository import sole_writer
with sole_writer(Path(sys.argv[1]), 60.0):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_another_process_waits_its_turn(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(StorageError, match="others have been writing"),
        sole_writer(tmp_path, 0.5),
    ):
        pytest.fail("two at once")


def test_a_killed_writer_holds_nothing(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()

    with sole_writer(tmp_path, 60.0):
        pass


def test_threads_of_a_process_wait_for_each_other(tmp_path: Path) -> None:
    inside, most = [], []

    def write() -> None:
        with sole_writer(tmp_path, 60.0):
            inside.append(1)
            most.append(len(inside))
            os.sched_yield()
            inside.pop()

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most == [1] * 8


def test_the_lock_is_let_go_of_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), sole_writer(tmp_path, 1.0):
        raise RuntimeError

    with sole_writer(tmp_path, 1.0):
        assert (tmp_path / LOCK).exists()


def test_a_file_system_without_locks_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)

    with pytest.raises(ConfigError, match="knows no locks"), sole_writer(tmp_path, 1.0):
        pytest.fail("locked without locks")


def test_what_is_busy_is_tried_again() -> None:
    answers = [EngineError("x: database is locked"), EngineError("Database is locked"), None]

    tried_again(lambda: answers.pop(0), rest_s=0.01)

    assert answers == []


def test_what_fails_otherwise_is_not() -> None:
    answers = [EngineError("no such file"), None]

    with pytest.raises(EngineError, match="no such file"):
        tried_again(lambda: answers.pop(0), rest_s=0.01)
    assert answers == [None]


def test_what_stays_busy_is_given_up() -> None:
    with pytest.raises(EngineError, match="locked"):
        tried_again(lambda: EngineError("database is locked"), rest_s=0.01)
