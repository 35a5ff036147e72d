"""One exposure before the shutter opens: all that is drawn or computed about it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from prepipe.errors import ConfigError
from prepipe.model import Kind, Night
from prepipe.simulate.pointing import (
    LATITUDE_DEG,
    horizontal,
    modified_julian_date,
    sidereal_deg,
)
from prepipe.simulate.settings import BANDS, PIXEL_SCALE_ARCSEC, Settings

__all__ = ["EDGE_RADIUS_PX", "Observation", "plan"]

EDGE_RADIUS_PX = 15000.0
"""From the optical axis to the edge of the field, 1.1 degrees."""

LOWEST_ZENITH_DISTANCE = 75.0
SEEING_SCATTER = 0.04


@dataclass(frozen=True)
class Observation:
    """What is true of one exposure.

    Parameters
    ----------
    number : int
        EXPNUM.
    kind : Kind
    band, field : str
    exposure_s : float
    start : datetime
        UTC.
    ra, dec : float
        Pointing in the header, degrees.
    true_ra, true_dec : float
        Pointing in fact, degrees.
    rotation_deg : float
        Of the field about the true pointing.
    hour_angle_deg, zenith_distance_deg, azimuth_deg : float
    seeing_arcsec : float
        FWHM at the centre of the field.
    ellipticity : float
        Of a star at the edge of the field.
    zero_point : float
        AB magnitude of a source of 1 e-/s, at this airmass.
    sky_mag : float
        mag/arcsec^2.
    """

    number: int
    kind: Kind
    band: str
    field: str
    exposure_s: float
    start: datetime
    ra: float
    dec: float
    true_ra: float
    true_dec: float
    rotation_deg: float
    hour_angle_deg: float
    zenith_distance_deg: float
    azimuth_deg: float
    seeing_arcsec: float
    ellipticity: float
    zero_point: float
    sky_mag: float

    @property
    def file_name(self) -> str:
        """``DECam_00941421.fits.fz``, as the telescope names it."""
        return f"DECam_{self.number:08d}.fits.fz"

    @property
    def night(self) -> Night:
        """The observing night."""
        return Night.of(self.start)

    @property
    def mjd(self) -> float:
        """Modified Julian date of the start."""
        return modified_julian_date(self.start)

    @property
    def year(self) -> float:
        """Julian year of the start."""
        return 2000.0 + (self.mjd - 51544.5) / 365.25

    @property
    def airmass(self) -> float:
        """Secant of the zenith distance."""
        return float(1.0 / np.cos(np.radians(self.zenith_distance_deg)))

    @property
    def sky_e(self) -> float:
        """Sky in one pixel, e-."""
        return self.electrons(self.sky_mag) * PIXEL_SCALE_ARCSEC**2

    def electrons(self, magnitude: float) -> float:
        """Photo-electrons of a source of an AB magnitude, before the response of the detector."""
        return float(10 ** (0.4 * (self.zero_point - magnitude)) * self.exposure_s)

    def seeing_px(self, radius_px: NDArray[np.float64]) -> NDArray[np.float64]:
        """FWHM at distances from the optical axis, pixels: 5 % more at the edge of the field."""
        growth = 1.0 + 0.05 * (radius_px / EDGE_RADIUS_PX) ** 2
        return growth * (self.seeing_arcsec / PIXEL_SCALE_ARCSEC)

    def shape_at(
        self, x_px: NDArray[np.float64], y_px: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ellipticity components (e1, e2) at offsets from the optical axis, growing outwards."""
        scale = self.ellipticity / EDGE_RADIUS_PX
        return 0.02 + scale * x_px, scale * y_px


def plan(settings: Settings, index: int) -> Observation:
    """Draw the errors and work out the circumstances of exposure `index` (from 0).

    Raises
    ------
    ConfigError
        If the field is too low in the sky at that time.
    """
    rng = np.random.default_rng([settings.seed, 0x0B5E, settings.first_number + index])
    start = settings.first_start + timedelta(seconds=index * settings.interval_s)
    settings = _pointed(settings, start)
    hour_angle, zenith_distance, azimuth = horizontal(settings.ra, settings.dec, start)
    if zenith_distance > LOWEST_ZENITH_DISTANCE:
        raise ConfigError(
            f"simulate: at {start:%Y-%m-%d %H:%M} UTC the field (ra {settings.ra:.2f}, "
            f"dec {settings.dec:.2f}) stands {zenith_distance:.0f} degrees from the zenith of "
            "CTIO; choose another start or field."
        )
    error = rng.uniform(0.0, settings.pointing_error_arcsec) / 3600.0
    direction = rng.uniform(0.0, 2 * np.pi)
    band = BANDS[settings.band]
    airmass = float(1.0 / np.cos(np.radians(zenith_distance)))
    return Observation(
        number=settings.first_number + index,
        kind=settings.kind,
        band=settings.band,
        field=settings.field,
        exposure_s=settings.exposure_s,
        start=start,
        ra=settings.ra,
        dec=settings.dec,
        true_ra=settings.ra + error * float(np.sin(direction) / np.cos(np.radians(settings.dec))),
        true_dec=settings.dec + error * float(np.cos(direction)),
        rotation_deg=rng.uniform(-settings.rotation_deg, settings.rotation_deg),
        hour_angle_deg=hour_angle,
        zenith_distance_deg=zenith_distance,
        azimuth_deg=azimuth,
        seeing_arcsec=settings.seeing_arcsec
        * float(np.exp(SEEING_SCATTER * rng.standard_normal())),
        ellipticity=rng.uniform(0.0, 0.06),
        zero_point=band.zero_point - band.extinction * (airmass - 1.0),
        sky_mag=band.sky_mag if settings.sky_mag is None else settings.sky_mag,
    )


def _pointed(settings: Settings, start: datetime) -> Settings:
    """For zeros and flats the telescope rests at the zenith."""
    if settings.kind is Kind.OBJECT:
        return replace(settings, ra=settings.ra % 360.0)
    return replace(
        settings,
        ra=sidereal_deg(start),
        dec=LATITUDE_DEG,
        exposure_s=0.0 if settings.kind is Kind.ZERO else settings.exposure_s,
        field="zero" if settings.kind is Kind.ZERO else f"{settings.band} flat",
        pointing_error_arcsec=0.0,
        rotation_deg=0.0,
    )
