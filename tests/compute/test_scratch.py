"""A node's own disk: clean whatever happens, and no crowd at the shared one."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from itertools import accumulate
from pathlib import Path

import pytest
import scratch_works as works
from batch_systems import lack, told_id, wait_until

from prepipe.compute import LocalCompute
from prepipe.compute.scratch import scratch_directory, scratch_root, shared_turn, sweep
from prepipe.errors import ConfigError, PlaceLostError

PATIENCE_S = 60.0


@pytest.fixture
def root(tmp_path):
    return scratch_root(str(tmp_path / "own"))


@pytest.fixture(scope="module")
def workers():
    compute = LocalCompute(4)
    yield compute
    compute.close()


@pytest.mark.parametrize("told", ["$JOBFS/here", "${JOBFS}/here"])
def test_variables_of_the_node_stand_in_its_path_and_the_directory_is_ones_own(tmp_path, told):
    root = scratch_root(told, {"JOBFS": str(tmp_path)})
    assert root == tmp_path / "here" / f"prepipe-{os.getuid()}"
    assert root.stat().st_mode & 0o777 == 0o700


def test_a_disk_without_locks_is_a_lost_place_and_nothing_is_left_there(root, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(PlaceLostError, match="No locks available"), scratch_directory(root):
        pass
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("environment", [{}, {"JOBFS": ""}])
def test_a_variable_that_is_not_set_is_wrong_configuration(environment):
    with pytest.raises(ConfigError, match=r"\$JOBFS is not set on .*: name a variable"):
        scratch_root("$JOBFS", environment)


def test_a_directory_of_somebody_else_is_refused(tmp_path):
    if os.geteuid() != 0:
        lack("only root can give a directory away")
    theirs = tmp_path / f"prepipe-{os.getuid()}"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    with pytest.raises(PlaceLostError, match="belongs to somebody else"):
        scratch_root(str(tmp_path))


def test_a_link_in_its_place_is_refused(tmp_path):
    (tmp_path / f"prepipe-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(PlaceLostError):
        scratch_root(str(tmp_path))


def test_a_disk_that_cannot_be_written_is_a_lost_place(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PlaceLostError, match=r"file.*cannot be used"):
        scratch_root(str(tmp_path / "file"))


def test_the_directory_is_gone_after_success_and_after_failure(root):
    with scratch_directory(root) as here:
        (here / "products").mkdir()
        (here / "products" / "image.fits").touch()
    with pytest.raises(KeyError), scratch_directory(root) as there:
        raise KeyError
    assert not here.exists()
    assert not there.exists()


def test_what_a_killed_worker_leaves_is_swept_by_the_next_and_what_lives_is_not(
    root, workers, tmp_path
):
    order = (root, tmp_path / "lives", 6.0)
    alive = workers.submit(works.stay_in_scratch, order)
    victim = workers.submit(works.stay_in_scratch, (root, tmp_path / "dies", 60.0))
    assert wait_until(lambda: all((tmp_path / name).exists() for name in ("lives", "dies")))
    pid, left = (tmp_path / "dies").read_text().split()
    os.kill(int(pid), signal.SIGKILL)
    assert victim.exception(PATIENCE_S) is not None
    time.sleep(1.1)  # younger ones may be of somebody who has not locked yet
    with scratch_directory(root):
        assert not Path(left).exists()
        assert Path((tmp_path / "lives").read_text().split()[1]).exists()
    assert not Path(alive.result(PATIENCE_S)).exists()


def test_a_directory_just_made_is_not_swept(root):
    fresh = root / "ccd-fresh"
    fresh.mkdir()
    sweep(root)
    assert fresh.exists()


def most_at_once(notes: Path) -> int:
    return max(accumulate(1 if line == "+" else -1 for line in notes.read_text().split()))


def test_only_so_many_workers_are_at_the_shared_disk_at_once(root, workers, tmp_path):
    orders = [workers.submit(works.note_a_turn, (root, 2, tmp_path / "notes")) for _ in range(24)]
    for future in orders:
        future.result(PATIENCE_S)
    assert most_at_once(tmp_path / "notes") <= 2


def test_without_a_limit_nobody_waits_for_a_turn(root):
    with shared_turn(root, 0), shared_turn(root, 0):
        assert not list(root.iterdir())


def test_the_turn_of_a_killed_worker_is_free_again(root, workers, tmp_path):
    holder = workers.submit(works.keep_a_turn, (root, 1, tmp_path / "told"))
    pid = told_id(tmp_path / "told")
    following = workers.submit(works.note_a_turn, (root, 1, tmp_path / "notes"))
    time.sleep(0.3)
    assert not following.done()
    os.kill(pid, signal.SIGKILL)
    following.result(PATIENCE_S)
    assert holder.exception(PATIENCE_S) is not None


def test_a_disk_on_which_no_turn_can_be_noted_is_a_lost_place(tmp_path):
    with pytest.raises(PlaceLostError), shared_turn(tmp_path / "gone", 1):
        pass
