"""A camera described in TOML: for instruments that need nothing special.

Example
-------
::

    name = "sdss"
    pixel_scale = 0.396             # arcsec / pixel
    turn_hour = 14                  # UTC hours above it belong to the night that begins that day
    calibrated = true               # bias and flat were applied before
    edge_columns = 0                # glowing columns beside the overscan

    [site]                          # where the telescope stands: tells day from night
    latitude = 32.7803              # degrees, north positive
    longitude = -105.8203           # degrees, east positive

    [cards]                         # which card says what; a missing line takes the default
    number = "FRAME"                # exposure number
    kind = "FLAVOR"                 # object, zero, dome flat, ...
    ccd = "CAMCOL"
    date = "DATE-OBS"               # date, or date and time
    time = "TAIHMS"                 # time of day, where DATE-OBS is a date only
    exposure_s = "EXPTIME"
    band = "FILTER"
    field = "OBJECT"

    [detector]                      # where the header does not say, or in place of it
    bias_level = 1000.0             # ADU, subtracted where there is no overscan
    gain = 4.7                      # e- / ADU
    read_noise = 5.0                # e-
    saturation = 60000.0            # ADU

    [bands.r]                       # what is different, or known, in one band
    gain = 4.76                     # and the others of [detector]
    clear_sky_zero_point = 26.8     # magnitude of 1 e-/s at the zenith
    gaia_terms = [-0.13, 0.25]      # G - r = sum of c_i (BP - RP)^i, magnitudes of Vega,
    gaia_colours = [0.2, 2.7]       # for stars of these BP - RP
"""

from __future__ import annotations

import math
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

from astropy.io.fits import Header
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prepipe.cameras.base import (
    ColourTerms,
    band_name,
    card,
    exposure_number,
    exposure_time,
    number,
    parse_utc,
)
from prepipe.errors import ConfigError, HeaderError
from prepipe.model import Amplifier, Box, Ccd, Exposure, Kind, Layout, Location, Night

__all__ = ["BandTable", "Cards", "Description", "Detector", "GenericCamera", "SiteTable"]

KINDS = {
    **dict.fromkeys(("zero", "bias", "bias frame"), Kind.ZERO),
    **dict.fromkeys(("flat", "flat field", "dome flat", "domeflat"), Kind.DOME_FLAT),
    **dict.fromkeys(("", "object", "science", "standard", "light", "light frame"), Kind.OBJECT),
    "expose": Kind.OBJECT,
}
"""What cameras write about a frame, in lower case; anything else is `Kind.OTHER`."""


class Cards(BaseModel):
    """Which card of the header says what; an empty name takes the default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: str = "EXPNUM"
    ccd: str = ""
    date: str = "DATE-OBS"
    time: str = ""
    exposure_s: str = "EXPTIME"
    band: str = "FILTER"
    field: str = "OBJECT"
    kind: str = ""
    data_section: str = ""
    overscan_section: str = ""
    gain: str = ""
    read_noise: str = ""
    saturation: str = ""
    bias_level: str = ""


class Detector(BaseModel):
    """Values taken where no card gives them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bias_level: float = 0.0
    gain: float = Field(1.0, gt=0)
    read_noise: float = Field(5.0, ge=0)
    saturation: float = Field(60000.0, gt=0)


class BandTable(BaseModel):
    """What is different, or known, in one band; None leaves it to `Detector`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bias_level: float | None = None
    gain: float | None = Field(None, gt=0)
    read_noise: float | None = Field(None, ge=0)
    saturation: float | None = Field(None, gt=0)
    clear_sky_zero_point: float | None = None
    gaia_terms: tuple[float, ...] = ()
    gaia_colours: tuple[float, float] = (-math.inf, math.inf)


class SiteTable(BaseModel):
    """Where the telescope stands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latitude: float = Field(ge=-90, le=90)
    longitude: float = Field(ge=-180, le=360)


class Description(BaseModel):
    """The whole TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    pixel_scale: float = Field(gt=0)
    turn_hour: int = Field(14, ge=0, le=23)
    calibrated: bool = False
    edge_columns: int = Field(0, ge=0)
    site: SiteTable | None = None
    cards: Cards = Cards()
    detector: Detector = Detector()
    bands: dict[str, BandTable] = {}


class GenericCamera:
    """A camera with one amplifier a CCD, as its description says.

    Parameters
    ----------
    description : Description
    """

    def __init__(self, description: Description) -> None:
        self._description = description
        self.name = description.name
        self.pixel_scale = description.pixel_scale
        self.needs_masters = not description.calibrated
        self.edge_columns = description.edge_columns
        site = description.site
        self.location = None if site is None else Location(site.latitude, site.longitude)

    @classmethod
    def read(cls, path: Path) -> GenericCamera:
        """Read a description.

        Raises
        ------
        ConfigError
            If the file is missing or wrong.
        """
        try:
            return cls(Description.model_validate(tomllib.loads(path.read_text())))
        except OSError as error:
            raise ConfigError(f"camera {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"camera {path} is not valid TOML: {error}") from error
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(str(part) for part in fault["loc"])
            raise ConfigError(f"camera {path}: {where}: {fault['msg']}") from error

    def exposure(self, header: Header) -> Exposure:
        """Read what was observed, and when; see `Camera.exposure`."""
        cards = self._description.cards
        moment = str(card(header, cards.date))
        if cards.time:
            moment = f"{moment.split('T', maxsplit=1)[0]}T{card(header, cards.time)}"
        start = parse_utc(moment)
        kind = KINDS.get(self._text(header, cards.kind).lower(), Kind.OTHER)
        return Exposure(
            camera=self.name,
            number=exposure_number(header, cards.number),
            kind=kind,
            field=self._text(header, cards.field),
            band="" if kind is Kind.ZERO else self._band_of(header),
            start=start,
            exposure_s=exposure_time(header, cards.exposure_s),
            night=Night.of(start, self._description.turn_hour),
        )

    def ccd(self, header: Header) -> Ccd | None:
        """Tell the detector; CCD 1 where there is only one; see `Camera.ccd`."""
        keyword = self._description.cards.ccd
        if not keyword:
            return Ccd(1, str(header.get("EXTNAME", "CCD1")).strip())
        ccd = int(number(header, keyword))
        return Ccd(ccd, f"CCD{ccd}")

    def layout(self, header: Header, pixels: NDArray[Any]) -> Layout:
        """One amplifier; the whole frame where no section is given; see `Camera.layout`."""
        if pixels.ndim != 2:
            raise HeaderError(f"a CCD has two axes, this frame has {pixels.ndim}")
        cards, detector = self._description.cards, self._detector_of(header)
        shape = (pixels.shape[0], pixels.shape[1])
        data = self._section(header, cards.data_section) or Box(0, shape[1], 0, shape[0])
        data = data.clipped(shape)
        if data.empty:
            raise HeaderError(f"card {cards.data_section}: its section lies outside the frame")
        overscan = self._section(header, cards.overscan_section)
        amplifier = Amplifier(
            name="A",
            data=data,
            overscan=None if overscan is None else overscan.clipped(shape),
            trimmed=data.shifted(-data.x0, -data.y0),
            gain=self._value(header, cards.gain, detector.gain),
            read_noise=self._value(header, cards.read_noise, detector.read_noise),
            saturation=self._value(header, cards.saturation, detector.saturation),
        )
        level = self._value(header, cards.bias_level, detector.bias_level)
        return Layout(shape, data.shape, (amplifier,), (data.x0, data.y0), bias_level=level)

    def wcs_header(self, header: Header, layout: Layout) -> Header:
        """Nominal WCS of the trimmed CCD; see `Camera.wcs_header`."""
        trimmed = header.copy()
        trimmed["CRPIX1"] = number(header, "CRPIX1") - layout.origin[0]
        trimmed["CRPIX2"] = number(header, "CRPIX2") - layout.origin[1]
        return trimmed

    def dead_amplifiers(self, ccd: int, start: datetime) -> tuple[str, ...]:
        """None: a description holds no dated table; see `Camera.dead_amplifiers`."""
        return ()

    def clear_sky_zero_point(self, band: str) -> float | None:
        """As described; see `Camera.clear_sky_zero_point`."""
        return self._description.bands.get(band, BandTable()).clear_sky_zero_point

    def gaia_colour_terms(self, band: str) -> ColourTerms | None:
        """As described; see `Camera.gaia_colour_terms`."""
        table = self._description.bands.get(band, BandTable())
        return ColourTerms(table.gaia_terms, *table.gaia_colours) if table.gaia_terms else None

    def focal_plane(self) -> dict[int, tuple[float, float, float, float]]:
        """Not known: pictures lay the CCDs out in a grid; see `Camera.focal_plane`."""
        return {}

    def _band_of(self, header: Header) -> str:
        return band_name(self._text(header, self._description.cards.band))

    def _detector_of(self, header: Header) -> Detector:
        """The detector's values, as they are in the band of this frame."""
        table = self._description.bands.get(self._band_of(header), BandTable())
        known = table.model_dump(include=set(Detector.model_fields), exclude_none=True)
        return self._description.detector.model_copy(update=known)

    @staticmethod
    def _text(header: Header, keyword: str) -> str:
        return str(header.get(keyword, "")).strip() if keyword else ""

    @staticmethod
    def _value(header: Header, keyword: str, default: float) -> float:
        return number(header, keyword, default) if keyword else default

    @staticmethod
    def _section(header: Header, keyword: str) -> Box | None:
        if not keyword:
            return None
        try:
            return Box.from_section(str(card(header, keyword)))
        except ValueError as error:
            raise HeaderError(f"card {keyword}: {error}") from None
