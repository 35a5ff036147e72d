"""A long line that goes away for seconds while exposures cross, and what that costs.

The line is that of `wan.py`: 200 Mbit/s, 240 ms, between two network namespaces.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_links import FAR, acknowledged, are_there, in_background, packet, wait_for, wait_until_open
from wan import Wan, need_wan

from prepipe.link.ssh import SshLink

CONNECTIONS = 8
EXPOSURES, CCDS, CCD_BYTES = 4, 15, 1_500_000
OUTAGES_S = tuple(float(each) for each in os.environ.get("PREPIPE_OUTAGES", "5 12").split())
"""Longer ones, of minutes, may be named by hand."""
BACK_S = 10.0
"""Twice what is promised, for a loaded machine."""


@pytest.fixture
def wan(tmp_path: Path) -> Iterator[Wan]:
    need_wan()
    with Wan(tmp_path / "wan", rtt=240, rate=200) as line:
        yield line


def exposures(directory: Path) -> list[Path]:
    return [
        packet(directory, f"decam_0094142{number}_{ccd:02d}.packet", CCD_BYTES, number * 100 + ccd)
        for number in range(EXPOSURES)
        for ccd in range(1, CCDS + 1)
    ]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("outage_s", OUTAGES_S)
def test_after_an_outage_bytes_move_again_at_once_and_everything_arrives_once(
    wan: Wan, tmp_path: Path, outage_s: float
) -> None:
    sent = exposures(tmp_path / "here")
    landing = tmp_path / "landing"
    landing.mkdir()
    settings = wan.settings(landing, command=FAR, rate=200.0, timeout_s=outage_s + 60.0)
    with wan.at_telescope():
        link = SshLink(settings)
        wait_until_open(link, CONNECTIONS)
    began = time.monotonic()
    try:
        sending = [in_background(link, each, -place) for place, each in enumerate(sent)]
        wait_for(lambda: acknowledged(link) > sum(each.stat().st_size for each in sent) // 4)
        wan.outage(outage_s)
        back = time.monotonic() + outage_s
        # what had passed is acknowledged by now, and no more
        time.sleep(outage_s - 1.0)
        before = acknowledged(link)
        wait_for(lambda: acknowledged(link) > before, outage_s + BACK_S)
        after_s = time.monotonic() - back
        for each in sending:
            each.result(120.0)
        print(
            f"outage of {outage_s:.0f} s: bytes moved {after_s:.1f} s after its end, all there "
            f"{time.monotonic() - back:.1f} s after it, {time.monotonic() - began:.1f} s in all"
        )
        assert acknowledged(link) <= sum(each.stat().st_size for each in sent)
    finally:
        link.close()
    assert are_there(landing, sent)
    assert 0.0 <= after_s <= BACK_S
