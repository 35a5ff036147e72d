"""Where the telescope really points: spherical geometry of an exposure."""

from __future__ import annotations

from datetime import datetime

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "apparent_positions",
    "degrees_text",
    "horizontal",
    "hours_text",
    "modified_julian_date",
    "sidereal_deg",
    "unit_vectors",
]

Floats = NDArray[np.float64]

LATITUDE_DEG = -30.16606
EAST_LONGITUDE_DEG = -70.81489
"""CTIO Blanco telescope, from its headers (whose OBS-LONG counts positive to the west)."""


def unit_vectors(ra: Floats, dec: Floats) -> Floats:
    """Directions on the unit sphere, shape (n, 3), from degrees."""
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


def apparent_positions(
    ra: Floats,
    dec: Floats,
    believed: tuple[float, float],
    true: tuple[float, float],
    rotation_deg: float,
) -> tuple[Floats, Floats]:
    """Where the header's WCS, which is wrong, would place stars that the telescope sees.

    A pointing error is a rotation of the whole sphere. For a gnomonic WCS it is
    the same as moving CRVAL to the true pointing and turning the field about it.

    Parameters
    ----------
    ra, dec : NDArray[np.float64]
        True positions, degrees.
    believed, true : tuple of float
        Pointing in the header and in fact, degrees.
    rotation_deg : float
        By how much the field appears turned about the pointing, from north to east.

    Returns
    -------
    tuple of NDArray[np.float64]
        Right ascension and declination, degrees.
    """
    turn = np.radians(rotation_deg)
    twist = np.array([[1, 0, 0], [0, np.cos(turn), np.sin(turn)], [0, -np.sin(turn), np.cos(turn)]])
    rotation = _frame(*believed).T @ twist @ _frame(*true)
    vectors = unit_vectors(ra, dec) @ rotation.T
    new_ra = np.degrees(np.arctan2(vectors[:, 1], vectors[:, 0])) % 360.0
    return new_ra, np.degrees(np.arcsin(np.clip(vectors[:, 2], -1, 1)))


def modified_julian_date(when: datetime) -> float:
    """MJD of a UTC time."""
    elapsed = when.replace(tzinfo=None) - datetime(1858, 11, 17)
    return elapsed.total_seconds() / 86400.0


def sidereal_deg(when: datetime) -> float:
    """Local mean sidereal time at CTIO, degrees (Meeus 1998, eq. 12.4, without the T^2 terms)."""
    days = modified_julian_date(when) - 51544.5
    greenwich = 280.46061837 + 360.98564736629 * days
    return (greenwich + EAST_LONGITUDE_DEG) % 360.0


def horizontal(ra: float, dec: float, when: datetime) -> tuple[float, float, float]:
    """Hour angle (-180 to 180), zenith distance and azimuth (from north to east), degrees."""
    hour_angle = (sidereal_deg(when) - ra + 180.0) % 360.0 - 180.0
    h, d, phi = np.radians([hour_angle, dec, LATITUDE_DEG])
    up = np.sin(phi) * np.sin(d) + np.cos(phi) * np.cos(d) * np.cos(h)
    north = np.cos(phi) * np.sin(d) - np.sin(phi) * np.cos(d) * np.cos(h)
    east = -np.cos(d) * np.sin(h)
    azimuth = np.degrees(np.arctan2(east, north)) % 360.0
    return hour_angle, float(np.degrees(np.arccos(np.clip(up, -1, 1)))), float(azimuth)


def hours_text(degrees: float) -> str:
    """``HH:MM:SS.sss``, signed if negative."""
    return _sexagesimal(degrees / 15.0)


def degrees_text(degrees: float) -> str:
    """``[-]DD:MM:SS.sss``."""
    return _sexagesimal(degrees)


def _sexagesimal(value: float) -> str:
    thousandths = round(abs(value) * 3_600_000)
    minutes, seconds = divmod(thousandths, 60_000)
    whole, minutes = divmod(minutes, 60)
    sign = "-" if value < 0 else ""
    return f"{sign}{whole:02d}:{minutes:02d}:{seconds / 1000:06.3f}"


def _frame(ra: float, dec: float) -> Floats:
    """Rows: the direction itself, east and north there."""
    a, d = np.radians(ra), np.radians(dec)
    return np.array(
        [
            [np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)],
            [-np.sin(a), np.cos(a), 0.0],
            [-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)],
        ]
    )
