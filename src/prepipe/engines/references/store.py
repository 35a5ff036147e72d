"""A reference catalogue of any size on disk, of which a CCD reads only its own sky.

A store is a directory of Parquet files, one a HEALPix pixel of the sky (nested, finer where
stars are dense, laid out and named as in HATS), and a manifest that says what they hold.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from pyarrow import parquet

from prepipe.calibrate.sky.refcat import (
    Columns,
    ReferenceCatalogue,
    build_catalogue,
    recognise_columns,
)
from prepipe.engines.references.manifest import (
    ASTROMETRIC,
    POSITION_ERROR,
    Manifest,
    partition_path,
    whole_manifest,
)
from prepipe.errors import ConfigError
from prepipe.files import storage_errors

__all__ = ["ReferenceStore", "directions", "open_store"]

Array = NDArray[np.float64]

CACHED_ROWS = 1_000_000
"""Stars kept in memory by a process, 140 bytes each: a DECam field of 300 000 a square degree."""

SLACK_DEG = 1e-6
"""Added to the radius of a partition, for rounding."""


def open_store(
    root: Path, band: str | None = None, columns: Mapping[str, str] | None = None
) -> ReferenceStore:
    """Open a store; its stars are read when they are asked for.

    Parameters
    ----------
    root : Path
    band : str, optional
        Of the exposure; its magnitudes are preferred.
    columns : Mapping, optional
        Columns of magnitudes and colours, as for `recognise_columns`; positions and
        motions were settled when the store was built.

    Returns
    -------
    ReferenceStore

    Raises
    ------
    ConfigError
        If it is no store, a partition is missing or cut short, or it has no magnitudes.
    """
    root = Path(root).absolute()
    manifest = whole_manifest(root)
    motions = () if manifest.motions is None else ("pm_ra", "pm_dec")
    names = dict.fromkeys(("ra", "dec", *motions, *manifest.columns))
    settled = {*ASTROMETRIC, "ra_error", "dec_error", "epoch"}
    asked = {what: name for what, name in (columns or {}).items() if what not in settled}
    try:
        found = recognise_columns(names, manifest.named | asked, band)
    except ConfigError as error:
        raise ConfigError(f"the reference catalogue {root}: {error}") from None
    if manifest.columns[found.mag] == 0:
        raise ConfigError(f"the reference catalogue {root}: no star has a magnitude {found.mag}")
    return ReferenceStore(root, manifest, _settled(found, manifest.epoch_year))


def directions(ra: ArrayLike, dec: ArrayLike) -> Array:
    """Unit vectors of sky positions (deg), shape (..., 3)."""
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


@dataclass(frozen=True, eq=False)
class ReferenceStore:
    """Reference stars on disk; partitions that were read stay in memory for a while.

    Parameters
    ----------
    root : Path
    manifest : Manifest
    columns : Columns
        Which of its columns is what.
    """

    root: Path
    manifest: Manifest
    columns: Columns

    @property
    def band(self) -> str:
        """Column that magnitudes come from."""
        return self.columns.mag

    @property
    def in_band(self) -> bool:
        """Whether that is the band asked for."""
        return self.columns.in_band

    def __len__(self) -> int:
        return self.manifest.rows

    def near(self, ra: float, dec: float, radius_deg: float) -> ReferenceCatalogue:
        """The stars within a cone.

        Parameters
        ----------
        ra, dec : float
            deg.
        radius_deg : float
            deg.

        Returns
        -------
        ReferenceCatalogue
            By rising declination, at the epoch of the store.

        Raises
        ------
        ConfigError
            If a partition is missing or damaged.
        StorageError
            If the disk does not answer.
        """
        centres, radii = self._circles
        chords = np.linalg.norm(centres - directions(ra, dec), axis=1)
        away = 2.0 * np.degrees(np.arcsin(np.minimum(0.5 * chords, 1.0)))
        touched = np.flatnonzero(away <= radii + radius_deg + SLACK_DEG)
        found = [self._partition(int(i)).near(ra, dec, radius_deg) for i in touched]
        found = [stars for stars in found if len(stars)]
        if not found:
            return self._no_stars()
        return found[0] if len(found) == 1 else _joined(found)

    @cached_property
    def _circles(self) -> tuple[Array, Array]:
        """Unit vectors, shape (n, 3), and radii (deg) of the partitions."""
        partitions = self.manifest.partitions
        return directions(partitions.ra, partitions.dec).reshape(-1, 3), np.array(partitions.radius)

    @cached_property
    def _key(self) -> tuple[object, ...]:
        """What tells its partitions from those of other stores and bands."""
        return (self.root, self.manifest.created, *self.columns.names, self.columns.in_band)

    def _partition(self, index: int) -> ReferenceCatalogue:
        key = (*self._key, index)
        stars = _recent.get(key)
        if stars is None:
            stars = self._read(index)
            _recent.put(key, stars)
        return stars

    def _read(self, index: int) -> ReferenceCatalogue:
        partitions = self.manifest.partitions
        path = self.root / partition_path(partitions.order[index], partitions.pixel[index])
        names = self.columns.names
        try:
            with storage_errors(path):
                data = path.read_bytes()
            table = parquet.ParquetFile(
                pa.BufferReader(data), page_checksum_verification=True
            ).read(columns=names, use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"{path} is damaged ({reason}): build the store again") from error
        if table.num_rows != partitions.rows[index]:
            raise ConfigError(f"{path} is not of the store that was opened: was it built anew?")
        values = {name: table.column(name).to_numpy() for name in names}
        if not np.isfinite(values[self.columns.mag]).any():
            return self._no_stars()
        return build_catalogue(values, self.columns)

    def _no_stars(self) -> ReferenceCatalogue:
        none = np.empty(0)
        year = self.manifest.epoch_year
        return ReferenceCatalogue(
            *(none,) * 7,
            epoch_year=math.nan if year is None else year,
            band=self.columns.mag,
            in_band=self.columns.in_band,
            colour=none if self.columns.colour else None,
            colour_name=" - ".join(self.columns.colour),
            bands=dict.fromkeys(self.columns.bands, none),
            gaia=self.columns.gaia,
        )


class _Recent:
    """The partitions read last, up to a number of stars."""

    def __init__(self, rows: int) -> None:
        self._most = rows
        self._rows = 0
        self._kept: OrderedDict[tuple[object, ...], ReferenceCatalogue] = OrderedDict()

    def get(self, key: tuple[object, ...]) -> ReferenceCatalogue | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: tuple[object, ...], stars: ReferenceCatalogue) -> None:
        self._kept[key] = stars
        self._rows += len(stars)
        while self._rows > self._most and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._rows -= len(oldest)

    def clear(self) -> None:
        self._kept.clear()
        self._rows = 0


_recent = _Recent(CACHED_ROWS)


def _settled(columns: Columns, epoch_year: float | None) -> Columns:
    """The columns with all that a store has decided once."""
    return replace(
        columns,
        ra_error=POSITION_ERROR,
        dec_error=POSITION_ERROR,
        epoch=epoch_year,
        units=ASTROMETRIC,
    )


def _joined(parts: Sequence[ReferenceCatalogue]) -> ReferenceCatalogue:
    """Stars of several partitions, by rising declination."""
    first = parts[0]
    colours = [part.colour for part in parts if part.colour is not None]
    stars = replace(
        first,
        ra=np.concatenate([part.ra for part in parts]),
        dec=np.concatenate([part.dec for part in parts]),
        mag=np.concatenate([part.mag for part in parts]),
        position_error_mas=np.concatenate([part.position_error_mas for part in parts]),
        mag_error=np.concatenate([part.mag_error for part in parts]),
        pm_ra=np.concatenate([part.pm_ra for part in parts]),
        pm_dec=np.concatenate([part.pm_dec for part in parts]),
        colour=np.concatenate(colours) if colours else None,
        bands={name: np.concatenate([part.bands[name] for part in parts]) for name in first.bands},
    )
    return stars.take(np.argsort(stars.dec, kind="stable"))
