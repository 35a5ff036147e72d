"""How much may be begun."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prepipe.cluster.throttle import AHEAD, RESERVE_BYTES, Pace, may_begin

ENOUGH = 1 << 40


def test_workers_have_a_little_ahead_and_no_more():
    assert may_begin(8, 0, ENOUGH) == 8 + AHEAD
    assert may_begin(8, 7, ENOUGH) == 1 + AHEAD
    assert may_begin(8, 8 + AHEAD, ENOUGH) == 0


def test_a_nearly_full_disk_lets_fewer_begin_and_a_full_one_none():
    assert may_begin(8, 0, 3 * RESERVE_BYTES) == 3
    assert may_begin(8, 2, 3 * RESERVE_BYTES) == 1
    assert may_begin(8, 0, RESERVE_BYTES - 1) == 0


def test_the_site_may_want_fewer_or_more_under_way():
    assert may_begin(8, 0, ENOUGH, under_way=3) == 3
    assert may_begin(8, 2, ENOUGH, under_way=3) == 1
    assert may_begin(8, 0, ENOUGH, under_way=60) == 60
    assert may_begin(8, 0, 3 * RESERVE_BYTES, under_way=60) == 3


def begun_by(pace: Pace, times: list[float]) -> int:
    """How many begin if everything begins that may."""
    count = 0
    for now in times:
        while pace.allowed(now):
            pace.begun()
            count += 1
    return count


def test_without_a_rate_any_number_may_begin():
    assert Pace(None).allowed(0.0) is None


def test_a_rate_is_kept_however_often_one_looks():
    for looks_a_second in (1, 7, 100):
        times = [k / looks_a_second for k in range(60 * looks_a_second + 1)]
        assert begun_by(Pace(62.0), times) == 1 + 62


def test_what_a_quiet_hour_saved_is_not_caught_up_with_beyond_five_seconds():
    pace = Pace(60.0)
    assert begun_by(pace, [0.0]) == 1
    assert begun_by(pace, [3600.0]) == 5


counts = st.integers(0, 1000)


@given(slots=counts, in_flight=counts, free=st.integers(0, ENOUGH))
def test_never_more_than_there_are_slots_and_disk_for(slots, in_flight, free):
    begun = may_begin(slots, in_flight, free)
    assert begun >= 0
    assert begun == 0 or in_flight + begun <= min(slots + AHEAD, free // RESERVE_BYTES)
