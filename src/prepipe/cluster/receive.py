"""Packets that land: checked to the last byte, registered, and moved out of the way.

::

    landing/NAME                   a link renames a whole packet to this
    landing/done/utYYMMDD/NAME     good, and in the journal
    landing/rejected/NAME          damaged; why stands in NAME.reason.txt beside it

A crash between two of the steps leaves something that the next start puts right: a good
packet that the journal lacks is registered, one that was not moved is moved.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from prepipe.cluster.events import Event, What
from prepipe.codec.base import RESIDUAL
from prepipe.codec.packet import verify
from prepipe.errors import DuplicateError, PacketError, PrepipeError, StorageError
from prepipe.files import (
    PARTIAL_SUFFIX,
    atomic_write,
    make_directory,
    storage_errors,
    sweep_partials,
    sync_directory,
)
from prepipe.link.base import ARCHIVE, DONE, REJECTED
from prepipe.model import Night, Packet, Stage
from prepipe.names import parse_name
from prepipe.store import CcdKey, CcdRow, Journal

__all__ = ["REASON_SUFFIX", "Receiver"]

REASON_SUFFIX = ".reason.txt"

AT_ONCE = 64
"""Packets taken between two listings, so that one just landed need not wait for a backlog."""

UNREADABLE = 60.0
"""A packet that cannot be read is given this many times longer than one that is damaged."""

_SAME_START_S = 1.0


class Receiver:
    """The landing directory.

    Parameters
    ----------
    landing : Path
        Made if only its last element is missing.
    journal : Journal
    settle_s : float
        A packet that looks damaged is looked at again after this time, s, and rejected if it
        has not changed; some network file systems show a file before its last bytes.
    """

    def __init__(self, landing: Path, journal: Journal, settle_s: float = 1.0) -> None:
        self._landing = landing
        self._journal = journal
        self._settle_s = settle_s
        self._doubts: dict[str, tuple[tuple[int, int], float]] = {}
        self._taken_up = False
        self.more = False
        """Whether the last look left packets that it had no turn for."""

    @property
    def settled(self) -> bool:
        """Whether the last look dealt with all that was there."""
        return not self.more and not self._doubts

    def look(self) -> Iterator[Event]:
        """List the directory once and take the newest packets there.

        The first time, what an earlier run moved and did not live to register comes first.

        Yields
        ------
        Event
            After each packet that was dealt with.

        Raises
        ------
        StorageError
            If the directory cannot be read or written; nothing is lost by that.
        """
        try:
            yield from self._look()
        except StorageError:
            # What was moved and not registered is found again where an earlier run's would be.
            self._taken_up = False
            raise

    def _look(self) -> Iterator[Event]:
        make_directory(self._landing)
        if not self._taken_up:
            yield from self._take_up()
            self._taken_up = True
        yield from self._readmit()
        names = sorted(_names(self._landing), reverse=True)
        self._doubts = {name: doubt for name, doubt in self._doubts.items() if name in names}
        self.more = len(names) > AT_ONCE
        for name in names[:AT_ONCE]:
            event = self._take(self._landing / name, self._settle_s)
            if event is not None:
                yield event

    def _take_up(self) -> Iterator[Event]:
        sweep_partials(self._landing)
        with storage_errors(self._landing / DONE):
            nights = sorted(self._landing.glob(f"{DONE}/ut*"))
            found = [path for night in nights for path in self._unknown(night)]
        for path in sorted(found, key=lambda path: path.name, reverse=True):
            event = None if _is_passed_over(path.name) else self._take(path, settle_s=0.0)
            if event is not None:
                yield event

    def _unknown(self, directory: Path) -> list[Path]:
        """Packets in the directory of a night that the journal does not know."""
        try:
            known = self._journal.packets(Night.parse(directory.name))
        except ValueError:
            known = set()
        return [path for path in directory.glob("*") if str(path) not in known]

    def _take(self, path: Path, settle_s: float) -> Event | None:
        """Admit or reject one file; None if it vanished, or must be looked at again later."""
        with storage_errors(path):
            if not os.path.lexists(path):
                return None
            try:
                found = path.lstat()
                _require_packet_file(path, found)
                packet = self._verified(path, found, settle_s)
                return None if packet is None else self._admit(path, packet, found.st_size)
            except (PacketError, DuplicateError) as error:
                return self._reject(path, error)

    def _verified(self, path: Path, found: os.stat_result, settle_s: float) -> Packet | None:
        """The packet; None if it must be looked at again later."""
        try:
            packet = _read(path)
        except (PacketError, StorageError) as error:
            # A disk that cannot be read now may be read soon: no reason to send anything again.
            patience_s = settle_s if isinstance(error, PacketError) else UNREADABLE * settle_s
            if not os.path.lexists(path) or not self._has_held(path.name, found, patience_s):
                return None
            raise PacketError(str(error)) from error
        self._doubts.pop(path.name, None)
        return packet

    def _has_held(self, name: str, found: os.stat_result, settle_s: float) -> bool:
        """Whether a file that looks damaged has not changed for `settle_s`."""
        state = found.st_size, found.st_mtime_ns
        known, since = self._doubts.get(name, (None, 0.0))
        now = time.monotonic()
        if known != state:
            since = now
            self._doubts[name] = state, since
        return now - since >= settle_s

    def _admit(self, path: Path, packet: Packet, size: int) -> Event:
        key = CcdKey(packet.exposure.camera, packet.exposure.number, packet.ccd.number)
        self._require_same_exposure(packet)
        target = self._landing / DONE / packet.exposure.night.ut_name / packet.file_name
        row = self._journal.row(key)
        facts = _facts(packet, target, size)
        make_directory(target.parent.parent)
        make_directory(target.parent)
        if row is None:
            _move(path, target)
            self._journal.add_exposure(
                packet.exposure, [packet.ccd], stage=Stage.LANDED, facts=facts
            )
            what = What.LANDED
        elif _is_repetition(row, packet):
            _move(path, target)
            return Event(What.REPEATED, str(key), "the same packet was there already", key)
        else:
            # before the move, so that after a crash it is calibrated anew in any case
            self._journal.return_to(key, Stage.LANDED)
            _move(path, target)
            self._journal.advance(key, Stage.LANDED, **facts, **_NOT_CALIBRATED)
            what = What.REPLACED
        self._forgive(path.name)
        return Event(what, str(key), "", key)

    def _require_same_exposure(self, packet: Packet) -> None:
        told = packet.exposure
        known = self._journal.exposure(told.camera, told.number)
        if known and abs((known.start - told.start).total_seconds()) > _SAME_START_S:
            raise DuplicateError(
                f"{packet.file_name}: exposure {told.number} began at {told.start:%FT%TZ}, but "
                f"one of that number is known from {known.start:%FT%TZ}; find out at the "
                "telescope which one is right"
            )

    def _reject(self, path: Path, error: PrepipeError) -> Event:
        target = self._landing / REJECTED / _harmless(path.name)
        make_directory(target.parent)
        _move(path, target)
        with atomic_write(target.with_name(target.name + REASON_SUFFIX)) as stream:
            stream.write(f"{error}\n".encode("utf-8", "backslashreplace"))
        found = target.lstat()
        reason = str(error).encode("utf-8", "backslashreplace").decode()
        self._journal.remember_file(target, found.st_size, found.st_mtime_ns, reason)
        self._doubts.pop(path.name, None)
        return Event(What.REJECTED, target.name, reason)

    def _readmit(self) -> Iterator[Event]:
        """Put rejected packets back that the journal does not hold in quarantine any more."""
        rejected = self._landing / REJECTED
        make_directory(rejected)
        names = [name for name in _names(rejected) if not name.endswith(REASON_SUFFIX)]
        held = {file.path for file in self._journal.quarantined_files()} if names else set()
        for name in names:
            path = rejected / name
            if str(path) not in held and not os.path.lexists(self._landing / name):
                _move(path, self._landing / name)
                _remove(rejected / (name + REASON_SUFFIX))
                yield Event(What.READMITTED, name, "released: it is looked at again")

    def _forgive(self, name: str) -> None:
        """Drop a damaged packet once a good one of its name has come."""
        damaged = self._landing / REJECTED / name
        if os.path.lexists(damaged):
            _remove(damaged)
            _remove(damaged.with_name(name + REASON_SUFFIX))
            self._journal.forget_file(damaged)


_NOT_CALIBRATED: dict[str, Any] = {
    "calibrated_at": None,
    "grade": None,
    "reasons": None,
    "reduction": None,
}


def _read(path: Path) -> Packet:
    """A verified packet that can also be filed; whatever it holds, it raises nothing unforeseen."""
    try:
        packet = verify(path)
        if packet.codec == RESIDUAL:
            raise PacketError(
                f"{path}: is a residual, which belongs into {ARCHIVE}/; `prepipe restore` makes "
                "the original of it"
            )
        _ = packet.exposure.night.ut_name, packet.exposure.start.timestamp()
    except PrepipeError:
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise PacketError(f"{path}: cannot be made sense of ({told}); send it again") from error
    if packet.exposure.start.tzinfo is None:
        raise PacketError(f"{path}: its start has no time zone; pack it again")
    return packet


def _facts(packet: Packet, target: Path, size: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "packet": str(target),
        "packet_bytes": size,
        "codec": packet.codec,
        "checksum": packet.payload_checksum,
    }
    found_at = packet.parameters.get("found_at")
    if isinstance(found_at, int | float):
        facts["found_at"] = float(found_at)
    return facts


def _is_repetition(row: CcdRow, packet: Packet) -> bool:
    """Whether a packet brings nothing new; one that was missing is news until it is calibrated."""
    if row.checksum != packet.payload_checksum:
        return False
    return row.stage is Stage.CALIBRATED or Path(row.packet).exists()


def _require_packet_file(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise PacketError(f"{path.name!r} is no plain file; packets are")
    parse_name(path.name)


def _names(directory: Path) -> list[str]:
    """Names of all in a directory that is no directory itself, and not under way."""
    with storage_errors(directory), os.scandir(directory) as entries:
        return [
            entry.name
            for entry in entries
            if not _is_passed_over(entry.name) and not entry.is_dir(follow_symlinks=False)
        ]


def _is_passed_over(name: str) -> bool:
    hidden = name.startswith(".") and not name.startswith("..")
    return hidden or name.endswith(PARTIAL_SUFFIX)


def _harmless(name: str) -> str:
    """A name that is neither hidden, nor an option, nor trouble on a terminal."""
    return re.sub(r"^[.-]|[^A-Za-z0-9_.+-]", "_", name)[:200]


def _move(path: Path, target: Path) -> None:
    if path == target:
        return
    with storage_errors(target):
        if os.path.lexists(target) and os.path.samestat(path.lstat(), target.lstat()):
            path.unlink()  # two names of one file: a rename between them would do nothing
        else:
            path.replace(target)
        sync_directory(target.parent)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
