"""The sky: a star field generated from a seed, or read from a catalogue."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from prepipe.cameras.base import ColourTerms
from prepipe.errors import InputError
from prepipe.files import atomic_write

__all__ = ["StarField"]

Floats = NDArray[np.float64]

CATALOGUE_LIMIT = 21.0
FAINT_LIMIT = 23.5
MISSING_SHARE = 0.02
GALAXIES_PER_DEG2 = 2000.0

# Stars brighter than G, per square degree: 8000 at the limit of Gaia, as at a galactic latitude
# of some 30 degrees; the slope flattens from 0.4 to 0.15 dex/mag as in Gaia's own counts.
COUNT_MAGS = np.array([7.0, 9.0, 11.0, 13.0, 15.0, 17.0, 19.0, 21.0, 23.5])
COUNTS = np.array([0.8, 6.0, 35.0, 170.0, 600.0, 1700.0, 4000.0, 8000.0, 16000.0])

# The colours for which the relations of Gaia to other systems were made.
COLOUR_RANGE = (0.2, 2.75)

# Vega to AB in Gaia DR2: difference of the zero points of Evans et al. 2018 (A&A 616, A4).
AB_MINUS_VEGA = {"g": 0.105, "bp": 0.029, "rp": 0.354}


@dataclass(frozen=True, eq=False)
class StarField:
    """Stars and a few galaxies; every array has one element a source.

    Parameters
    ----------
    number : NDArray[np.int64]
        Identifier.
    ra, dec : NDArray[np.float64]
        ICRS at `epoch`, degrees.
    pmra, pmdec : NDArray[np.float64]
        Proper motion, mas/yr; pmra includes cos(dec).
    g_mag, bp_mag, rp_mag : NDArray[np.float64]
        Gaia magnitudes, Vega.
    size_arcsec : NDArray[np.float64]
        Own FWHM; 0 for a star.
    listed : NDArray[np.bool_]
        Whether the reference catalogue has it.
    epoch : float
        Julian year of the positions.
    """

    number: NDArray[np.int64]
    ra: Floats
    dec: Floats
    pmra: Floats
    pmdec: Floats
    g_mag: Floats
    bp_mag: Floats
    rp_mag: Floats
    size_arcsec: Floats
    listed: NDArray[np.bool_]
    epoch: float = 2016.0

    def __len__(self) -> int:
        return len(self.number)

    @classmethod
    def generate(
        cls,
        ra: float,
        dec: float,
        radius_deg: float = 1.25,
        seed: int = 1,
        crowding: float = 1.0,
        galaxies_per_deg2: float = GALAXIES_PER_DEG2,
    ) -> StarField:
        """Draw a field of stars down to G = 23.5 and some galaxies around a position.

        Parameters
        ----------
        ra, dec : float
            Centre, degrees.
        radius_deg : float
            Of the disc that is filled.
        seed : int
            The same seed gives the same field.
        crowding : float
            Stars, in units of those at a galactic latitude of some 30 degrees (8000 a square
            degree brighter than G = 21); 20 is a field in the bulge.
        galaxies_per_deg2 : float
            Galaxies a square degree.
        """
        rng = np.random.default_rng([seed, 0x57A2])
        area = np.pi * radius_deg**2
        stars = _draw_stars(rng, ra, dec, radius_deg, area * crowding, brighter=0.0)
        galaxies = _draw_galaxies(rng, ra, dec, radius_deg, area * galaxies_per_deg2)
        return stars.joined(galaxies)

    @classmethod
    def load(cls, path: Path, seed: int = 1) -> StarField:
        """Read a Gaia-like FITS table.

        Parameters
        ----------
        path : Path
            A table with columns ``ra``, ``dec`` (degrees) and ``phot_g_mean_mag``
            (Vega) or ``phot_g_mean_abmag`` (AB); also ``pmra``, ``pmdec``
            (mas/yr), the same for ``bp`` and ``rp``, and ``ref_epoch`` (yr) or
            ``epoch_mjd``, if present.
        seed : int
            Decides which stars `write_reference` leaves out.

        Raises
        ------
        InputError
            If the file is no such table.
        """
        try:
            with fits.open(path) as hdus:
                table = hdus[1].data
                columns = {name.lower(): np.asarray(table[name]) for name in table.names}
            return _from_columns(columns, seed)
        except (OSError, IndexError, AttributeError, KeyError) as error:
            raise InputError(
                f"{path}: not a star catalogue ({error}); "
                "give a FITS table with ra, dec and phot_g_mean_mag."
            ) from error

    def joined(self, other: StarField) -> StarField:
        """Both fields in one; the epochs must agree."""
        arrays = {
            f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)])
            for f in fields(self)
            if f.name not in ("epoch", "number")
        }
        start = int(self.number.max(initial=0)) + 1
        numbers = np.concatenate([self.number, start + np.arange(len(other))])
        return StarField(number=numbers, epoch=self.epoch, **arrays)

    def with_faint_sources(
        self, ra: float, dec: float, radius_deg: float = 1.25, seed: int = 1
    ) -> StarField:
        """The field with stars beyond the catalogue's limit and some galaxies added."""
        rng = np.random.default_rng([seed, 0xFA17])
        area = np.pi * radius_deg**2
        faint = _draw_stars(rng, ra, dec, radius_deg, area, brighter=CATALOGUE_LIMIT)
        galaxies = _draw_galaxies(rng, ra, dec, radius_deg, area * GALAXIES_PER_DEG2)
        return self.joined(faint).joined(galaxies)

    def chosen(self, index: NDArray[Any]) -> StarField:
        """The sources that `index` (a mask or positions) selects."""
        arrays = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "epoch"}
        return replace(self, **arrays)

    def positions(self, year: float) -> tuple[Floats, Floats]:
        """Right ascension and declination at a Julian year, degrees.

        Proper motion is applied linearly; parallax is not simulated.
        """
        degrees = (year - self.epoch) / 3.6e6
        dec = self.dec + self.pmdec * degrees
        ra = self.ra + self.pmra * degrees / np.cos(np.radians(self.dec))
        return ra % 360.0, dec

    def magnitudes(self, colour_terms: ColourTerms) -> Floats:
        """AB magnitudes in a band; beyond the relation's colours along its tangent.

        A cubic would make the reddest dwarfs brighter again, or fainter by magnitudes.
        """
        colour = self.bp_mag - self.rp_mag
        relation = np.polynomial.Polynomial(colour_terms.coefficients)
        nearest = np.clip(colour, colour_terms.bluest, colour_terms.reddest)
        difference = relation(nearest) + relation.deriv()(nearest) * (colour - nearest)
        magnitudes: Floats = self.g_mag - difference
        return magnitudes

    def write_reference(self, path: Path) -> None:
        """Write the listed stars as a reference catalogue with Gaia's column names.

        Two per cent of the stars are left out, and all that are fainter than
        G = 21, as a real catalogue does.

        Parameters
        ----------
        path : Path
            A FITS table: source_id, ra, dec [deg], pmra, pmdec [mas/yr],
            phot_g_mean_mag, phot_bp_mean_mag, phot_rp_mean_mag [mag, Vega], ref_epoch [yr].

        Raises
        ------
        StorageError
        """
        stars = self.chosen(self.listed)
        columns = [
            fits.Column("source_id", "K", array=stars.number),
            fits.Column("ra", "D", unit="deg", array=stars.ra),
            fits.Column("dec", "D", unit="deg", array=stars.dec),
            fits.Column("pmra", "E", unit="mas/yr", array=stars.pmra),
            fits.Column("pmdec", "E", unit="mas/yr", array=stars.pmdec),
            fits.Column("phot_g_mean_mag", "E", unit="mag", array=stars.g_mag),
            fits.Column("phot_bp_mean_mag", "E", unit="mag", array=stars.bp_mag),
            fits.Column("phot_rp_mean_mag", "E", unit="mag", array=stars.rp_mag),
            fits.Column("ref_epoch", "D", unit="yr", array=np.full(len(stars), self.epoch)),
        ]
        table = fits.BinTableHDU.from_columns(columns, name="REFERENCE")
        with atomic_write(path) as stream:
            fits.HDUList([fits.PrimaryHDU(), table]).writeto(stream)


def _draw_stars(
    rng: np.random.Generator, ra: float, dec: float, radius: float, area: float, brighter: float
) -> StarField:
    low, high = np.interp([brighter, FAINT_LIMIT], COUNT_MAGS, np.log(COUNTS), left=-50.0)
    count = rng.poisson(area * (np.exp(high) - np.exp(low)))
    share = rng.uniform(np.exp(low), np.exp(high), count)
    g_mag = np.interp(np.log(share), np.log(COUNTS), COUNT_MAGS)
    star_ra, star_dec = _scatter(rng, ra, dec, radius, count)
    # Two populations, turn-off stars and red dwarfs; the fainter, the more of the latter.
    red = rng.random(count) < np.clip(0.15 + 0.08 * (g_mag - 14.0), 0.1, 0.75)
    spread = rng.standard_normal(count)
    colour = np.clip(np.where(red, 2.1 + 0.35 * spread, 0.85 + 0.15 * spread), *COLOUR_RANGE)
    speed = 5.0 * np.exp(0.8 * rng.standard_normal(count))
    angle = rng.uniform(0, 2 * np.pi, count)
    listed = (g_mag < CATALOGUE_LIMIT) & (rng.random(count) > MISSING_SHARE)
    rp_mag = g_mag - _g_minus_rp(colour)
    return StarField(
        number=np.arange(1, count + 1),
        ra=star_ra,
        dec=star_dec,
        pmra=speed * np.cos(angle),
        pmdec=speed * np.sin(angle),
        g_mag=g_mag,
        bp_mag=rp_mag + colour,
        rp_mag=rp_mag,
        size_arcsec=np.zeros(count),
        listed=listed,
    )


def _draw_galaxies(
    rng: np.random.Generator, ra: float, dec: float, radius: float, expected: float
) -> StarField:
    count = rng.poisson(expected)
    # Galaxy counts rise as 10^(0.4 m), towards G = 23.
    g_mag = 23.0 + np.log10(rng.uniform(10 ** (0.4 * -6.0), 1.0, count)) / 0.4
    galaxy_ra, galaxy_dec = _scatter(rng, ra, dec, radius, count)
    colour = np.clip(1.2 + 0.3 * rng.standard_normal(count), 0.3, 2.5)
    size = 0.9 * np.exp(0.4 * rng.standard_normal(count)) * 10 ** (-0.1 * (g_mag - 22.0))
    rp_mag = g_mag - _g_minus_rp(colour)
    return StarField(
        number=np.arange(1, count + 1),
        ra=galaxy_ra,
        dec=galaxy_dec,
        pmra=np.zeros(count),
        pmdec=np.zeros(count),
        g_mag=g_mag,
        bp_mag=rp_mag + colour,
        rp_mag=rp_mag,
        size_arcsec=size,
        listed=np.zeros(count, dtype=np.bool_),
    )


def _g_minus_rp(colour: Floats) -> Floats:
    """G - RP along the stellar locus, by eye through Gaia DR2: 0.45 at BP-RP = 0.8, 0.98 at 2."""
    return 0.62 * colour - 0.065 * colour**2


def _scatter(
    rng: np.random.Generator, ra: float, dec: float, radius: float, count: int
) -> tuple[Floats, Floats]:
    """Positions that fill a disc on the sky evenly (equal areas of the spherical cap)."""
    cos_distance = rng.uniform(np.cos(np.radians(radius)), 1.0, count)
    angle = rng.uniform(0, 2 * np.pi, count)
    sin_distance = np.sqrt(1.0 - cos_distance**2)
    a, d = np.radians(ra), np.radians(dec)
    north, east = sin_distance * np.cos(angle), sin_distance * np.sin(angle)
    z = cos_distance * np.sin(d) + north * np.cos(d)
    towards = cos_distance * np.cos(d) - north * np.sin(d)
    x = towards * np.cos(a) - east * np.sin(a)
    y = towards * np.sin(a) + east * np.cos(a)
    return np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arcsin(z))


def _from_columns(columns: dict[str, NDArray[Any]], seed: int) -> StarField:
    g_mag = _gaia_mag(columns, "g")
    if g_mag is None:
        raise KeyError("phot_g_mean_mag")
    count = len(g_mag)
    bp_mag, rp_mag = _gaia_mag(columns, "bp"), _gaia_mag(columns, "rp")
    typical = np.ones(count)
    colour = typical if bp_mag is None or rp_mag is None else bp_mag - rp_mag
    colour = np.clip(np.where(np.isfinite(colour), colour, typical), *COLOUR_RANGE)
    rp_mag = g_mag - _g_minus_rp(colour)
    seen = np.isfinite(g_mag)
    listed = np.random.default_rng([seed, 0x1157]).random(count) > MISSING_SHARE
    field = StarField(
        number=np.arange(1, count + 1),
        ra=columns["ra"].astype(np.float64),
        dec=columns["dec"].astype(np.float64),
        pmra=np.nan_to_num(columns.get("pmra", np.zeros(count)).astype(np.float64)),
        pmdec=np.nan_to_num(columns.get("pmdec", np.zeros(count)).astype(np.float64)),
        g_mag=g_mag,
        bp_mag=rp_mag + colour,
        rp_mag=rp_mag,
        size_arcsec=np.zeros(count),
        listed=listed,
        epoch=_epoch(columns),
    )
    return field.chosen(seen)


def _epoch(columns: dict[str, NDArray[Any]]) -> float:
    if "ref_epoch" in columns:
        return float(np.median(columns["ref_epoch"]))
    if "epoch_mjd" in columns:
        return 2000.0 + (float(np.median(columns["epoch_mjd"])) - 51544.5) / 365.25
    return 2016.0


def _gaia_mag(columns: dict[str, NDArray[Any]], band: str) -> Floats | None:
    vega = columns.get(f"phot_{band}_mean_mag")
    if vega is None and (ab := columns.get(f"phot_{band}_mean_abmag")) is not None:
        vega = ab.astype(np.float64) - AB_MINUS_VEGA[band]
    if vega is None:
        return None
    return np.where(np.isfinite(vega), vega, np.nan).astype(np.float64)
