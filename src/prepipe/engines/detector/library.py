"""The library of masters: their files, what is known of each, and which a CCD may take.

The files are what there is: one without a row (made before there were rows, or copied here)
counts as good, and a row without its file says nothing. Choosing only reads, so that a library
may lie where nothing can be written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prepipe.codec.fits_bytes import FitsFile, HduSpan
from prepipe.config import Calibration
from prepipe.engines.base import ChosenMasters
from prepipe.engines.names import MasterName, find_masters, master_name, masters_near
from prepipe.engines.products import Card, read_master, write_master
from prepipe.errors import ConfigError, InputError, StorageError
from prepipe.files import atomic_path
from prepipe.model import Exposure, Kind, Mark, Night
from prepipe.store.masters import MasterRow, MasterRows, first_mark

__all__ = ["CHOICES", "DATABASE", "LibraryMaster", "MasterLibrary", "first_sound"]

DATABASE = "masters.db"
"""The table's file, in the root of the library."""

CHOICES = 4
"""Masters of each kind that an order names: the next one stands in for a damaged one."""

HELD_CARD = "HELD"
"""Card that keeps a held master held should its row be lost."""


@dataclass(frozen=True)
class LibraryMaster:
    """A master as it lies in the library.

    Parameters
    ----------
    name : MasterName
    row : MasterRow
        What is known of it; made up for one that has none.
    recorded : bool
        Whether there is a row.
    shape : tuple of int
        (rows, columns), by its header; empty if that cannot be read.
    frames : int or None
        Frames combined.
    noise : float or None
        Typical standard error of a pixel.
    """

    name: MasterName
    row: MasterRow
    recorded: bool
    shape: tuple[int, ...]
    frames: int | None
    noise: float | None

    @property
    def path(self) -> Path:
        """Its file."""
        return self.name.path


class MasterLibrary:
    """The masters below a directory.

    Parameters
    ----------
    root : Path
        It need not be there yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.table = MasterRows(root / DATABASE)

    def choose(self, exposure: Exposure, ccd: int, settings: Calibration) -> ChosenMasters:
        """The good and valid masters for a CCD, nearest in time first, a few of each kind.

        Raises
        ------
        StorageError
            If the library, or what is known of it, cannot be read.
        """
        known = self.table.rows(ccd)

        def paths(kind: Kind) -> tuple[Path, ...]:
            found = self._good(
                known, kind, ccd, exposure.band, exposure.night, settings.master_days
            )
            return tuple(master.path for master in islice(found, CHOICES))

        return ChosenMasters(paths(Kind.ZERO), paths(Kind.DOME_FLAT))

    def good(
        self, kind: Kind, ccd: int, band: str, night: Night, days: int
    ) -> Iterator[LibraryMaster]:
        """Good masters that are valid on a night, in the order of `names.masters_near`.

        Those whose header cannot be read are passed over; the pixels may still be damaged.

        Parameters
        ----------
        kind : Kind
        ccd : int
        band : str
            As observed; ignored for a bias.
        night : Night
        days : int
            Masters further away are not taken.

        Yields
        ------
        LibraryMaster

        Raises
        ------
        StorageError
            If the library, or what is known of it, cannot be read.
        """
        yield from self._good(self.table.rows(ccd), kind, ccd, band, night, days)

    def _good(
        self,
        known: Sequence[MasterRow],
        kind: Kind,
        ccd: int,
        band: str,
        night: Night,
        days: int,
    ) -> Iterator[LibraryMaster]:
        for name in masters_near(self.root, ccd, night, days):
            if not name.fits(kind, band):
                continue
            master = self._master(name, known)
            if master.shape and master.row.mark is Mark.GOOD and master.row.valid_on(night):
                yield master

    def masters(self, wanted: Callable[[MasterName], bool] | None = None) -> list[LibraryMaster]:
        """All masters, or those whose names are wanted, by night, CCD and name.

        Raises
        ------
        StorageError
            If the library, or what is known of it, cannot be read.
        """
        by_path: dict[str, list[MasterRow]] = {}
        for row in self.table.rows():
            by_path.setdefault(row.path, []).append(row)
        return [
            self._master(name, by_path.get(self._relative(name.path), ()))
            for name in find_masters(self.root)
            if wanted is None or wanted(name)
        ]

    def without_file(self) -> list[str]:
        """Paths of which there are rows but no file."""
        paths = dict.fromkeys(row.path for row in self.table.rows())
        return [path for path in paths if not (self.root / path).exists()]

    def held(self) -> list[LibraryMaster]:
        """Masters that wait for a person, by what is remembered."""
        paths = {row.path for row in self.table.rows() if row.mark is Mark.HELD}
        there = [self.root / path for path in sorted(paths) if (self.root / path).is_file()]
        return [master for master in map(self.master, there) if master.row.mark is Mark.HELD]

    def master(self, path: Path) -> LibraryMaster:
        """One master by its path.

        Raises
        ------
        ConfigError
            If there is no such master in this library.
        """
        name = master_name(path)
        if name is None or not path.is_file():
            raise ConfigError(f"{path} is no master: `prepipe masters list` shows those there are")
        try:
            relative = path.resolve().relative_to(self.root.resolve())
        except ValueError:
            raise ConfigError(
                f"{path} does not lie in {self.root}: name its own directory with --cals"
            ) from None
        name = replace(name, path=self.root / relative)
        return self._master(name, self.table.rows(name.ccd))

    def add(
        self,
        name: MasterName,
        image: NDArray[np.float32],
        noise: float,
        cards: Iterable[Card],
        verdict: MasterRow,
    ) -> MasterRow:
        """Write a new master and its row; whatever happens, neither is taken for another's.

        Parameters
        ----------
        name : MasterName
        image : ndarray of float32, shape (ny, nx)
        noise : float
            Typical standard error of a pixel.
        cards : iterable of (keyword, value, comment)
        verdict : MasterRow
            What is to be remembered; path and fingerprint are filled in.

        Returns
        -------
        MasterRow
            As it stands: a mark that a person gave the same master before holds.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        told = list(cards)
        if verdict.mark is Mark.HELD:
            told.append((HELD_CARD, verdict.why, "why it was not used at first"))
        with atomic_path(name.path) as partial:
            write_master(partial, image, noise, told)
            fingerprint = _Header.of(partial).fingerprint
            # First the row, then the name: a file is never found without what is known of it.
            row = replace(verdict, path=self._relative(name.path), fingerprint=fingerprint)
            return self.table.record(row)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _master(self, name: MasterName, known: Iterable[MasterRow]) -> LibraryMaster:
        header = _Header.of(name.path)
        path = self._relative(name.path)
        same_path = [row for row in known if row.path == path]
        found = [row for row in same_path if row.fingerprint == header.fingerprint]
        row = found[0] if found else _adopted(name, path, header, same_path)
        return LibraryMaster(name, row, bool(found), header.shape, header.frames, header.noise)


def first_sound(
    masters: Iterable[LibraryMaster], shape: tuple[int, ...]
) -> tuple[LibraryMaster, NDArray[np.float32]] | None:
    """The first master of a shape whose pixels can be read, and these; None if there is none.

    Parameters
    ----------
    masters : iterable of LibraryMaster
    shape : tuple of int
        Of the trimmed CCD, (rows, columns).
    """
    for master in masters:
        if master.shape != shape:
            continue
        try:
            return master, read_master(master.path)[0]
        except (InputError, StorageError, OSError):
            continue
    return None


def _adopted(
    name: MasterName, path: str, header: _Header, others: Sequence[MasterRow]
) -> MasterRow:
    """What is taken for granted of a master that has no row."""
    mark = Mark.HELD if header.held else Mark.GOOD
    row = MasterRow(
        *(path, header.fingerprint, name.kind, name.ccd, name.band, name.night),
        mark=mark,
        why=header.held,
    )
    return first_mark(row, others)


@dataclass(frozen=True)
class _Header:
    """What the header of a master tells; nothing if it cannot be read."""

    fingerprint: str = ""
    shape: tuple[int, ...] = ()
    frames: int | None = None
    noise: float | None = None
    held: str = ""

    @classmethod
    def of(cls, path: Path) -> _Header:
        try:
            with FitsFile(path) as file:
                return cls._read(file.span_at(1, file.span_at(0, 0).end))
        except (InputError, StorageError, OSError):
            return cls()

    @classmethod
    def _read(cls, span: HduSpan) -> _Header:
        frames, noise = span.value("NCOMBINE"), span.value("NOISE")
        return cls(
            fingerprint=str(span.value("DATASUM") or "").strip(),
            shape=span.image_shape,
            frames=frames if isinstance(frames, int) else None,
            noise=float(noise) if isinstance(noise, int | float) else None,
            held=str(span.value(HELD_CARD) or "").strip(),
        )
