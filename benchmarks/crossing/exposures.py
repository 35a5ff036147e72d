"""Exposures to send: 60 packets of 1 MB that nothing can compress."""

from __future__ import annotations

import filecmp
import itertools
import os
from pathlib import Path

PACKETS = 60
PACKET_BYTES = 1_000_000
BITS = PACKETS * PACKET_BYTES * 8

_numbers = itertools.count(941420)


def write_exposure(directory: Path) -> list[Path]:
    """The packets of another exposure."""
    directory.mkdir(parents=True, exist_ok=True)
    number = next(_numbers)
    packets = [directory / f"decam_{number:08d}_{ccd:02d}.packet" for ccd in range(1, PACKETS + 1)]
    for packet in packets:
        packet.write_bytes(os.urandom(PACKET_BYTES))
    return packets


def last_landed(packets: list[Path], landing: Path) -> float:
    """When the last packet stood under its final name, s since 1970; every byte is compared."""
    for packet in packets:
        assert filecmp.cmp(packet, landing / packet.name, shallow=False), packet.name
    # a rename changes ctime, and both ends share this machine's clock
    return max((landing / packet.name).stat().st_ctime for packet in packets)


def bytes_landed(landing: Path) -> int:
    """Bytes there, those of unfinished files included."""
    return sum(path.stat().st_size for path in landing.rglob("*") if path.is_file())
