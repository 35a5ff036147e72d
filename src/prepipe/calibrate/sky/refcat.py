"""Reference stars: positions, proper motions and magnitudes to calibrate against.

A catalogue comes as a table in anybody's spelling. `recognise_columns` says which column
is what, `build_catalogue` makes it a `ReferenceCatalogue` in degrees, mas and magnitudes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from astropy import units
from numpy.typing import ArrayLike, NDArray

from prepipe.calibrate.sky.columns import Columns, recognise_columns
from prepipe.errors import ConfigError

__all__ = [
    "Columns",
    "ReferenceCatalogue",
    "ReferenceSource",
    "ReferenceStars",
    "build_catalogue",
    "recognise_columns",
]

Array = NDArray[np.float64]

UNIT_SPELLINGS = {
    "degrees": "deg",
    "degree": "deg",
    "radian": "rad",
    "radians": "rad",
    "h": "hourangle",
    "hr": "hourangle",
    "hour": "hourangle",
    "hours": "hourangle",
    "arcseconds": "arcsec",
}

UNKNOWN_POSITION_ERROR_MAS = 50.0
"""For catalogues that state none; SDSS has 45 mas a coordinate (Pier et al. 2003, AJ 125, 1559)."""

UNKNOWN_MOTION_MAS_YR = 7.0
"""One-dimensional scatter (1.48 MAD) of the motions of Gaia DR2 stars fainter than 19 mag
around RA 150, Dec 2 deg."""

AB_MINUS_VEGA = {
    "phot_g_mean_abmag": 25.7934 - 25.6884,
    "phot_bp_mean_abmag": 25.3806 - 25.3514,
    "phot_rp_mean_abmag": 25.1161 - 24.7619,
}
"""Columns, in lower case, with Gaia DR2 magnitudes in the AB system, and by how much these exceed
Gaia's own, of Vega: difference of the zero points (Evans et al. 2018, A&A 616, A4)."""

GAIA_EPOCH = 2016.0
"""Epoch of Gaia DR3, taken where a catalogue has proper motions but no epoch."""


@dataclass(frozen=True, eq=False)
class ReferenceStars:
    """What the astrometry needs of a catalogue.

    Parameters
    ----------
    ra, dec : ndarray of float64, shape (n,)
        deg.
    mag : ndarray of float64, shape (n,)
    position_error_mas : ndarray of float64, shape (n,)
        One-dimensional.
    """

    ra: Array
    dec: Array
    mag: Array
    position_error_mas: Array

    def __len__(self) -> int:
        return len(self.ra)


@dataclass(frozen=True, eq=False)
class ReferenceCatalogue(ReferenceStars):
    """Reference stars with all that is known of them.

    Parameters
    ----------
    ra, dec, mag, position_error_mas : ndarray
        As in `ReferenceStars`; positions at `epoch_year`.
    mag_error : ndarray, shape (n,)
        mag; 0 where unknown.
    pm_ra, pm_dec : ndarray, shape (n,)
        mas/yr, `pm_ra` with cos Dec; NaN where unknown.
    epoch_year : float
        Julian year; NaN for a catalogue that states neither it nor proper motions.
    band : str
        Column that `mag` came from.
    in_band : bool
        Whether that is the band asked for; if not, a zero point means little.
    colour : ndarray or None
        mag; NaN where unknown.
    colour_name : str
        Columns that `colour` came from.
    bands : dict of ndarray
        Magnitudes in the other bands of the table, by column.
    gaia : bool
        Whether `mag` is Gaia's G and `colour` its BP - RP, both of Vega.
    """

    mag_error: Array
    pm_ra: Array
    pm_dec: Array
    epoch_year: float
    band: str = ""
    in_band: bool = True
    colour: Array | None = None
    colour_name: str = ""
    bands: Mapping[str, Array] = field(default_factory=dict)
    gaia: bool = False

    def take(self, rows: NDArray[np.int64]) -> ReferenceCatalogue:
        """The stars of these rows, in their order."""
        return replace(
            self,
            ra=self.ra[rows],
            dec=self.dec[rows],
            mag=self.mag[rows],
            position_error_mas=self.position_error_mas[rows],
            mag_error=self.mag_error[rows],
            pm_ra=self.pm_ra[rows],
            pm_dec=self.pm_dec[rows],
            colour=None if self.colour is None else self.colour[rows],
            bands={name: values[rows] for name, values in self.bands.items()},
        )

    def at_epoch(self, year: float) -> ReferenceCatalogue:
        """The catalogue with its stars moved to another epoch.

        Parameters
        ----------
        year : float
            Julian year of the exposure.

        Returns
        -------
        ReferenceCatalogue
            Stars of unknown motion stay, with a larger position error; all of them stay
            as they are if the catalogue has no epoch.
        """
        years = year - self.epoch_year
        if math.isnan(years) or years == 0.0:
            return replace(self, epoch_year=year)
        ra, dec = _moved(self.ra, self.dec, self.pm_ra, self.pm_dec, years)
        unknown = np.isnan(self.pm_ra) | np.isnan(self.pm_dec)
        wander = np.where(unknown, UNKNOWN_MOTION_MAS_YR * years, 0.0)
        error = np.hypot(self.position_error_mas, wander)
        return replace(self, ra=ra, dec=dec, position_error_mas=error, epoch_year=year)

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
            By rising declination. The first call sorts the catalogue, the others are quick.
        """
        order, sorted_dec, directions = self._by_declination
        low, high = np.searchsorted(sorted_dec, [dec - radius_deg, dec + radius_deg], side="right")
        # A star just on the lower edge has the same right to be inside as any other.
        low = max(0, int(low) - 1)
        chord = 2.0 * math.sin(math.radians(min(radius_deg, 180.0)) / 2.0)
        step = directions[low:high] - _directions(ra, dec)
        away = np.einsum("ij,ij->i", step, step)
        # The chord of 0.01 mas, so that a radius of 0 finds the star at this very place.
        return self.take(order[low:high][away <= chord**2 + 5e-11**2])

    @cached_property
    def _by_declination(self) -> tuple[NDArray[np.int64], Array, Array]:
        """Order by declination, the declinations and the unit vectors in it."""
        order = np.argsort(self.dec, kind="stable")
        return order, self.dec[order], _directions(self.ra[order], self.dec[order])


class ReferenceSource(Protocol):
    """Where reference stars come from: a catalogue in memory, or a store on disk."""

    @property
    def band(self) -> str:
        """Column that magnitudes come from."""

    def __len__(self) -> int: ...

    def near(self, ra: float, dec: float, radius_deg: float) -> ReferenceCatalogue:
        """The stars within a cone, all in deg; by rising declination."""


def build_catalogue(table: Mapping[str, ArrayLike], columns: Columns) -> ReferenceCatalogue:
    """Make a catalogue of a table; rows without position or magnitude are dropped.

    Parameters
    ----------
    table : Mapping of array_like
        The columns that ``columns.names`` lists.
    columns : Columns
        From `recognise_columns`.

    Returns
    -------
    ReferenceCatalogue
        RA in [0, 360); an epoch that differs from row to row is brought to its median.
        Gaia magnitudes of the AB system become those of Vega.

    Raises
    ------
    ConfigError
        If a column holds no numbers, has a unit that makes no sense, or no row is good.
    """
    values = {name: _numbers(table[name], name) for name in columns.names}
    count = len(values[columns.ra])

    def column(name: str | None, default: float, target: str | None, unit: str) -> Array:
        if name is None:
            return np.full(count, default)
        return values[name] * (
            _factor(columns.units.get(name), name, target, unit) if target else 1
        )

    radian = _in_radians(columns, values)
    angle = "rad" if radian else "deg"
    ra = column(columns.ra, math.nan, "deg", angle) % 360.0
    dec = column(columns.dec, math.nan, "deg", angle)
    if np.nanmax(np.abs(dec), initial=0.0) > 90.0:
        raise ConfigError(f"the column {columns.dec} exceeds 90 degrees: state its unit or map dec")
    mag = _vega(values, columns.mag)
    pm_unit = "rad / yr" if radian else "mas / yr"
    pm_ra = column(columns.pm_ra, math.nan, "mas / yr", pm_unit)
    pm_dec = column(columns.pm_dec, math.nan, "mas / yr", pm_unit)
    # The habit of LSST's catalogues for a star whose motion nobody has measured.
    unmeasured = (pm_ra == 0.0) & (pm_dec == 0.0)
    pm_ra, pm_dec = np.where(unmeasured, math.nan, pm_ra), np.where(unmeasured, math.nan, pm_dec)
    ra, dec, epoch = _one_epoch(columns, values, (ra, dec, pm_ra, pm_dec))
    error_unit = "rad" if radian else "mas"
    errors = [
        column(name, UNKNOWN_POSITION_ERROR_MAS, "mas", error_unit if name else "mas")
        for name in (columns.ra_error, columns.dec_error)
    ]
    position_error = np.sqrt(0.5 * (np.square(errors[0]) + np.square(errors[1])))
    sides = [_vega(values, name) for name in columns.colour]
    colour = sides[0] - sides[1] if len(sides) == 2 else next(iter(sides), None)
    catalogue = ReferenceCatalogue(
        ra=ra,
        dec=dec,
        mag=mag,
        position_error_mas=np.where(position_error > 0, position_error, UNKNOWN_POSITION_ERROR_MAS),
        mag_error=np.nan_to_num(column(columns.mag_error, 0.0, None, "")),
        pm_ra=pm_ra,
        pm_dec=pm_dec,
        epoch_year=epoch,
        band=columns.mag,
        in_band=columns.in_band,
        colour=colour,
        colour_name=" - ".join(columns.colour),
        bands={name: _magnitudes(values[name]) for name in columns.bands},
        gaia=columns.gaia,
    )
    good = np.isfinite(ra) & np.isfinite(dec) & np.isfinite(mag)
    if not good.any():
        raise ConfigError("no row of the catalogue has both a position and a magnitude")
    return catalogue if good.all() else catalogue.take(np.flatnonzero(good))


def _numbers(values: ArrayLike, name: str) -> Array:
    """Column as native float64, what is masked as NaN."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.ndim != 1:
        raise ConfigError(f"the column {name} of the catalogue holds no plain numbers")
    return np.where(np.ma.getmaskarray(np.ma.asarray(values)), np.nan, array.astype(np.float64))


def _magnitudes(values: Array) -> Array:
    """Magnitudes with NaN for the -999, 99 and infinity that stand for nothing measured."""
    return np.where((values > -30.0) & (values < 50.0), values, np.nan)


def _vega(values: Mapping[str, Array], name: str) -> Array:
    """Magnitudes of a column; Gaia's in the Vega system, for which its relations are."""
    return _magnitudes(values[name]) - AB_MINUS_VEGA.get(name.lower(), 0.0)


def _factor(stated: str | None, name: str, target: str, default: str) -> float:
    """What brings a column to the target unit."""
    text = (stated or "").strip() or default
    try:
        unit = units.Unit(UNIT_SPELLINGS.get(text.lower(), text))
        return float(unit.to(target))
    except (ValueError, TypeError, units.UnitConversionError):
        raise ConfigError(
            f"the column {name} has the unit {text!r}, which is not understood as {target}"
        ) from None


def _in_radians(columns: Columns, values: Mapping[str, Array]) -> bool:
    """Whether a table is in radians without saying so: the habit of LSST's coord_ra."""
    if columns.ra.lower() != "coord_ra" or (columns.units.get(columns.ra) or "").strip():
        return False
    ra, dec = np.abs(values[columns.ra]), np.abs(values[columns.dec])
    return bool(np.nanmax(ra, initial=0.0) <= 2 * math.pi and np.nanmax(dec, initial=0.0) < 1.5708)


def _one_epoch(
    columns: Columns, values: Mapping[str, Array], stars: tuple[Array, Array, Array, Array]
) -> tuple[Array, Array, float]:
    """RA, Dec and the Julian year they are for."""
    ra, dec, pm_ra, pm_dec = stars
    if columns.epoch is None:
        return ra, dec, math.nan if columns.pm_ra is None else GAIA_EPOCH
    if not isinstance(columns.epoch, str):
        return ra, dec, columns.epoch
    years = values[columns.epoch]
    # Epochs come as Julian years, MJD or JD; their ranges do not overlap.
    years = np.where(years > 2.3e6, years - 2400000.5, years)
    years = np.where(years > 10000.0, 2000.0 + (years - 51544.5) / 365.25, years)
    median = float(np.nanmedian(years)) if np.isfinite(years).any() else GAIA_EPOCH
    lag = np.nan_to_num(median - years)
    if np.any(lag != 0.0):
        ra, dec = _moved(ra, dec, pm_ra, pm_dec, lag)
    return ra, dec, median


def _directions(ra: ArrayLike, dec: ArrayLike) -> Array:
    """Unit vectors of sky positions (deg), shape (..., 3)."""
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


def _moved(
    ra: Array, dec: Array, pm_ra: Array, pm_dec: Array, years: float | Array
) -> tuple[Array, Array]:
    """Positions after `years` of uniform motion on the sky; along the tangent, so poles are safe.

    ESA 1997, The Hipparcos Catalogue (SP-1200), vol. 1, 1.5.5, without radial motion.
    """
    a, d = np.radians(ra), np.radians(dec)
    sin_a, cos_a, sin_d, cos_d = np.sin(a), np.cos(a), np.sin(d), np.cos(d)
    per_radian = years / 3.6e6 * math.pi / 180.0
    east, north = np.nan_to_num(pm_ra) * per_radian, np.nan_to_num(pm_dec) * per_radian
    # along the meridian, from the axis
    outward = cos_d - north * sin_d
    x, y = outward * cos_a - east * sin_a, outward * sin_a + east * cos_a
    height = sin_d + north * cos_d
    new_ra = np.degrees(np.arctan2(y, x)) % 360.0
    return new_ra, np.degrees(np.arctan2(height, np.hypot(x, y)))
