"""From anybody's tables to the rows of a store: which columns, in which units, which stars."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import xxhash
from astropy import units
from astropy_healpix import HEALPix
from numpy.typing import NDArray

from prepipe.calibrate.sky.columns import BANDS, COLOUR_PAIRS, GAIA_G
from prepipe.calibrate.sky.refcat import Columns, build_catalogue, recognise_columns
from prepipe.engines.references.manifest import POSITION_ERROR, Input
from prepipe.engines.references.store import directions
from prepipe.engines.references.tables import Source, Table, column_units, read_batches, readable
from prepipe.errors import ConfigError

__all__ = [
    "BASE_ORDER",
    "FINEST_ORDER",
    "NO_IDENTIFIER",
    "Filters",
    "Kept",
    "RowStream",
    "Rows",
]

BASE_ORDER = 5
"""HEALPix order of usual partitions, 1.8 deg wide, and of the spills."""

FINEST_ORDER = 8
"""Of the finest, 0.23 deg wide: 3 million stars a square degree are 160 000 in one."""

NO_IDENTIFIER = np.iinfo(np.int64).min

IDENTIFIERS = "source_id sourceid source objid id star_id object_id"
"""Usual names of a star's number in lower case, best first: Gaia archive, VizieR, SDSS and PS1."""

BRIGHTEST = "brightest magnitude"
"""Stands for the magnitude while rows are read: a star in any band is a star."""

HATS_PIXEL = re.compile(r"Norder=(\d{1,2})/Dir=\d+/Npix=(\d+)")

Rows = NDArray[np.void]
"""Structured: pixel (of `FINEST_ORDER`), identifier, ra, dec, position_error, and the rest."""


@dataclass(frozen=True)
class Filters:
    """Which stars a store keeps.

    Parameters
    ----------
    max_mag : float, optional
        Those at most this faint in any band.
    cone : tuple of float, optional
        Those within RA, Dec and radius, deg.
    """

    max_mag: float | None = None
    cone: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.cone is not None:
            _, dec, radius = self.cone
            if not (-90.0 <= dec <= 90.0 and 0.0 < radius <= 180.0):
                raise ConfigError("a cone is RA, Dec within 90 and a radius up to 180, in degrees")
        if any(not math.isfinite(x) for x in (*(self.cone or ()), self.max_mag or 0.0)):
            raise ConfigError("the magnitude limit and the cone must be finite numbers")


@dataclass(frozen=True)
class Kept:
    """Columns that a table gives to a store.

    Parameters
    ----------
    columns : Columns
        Position, motion and epoch; its bands are all of `photometry`.
    magnitudes : tuple of str
    photometry : tuple of str
        Those, their errors and colours.
    identifier : str or None
    """

    columns: Columns
    magnitudes: tuple[str, ...]
    photometry: tuple[str, ...]
    identifier: str | None

    @classmethod
    def of(cls, names: Mapping[str, str | None], mapping: Mapping[str, str]) -> Kept:
        """Recognise the columns of a table.

        Raises
        ------
        ConfigError
            If RA, Dec or every magnitude is missing, or the mapping names what is not there.
        """
        found = [recognise_columns(names, mapping, band) for band in (None, *BANDS)]
        gaia = (*GAIA_G, *(name for pair in COLOUR_PAIRS for name in pair))
        lower = {name.lower(): name for name in reversed(list(names))}
        bands = [name for columns in found for name in (columns.mag, *columns.bands)]
        bands += [n for name in gaia for n in (name, lower.get(name)) if n is not None]
        magnitudes = tuple(name for name in dict.fromkeys(bands) if name in names)
        errors = [
            recognise_columns(names, {**mapping, "mag": name}).mag_error for name in magnitudes
        ]
        extra = dict.fromkeys([*errors, *found[0].colour])
        photometry = (*magnitudes, *(n for n in extra if n and n not in magnitudes))
        identifier = next((lower[n] for n in IDENTIFIERS.split() if n in lower), None)
        columns = replace(
            found[0], mag=BRIGHTEST, mag_error=None, colour=(), bands=photometry, in_band=True
        )
        return cls(columns, magnitudes, photometry, identifier)

    @property
    def motions(self) -> bool:
        """Whether there are proper motions."""
        return self.columns.pm_ra is not None and self.columns.pm_dec is not None

    @property
    def needed(self) -> list[str]:
        """Columns of numbers to be read."""
        return [name for name in self.columns.names if name != BRIGHTEST]

    @property
    def dtype(self) -> np.dtype[np.void]:
        """Type of a row of the store while it is built."""
        fields = [("pixel", "i4"), ("identifier", "i8"), ("ra", "f8"), ("dec", "f8")]
        narrow = [POSITION_ERROR, *(("pm_ra", "pm_dec") if self.motions else ()), *self.photometry]
        return np.dtype(fields + [(name, "f4") for name in narrow])


@dataclass
class RowStream:
    """The rows of all inputs, and what became known of them on the way.

    Parameters
    ----------
    sources : sequence of Source
    mapping : Mapping
        Columns that are not recognised, as for `recognise_columns`.
    filters : Filters
    advance : callable, optional
        Called with the name of each file that was read.
    """

    sources: Sequence[Source]
    mapping: Mapping[str, str]
    filters: Filters
    advance: Callable[[str], None] | None = None
    kept: Kept | None = None
    epoch_year: float = math.nan
    inputs: list[Input] = field(default_factory=list)
    _healpix: HEALPix = field(default_factory=lambda: HEALPix(2**FINEST_ORDER, order="nested"))

    def __iter__(self) -> Iterator[Rows]:
        """Batches of rows by rising pixel.

        Raises
        ------
        ConfigError
            If a table is unreadable, or differs in its columns from the others.
        """
        for source in self.sources:
            rows = 0
            for path in source.files:
                if self._beyond(path):
                    continue
                kept = self._columns_of(path, source)
                for table in read_batches(path, kept.needed, kept.identifier):
                    rows += len(table[kept.columns.ra])
                    with readable(path):
                        batch = self._standard(table, kept)
                    if len(batch):
                        yield batch
                if self.advance is not None:
                    self.advance(path.name)
            self.inputs.append(
                Input(
                    path=str(source.path.absolute()),
                    files=len(source.files),
                    rows=rows,
                    promised_rows=source.promised_rows,
                )
            )

    def _beyond(self, path: Path) -> bool:
        """Whether a file's name in a HATS catalogue tells that it lies outside the cone."""
        named = HATS_PIXEL.search(path.as_posix())
        if self.filters.cone is None or named is None:
            return False
        order, pixel = int(named[1]), int(named[2])
        if pixel >= 12 * 4**order:
            return False
        healpix = HEALPix(2**order, order="nested")
        centre = np.array([angle.deg for angle in healpix.healpix_to_lonlat([pixel])]).T
        corners = np.array([angle.deg[0] for angle in healpix.boundaries_lonlat([pixel], 1)]).T
        ra, dec, radius = self.filters.cone
        reach = 1.1 * _separation(corners, centre).max()  # its edges are no great circles
        return bool(_separation(centre, np.array([[ra, dec]]))[0] > radius + reach)

    def _columns_of(self, path: Path, source: Source) -> Kept:
        names = column_units(path)
        with readable(path):
            kept = Kept.of(names, {**source.columns, **self.mapping})
            _refuse_ambiguous(kept.columns, source)
            if self.kept is None:
                self.kept = kept
            if kept.dtype != self.kept.dtype:
                ours, theirs = set(kept.dtype.names or ()), set(self.kept.dtype.names or ())
                odd = ", ".join(sorted(ours ^ theirs))
                raise ConfigError(
                    f"it differs from the tables before it in {odd}: make a store of each"
                )
        return kept

    def _standard(self, table: Table, kept: Kept) -> Rows:
        """Rows of a table that are to be kept, in the units of the store."""
        brightest = _brightest([table[name] for name in kept.magnitudes])
        good = np.isfinite(brightest)
        for name in (kept.columns.ra, kept.columns.dec):
            good &= np.isfinite(_floats(table[name]))
        if self.filters.max_mag is not None:
            good &= brightest <= self.filters.max_mag
        rows = np.flatnonzero(good)
        if len(rows) == 0:
            return np.empty(0, kept.dtype)
        values = {name: table[name][rows] for name in kept.needed}
        stars = build_catalogue({**values, BRIGHTEST: brightest[rows]}, kept.columns)
        if math.isnan(self.epoch_year):
            self.epoch_year = stars.epoch_year
        if stars.epoch_year != self.epoch_year:
            stars = stars.at_epoch(self.epoch_year)
        batch = np.empty(len(stars), kept.dtype)
        batch["identifier"] = _identifiers(table, kept.identifier)[rows]
        batch["ra"], batch["dec"] = stars.ra, stars.dec
        batch[POSITION_ERROR] = stars.position_error_mas
        if kept.motions:
            batch["pm_ra"], batch["pm_dec"] = stars.pm_ra, stars.pm_dec
        for name in kept.photometry:
            batch[name] = stars.bands[name]
        return self._by_pixel(batch)

    def _by_pixel(self, batch: Rows) -> Rows:
        """Rows within the cone, by the pixel they lie in."""
        if self.filters.cone is not None:
            ra, dec, radius = self.filters.cone
            away = directions(batch["ra"], batch["dec"]) - directions(ra, dec)
            chord = 2.0 * math.sin(math.radians(radius) / 2.0)
            batch = batch[np.square(away).sum(axis=1) <= chord**2]
        lon, lat = batch["ra"] * units.deg, batch["dec"] * units.deg
        batch["pixel"] = self._healpix.lonlat_to_healpix(lon, lat)
        return batch[np.argsort(batch["pixel"], kind="stable")]


def _separation(some: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles (deg) between RA, Dec pairs, shape (n, 2)."""
    step = directions(some[:, 0], some[:, 1]) - directions(others[:, 0], others[:, 1])
    chord = np.linalg.norm(step, axis=1)
    angle: NDArray[np.float64] = 2.0 * np.degrees(np.arcsin(np.minimum(0.5 * chord, 1.0)))
    return angle


def _refuse_ambiguous(columns: Columns, source: Source) -> None:
    """A unit cannot be guessed batch by batch; HATS is always in degrees."""
    silent = not (columns.units.get(columns.ra) or "").strip()
    if columns.ra.lower() == "coord_ra" and silent and "ra" not in source.columns:
        raise ConfigError(
            f"the column {columns.ra} states no unit, radians or degrees: rename it to ra if "
            "it is in degrees, or state its unit"
        )


def _floats(values: NDArray[np.generic]) -> NDArray[np.float64]:
    if values.dtype.kind not in "fiub" or values.ndim != 1:
        raise ConfigError("a column of positions or magnitudes holds no plain numbers")
    return values.astype(np.float64)


def _brightest(magnitudes: Sequence[NDArray[np.generic]]) -> NDArray[np.float64]:
    """Smallest magnitude of each star; NaN for -999, 99 and the like in every band."""
    least = np.full(len(magnitudes[0]), np.nan)
    for values in map(_floats, magnitudes):
        least = np.fmin(least, np.where((values > -30.0) & (values < 50.0), values, np.nan))
    return least


def _identifiers(table: Table, name: str | None) -> NDArray[np.int64]:
    """Numbers of the stars; of strings a hash."""
    if name is None:
        return np.full(len(next(iter(table.values()))), NO_IDENTIFIER)
    values = table[name]
    if values.dtype.kind == "f":  # integers with nulls among them
        return np.where(np.isfinite(values), values, NO_IDENTIFIER).astype(np.int64)
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    hashes = (
        NO_IDENTIFIER if value is None else xxhash.xxh3_64_intdigest(str(value).encode()) - 2**63
        for value in values
    )
    return np.fromiter(hashes, np.int64, len(values))
