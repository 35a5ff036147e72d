"""When connections are opened: soon, not all at once, and not in vain for ever."""

from __future__ import annotations

from itertools import pairwise

import pytest

from prepipe.link.openings import Openings

TOOK_S = 3.3


class Server:
    """Time, and tries that end as they are told."""

    def __init__(self, opened: bool = True, timeout_s: float = 60.0) -> None:
        self.openings = Openings(timeout_s)
        self.now = 100.0
        self.begun: list[float] = []
        if opened:
            self.openings.note_begun(self.now)
            self.openings.note_opened(self.now, TOOK_S)
            self.now += TOOK_S

    def run(self, seconds: float, wanted: int = 8, lasts_s: float = 1e9, healthy: int = 0) -> None:
        """Open whenever it is time, each try failing after `lasts_s` as on a dead line."""
        end = self.now + seconds
        under_way: list[float] = []
        while self.now < end:
            for began in [each for each in under_way if self.now - each >= lasts_s]:
                under_way.remove(began)
                self.openings.note_failed(self.now, began, passing=True)
            missing = wanted - healthy - len(under_way)
            if self.openings.is_time(self.now, missing, len(under_way), healthy):
                self.openings.note_begun(self.now)
                under_way.append(self.now)
                self.begun.append(self.now)
            self.now += 0.05

    def fail(self, passing: bool) -> float:
        """One try that fails at once; gives the wait until the next."""
        while not self.openings.is_time(self.now, 1, 0, 0):
            self.now += 0.05
        self.openings.note_begun(self.now)
        failed = self.now = self.now + 0.5
        self.openings.note_failed(failed, failed - 0.5, passing)
        while not self.openings.is_time(self.now, 1, 0, 0):
            self.now += 0.05
        return self.now - failed


def test_the_first_connection_goes_alone() -> None:
    server = Server(opened=False)
    server.run(10.0)
    assert len(server.begun) == 1


def test_no_more_than_eight_handshakes_are_under_way() -> None:
    server = Server()
    server.run(60.0, wanted=32, healthy=1)
    assert len(server.begun) == 8


def test_no_more_are_opened_than_are_missing() -> None:
    server = Server()
    server.run(10.0, wanted=8, healthy=5)
    assert len(server.begun) == 3


def test_connections_beside_an_open_one_follow_each_other_swiftly() -> None:
    server = Server()
    server.run(2.1, wanted=8, healthy=1)
    assert len(server.begun) == 7


@pytest.mark.parametrize("outage_s", [5, 12, 60, 600])
def test_on_a_dead_line_there_is_always_a_fresh_try(outage_s: int) -> None:
    """A try sends its first packet at once; it is sent again after 1 s, then 2 s, later."""
    server = Server()
    began = server.now
    server.run(outage_s, lasts_s=server.openings.connect_s)
    sent = sorted(each + later for each in server.begun for later in (0, 1, 3))
    gaps = [after - before for before, after in pairwise(sent) if after < server.now]
    assert server.begun[0] - began < 0.5
    assert max(gaps) < 1.0
    assert len(server.begun) <= 4 + outage_s / 0.25


def test_a_try_ends_soon_once_it_is_known_how_long_one_takes() -> None:
    server = Server(opened=False)
    assert server.openings.connect_s == 30.0
    server.openings.note_begun(0.0)
    server.openings.note_opened(server.now, TOOK_S)
    assert server.openings.connect_s == pytest.approx(2 * TOOK_S)
    server.openings.note_opened(server.now, 0.1)
    assert server.openings.connect_s == 5.0


def test_no_try_outlasts_the_sites_own_patience() -> None:
    openings = Openings(2.0)
    assert openings.connect_s == 2.0
    assert openings.limit_s == 2.0


def test_a_server_that_has_become_slow_gets_more_time() -> None:
    server = Server()
    before = server.openings.limit_s
    for _ in range(40):
        server.fail(passing=True)
    assert before < server.openings.limit_s <= 60.0


def test_after_a_passing_failure_the_next_try_comes_within_a_second() -> None:
    server = Server()
    assert max(server.fail(passing=True) for _ in range(50)) <= 1.1


def test_after_a_lasting_failure_tries_become_rare_but_do_not_end() -> None:
    server = Server()
    waits = [server.fail(passing=False) for _ in range(10)]
    assert waits == pytest.approx(sorted(waits))
    assert waits[0] < 1.2
    assert 29.0 < waits[-1] < 31.0


def test_several_tries_that_fail_together_count_as_one() -> None:
    server = Server()
    for _ in range(8):
        server.openings.note_failed(server.now + 0.1, server.now, passing=False)
    assert server.openings.is_time(server.now + 1.3, 1, 0, 0)


def test_after_one_got_in_the_next_failure_is_the_first_again() -> None:
    server = Server()
    for _ in range(10):
        server.fail(passing=False)
    server.openings.note_opened(server.now, TOOK_S)
    assert server.openings.is_time(server.now + 0.3, 1, 0, 1)
    assert server.fail(passing=False) < 1.2


def test_connections_that_never_last_are_opened_ever_more_seldom() -> None:
    server = Server()
    waits = []
    for _ in range(12):
        server.openings.note_begun(server.now)
        server.openings.note_opened(server.now, 0.1)
        opened = server.now = server.now + 0.1
        lost = server.now = server.now + 0.1
        server.openings.note_lost(lost, opened)
        while not server.openings.is_time(server.now, 1, 0, 0):
            server.now += 0.05
        waits.append(server.now - lost)
    assert waits[0] < 0.3
    assert 4.5 < waits[-1] < 5.5


def test_many_that_are_lost_together_are_replaced_at_once() -> None:
    server = Server()
    for _ in range(8):
        server.openings.note_lost(server.now + 0.1, server.now)
    assert server.openings.is_time(server.now + 0.3, 8, 0, 0)


def test_what_began_before_another_got_in_and_fails_is_no_news() -> None:
    server = Server()
    server.openings.note_opened(server.now, TOOK_S)
    assert not server.openings.note_failed(server.now + 1.0, server.now - 1.0, passing=False)
    assert server.openings.failures == 0
    assert server.openings.is_time(server.now + 1.0, 1, 0, 1)
