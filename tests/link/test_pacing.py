"""How fast: connections and windows for a rate, writes spread over time, a rate found."""

from __future__ import annotations

import pytest

from prepipe.link.pacing import (
    Pace,
    RateFinder,
    bytes_per_s,
    connections_for,
    overdue_after,
    window_for,
)
from prepipe.link.protocol import CHUNK_BYTES
from prepipe.link.speed import Speed

PACIFIC_S = 0.24


class Clock:
    """Goes on only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.mark.parametrize(
    ("rate", "connections"), [(1, 2), (100, 4), (200, 8), (400, 16), (500, 16), (None, 8)]
)
def test_faster_lines_take_more_connections(rate: float | None, connections: int) -> None:
    assert connections_for(rate) == connections


def test_all_connections_together_leave_a_little_of_the_line_free() -> None:
    assert 8 * bytes_per_s(200, 8) == pytest.approx(0.97 * 200e6 / 8)


@pytest.mark.parametrize(("rate", "connections"), [(100, 4), (200, 8), (500, 16)])
def test_a_window_holds_two_round_trips_and_little_more(rate: float, connections: int) -> None:
    share = bytes_per_s(rate, connections)
    held_s = window_for(share, PACIFIC_S) * CHUNK_BYTES / share
    assert 2 * PACIFIC_S < held_s < 4 * PACIFIC_S


def test_a_window_is_never_so_narrow_that_the_line_falls_idle_nor_wider_than_sshs_own() -> None:
    assert window_for(1.0, 0.001) == 3
    assert window_for(1e9, PACIFIC_S) == 16


def test_near_the_end_a_chunk_is_late_when_a_few_before_it_and_itself_can_have_arrived() -> None:
    share = bytes_per_s(1.0, 2)
    assert overdue_after(share, PACIFIC_S) > 4 * CHUNK_BYTES / share + PACIFIC_S


def test_writes_are_spread_so_that_the_rate_is_kept() -> None:
    clock = Clock()
    pace = Pace(clock, clock.sleep)
    pace.rate = 1e6
    began = clock.now
    sent = sum(len(part) for _ in range(20) for part in pace.parts(memoryview(bytes(250_000))))
    assert sent == 5_000_000
    assert sent / (clock.now - began) == pytest.approx(1e6, rel=0.02)


def test_no_time_is_made_up_for_after_a_pause() -> None:
    clock = Clock()
    pace = Pace(clock, clock.sleep)
    pace.rate = 1e6
    list(pace.parts(memoryview(bytes(100_000))))
    clock.now += 60.0
    began = clock.now
    list(pace.parts(memoryview(bytes(1_000_000))))
    assert clock.now - began > 0.9


def test_a_small_message_is_not_held_up_by_a_pace_that_is_free() -> None:
    clock = Clock()
    pace = Pace(clock, clock.sleep)
    pace.rate = 1e6
    began = clock.now
    assert b"".join(pace.parts(memoryview(b"ping"))) == b"ping"
    assert clock.now == began


def test_without_a_rate_everything_goes_at_once() -> None:
    pace = Pace(sleep=pytest.fail)
    assert [len(part) for part in pace.parts(memoryview(bytes(1_000_000)))] == [1_000_000]


def test_a_pace_that_is_set_free_meanwhile_lets_the_rest_through() -> None:
    clock = Clock()
    pace = Pace(clock, clock.sleep)
    pace.rate = 1e3
    parts = pace.parts(memoryview(bytes(1_000_000)))
    next(parts)
    pace.rate = None
    next(parts)
    began = clock.now
    assert sum(len(part) for part in parts) > 900_000
    assert clock.now == began


def line(finder: RateFinder, capacity: float, seconds: int) -> float:
    """Let a line of `capacity` Mbit/s take what it is given; gives the rate found."""
    for _ in range(seconds):
        took = min(0.97 * finder.rate, capacity) * 1448 / 1500
        finder.note(took * 1e6 / 8, 1.0)
    return finder.rate


def test_the_rate_climbs_until_the_line_takes_no_more() -> None:
    assert line(RateFinder(), 300.0, 8) == pytest.approx(300, rel=0.2)


def test_the_rate_is_found_within_seconds_on_a_fast_line() -> None:
    assert line(RateFinder(), 5000.0, 12) == pytest.approx(5000, rel=0.1)


def test_the_line_is_given_more_than_it_takes_only_now_and_then() -> None:
    finder = RateFinder()
    line(finder, 300.0, 20)
    above = sum(line(finder, 300.0, 1) > 1.1 * 300 for _ in range(100))
    assert 0 < above < 20


def test_the_rate_falls_when_the_line_takes_less_and_climbs_back() -> None:
    finder = RateFinder()
    line(finder, 300.0, 60)
    assert line(finder, 50.0, 60) == pytest.approx(50, rel=0.2)
    assert line(finder, 300.0, 60) == pytest.approx(300, rel=0.2)


def test_a_line_that_takes_ever_more_is_given_twice_as_much_again() -> None:
    finder = RateFinder()
    line(finder, 40.0, 10)
    assert line(finder, 1000.0, 10) > 500


def test_one_bad_second_changes_nothing() -> None:
    finder = RateFinder()
    before = line(finder, 300.0, 30)
    while finder.note(before * 1e6 / 8 * 1448 / 1500, 1.0):
        before = finder.rate
    assert not finder.note(1e6, 1.0)
    assert finder.rate == before


def test_a_line_that_takes_nothing_is_still_tried() -> None:
    assert line(RateFinder(100.0), 0.0, 600) >= 1.0


def test_a_speed_is_that_of_the_last_five_seconds() -> None:
    speed = Speed()
    for tick in range(100):
        speed.note(tick * 0.1, 10_000_000 if tick < 50 else 10_000_000 + (tick - 50) * 100)
    assert speed.per_s == pytest.approx(1000, rel=0.1)


def test_a_speed_is_nought_before_there_is_anything_to_tell() -> None:
    speed = Speed()
    assert speed.per_s == 0.0
    speed.note(1.0, 100)
    assert speed.per_s == 0.0


def test_a_speed_falls_to_nought_when_nothing_moves() -> None:
    speed = Speed()
    for second in range(20):
        speed.note(second, min(second, 5) * 1000)
    assert speed.per_s == 0.0
