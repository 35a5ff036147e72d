"""The methods: what leaves next, and that nothing is ever lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prepipe.config import Method
from prepipe.config import Push as Settings
from prepipe.model import Ccd, Exposure, Kind, Night, Packet, Stage
from prepipe.store import CcdKey, CcdRow
from prepipe.telescope.queue import (
    batch,
    end_of_night,
    listed,
    next_round,
    packet_name,
    parallel,
    serial,
)

EVENING = datetime(2020, 3, 6, tzinfo=UTC)


def row(number: int, ccd: int, stage: Stage = Stage.FOUND) -> CcdRow:
    exposure = Exposure(
        camera="decam",
        number=number,
        kind=Kind.OBJECT,
        field="field",
        band="g",
        start=EVENING + timedelta(minutes=number),
        exposure_s=20.0,
        night=Night.of(EVENING),
    )
    return CcdRow(
        key=CcdKey("decam", number, ccd),
        exposure=exposure,
        ccd=Ccd(ccd, f"X{ccd}"),
        raw=Path(f"DECam_{number:08d}.fits.fz"),
        stage=stage,
        failed_stage=None,
        tries=0,
        reason="",
        traceback="",
        packet="",
        packet_bytes=0,
        codec="",
        checksum="",
        found_at=0.0,
        packed_at=None,
        sent_at=1.0 if stage is Stage.SENT else None,
        landed_at=None,
        calibrated_at=None,
        grade=None,
        reasons=(),
        reduction={},
        seconds={},
    )


def rows(*numbers: int, ccds: Sequence[int] = (1, 2, 3)) -> list[CcdRow]:
    return [row(number, ccd) for number in numbers for ccd in ccds]


def numbers(chosen: Sequence[CcdRow]) -> list[int]:
    return [found.exposure.number for found in chosen]


WAITING = st.sets(st.tuples(st.integers(1, 12), st.integers(1, 5)), max_size=40).flatmap(
    lambda pairs: st.permutations([row(*pair) for pair in sorted(pairs)])
)
METHODS = st.sampled_from([Method.BATCH, Method.SERIAL, Method.PARALLEL, Method.END_OF_NIGHT])


def all_rounds(settings: Settings, waiting: Sequence[CcdRow]) -> list[list[CcdRow]]:
    """Rounds until nothing is chosen any more, each handed out completely."""
    left = {found.key: found for found in waiting}
    rounds = []
    while chosen := next_round(settings, list(left.values())):
        rounds.append(chosen)
        for found in chosen:
            del left[found.key]
    return rounds


@given(METHODS, WAITING, st.integers(1, 5))
def test_every_ccd_is_chosen_exactly_once(method: Method, waiting: list[CcdRow], size: int) -> None:
    rounds = all_rounds(Settings(method=method, batch=size), waiting)
    counts = Counter(found.key for chosen in rounds for found in chosen)
    assert counts == Counter(found.key for found in waiting)


@given(
    METHODS,
    st.lists(WAITING, min_size=1, max_size=4),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_nothing_is_lost_when_exposures_arrive_between_rounds(
    method: Method, arrivals: list[list[CcdRow]], size: int, random: object
) -> None:
    settings = Settings(method=method, batch=size)
    left: dict[CcdKey, CcdRow] = {}
    wanted = {found.key for group in arrivals for found in group}
    done: set[CcdKey] = set()
    for group in [*arrivals, *([[]] * len(wanted))]:
        left |= {found.key: found for found in group if found.key not in done}
        for found in next_round(settings, list(left.values())):
            assert found.key not in done
            done.add(found.key)
            del left[found.key]
    assert done == wanted


@given(WAITING, st.integers(1, 5))
def test_batch_takes_the_newest_exposures_whole_and_newest_first(
    waiting: list[CcdRow], size: int
) -> None:
    chosen = batch(waiting, size)
    newest = sorted({found.exposure.number for found in waiting}, reverse=True)[:size]
    assert list(dict.fromkeys(numbers(chosen))) == newest
    assert len(chosen) == sum(found.exposure.number in newest for found in waiting)


def test_the_next_batch_begins_with_what_has_arrived_meanwhile() -> None:
    waiting = rows(1, 2, 3, 4, 5)
    first = batch(waiting, 2)
    left = [found for found in waiting if found not in first]
    assert set(numbers(batch(left + rows(6), 2))) == {6, 3}


def test_serial_takes_one_exposure_the_newest() -> None:
    assert numbers(serial(rows(3, 9, 4))) == [9, 9, 9]


def test_parallel_takes_a_ccd_of_each_exposure_in_turn() -> None:
    waiting = rows(1, 3) + rows(2, ccds=(1,))
    assert numbers(parallel(waiting)) == [3, 2, 1, 3, 1, 3, 1]


def test_list_takes_only_the_exposures_named_and_in_that_order() -> None:
    assert numbers(listed(rows(1, 2, 3, 4), [3, 99, 1, 3])) == [3, 3, 3, 1, 1, 1]


def test_list_passes_over_the_others_which_stay_waiting() -> None:
    settings = Settings(method=Method.LIST, exposures=(2,))
    waiting = rows(1, 2)
    assert numbers(next_round(settings, waiting)) == [2, 2, 2]
    assert next_round(settings, rows(1)) == []


@given(WAITING, st.sets(st.integers(1, 12)), st.integers(0, 12))
def test_end_of_night_takes_all_that_the_far_side_lacks_newest_first(
    waiting: list[CcdRow], there: set[int], exp_min: int
) -> None:
    inventory = {packet_name(found) for found in waiting if found.exposure.number in there}
    chosen = end_of_night(waiting, (), inventory, exp_min)
    assert {found.key for found in chosen} == {
        found.key
        for found in waiting
        if found.exposure.number not in there and found.exposure.number >= exp_min
    }
    assert numbers(chosen) == sorted(numbers(chosen), reverse=True)


def test_end_of_night_takes_again_what_was_sent_and_is_not_there() -> None:
    sent = [row(5, ccd, Stage.SENT) for ccd in (1, 2, 3)]
    chosen = end_of_night(rows(4, ccds=(1,)), sent, {packet_name(sent[1])}, 0)
    assert [(found.key.exposure, found.key.ccd) for found in chosen] == [(5, 1), (5, 3), (4, 1)]


def test_end_of_night_looks_again_at_what_may_have_arrived_unnoticed() -> None:
    packed = row(5, 1, Stage.PACKED)
    assert end_of_night([packed], (), {packet_name(packed)}, 0) == [packed]


def test_end_of_night_sends_again_what_was_returned_to_be_sent_again() -> None:
    returned = replace(row(5, 1), sent_at=1.0)
    assert end_of_night([returned], (), {packet_name(returned)}, 0) == [returned]


@pytest.mark.parametrize("number", [941420, 123456789])
def test_the_name_of_a_packet_is_known_before_it_is_made(number: int) -> None:
    found = row(1, 7)
    found = replace(found, exposure=replace(found.exposure, number=number))
    packet = Packet(found.exposure, found.ccd, "none", {}, (1, 1), "uint16", 0, "", "")
    assert packet_name(found) == packet.file_name
