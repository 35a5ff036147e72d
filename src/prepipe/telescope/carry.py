"""One CCD's way out in two steps, packed and sent; safe against kill -9 at any point."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prepipe.files import PARTIAL_SUFFIX, storage_errors
from prepipe.link.base import Held, Link
from prepipe.model import Stage
from prepipe.store import CcdKey, CcdRow, Journal
from prepipe.store.rows import NOT_ARCHIVED
from prepipe.telescope.far_side import FarSide
from prepipe.telescope.pack import Packer
from prepipe.telescope.queue import arrived

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
    """Packs and sends CCDs; may be used by several threads at a time, each with its own CCD.

    Parameters
    ----------
    journal : Journal
    packer : Packer
    link : Link
    far_side : FarSide
        Is told what was sent.
    directory : Path
        Where packets wait.
    """

    def __init__(
        self, journal: Journal, packer: Packer, link: Link, far_side: FarSide, directory: Path
    ) -> None:
        self._journal = journal
        self._packer = packer
        self._link = link
        self._far_side = far_side
        self._directory = directory
        self._began = time.time()
        self._changed: set[CcdKey] = set()
        self._old: set[CcdKey] = set()
        self._lock = threading.Lock()

    def pack(self, key: CcdKey) -> CcdRow | None:
        """Pack a CCD, unless it is packed.

        Returns
        -------
        CcdRow or None
            The CCD, packed; None if it does not wait any more.

        Raises
        ------
        PrepipeError
            Whatever `Packer.pack` and the journal raise.
        """
        row = self._journal.row(key)
        if row is None or row.stage not in (Stage.FOUND, Stage.PACKED):
            return None
        if self._waiting_packet(row):
            return row
        began = time.monotonic()
        self._journal.begin(key, Stage.PACKED)
        packed = self._packer.pack(row)
        facts: dict[str, Any] = {
            "packet": packed.path.name,
            "packet_bytes": packed.size,
            "codec": packed.packet.codec,
            "checksum": packed.packet.pixel_checksum,
            "file_checksum": packed.checksum,
            "asked": packed.packet.parameters.get("asked"),
        }
        if row.archive_base not in ("", packed.checksum):
            # what is in the archive needs a packet that this one replaces
            facts |= NOT_ARCHIVED
        self._journal.advance(key, Stage.PACKED, time.monotonic() - began, **facts)
        with self._lock:
            if row.checksum not in ("", packed.packet.pixel_checksum):
                self._changed.add(key)
            if packed.raw_written_at < self._began:
                self._old.add(key)
        return replace(row, stage=Stage.PACKED, **facts)

    def send(self, key: CcdKey, urgency: int, held: Held | None, inherited: bool) -> Carried | None:
        """Send the packet of a CCD, unless the far side holds it.

        The packet is removed here only after the journal says that it was sent.

        Parameters
        ----------
        key : CcdKey
        urgency : int
            As `Link.send` takes it.
        held : Held or None
            What the far side holds under the packet's name, where that was asked.
        inherited : bool
            Whether somebody else may have sent it, wholly or in part.

        Returns
        -------
        Carried or None
            None if the CCD is not packed, or not any more; then it waits to be packed.

        Raises
        ------
        PrepipeError
            Whatever `Link.send` and the journal raise.
        """
        row = self._journal.row(key)
        if row is None or row.stage is not Stage.PACKED:
            return None
        packet = self._waiting_packet(row)
        if packet is None:
            self._journal.return_to(key, Stage.FOUND, "its packet is gone")
            return None
        already_there = self._is_first_time(row) and arrived(row, held)
        took = 0.0
        if not already_there:
            self._journal.begin(key, Stage.SENT)
            began = time.monotonic()
            # an earlier push whose journal was lost may have sent what is older than this one
            may_be_there = inherited or key in self._old
            already_there = self._link.send(packet, urgency, may_be_there=may_be_there)
            took = 0.0 if already_there else time.monotonic() - began
            self._far_side.note(packet.name, Held(row.packet_bytes, row.file_checksum))
        self._journal.advance(key, Stage.SENT, took)
        with self._lock:
            self._changed.discard(key)
            self._old.discard(key)
        self._remove(packet)
        return Carried(row.packet_bytes, already_there, time.time() - (row.found_at or time.time()))

    def leave(self, row: CcdRow, to: str) -> None:
        """Note that a CCD is at the far side, though it was not sent from here.

        What was packed of it here is forgotten: the far side need not hold just that, and its
        original is for whoever sent it to archive.
        """
        forgotten: dict[str, Any] = {
            "packet": "",
            "packet_bytes": 0,
            "codec": "",
            "file_checksum": "",
        }
        reason = f"sent by {to}" if to else ""
        self._journal.advance(row.key, Stage.SENT, reason=reason, **forgotten)
        if row.packet:
            self._remove(self._directory / row.packet)

    def unpack(self, row: CcdRow) -> None:
        """Let a packed CCD wait to be packed again, to have room for others."""
        self._journal.return_to(row.key, Stage.FOUND, "its packet made room for a newer one")
        self._remove(self._directory / row.packet)

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

    def _is_first_time(self, row: CcdRow) -> bool:
        """Whether it was never sent: what was comes back only to be sent again."""
        with self._lock:
            return row.sent_at is None and row.key not in self._changed

    def _remove(self, packet: Path) -> None:
        with storage_errors(packet):
            packet.unlink(missing_ok=True)
