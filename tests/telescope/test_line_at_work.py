"""Packing and sending at the same time: what is under way, what overtakes, what a stop leaves."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from telescope_end import (
    HoldingLink,
    RecordingLink,
    Telescope,
    exposures_of,
    in_background,
    wait_until,
)
from tiny_raw import packet_names, raw_bytes, write_raw

from prepipe.errors import LinkError
from prepipe.files import content_checksum
from prepipe.link.base import Held
from prepipe.link.local import LocalLink
from prepipe.model import Stage
from prepipe.telescope import Happening

MANY = range(1, 13)
"""CCDs of an exposure, more than the link bears here."""


@pytest.fixture
def held(telescope: Telescope) -> HoldingLink:
    """A line that bears eight packets and holds them until it is told."""
    link = HoldingLink(telescope.landing, 8)
    telescope.link = link
    telescope.configure(pack={"workers": 1})
    return link


def end(telescope: Telescope, stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


def test_a_single_packer_fills_the_line(telescope: Telescope, held: HoldingLink) -> None:
    write_raw(telescope.raw, 1, MANY)
    stop, thread = in_background(telescope)
    wait_until(lambda: len(held.under_way) == 8)
    held.let_go.set()
    wait_until(lambda: telescope.stages() == {Stage.SENT: 12})
    end(telescope, stop, thread)
    assert Counter(held.sent) == Counter(packet_names([1], MANY))


def test_the_line_is_got_ready_while_a_raw_file_grows_and_no_longer(telescope: Telescope) -> None:
    path = telescope.raw / "DECam_00000001.fits.fz"
    path.write_bytes(raw_bytes(1)[:-1000])
    telescope.configure(telescope={"give_up_s": 60.0})
    stop, thread = in_background(telescope)
    wait_until(lambda: telescope.link.prepared > 1)
    assert telescope.link.begun == []
    path.write_bytes(raw_bytes(1))
    wait_until(lambda: telescope.stages() == {Stage.SENT: 3})
    before = telescope.link.prepared
    time.sleep(0.2)
    assert telescope.link.prepared == before
    end(telescope, stop, thread)


def test_a_new_exposure_overtakes_a_backlog_that_is_under_way(
    telescope: Telescope, held: HoldingLink
) -> None:
    for number in (1, 2, 3):
        write_raw(telescope.raw, number, MANY)
    held.fault = lambda: LinkError("not yet")
    held.let_go.set()
    telescope.push()
    # the newest is through, and what remains is backlog
    telescope.configure(push={"method": "list", "exposures": [3]}, pack={"workers": 1})
    held.fault = lambda: None
    telescope.push()
    telescope.configure(pack={"workers": 1})
    held.let_go.clear()
    held.under_way.clear()
    held.urgencies.clear()
    stop, thread = in_background(telescope)
    wait_until(lambda: len(held.under_way) == 4)
    time.sleep(0.2)
    assert exposures_of(held.under_way) == [2, 2, 2, 2], "half of the places stay free"
    write_raw(telescope.raw, 4, MANY)
    wait_until(lambda: len(held.under_way) == 8)
    assert exposures_of(held.under_way[4:]) == [4, 4, 4, 4]
    assert min(held.urgencies[4:]) > max(held.urgencies[:4])
    held.let_go.set()
    wait_until(lambda: telescope.stages() == {Stage.SENT: 48})
    end(telescope, stop, thread)
    assert max(Counter(held.sent).values()) == 1


def test_packets_here_are_bounded_while_the_line_is_down_and_the_newest_is_sent_first(
    telescope: Telescope,
) -> None:
    down = threading.Event()
    down.set()
    telescope.link.concurrency = 6
    telescope.link.fault = lambda: LinkError("host: no way to it") if down.is_set() else None
    stop, thread = in_background(telescope)
    for number in range(1, 9):
        write_raw(telescope.raw, number, range(1, 6))
        wait_until(_is_packed(telescope, number, 5))
        assert len(list(telescope.packets.glob("*.packet"))) <= 2 * telescope.link.concurrency
    down.clear()
    wait_until(lambda: telescope.stages() == {Stage.SENT: 40})
    end(telescope, stop, thread)
    begun = exposures_of(telescope.link.begun)
    # one of any exposure goes ahead; threads that begin at the same moment may change places
    assert begun[:8].count(8) == 5
    assert Counter(telescope.link.sent) == Counter(packet_names(range(1, 9), range(1, 6)))
    assert all(row.tries == 0 for row in telescope.journal.rows())


def test_a_packet_that_is_never_taken_does_not_stop_the_others(telescope: Telescope) -> None:
    (refused,) = packet_names([3], [1])

    class PickyLink(RecordingLink):
        def send(self, packet: Path, urgency: int = 0, *, may_be_there: bool = False) -> bool:
            if packet.name == refused:
                raise LinkError("host: it does not take this one")
            return super().send(packet, urgency, may_be_there=may_be_there)

    for number in (1, 2, 3):
        write_raw(telescope.raw, number, [1, 2])
    telescope.link = PickyLink(telescope.landing)
    telescope.link.concurrency = 1
    stop, thread = in_background(telescope)
    wait_until(lambda: telescope.stages() == {Stage.SENT: 5, Stage.PACKED: 1}, 30)
    end(telescope, stop, thread)
    assert set(telescope.link.sent) == packet_names([1, 2, 3], [1, 2]) - {refused}


def _is_packed(telescope: Telescope, number: int, ccds: int) -> Callable[[], bool]:
    return lambda: len(telescope.journal.rows(Stage.PACKED, exposure=number)) == ccds


def test_a_stop_does_not_wait_for_a_dead_line_and_keeps_what_is_packed(
    telescope: Telescope, held: HoldingLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prepipe.telescope.traffic._PARTING_S", 0.2)
    write_raw(telescope.raw, 1, MANY)
    stop, thread = in_background(telescope)
    wait_until(lambda: len(held.under_way) == 8)
    end(telescope, stop, thread)
    assert held.closed.is_set()
    assert telescope.stages()[Stage.PACKED] >= 8
    assert all(row.tries == 0 for row in telescope.journal.rows())
    assert telescope.told(Happening.OBSTACLE) == []
    telescope.link = HoldingLink(telescope.landing, 8)
    telescope.link.let_go.set()
    assert telescope.push().succeeded
    assert telescope.landed() == packet_names([1], MANY)


def test_a_question_to_a_dead_line_does_not_hold_up_packing_nor_a_stop(
    telescope: Telescope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prepipe.telescope.traffic._PARTING_S", 0.2)
    closed = threading.Event()

    class SilentLink(LocalLink):
        def inventory(self, since=0):
            closed.wait(60)
            raise LinkError("host: the link was closed")

        def close(self) -> None:
            closed.set()

    telescope.link = SilentLink(telescope.landing)
    write_raw(telescope.raw, 1)
    stop, thread = in_background(telescope)
    wait_until(lambda: telescope.stages() == {Stage.PACKED: 3})
    end(telescope, stop, thread)
    assert telescope.stages() == {Stage.PACKED: 3}


def test_an_exposure_that_is_through_is_told_once_with_what_crossed(
    telescope: Telescope,
) -> None:
    telescope.configure(link={"rate": 100.0})
    for number in (1, 2):
        write_raw(telescope.raw, number)
    telescope.push()
    told = sorted(telescope.told(Happening.COMPLETE))
    assert len(told) == 2
    for number, line in enumerate(told, start=1):
        assert line.startswith(f"exposure {number} Prime, field 1 g: 3 sent, ")
        assert line.endswith(" of the rate")
    accounts = {account.exposure: account for account in telescope.journal.transfers()}
    assert accounts.keys() == {1, 2}
    sizes = {row.key: row.packet_bytes for row in telescope.journal.rows(exposure=1)}
    assert (accounts[1].ccds, accounts[1].bytes) == (3, sum(sizes.values()))


def test_the_journal_knows_the_checksum_of_each_packet(telescope: Telescope) -> None:
    write_raw(telescope.raw, 1)
    telescope.push()
    known = {row.packet: row.file_checksum for row in telescope.journal.rows()}
    assert known == {path.name: content_checksum(path) for path in telescope.landing.iterdir()}


def test_end_of_night_sends_anew_what_is_there_with_other_content(telescope: Telescope) -> None:
    write_raw(telescope.raw, 1)
    telescope.push()
    spoilt = telescope.landing / "decam_00000001_25.packet"
    good = content_checksum(spoilt)
    content = bytearray(spoilt.read_bytes())
    content[-1] ^= 1
    spoilt.unlink()
    spoilt.write_bytes(content)
    telescope.configure(push={"method": "end-of-night"})
    sent = len(telescope.link.sent)
    assert telescope.push().succeeded
    assert telescope.link.sent[sent:] == [spoilt.name]
    assert content_checksum(spoilt) == good


def test_end_of_night_asks_for_nothing_before_its_first_exposure(telescope: Telescope) -> None:
    asked: list[int] = []

    class AskedLink(RecordingLink):
        def inventory(self, since: int = 0) -> dict[str, Held]:
            asked.append(since)
            return super().inventory(since)

    telescope.link = AskedLink(telescope.landing)
    telescope.configure(push={"method": "end-of-night", "exp_min": 2})
    for number in (1, 2):
        write_raw(telescope.raw, number)
    assert telescope.push().sent == 3
    assert set(asked) == {2}


def test_end_of_night_sends_nothing_anew_that_is_there_as_it_was_sent(
    telescope: Telescope,
) -> None:
    write_raw(telescope.raw, 1)
    telescope.push()
    telescope.configure(push={"method": "end-of-night"})
    report = telescope.push()
    assert (report.succeeded, report.sent) == (True, 0)


def test_a_packet_of_an_earlier_run_that_is_there_with_other_content_is_sent(
    telescope: Telescope,
) -> None:
    telescope.link.fault = lambda: LinkError("down")
    write_raw(telescope.raw, 1, (25,))
    telescope.push()
    telescope.link.fault = lambda: None
    (packed,) = telescope.journal.rows(Stage.PACKED)
    telescope.landing.mkdir()
    (telescope.landing / packed.packet).write_bytes(bytes(packed.packet_bytes))
    report = telescope.push()
    assert (report.sent, report.already_there) == (1, 0)
    assert content_checksum(telescope.landing / packed.packet) == packed.file_checksum
