"""One CCD's way out: packed, sent, remembered; safe against kill -9 at any point."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from prepipe.files import PARTIAL_SUFFIX, storage_errors
from prepipe.link.base import Held, Link
from prepipe.model import Stage
from prepipe.store import CcdKey, CcdRow, Journal
from prepipe.telescope.pack import Packer

__all__ = ["Carried", "Carrier"]


@dataclass(frozen=True)
class Carried:
    """A CCD that is at the far side now.

    Parameters
    ----------
    packet_bytes : int
    already_there : bool
        Whether it did not have to be sent.
    latency_s : float
        Since its raw file was found, s.
    """

    packet_bytes: int
    already_there: bool
    latency_s: float


class Carrier:
    """Carries CCDs; may be used by several threads at a time, each with its own CCD.

    Parameters
    ----------
    journal : Journal
    packer : Packer
    link : Link
    directory : Path
        Where packets wait.
    """

    def __init__(self, journal: Journal, packer: Packer, link: Link, directory: Path) -> None:
        self._journal = journal
        self._packer = packer
        self._link = link
        self._directory = directory
        self._there: dict[str, Held] | None = None
        self._lock = threading.Lock()

    def carry(self, key: CcdKey) -> Carried | None:
        """Pack a CCD, unless it is packed, and send it, unless it is there.

        The packet is removed here only after the journal says that it was sent.

        Returns
        -------
        Carried or None
            None if the CCD does not wait any more.

        Raises
        ------
        PrepipeError
            Whatever packing and sending raise.
        """
        row = self._journal.row(key)
        if row is None or row.stage not in (Stage.FOUND, Stage.PACKED):
            return None
        checksum_before = row.checksum
        packet = self._waiting_packet(row)
        if packet is None:
            packet, row = self._pack(row)
        # what was sent before comes back only to be sent again
        first_time = row.sent_at is None and checksum_before in ("", row.checksum)
        already_there = first_time and self._is_there(packet.name, row.packet_bytes)
        began = time.monotonic()
        if not already_there:
            self._journal.begin(key, Stage.SENT)
            self._send(packet, row.packet_bytes)
        self._journal.advance(key, Stage.SENT, time.monotonic() - began)
        with storage_errors(packet):
            packet.unlink(missing_ok=True)
        return Carried(row.packet_bytes, already_there, time.time() - (row.found_at or time.time()))

    def tidy(self) -> None:
        """Remove what a killed push left in the directory of packets.

        Raises
        ------
        StorageError
            If the directory cannot be made or read.
        """
        waiting = {row.packet for row in self._journal.rows(Stage.PACKED)}
        with storage_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            for path in self._directory.iterdir():
                if path.name.endswith((PARTIAL_SUFFIX, ".packet")) and path.name not in waiting:
                    path.unlink(missing_ok=True)

    def _waiting_packet(self, row: CcdRow) -> Path | None:
        """The packet made earlier, if it is still whole."""
        if row.stage is not Stage.PACKED:
            return None
        packet = self._directory / row.packet
        try:
            whole = packet.stat().st_size == row.packet_bytes
        except OSError:
            return None
        return packet if whole else None

    def _pack(self, row: CcdRow) -> tuple[Path, CcdRow]:
        began = time.monotonic()
        self._journal.begin(row.key, Stage.PACKED)
        path, packet = self._packer.pack(row)
        with storage_errors(path):
            size = path.stat().st_size
        self._journal.advance(
            row.key,
            Stage.PACKED,
            time.monotonic() - began,
            packet=path.name,
            packet_bytes=size,
            codec=packet.codec,
            checksum=packet.pixel_checksum,
        )
        packed = replace(row, packet=path.name, packet_bytes=size, checksum=packet.pixel_checksum)
        return path, packed

    def _send(self, packet: Path, size: int) -> None:
        self._link.send(packet)
        with self._lock:
            if self._there is not None:
                self._there[packet.name] = Held(size, "")

    def _is_there(self, name: str, size: int) -> bool:
        """Whether the far side had this packet when it was first asked, or has it by now."""
        with self._lock:
            if self._there is None:
                self._there = dict(self._link.inventory())
            held = self._there.get(name)
            return held is not None and held.size == size
