"""What is packed and sent next, and how much of it at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from journal_rows import numbers, row, rows

from prepipe.config import Method
from prepipe.config import Push as Settings
from prepipe.model import Stage
from prepipe.store import CcdRow
from prepipe.telescope.queue import newest_first
from prepipe.telescope.schedule import Schedule

PLACES = 8


def packed(found: CcdRow) -> CcdRow:
    return replace(found, stage=Stage.PACKED)


def schedule(method: Method = Method.END_OF_NIGHT, *, batch: int = 2, packers: int = 1) -> Schedule:
    return Schedule(Settings(method=method, batch=batch), PLACES, packers)


def renew(planned: Schedule, waiting: Sequence[CcdRow], newest: int) -> None:
    start = row(newest, 1).exposure.start.timestamp()
    planned.renew(newest_first(waiting), start)


def begin_sending(planned: Schedule) -> list[CcdRow]:
    begun = []
    while (found := planned.next_to_send()) is not None:
        planned.sending[found.key] = found
        begun.append(found)
    return begun


def begin_packing(planned: Schedule) -> list[CcdRow]:
    begun = []
    while (found := planned.next_to_pack()) is not None:
        planned.packing[found.key] = found
        begun.append(found)
    return begun


def finish_packing(planned: Schedule, found: CcdRow) -> None:
    del planned.packing[found.key]
    planned.put_back(packed(found))


def test_the_newest_exposure_takes_every_place_of_the_link() -> None:
    planned = schedule()
    renew(planned, [packed(found) for found in rows(2, ccds=range(1, 20))], newest=2)
    assert len(begin_sending(planned)) == PLACES


def test_the_backlog_takes_half_of_them() -> None:
    planned = schedule()
    renew(planned, [packed(found) for found in rows(1, 2, ccds=range(1, 20))], newest=3)
    assert len(begin_sending(planned)) == PLACES // 2


def test_a_new_exposure_finds_half_of_them_free_whatever_the_backlog() -> None:
    planned = schedule()
    backlog = [packed(found) for found in rows(1, 2, ccds=range(1, 20))]
    renew(planned, backlog, newest=3)
    begin_sending(planned)
    fresh = [packed(found) for found in rows(4, ccds=range(1, 20))]
    renew(planned, backlog + fresh, newest=4)
    assert numbers(begin_sending(planned)) == [4] * (PLACES // 2)


def test_the_backlog_goes_on_when_the_newest_leaves_places_free() -> None:
    planned = schedule()
    waiting = rows(1, ccds=range(1, 20)) + rows(2, ccds=(1, 2))
    renew(planned, [packed(found) for found in waiting], newest=2)
    assert numbers(begin_sending(planned)) == [2, 2, 1, 1]


def test_a_link_of_one_place_sends_the_backlog_too() -> None:
    planned = Schedule(Settings(method=Method.END_OF_NIGHT), 1, 1)
    renew(planned, [packed(found) for found in rows(1)], newest=2)
    assert len(begin_sending(planned)) == 1


def test_packets_made_ahead_are_bounded_whatever_the_backlog() -> None:
    planned = schedule()
    renew(planned, rows(*range(1, 50)), newest=60)
    made = 0
    while begun := begin_packing(planned):
        made += len(begun)
        for found in begun:
            finish_packing(planned, found)
    assert made == PLACES // 2


def test_as_many_are_packed_at_the_same_time_as_there_are_packers() -> None:
    planned = schedule(packers=10)
    renew(planned, rows(*range(1, 50)), newest=60)
    assert len(begin_packing(planned)) == 10


def test_the_newest_exposure_is_packed_though_the_backlog_has_filled_its_half() -> None:
    planned = schedule()
    backlog = rows(*range(1, 50), ccds=(1,))
    renew(planned, backlog, newest=50)
    made = begin_packing(planned)
    for found in made:
        finish_packing(planned, found)
    left = [found for found in backlog if found not in made]
    renew(planned, [packed(found) for found in made] + left + rows(51), newest=51)
    assert numbers(begin_packing(planned)) == [51, 51, 51]


def test_the_oldest_packet_makes_room_for_the_newest_exposure_on_a_dead_line() -> None:
    planned = schedule()
    renew(planned, rows(1, 2, ccds=(1, 2, 3, 4)), newest=2)
    for found in begin_packing(planned):
        finish_packing(planned, found)
    made = [packed(found) for found in rows(1, 2, ccds=(1, 2, 3, 4))]
    renew(planned, made + rows(3, ccds=(1,)), newest=3)
    assert planned.next_to_pack() is None
    in_the_way = planned.in_the_way()
    assert in_the_way is not None
    assert in_the_way.exposure.number == 1
    assert planned.in_the_way() is None
    assert numbers(begin_packing(planned)) == [3]
    while begin_sending(planned):
        planned.sending.clear()
    assert numbers(begin_packing(planned)) == [1], "and is packed again when there is room"


def test_nothing_makes_room_for_an_older_exposure() -> None:
    planned = schedule()
    made = [packed(found) for found in rows(5, ccds=range(1, 20))]
    renew(planned, made + rows(4), newest=5)
    assert planned.next_to_pack() is None
    assert planned.in_the_way() is None


def test_a_batch_sends_so_many_exposures_at_a_time() -> None:
    planned = schedule(Method.BATCH, batch=2)
    renew(planned, [packed(found) for found in rows(1, 2, 3, ccds=(1,))], newest=9)
    assert numbers(begin_sending(planned)) == [3, 2]
    planned.sending.popitem()
    assert numbers(begin_sending(planned)) == [1]


def test_a_new_exposure_goes_ahead_of_the_batch_under_way() -> None:
    planned = schedule(Method.BATCH, batch=2)
    waiting = [packed(found) for found in rows(1, 2, ccds=(1, 2, 3))]
    renew(planned, waiting, newest=2)
    begin_sending(planned)
    renew(planned, waiting + [packed(found) for found in rows(3, ccds=(1, 2))], newest=3)
    assert numbers(begin_sending(planned)) == [3, 3]
    for key in [key for key in planned.sending if key.exposure == 2]:
        del planned.sending[key]
    assert numbers(begin_sending(planned)) == [1]


def test_serial_does_not_begin_an_exposure_while_a_newer_one_is_being_packed() -> None:
    planned = schedule(Method.SERIAL)
    renew(planned, [packed(row(1, 1)), row(2, 1)], newest=2)
    assert numbers(begin_packing(planned)) == [2]
    assert begin_sending(planned) == []
    planned.packing.clear()
    assert numbers(begin_sending(planned)) == [1]


def test_what_is_put_back_is_sent_before_what_comes_after_it() -> None:
    planned = schedule()
    renew(planned, [packed(found) for found in rows(1, 2, 3, ccds=(1,))], newest=3)
    first = planned.next_to_send()
    assert first is not None
    planned.put_back(first)
    assert numbers(begin_sending(planned)) == [3, 2, 1]


def test_what_is_under_way_is_not_begun_again_by_a_new_order() -> None:
    planned = schedule()
    waiting = [packed(found) for found in rows(1, ccds=(1, 2))]
    renew(planned, waiting, newest=1)
    assert len(begin_sending(planned)) == 2
    renew(planned, waiting, newest=1)
    assert begin_sending(planned) == []
    assert not planned.idle
