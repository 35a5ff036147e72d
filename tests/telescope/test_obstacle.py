"""What is waited for, and for how long."""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest

from prepipe.errors import FitsError, LinkError, StorageError
from prepipe.telescope.obstacle import LONGEST_WAIT_S, Obstacle, is_obstacle, pause_after


def storage_error(number: int) -> StorageError:
    error = StorageError("somewhere: something; do this")
    error.__cause__ = OSError(number, "x")
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LinkError("down"), True),
        (storage_error(errno.ENOSPC), True),
        (storage_error(errno.EDQUOT), True),
        (storage_error(errno.ESTALE), True),
        (storage_error(errno.ENOENT), False),
        (storage_error(errno.EACCES), False),
        (StorageError("was rewritten"), False),
        (FitsError("broken"), False),
        (ValueError("odd"), False),
    ],
)
def test_a_fault_of_the_world_is_told_from_one_of_the_ccd(error: Exception, expected: bool) -> None:
    assert is_obstacle(error) is expected


def test_the_wait_doubles_up_to_a_minute() -> None:
    waits = [pause_after(failures, 1.0) for failures in range(1, 200)]
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == LONGEST_WAIT_S
    assert all(later >= earlier for earlier, later in pairwise(waits))


def test_an_obstacle_is_news_once_whichever_packet_met_it() -> None:
    now = 0.0
    obstacle = Obstacle(1.0, lambda: now)
    assert obstacle.meet(LinkError("host: a.packet was not sent: no server answers"))
    assert not obstacle.meet(LinkError("host: b.packet was not sent: no server answers"))
    assert obstacle.meet(LinkError("host: b.packet was not sent: host key unknown"))
    assert obstacle.clear()
    assert not obstacle.clear()


def test_several_that_fail_at_the_same_moment_count_as_one_try() -> None:
    now = 0.0
    obstacle = Obstacle(1.0, lambda: now)
    for _ in range(5):
        obstacle.meet(LinkError("down"))
    assert obstacle.failures == 1
    now = 1.5
    assert not obstacle.blocks
    obstacle.meet(LinkError("down"))
    assert obstacle.failures == 2
    now = 3.0
    assert obstacle.blocks


@pytest.mark.parametrize(
    ("error", "longest_s"), [(LinkError("down"), 3.0), (storage_error(errno.ENOSPC), 60.0)]
)
def test_a_line_is_asked_more_often_than_a_full_disk(error: Exception, longest_s: float) -> None:
    now = 0.0
    obstacle = Obstacle(1.0, lambda: now)
    waits = []
    for _ in range(10):
        obstacle.meet(error)
        waits.append(obstacle.wait_s)
        now += obstacle.wait_s
    assert max(waits) == longest_s
    assert waits[-1] == longest_s


def test_what_is_cleared_blocks_no_more() -> None:
    obstacle = Obstacle(1.0, lambda: 0.0)
    obstacle.meet(LinkError("down"))
    obstacle.clear()
    assert not obstacle.blocks
