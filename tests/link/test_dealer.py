"""The queue of chunks: what goes next, and that all of it gets there, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from receiving import NAME

from prepipe.errors import LinkError, StorageError
from prepipe.link.dealer import Dealer, Task, Transfer
from prepipe.link.outgoing import Outgoing
from prepipe.link.protocol import CHUNK_BYTES, TRIAL, bitmap
from prepipe.telescope.obstacle import is_obstacle


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Table:
    """A dealer with files to deal."""

    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self.changes = 0
        self.dealer = Dealer(self._count, self.clock)
        self._directory = directory
        self._packets: list[Outgoing] = []

    def _count(self) -> None:
        self.changes += 1

    def add(
        self, chunks: int = 3, *, urgency: int = 0, ask_first: bool = False, place: str = ""
    ) -> Transfer:
        path = self._directory / NAME
        with path.open("wb") as stream:
            stream.truncate((chunks - 1) * CHUNK_BYTES + 100)
        self._packets.append(Outgoing(path))
        return self.dealer.add(self._packets[-1], place=place, urgency=urgency, ask_first=ask_first)

    def join(self, *names: str) -> None:
        for name in names:
            self.dealer.take_part(name)

    def deal(self, who: str = "a") -> tuple[int, int | None] | None:
        """Number of the file and the chunk that a connection gets."""
        task = self.dealer.deal(who)
        return None if task is None else (task.transfer.offer.id, task.index)

    def deal_all(self, who: str = "a") -> list[tuple[int, int | None]]:
        dealt = []
        while (one := self.deal(who)) is not None:
            dealt.append(one)
        return dealt

    def acknowledge(self, transfer: Transfer, *chunks: int) -> int:
        return sum(self.dealer.acknowledged(transfer.offer.id, each) for each in chunks)

    def has(self, who: str, transfer: Transfer, *chunks: int) -> None:
        self.dealer.has(who, transfer.offer.id, bitmap(set(chunks), transfer.count))

    def close(self) -> None:
        for packet in self._packets:
            packet.close()


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    made = Table(tmp_path)
    made.join("a", "b")
    yield made
    made.close()


def test_the_most_urgent_file_goes_first(table: Table) -> None:
    table.add(1, urgency=1)
    table.add(1, urgency=3)
    table.add(1, urgency=2)
    assert table.deal_all() == [(2, 0), (3, 0), (1, 0)]


def test_a_more_urgent_file_overtakes_between_two_chunks(table: Table) -> None:
    table.add(3)
    assert table.deal() == (1, 0)
    table.add(2, urgency=1)
    assert table.deal_all() == [(2, 0), (2, 1), (1, 1), (1, 2)]


def test_equally_urgent_files_go_in_the_order_they_came(table: Table) -> None:
    for _ in range(4):
        table.add(1, urgency=7)
    assert table.deal_all() == [(1, 0), (2, 0), (3, 0), (4, 0)]


def test_a_chunk_is_dealt_to_one_connection(table: Table) -> None:
    table.add(2)
    assert [table.deal("a"), table.deal("b"), table.deal("a")] == [(1, 0), (1, 1), None]


def test_a_file_is_offered_once_on_each_connection(table: Table) -> None:
    table.add(4)
    tasks = [table.dealer.deal(who) for who in "aabb"]
    assert [task is not None and task.offer for task in tasks] == [True, False, True, False]


def test_who_does_not_take_part_gets_nothing(table: Table) -> None:
    table.add(1)
    assert table.deal("c") is None
    table.dealer.leave("a")
    assert table.deal("a") is None


@pytest.mark.parametrize("way", ["leave", "pause"])
def test_what_a_lost_or_silent_connection_had_is_asked_for_while_the_rest_goes_on(
    table: Table, way: str
) -> None:
    transfer = table.add(6)
    for _ in range(4):
        table.deal("a")
    table.acknowledge(transfer, 1)
    getattr(table.dealer, way)("a")
    assert table.deal("a") is None
    assert table.deal_all("b") == [(1, None), (1, 4), (1, 5)]
    table.has("b", transfer, 1, 2)
    assert table.deal_all("b") == [(1, 0), (1, 3)]


def test_only_one_connection_asks_what_is_there(table: Table) -> None:
    table.join("c")
    table.add(2)
    table.deal_all("a")
    table.dealer.leave("a")
    assert table.deal_all("b") == [(1, None)]
    assert table.deal_all("c") == []


def test_an_answer_that_is_on_its_way_already_is_waited_for(table: Table) -> None:
    transfer = table.add(3)
    table.deal("a")
    table.deal("b")
    table.dealer.leave("a")
    assert table.deal_all("b") == [(1, 2)]
    table.has("b", transfer)
    assert table.deal_all("b") == [(1, 0)]


def test_a_connection_that_comes_after_a_lost_one_is_told_of_the_file_anew(table: Table) -> None:
    table.add(2)
    table.deal("a")
    table.dealer.leave("a")
    table.join("a")
    task = table.dealer.deal("a")
    assert task is not None
    assert task.offer


def test_what_a_silent_connection_brings_after_all_is_not_sent_again(table: Table) -> None:
    transfer = table.add(3)
    table.deal("a")
    table.deal("a")
    table.dealer.pause("a")
    table.join("a")
    assert table.acknowledge(transfer, 0, 1) == 2 * CHUNK_BYTES
    assert table.deal_all("b") == [(1, 2)]


def test_what_is_acknowledged_twice_counts_once(table: Table) -> None:
    transfer = table.add(2)
    table.deal_all()
    assert table.acknowledge(transfer, 0, 1) == transfer.offer.size
    assert table.acknowledge(transfer, 0, 1) == 0
    assert table.dealer.bytes_left == 0


def test_an_acknowledgement_of_what_is_no_chunk_of_the_file_counts_nothing(table: Table) -> None:
    transfer = table.add(2)
    assert table.acknowledge(transfer, 2, 1 << 31) == 0
    assert table.dealer.acknowledged(99, 0) == 0
    assert table.deal_all() == [(1, 0), (1, 1)]


def test_a_retired_connection_gets_no_more_but_keeps_what_it_has(table: Table) -> None:
    table.add(3)
    table.deal("a")
    table.dealer.retire("a")
    assert table.deal("a") is None
    assert table.deal_all("b") == [(1, 1), (1, 2)]


def test_an_overdue_chunk_is_dealt_once_more_to_another(table: Table) -> None:
    table.join("c")
    table.add(1)
    assert table.deal("a") == (1, 0)
    table.clock.now += table.dealer.overdue_s
    assert table.deal("b") is None
    table.clock.now += 0.1
    assert table.deal("a") is None
    assert table.deal("b") == (1, 0)
    table.clock.now += 100.0
    assert table.deal("c") is None


def test_an_overdue_chunk_waits_until_nothing_fresh_is_left(table: Table) -> None:
    table.add(2)
    table.deal("a")
    table.clock.now += 100.0
    assert table.deal_all("b") == [(1, 1), (1, 0)]


def test_an_overdue_chunk_of_a_more_urgent_file_goes_before_a_backlog(table: Table) -> None:
    newest = table.add(1, urgency=1)
    assert table.deal("a") == (newest.offer.id, 0)
    backlog = table.add(100)
    table.clock.now += 100.0
    assert table.deal("b") == (newest.offer.id, 0)
    assert table.deal("b") == (backlog.offer.id, 0)


def test_an_overdue_chunk_is_free_again_when_its_second_connection_is_lost_too(
    table: Table,
) -> None:
    table.join("c")
    transfer = table.add(1)
    table.deal("a")
    table.clock.now += 100.0
    table.deal("b")
    table.dealer.leave("b")
    assert table.deal("c") == (1, None)
    table.has("c", transfer)
    assert table.deal("c") == (1, 0)


def test_of_a_file_that_may_be_there_nothing_is_sent_before_the_answer(table: Table) -> None:
    transfer = table.add(3, ask_first=True)
    task = table.dealer.deal("a")
    assert task == Task(transfer, None, offer=True)
    assert table.deal("a") is None
    assert table.deal("b") is None
    assert not table.dealer.has_chunks
    table.has("a", transfer, 0, 2)
    assert table.deal_all("b") == [(1, 1)]


def test_other_files_go_on_while_the_far_side_is_asked(table: Table) -> None:
    table.add(1, urgency=5, ask_first=True)
    table.add(2)
    assert table.deal_all() == [(1, None), (2, 0), (2, 1)]


@pytest.mark.parametrize("way", ["leave", "pause"])
def test_another_connection_is_asked_if_the_one_that_was_does_not_answer(
    table: Table, way: str
) -> None:
    table.add(2, ask_first=True)
    assert table.deal("a") == (1, None)
    getattr(table.dealer, way)("a")
    assert table.deal("b") == (1, None)


def test_what_the_far_side_has_is_not_sent_and_not_counted_as_sent(table: Table) -> None:
    transfer = table.add(4)
    table.deal("a")
    table.has("a", transfer, 1, 2)
    assert table.dealer.bytes_left == transfer.offer.size - 2 * CHUNK_BYTES
    assert table.deal_all() == [(1, 3)]
    assert table.acknowledge(transfer, 1, 2) == 0


def test_an_answer_that_is_older_than_an_acknowledgement_damages_nothing(table: Table) -> None:
    transfer = table.add(3)
    table.deal("a")
    table.deal("b")
    table.clock.now += 0.1
    table.acknowledge(transfer, 0)
    table.has("b", transfer)
    assert table.deal_all() == [(1, 2)]


def test_what_was_damaged_there_is_sent_again(table: Table) -> None:
    transfer = table.add(3)
    table.deal_all("a")
    table.has("a", transfer)
    table.acknowledge(transfer, 0, 1, 2)
    assert table.deal("a") is None
    table.has("a", transfer, 0, 2)
    assert table.deal_all("b") == [(1, 1)]
    assert not transfer.over.is_set()


def test_what_was_acknowledged_before_the_question_and_is_not_there_is_sent_again(
    table: Table,
) -> None:
    transfer = table.add(3)
    table.deal("a")
    table.acknowledge(transfer, 0)
    table.clock.now += 0.1
    assert table.deal("b") == (1, 1)
    table.has("b", transfer)
    assert table.deal_all("b") == [(1, 0), (1, 2)]


def test_a_file_that_is_damaged_time_and_again_is_given_up(table: Table) -> None:
    transfer = table.add(1)
    for _ in range(20):
        table.deal_all("a")
        table.acknowledge(transfer, 0)
        table.clock.now += 0.1
        table.has("a", transfer)
        table.has("a", transfer)
    assert isinstance(transfer.error, StorageError)
    assert not is_obstacle(transfer.error)
    assert "damaged on its disk" in str(transfer.error)


def test_of_what_is_thrown_away_there_nobody_is_asked(table: Table) -> None:
    table.add(2, place=TRIAL)
    table.deal_all("a")
    table.dealer.leave("a")
    assert table.deal_all("b") == [(1, 0), (1, 1)]


def test_near_the_end_whoever_has_several_chunks_under_way_gets_no_more(table: Table) -> None:
    table.add(24)
    assert table.dealer.deal("a", in_flight=4) is not None
    assert table.dealer.deal("a", in_flight=4) is None
    assert table.dealer.deal("b", in_flight=3) is not None


def test_a_whole_file_that_is_not_committed_is_offered_again_ever_more_seldom(
    table: Table,
) -> None:
    transfer = table.add(1)
    table.deal("a")
    table.acknowledge(transfer, 0)
    asked = []
    for second in range(40):
        if table.deal("b") is not None:
            asked.append(second)
        table.clock.now += 1.0
    assert asked == [3, 6, 12, 24]


def test_a_whole_file_that_is_not_committed_is_offered_again_before_a_backlog_goes_on(
    table: Table,
) -> None:
    transfer = table.add(1, urgency=1)
    table.deal("a")
    table.acknowledge(transfer, 0)
    backlog = table.add(100)
    table.dealer.leave("a")
    assert table.dealer.deal("b") == Task(transfer, None, offer=True)
    assert table.deal("b") == (backlog.offer.id, 0)


@pytest.mark.parametrize("way", ["leave", "pause"])
def test_a_whole_file_is_offered_again_at_once_if_a_connection_is_lost(
    table: Table, way: str
) -> None:
    transfer = table.add(1)
    table.deal("a")
    table.acknowledge(transfer, 0)
    getattr(table.dealer, way)("a")
    assert table.dealer.deal("b") == Task(transfer, None, offer=True)


def test_a_whole_file_of_which_the_far_side_knows_nothing_any_more_is_sent_again(
    table: Table,
) -> None:
    transfer = table.add(2)
    table.deal_all("a")
    table.acknowledge(transfer, 0, 1)
    table.clock.now += 4.0
    assert table.deal("b") == (1, None)
    table.has("b", transfer)
    assert table.deal_all("b") == [(1, 0), (1, 1)]


def test_what_is_committed_is_over_and_not_dealt_any_more(table: Table) -> None:
    transfer = table.add(2)
    table.deal("a")
    table.dealer.committed(transfer.offer.id, already=True)
    assert transfer.over.is_set()
    assert transfer.error is None
    assert transfer.already
    assert table.deal_all("b") == []
    assert table.dealer.is_empty


def test_what_is_refused_is_over_with_its_error(table: Table) -> None:
    transfer = table.add()
    table.dealer.refused(transfer.offer.id, StorageError("full"))
    assert transfer.over.is_set()
    assert isinstance(transfer.error, StorageError)


def test_only_what_is_vain_is_given_up_each_with_an_error_of_its_own(table: Table) -> None:
    old = [table.add(), table.add()]
    table.clock.now += 10.0
    young = table.add()
    table.dealer.give_up(lambda each: LinkError("no answer") if each.added < 1005.0 else None)
    assert all(isinstance(each.error, LinkError) for each in old)
    assert old[0].error is not old[1].error
    assert not young.over.is_set()


def test_a_removed_file_is_dealt_no_more(table: Table) -> None:
    table.dealer.remove(table.add())
    assert table.deal() is None
    assert table.dealer.bytes_left == 0


def test_whatever_may_be_new_to_deal_is_announced(table: Table) -> None:
    announced = table.changes
    transfer = table.add()
    table.has("a", transfer)
    table.dealer.pause("a")
    table.join("a")
    table.dealer.leave("a")
    assert table.changes == announced + 5


def test_noise_is_dealt_a_chunk_at_a_time_and_offered_each_time(table: Table) -> None:
    table.dealer.make_noise(10.0)
    task = table.dealer.deal("a")
    assert task is not None and task.index == 0 and task.offer
    assert task.transfer.offer.place == TRIAL
    assert len(task.transfer.packet.chunk(0)) == task.transfer.offer.size
    assert table.dealer.deal("a", in_flight=1) is None
    assert table.dealer.deal("b") == task
    assert table.dealer.deal("a") == task


def test_noise_ends_by_itself_unless_it_is_asked_for_again(table: Table) -> None:
    table.dealer.make_noise(10.0)
    table.clock.now += 6.0
    table.dealer.make_noise(10.0)
    table.clock.now += 9.0
    assert table.deal() is not None
    table.clock.now += 1.0
    assert table.deal() is None


def test_a_file_ends_the_noise_at_once_and_for_good(table: Table) -> None:
    table.dealer.make_noise(10.0)
    transfer = table.add(1)
    assert table.deal_all() == [(1, 0)]
    table.acknowledge(transfer, 0)
    table.dealer.committed(1)
    assert table.deal() is None


def test_no_noise_is_dealt_while_a_file_is_under_way(table: Table) -> None:
    table.add(2)
    table.dealer.make_noise(10.0)
    assert table.deal_all("a") == [(1, 0), (1, 1)]
    assert table.deal("b") is None


def test_noise_counts_nowhere_and_is_not_missed(table: Table) -> None:
    table.dealer.make_noise(10.0)
    task = table.dealer.deal("a")
    assert task is not None
    assert table.dealer.is_empty and not table.dealer.has_chunks
    assert table.dealer.bytes_left == 0
    assert table.acknowledge(task.transfer, 0) == 0
    table.deal("a")
    table.dealer.leave("a")
    table.clock.now += 10.0
    assert table.deal("b") is None


class Crossing(RuleBasedStateMachine):
    """Connections come, go, fall silent and speak again; the far side keeps what was written."""

    @initialize(directory=st.just(None))
    def begin(self, directory: None) -> None:
        import tempfile

        self.place = tempfile.TemporaryDirectory()
        self.table = Table(Path(self.place.name))
        self.transfers: dict[int, Transfer] = {}
        self.written: dict[int, set[int]] = {}
        self.acknowledged: dict[int, set[int]] = {}
        self.counted: dict[int, int] = {}
        self.lines: dict[str, list[Task]] = {}
        self.silent: set[str] = set()
        self.names = 0

    @rule(chunks=st.integers(1, 6), urgency=st.integers(0, 2), ask_first=st.booleans())
    def add(self, chunks: int, urgency: int, ask_first: bool) -> None:
        transfer = self.table.add(chunks, urgency=urgency, ask_first=ask_first)
        number = transfer.offer.id
        self.transfers[number] = transfer
        self.written[number] = set()
        self.acknowledged[number] = set()
        self.counted[number] = 0

    @rule()
    def connect(self) -> None:
        if len(self.lines) < 4:
            self.names += 1
            self.lines[f"c{self.names}"] = []
            self.table.join(f"c{self.names}")

    @rule(data=st.data())
    def deal(self, data: st.DataObject) -> None:
        for who in self._some(data, set(self.lines) - self.silent):
            task = self.table.dealer.deal(who, len(self.lines[who]))
            if task is not None:
                number = task.transfer.offer.id
                assert number in self.transfers
                assert task.index not in self.acknowledged[number]
                self.lines[who].append(task)

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        for who in self._some(data, {who for who, tasks in self.lines.items() if tasks}):
            self._arrive(who)

    @rule(data=st.data())
    def fall_silent(self, data: st.DataObject) -> None:
        for who in self._some(data, set(self.lines) - self.silent):
            self.silent.add(who)
            self.table.dealer.pause(who)

    @rule(data=st.data(), arrived=st.integers(0, 6))
    def break_off(self, data: st.DataObject, arrived: int) -> None:
        """It is lost, and so are the answers to what had arrived."""
        for who in self._some(data, set(self.lines)):
            for task in self.lines.pop(who)[:arrived]:
                if task.index is not None:
                    self.written[task.transfer.offer.id].add(task.index)
            self.silent.discard(who)
            self.table.dealer.leave(who)

    @rule(seconds=st.sampled_from([0.1, 2.5, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.table.clock.now += seconds

    def _some(self, data: st.DataObject, names: set[str]) -> list[str]:
        return [data.draw(st.sampled_from(sorted(names)))] if names else []

    def _arrive(self, who: str) -> None:
        """What was sent first is written and answered; whoever speaks is not silent."""
        task = self.lines[who].pop(0)
        if who in self.silent:
            self.silent.discard(who)
            self.table.join(who)
        transfer = task.transfer
        number = transfer.offer.id
        self.table.clock.now += 0.001
        if task.offer:
            self.table.has(who, transfer, *self.written[number])
        if task.index is not None:
            self.written[number].add(task.index)
            self.acknowledged[number].add(task.index)
            self.counted[number] += self.table.acknowledge(transfer, task.index)
        if len(self.written[number]) == transfer.count:
            self.table.dealer.committed(number)

    @invariant()
    def every_chunk_is_in_one_place(self) -> None:
        for transfer in getattr(self, "transfers", {}).values():
            places = [*transfer.todo, *transfer.dealt, *transfer.in_doubt, *transfer.there]
            assert sorted(places) == list(range(transfer.count))

    def teardown(self) -> None:
        if not hasattr(self, "table"):
            return
        for who in self.lines:
            self.table.dealer.leave(who)
        self.lines = {"last": []}
        self.silent = set()
        self.table.join("last")
        for _ in range(1000):
            if self.table.dealer.is_empty:
                break
            task = self.table.dealer.deal("last", 0)
            if task is None:
                self.table.clock.now += 1.0
            else:
                self.lines["last"].append(task)
                self._arrive("last")
        for number, transfer in self.transfers.items():
            assert transfer.over.is_set()
            assert transfer.error is None
            assert self.written[number] == set(range(transfer.count))
            assert self.counted[number] <= transfer.offer.size
        self.table.close()
        self.place.cleanup()


TestCrossing = Crossing.TestCase
TestCrossing.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
