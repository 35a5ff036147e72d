"""The methods: what leaves next, and that nothing is ever lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journal_rows import numbers, row, rows

from prepipe.config import Method
from prepipe.config import Push as Settings
from prepipe.link import Held
from prepipe.model import Packet, Stage
from prepipe.store import CcdRow
from prepipe.telescope.queue import (
    end_of_night,
    in_order,
    listed,
    newest_first,
    packet_name,
    parallel,
    together,
    urgency,
)

WAITING = st.sets(st.tuples(st.integers(1, 12), st.integers(1, 5)), max_size=40).flatmap(
    lambda pairs: st.permutations([row(*pair) for pair in sorted(pairs)])
)
METHODS = st.sampled_from([Method.BATCH, Method.SERIAL, Method.PARALLEL, Method.END_OF_NIGHT])


def held(*found: CcdRow, size: int = 0, checksum: str = "") -> dict[str, Held]:
    """The far side's inventory, with the packets of some CCDs."""
    return {packet_name(each): Held(size, checksum) for each in found}


@given(METHODS, WAITING)
def test_every_ccd_is_taken_exactly_once(method: Method, waiting: list[CcdRow]) -> None:
    order = in_order(Settings(method=method), waiting)
    assert Counter(found.key for found in order) == Counter(found.key for found in waiting)


@given(WAITING)
def test_exposures_leave_one_after_the_other_the_newest_first(waiting: list[CcdRow]) -> None:
    chosen = numbers(newest_first(waiting))
    assert chosen == sorted(chosen, reverse=True)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Method.BATCH, 3),
        (Method.SERIAL, 1),
        (Method.PARALLEL, None),
        (Method.LIST, None),
        (Method.END_OF_NIGHT, None),
    ],
)
def test_a_method_says_how_many_exposures_are_sent_together(
    method: Method, expected: int | None
) -> None:
    assert together(Settings(method=method, batch=3)) == expected


@pytest.mark.parametrize("method", [Method.BATCH, Method.SERIAL, Method.END_OF_NIGHT])
def test_a_newer_exposure_is_more_urgent(method: Method) -> None:
    settings = Settings(method=method)
    assert urgency(settings, row(2, 1)) > urgency(settings, row(1, 1))
    assert urgency(settings, row(1, 1)) == urgency(settings, row(1, 2))


def test_what_is_named_first_is_more_urgent() -> None:
    settings = Settings(method=Method.LIST, exposures=(1, 2))
    assert urgency(settings, row(1, 1)) > urgency(settings, row(2, 1))


def test_parallel_exposures_are_equally_urgent() -> None:
    settings = Settings(method=Method.PARALLEL)
    assert urgency(settings, row(1, 1)) == urgency(settings, row(2, 1))


def test_parallel_takes_a_ccd_of_each_exposure_in_turn() -> None:
    waiting = rows(1, 3) + rows(2, ccds=(1,))
    assert numbers(parallel(waiting)) == [3, 2, 1, 3, 1, 3, 1]


def test_list_takes_only_the_exposures_named_and_in_that_order() -> None:
    assert numbers(listed(rows(1, 2, 3, 4), [3, 99, 1, 3])) == [3, 3, 3, 1, 1, 1]


def test_list_passes_over_the_others_which_stay_waiting() -> None:
    settings = Settings(method=Method.LIST, exposures=(2,))
    waiting = rows(1, 2)
    assert numbers(in_order(settings, waiting)) == [2, 2, 2]
    assert in_order(settings, rows(1)) == []


@given(WAITING, st.sets(st.integers(1, 12)), st.integers(0, 12))
def test_end_of_night_takes_all_that_the_far_side_lacks_newest_first(
    waiting: list[CcdRow], there: set[int], exp_min: int
) -> None:
    inventory = held(*(found for found in waiting if found.exposure.number in there))
    chosen = end_of_night(waiting, (), inventory, exp_min)
    assert {found.key for found in chosen} == {
        found.key
        for found in waiting
        if found.exposure.number not in there and found.exposure.number >= exp_min
    }
    assert numbers(chosen) == sorted(numbers(chosen), reverse=True)


def test_end_of_night_takes_again_what_was_sent_and_is_not_there() -> None:
    sent = [row(5, ccd, Stage.SENT) for ccd in (1, 2, 3)]
    chosen = end_of_night(rows(4, ccds=(1,)), sent, held(sent[1]), 0)
    assert [(found.key.exposure, found.key.ccd) for found in chosen] == [(5, 1), (5, 3), (4, 1)]


def test_end_of_night_takes_again_what_is_there_with_another_checksum() -> None:
    sent = replace(row(5, 1, Stage.SENT), packet_bytes=7, file_checksum="ab")
    assert end_of_night((), [sent], held(sent, size=7, checksum="cd"), 0) == [sent]
    assert end_of_night((), [sent], held(sent, size=7, checksum="ab"), 0) == []


def test_end_of_night_takes_again_what_is_there_with_another_size() -> None:
    sent = replace(row(5, 1, Stage.SENT), packet_bytes=7)
    assert end_of_night((), [sent], held(sent, size=6), 0) == [sent]


@pytest.mark.parametrize(("here", "there"), [("", "cd"), ("ab", "")])
def test_a_checksum_that_one_end_does_not_know_is_not_compared(here: str, there: str) -> None:
    sent = replace(row(5, 1, Stage.SENT), packet_bytes=7, file_checksum=here)
    assert end_of_night((), [sent], held(sent, size=7, checksum=there), 0) == []


def test_end_of_night_looks_again_at_what_may_have_arrived_unnoticed() -> None:
    packed = row(5, 1, Stage.PACKED)
    assert end_of_night([packed], (), held(packed), 0) == [packed]


def test_end_of_night_sends_again_what_was_returned_to_be_sent_again() -> None:
    returned = replace(row(5, 1), sent_at=1.0)
    assert end_of_night([returned], (), held(returned), 0) == [returned]


@pytest.mark.parametrize("number", [941420, 123456789])
def test_the_name_of_a_packet_is_known_before_it_is_made(number: int) -> None:
    found = row(1, 7)
    found = replace(found, exposure=replace(found.exposure, number=number))
    packet = Packet(found.exposure, found.ccd, "none", {}, (1, 1), "uint16", 0, "", "")
    assert packet_name(found) == packet.file_name
