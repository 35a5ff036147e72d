"""`Camera`: what the rest of the house may ask of an instrument."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
from astropy.io.fits import Header
from numpy.typing import NDArray

from prepipe.errors import HeaderError
from prepipe.model import Ccd, Exposure, Layout, Location

__all__ = [
    "Camera",
    "ColourTerms",
    "band_name",
    "card",
    "exposure_number",
    "exposure_time",
    "number",
    "parse_utc",
]

LARGEST_NUMBER = 2**63
"""Exposure numbers are kept in 64 bits, by FITS as by the journals."""

LONGEST_EXPOSURE_S = 1e6

YEARS = range(1980, 2080)
"""The years of CCDs, as two digits of a night's name tell them."""

LONGEST_NAME = 64
"""Characters of a band or field that file names bear."""


@dataclass(frozen=True)
class ColourTerms:
    """How Gaia's G differs from a band, for stars of some colours.

    Parameters
    ----------
    coefficients : tuple of float
        c_i of ``G - m = sum(c_i (BP - RP)^i)``; G, BP and RP in the Vega system.
    bluest, reddest : float
        BP - RP of the stars it was found with.
    """

    coefficients: tuple[float, ...]
    bluest: float
    reddest: float

    def difference(self, colour: NDArray[np.float64]) -> NDArray[np.float64]:
        """``G - m`` of stars by their BP - RP; NaN beyond the colours it was found with."""
        valid = (colour >= self.bluest) & (colour <= self.reddest)
        difference = np.polynomial.polynomial.polyval(colour, self.coefficients)
        return np.where(valid, difference, np.nan)


class Camera(Protocol):
    """One instrument: its header cards, sections and nominal astrometry.

    Headers handed in are those of the extension merged with the primary's.
    """

    name: str
    pixel_scale: float
    """arcsec / pixel"""

    needs_masters: bool
    """Whether its raw frames are still without bias and flat."""

    edge_columns: int
    """Columns beside the overscan that glow and tell nothing of the sky."""

    location: Location | None
    """Where its telescope stands; None if not known."""

    def __hash__(self) -> int:
        """Cameras are told apart, so that what was found with one can be remembered."""
        ...

    def exposure(self, header: Header) -> Exposure:
        """Read what was observed, and when.

        Raises
        ------
        HeaderError
            If a card that is needed is missing or makes no sense.
        """
        ...

    def ccd(self, header: Header) -> Ccd | None:
        """Tell which detector an extension holds; None for focus and guide chips.

        Raises
        ------
        HeaderError
            If the extension does not say.
        """
        ...

    def layout(self, header: Header, pixels: NDArray[Any]) -> Layout:
        """Find the amplifiers in a raw frame, from its own section cards.

        Raises
        ------
        HeaderError
            If the sections are missing, malformed or outside the frame.
        """
        ...

    def wcs_header(self, header: Header, layout: Layout) -> Header:
        """Nominal WCS of the trimmed CCD.

        Raises
        ------
        HeaderError
            If the header holds no celestial WCS.
        """
        ...

    def dead_amplifiers(self, ccd: int, start: datetime) -> tuple[str, ...]:
        """Names of the amplifiers known to give nothing at that time."""
        ...

    def clear_sky_zero_point(self, band: str) -> float | None:
        """Magnitude of 1 e-/s through a clear sky at the zenith; None if not known."""
        ...

    def gaia_colour_terms(self, band: str) -> ColourTerms | None:
        """How Gaia's G differs from a band; None if not known."""
        ...

    def focal_plane(self) -> dict[int, tuple[float, float, float, float]]:
        """Where each CCD lies, for pictures: left, bottom, width, height in pixels."""
        ...


def card(header: Header, keyword: str) -> Any:
    """Value of a card that must be there.

    Raises
    ------
    HeaderError
    """
    value = header.get(keyword)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise HeaderError(f"card {keyword} is missing from the header: is this a raw exposure?")
    return value


def number(header: Header, keyword: str, default: float | None = None) -> float:
    """Value of a card as a finite number.

    Raises
    ------
    HeaderError
        If it is missing without a `default`, is no number, or is not finite.
    """
    value = header.get(keyword, default) if default is not None else card(header, keyword)
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise HeaderError(f"card {keyword} says {value!r}, which is not a finite number")
    return result


def exposure_number(header: Header, keyword: str) -> int:
    """Value of a card as the number of an exposure.

    Raises
    ------
    HeaderError
        If it is missing, or no whole number from 0 to what 64 bits hold.
    """
    value = number(header, keyword)
    if not 0 <= value < LARGEST_NUMBER or value != int(value):
        raise HeaderError(f"card {keyword} says {value:g}, which is no exposure number")
    # A float holds but 53 bits: the card itself, where it is an integer.
    told = header.get(keyword)
    return told if isinstance(told, int) else int(value)


def exposure_time(header: Header, keyword: str) -> float:
    """Value of a card as an exposure time, s; 0 for frames without light.

    Raises
    ------
    HeaderError
        If it is missing, negative, or longer than any exposure.
    """
    value = number(header, keyword)
    if not 0.0 <= value <= LONGEST_EXPOSURE_S:
        raise HeaderError(f"card {keyword} says {value:g}, which is no exposure time in seconds")
    return value


def band_name(text: str) -> str:
    """The first word of a filter's name, as far as a file name can bear it."""
    return text.strip().split(" ")[0][:LONGEST_NAME]


def parse_utc(text: str) -> datetime:
    """Read an ISO date and time as UTC.

    Raises
    ------
    HeaderError
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise HeaderError(f"{text!r} is not a date and time like 2020-03-06T00:04:15") from None
    if moment.year not in YEARS:
        raise HeaderError(f"{text!r} is no date of a CCD exposure, {YEARS[0]} to {YEARS[-1]}")
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
