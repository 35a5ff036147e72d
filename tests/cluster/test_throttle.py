"""How much may be begun."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prepipe.cluster.throttle import AHEAD, RESERVE_BYTES, may_begin

ENOUGH = 1 << 40


def test_workers_have_a_little_ahead_and_no_more():
    assert may_begin(8, 0, ENOUGH) == 8 + AHEAD
    assert may_begin(8, 7, ENOUGH) == 1 + AHEAD
    assert may_begin(8, 8 + AHEAD, ENOUGH) == 0


def test_a_nearly_full_disk_lets_fewer_begin_and_a_full_one_none():
    assert may_begin(8, 0, 3 * RESERVE_BYTES) == 3
    assert may_begin(8, 2, 3 * RESERVE_BYTES) == 1
    assert may_begin(8, 0, RESERVE_BYTES - 1) == 0


counts = st.integers(0, 1000)


@given(slots=counts, in_flight=counts, free=st.integers(0, ENOUGH))
def test_never_more_than_there_are_slots_and_disk_for(slots, in_flight, free):
    begun = may_begin(slots, in_flight, free)
    assert begun >= 0
    assert begun == 0 or in_flight + begun <= min(slots + AHEAD, free // RESERVE_BYTES)
