"""A push on a line too slow for the camera: stronger packets, then the site's own again."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from telescope_end import RecordingLink, Telescope, in_background, wait_until
from tiny_raw import write_raw

from prepipe.codec.packet import open_packet
from prepipe.codec.wavelet import compile_kernels
from prepipe.link.base import Held
from prepipe.model import Stage
from prepipe.store import CcdRow
from prepipe.telescope import Happening
from prepipe.telescope.pack import Packer, Written

SHAPE = (256, 512)
CCDS = (1, 25, 44)


class SlowLink(RecordingLink):
    """A line that carries so many bytes a second, whoever sends."""

    def __init__(self, landing: Path, bytes_per_s: float) -> None:
        super().__init__(landing)
        self.concurrency = 2
        self.bytes_per_s = bytes_per_s
        self._line = threading.Lock()

    def send(self, packet: Path, urgency: int = 0, *, may_be_there: bool = False) -> bool:
        with self._line:
            time.sleep(packet.stat().st_size / self.bytes_per_s)
        return super().send(packet, urgency)


class WideLink(RecordingLink):
    """A line with a place for every packet."""

    concurrency = 64


class SlowToAnswer(RecordingLink):
    """A line on which the far side takes its time to say what it holds."""

    concurrency = 2
    recognises = False

    def inventory(self, since: int = 0) -> dict[str, Held]:
        time.sleep(3.0)
        return super().inventory(since)


def presets(telescope: Telescope) -> dict[int, set[str]]:
    """By which presets the CCDs of each exposure were packed, as the journal knows it."""
    found: dict[int, set[str]] = {}
    for row in telescope.journal.rows():
        found.setdefault(row.exposure.number, set()).add(row.preset)
    return found


def preset_in_packet(telescope: Telescope, row: CcdRow) -> object:
    asked = open_packet(telescope.landing / row.packet).packet.parameters["asked"]
    assert isinstance(asked, dict)
    return asked["preset"]


def test_a_growing_backlog_leads_to_stronger_packets_and_its_end_back_to_the_sites_own(
    telescope: Telescope,
) -> None:
    compile_kernels()
    telescope.link = SlowLink(telescope.landing, 1e5)
    pack = {"codec": "wavelet", "preset": "precise", "strongest": "faint-link"}
    telescope.configure(pack=pack | {"backlog_s": 2.5, "check_every": 0})
    for number in range(1, 9):
        write_raw(telescope.raw, number, CCDS, shape=SHAPE)
    stop, thread = in_background(telescope)
    wait_until(lambda: telescope.stages() == {Stage.SENT: 24}, 60)
    wait_until(lambda: any("precise now" in told for told in telescope.told(Happening.PACKING)))
    write_raw(telescope.raw, 9, CCDS, shape=SHAPE)
    wait_until(lambda: telescope.stages() == {Stage.SENT: 27}, 60)
    stop.set()
    thread.join(30)
    used = presets(telescope)
    assert all(len(each) == 1 for each in used.values()), "an exposure is packed by one preset"
    assert used[8] == {"precise"}, "the first to be begun, before anything was known"
    assert {"faint-link"} in used.values()
    assert used[9] == {"precise"}, "the backlog is gone"
    assert "faint-link now, no longer by fast: what waits takes" in "\n".join(
        telescope.told(Happening.PACKING)
    )
    for row in telescope.journal.rows():
        assert preset_in_packet(telescope, row) == row.preset
    size = {row.preset: row.packet_bytes for row in telescope.journal.rows()}
    assert size["faint-link"] < 0.6 * size["precise"]


def test_a_site_that_did_not_ask_for_it_keeps_its_preset_whatever_waits(
    telescope: Telescope,
) -> None:
    telescope.link = SlowLink(telescope.landing, 2e5)
    telescope.configure(pack={"codec": "wavelet", "backlog_s": 0.01, "check_every": 0})
    for number in (1, 2, 3):
        write_raw(telescope.raw, number, CCDS, shape=SHAPE)
    telescope.push()
    assert Counter(row.preset for row in telescope.journal.rows()) == {"fast": 9}
    assert telescope.told(Happening.PACKING) == []


def test_a_backlog_of_the_cores_on_a_line_that_has_room_changes_nothing(
    telescope: Telescope, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_at_once = Packer.pack

    def pack_slowly(packer: Packer, row: CcdRow) -> Written:
        time.sleep(0.4)
        return pack_at_once(packer, row)

    monkeypatch.setattr(Packer, "pack", pack_slowly)
    compile_kernels()
    telescope.link = WideLink(telescope.landing)
    pack = {"codec": "wavelet", "preset": "precise", "strongest": "faint-link", "workers": 1}
    pack |= {"backlog_s": 0.05, "check_every": 0}
    telescope.configure(pack=pack, telescope={"poll_s": 0.5})
    for number in range(1, 5):
        write_raw(telescope.raw, number, CCDS, shape=SHAPE)
    telescope.push()
    assert telescope.told(Happening.PACKING) == []
    assert Counter(row.preset for row in telescope.journal.rows()) == {"precise": 12}


def test_waiting_for_an_answer_of_the_far_side_makes_no_slow_line(telescope: Telescope) -> None:
    compile_kernels()
    telescope.link = SlowToAnswer(telescope.landing)
    pack = {"codec": "wavelet", "preset": "precise", "strongest": "faint-link"}
    telescope.configure(pack=pack | {"backlog_s": 5.0, "check_every": 0})
    for number in range(1, 7):
        write_raw(telescope.raw, number, CCDS, shape=SHAPE)
    telescope.push()
    assert telescope.stages() == {Stage.SENT: 18}
    assert telescope.told(Happening.PACKING) == []


@pytest.mark.parametrize("codec", ["wavelet", "jpeg2000"])
def test_a_rate_to_aim_at_and_the_cadence_give_every_ccd_its_ratio(
    telescope: Telescope, codec: str
) -> None:
    # three CCDs of 256 x 512 pixels, 6.29 Mbit, a minute at 0.0125 Mbit/s
    pack = {"codec": codec, "rate_mbit_s": 0.0125, "cadence_s": 60.0, "check_every": 0}
    telescope.configure(pack=pack)
    write_raw(telescope.raw, 1, CCDS, shape=SHAPE)
    telescope.push()
    for row in telescope.journal.rows():
        told = open_packet(telescope.landing / row.packet).packet.parameters
        assert told["asked"]["ratio"] == pytest.approx(3 * 256 * 512 * 16 / 0.75e6, rel=1e-3)
        assert told["ratio"] == pytest.approx(8.39, rel=0.06)
