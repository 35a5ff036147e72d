"""A night in which every part of the link is killed again and again: each packet arrives once.

Every part six times; with ``PREPIPE_FAULTS=50`` fifty times, during forty exposures, which takes
five to ten minutes on two busy cores.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from faulty_night import CCDS, FIRST, PATIENCE_S, Night
from private_sshd import need_sshd
from ssh_links import wait_for

from prepipe.codec.packet import decode
from prepipe.files import content_checksum
from prepipe.model import Stage

KILLS = int(os.environ.get("PREPIPE_FAULTS", "6"))
EXPOSURES = KILLS * 4 // 5
"""At least; the camera writes more when all are sent."""
Fault = Callable[[Night], None]
FAULTS: tuple[Fault, ...] = (
    Night.kill_push,
    Night.kill_client,
    Night.kill_receiver,
    Night.kill_all_receivers,
    Night.kill_server_side,
    Night.kill_server,
    Night.reboot,
    Night.halt,
)


@pytest.mark.timeout(900)
def test_whatever_is_killed_every_packet_is_there_once_bit_for_bit(tmp_path: Path) -> None:
    need_sshd()
    with Night(tmp_path, seed=1).begun() as night:
        began = time.monotonic()
        break_everything(night)
        broken_s = time.monotonic() - began
        night.let_go_on()
        wait_for(night.is_all_sent, 5 * PATIENCE_S)
        night.look_at_landing()
        print(
            f"{len(FAULTS)} parts killed {KILLS} times each in {broken_s:.0f} s, all of "
            f"{night.exposures} exposures there after {time.monotonic() - began:.0f} s"
        )
        assert_pixels_arrived(night)
        assert_nothing_else_is_there(night)
        assert_journal_tells_each_transfer_once(night)
        assert_push_ends_and_leaves_nothing_behind(night)


def break_everything(night: Night) -> None:
    """Kill each part in turn, two at a time, in ever new order, while the camera goes on."""
    for turn in range(KILLS):
        while night.exposures < EXPOSURES * (turn + 1) // KILLS:
            night.expose()
        for pair in in_pairs(night.random.sample(FAULTS, len(FAULTS))):
            night.wait_until_it_goes_on()
            for break_it in pair:
                time.sleep(night.random.uniform(0.0, 0.2))
                break_it(night)
                night.look_at_landing()


def in_pairs(faults: list[Fault]) -> Iterator[tuple[Fault, Fault]]:
    return zip(faults[::2], faults[1::2], strict=True)


def assert_pixels_arrived(night: Night) -> None:
    rows = {(row.key.exposure, row.key.ccd): row for row in night.journal.rows(Stage.SENT)}
    for number in range(FIRST, FIRST + night.exposures):
        with fits.open(night.raw / f"DECam_{number:08d}.fits.fz") as hdus:
            for hdu in hdus[1:]:
                row = rows.pop((number, hdu.header["CCDNUM"]))
                path = night.landing / row.packet
                assert content_checksum(path) == row.file_checksum
                np.testing.assert_array_equal(decode(path).pixels, hdu.data)
    assert not rows


def assert_nothing_else_is_there(night: Night) -> None:
    """Neither a second copy of anything nor anything partial, at either end."""
    expected = {row.packet for row in night.journal.rows(Stage.SENT)}
    assert len(expected) == night.exposures * len(CCDS)
    assert {path.name for path in night.landing.iterdir()} == expected
    assert list((night.root / "telescope" / "packets").iterdir()) == []


def assert_journal_tells_each_transfer_once(night: Night) -> None:
    assert night.journal.rows(Stage.FOUND, Stage.PACKED, Stage.QUARANTINED) == []
    assert night.journal.quarantined_files() == []
    with sqlite3.connect(night.root / "telescope" / "journal.sqlite") as journal:
        query = "SELECT exposure, ccd FROM events WHERE stage = 'sent' AND outcome = 'done'"
        told = Counter(journal.execute(query).fetchall())
    assert len(told) == night.exposures * len(CCDS)
    assert set(told.values()) == {1}
    # what arrived just before push could note it was there already when it asked
    crossed = Counter(
        row.key.exposure for row in night.journal.rows(Stage.SENT) if row.seconds["sent"]
    )
    accounts = night.journal.transfers()
    assert Counter({each.exposure: each.ccds for each in accounts}) == crossed
    assert len(accounts) == len(crossed)


def assert_push_ends_and_leaves_nothing_behind(night: Night) -> None:
    night.push.terminate()
    assert night.push.wait(PATIENCE_S) == 0
    wait_for(lambda: not night.processes())
    said = night.log.read_text()
    assert "Traceback" not in said
    assert "fault of prepipe" not in said
