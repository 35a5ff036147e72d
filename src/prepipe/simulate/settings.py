"""What a simulated night is made of: its settings and the bands it can be observed in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from prepipe.cameras.base import ColourTerms
from prepipe.cameras.decam import GAIA_COLOUR_TERMS
from prepipe.errors import ConfigError
from prepipe.model import Kind
from prepipe.simulate.pointing import horizontal
from prepipe.simulate.stars import StarField

__all__ = ["BANDS", "PIXEL_SCALE_ARCSEC", "Band", "Settings"]

PIXEL_SCALE_ARCSEC = 0.2637
"""Size of a DECam pixel at the centre of the field (NOIRLab DECam data handbook)."""


@dataclass(frozen=True)
class Band:
    """A filter, and what the camera sees through it.

    Parameters
    ----------
    card : str
        Value of the FILTER card.
    zero_point : float
        AB magnitude of a source of 1 e-/s at airmass 1.
    sky_mag : float
        Dark sky, mag/arcsec^2.
    extinction : float
        mag/airmass.
    colour_terms : ColourTerms
        How Gaia's G differs from it.

    Notes
    -----
    Zero points, sky and extinction: nominal values of the Legacy Surveys'
    observing bot (obsbot, ``decam.py``). Colour terms: those of the camera.
    """

    card: str
    zero_point: float
    sky_mag: float
    extinction: float
    colour_terms: ColourTerms


BANDS = {
    "g": Band(
        card="g DECam SDSS c0001 4720.0 1520.0",
        zero_point=26.610,
        sky_mag=22.04,
        extinction=0.17,
        colour_terms=GAIA_COLOUR_TERMS["g"],
    ),
    "r": Band(
        card="r DECam SDSS c0002 6415.0 1480.0",
        zero_point=26.818,
        sky_mag=20.91,
        extinction=0.10,
        colour_terms=GAIA_COLOUR_TERMS["r"],
    ),
}


COMFORTABLE_ZENITH_DISTANCE = 60.0
SIDEREAL_GAIN_DEG = 0.98565
"""By how much sidereal time runs ahead in a day."""

_FIRST_NUMBERS = {Kind.ZERO: 941201, Kind.DOME_FLAT: 941301, Kind.OBJECT: 941421}
_FIRST_STARTS = {
    Kind.ZERO: datetime(2020, 3, 5, 20, 0, tzinfo=UTC),
    Kind.DOME_FLAT: datetime(2020, 3, 5, 21, 0, tzinfo=UTC),
    Kind.OBJECT: datetime(2020, 3, 6, 3, 30, tzinfo=UTC),
}


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a simulated night looks like.

    The same settings give the same files, bit for bit.

    Parameters
    ----------
    seed : int
        Of everything that changes from night to night: stars, errors, noise.
    ccds : int or tuple of int or None
        How many science CCDs, from the centre of the field outwards; or their
        numbers; None for all 62.
    kind : Kind
        OBJECT, ZERO or DOME_FLAT.
    band : str
        A key of `BANDS`.
    exposure_s : float
        Open-shutter time, s; a zero has 0 whatever stands here.
    seeing_arcsec : float
        Typical FWHM at the centre of the field; each exposure differs by some 4 %.
    sky_mag : float or None
        Brightness of the sky, mag/arcsec^2; None for the band's dark sky.
    field : str
        OBJECT card.
    ra, dec : float
        Where the telescope believes to point, degrees.
    pointing_error_arcsec : float
        Each exposure's error is drawn between 0 and this.
    rotation_deg : float
        Each exposure's rotation is drawn within plus or minus this.
    stars : StarField or None
        None for one generated from `seed` around the pointing.
    first_exposure : int or None
        EXPNUM of the first exposure; None for one of the kind's own range.
    start : datetime or None
        Start of the first exposure; naive values are UTC. None for 03:30 UTC of
        the first night from 2020-03-05 on in which the field stands high then;
        for zeros and flats the afternoon before.
    interval_s : float
        From the start of one exposure to that of the next, as the headers say.
    focus_chips : bool
        Whether the eight focus chips are written too.
    crosstalk : float
        Share of a pixel that appears in the other amplifier.
    nonlinearity : float
        A signal of x ADU counts as ``x (1 - nonlinearity x)``; up to 5e-7, with which full
        pixels still count as saturated.
    cosmic_rays_per_minute : float
        On each CCD, read-out included.
    camera_seed : int
        Of everything that belongs to the camera: bias structure, pixel response.
        Zeros, flats and objects must share it.

    Raises
    ------
    ConfigError
        If a value makes no sense.
    """

    seed: int = 1
    ccds: int | tuple[int, ...] | None = None
    kind: Kind = Kind.OBJECT
    band: str = "g"
    exposure_s: float = 20.0
    seeing_arcsec: float = 1.1
    sky_mag: float | None = None
    field: str = "DWF COSMOS field 1"
    ra: float = 150.10
    dec: float = 2.20
    pointing_error_arcsec: float = 60.0
    rotation_deg: float = 0.05
    stars: StarField | None = None
    first_exposure: int | None = None
    start: datetime | None = None
    interval_s: float = 60.0
    focus_chips: bool = False
    crosstalk: float = 0.0
    nonlinearity: float = 0.0
    cosmic_rays_per_minute: float = 30.0
    camera_seed: int = 2012

    def __post_init__(self) -> None:
        _demand(self.seed >= 0, f"seed {self.seed} is negative: give 0 or more")
        known = ", ".join(BANDS)
        _demand(self.band in BANDS, f"band {self.band!r} cannot be simulated: choose of {known}")
        kinds = (Kind.OBJECT, Kind.ZERO, Kind.DOME_FLAT)
        _demand(
            self.kind in kinds, f"kind {self.kind!r} cannot be simulated: choose of {_names(kinds)}"
        )
        _demand(0 <= self.exposure_s <= 3600, f"exposure of {self.exposure_s} s: give 0 to 3600 s")
        _demand(
            0.4 <= self.seeing_arcsec <= 10, f"seeing {self.seeing_arcsec}: give 0.4 to 10 arcsec"
        )
        _demand(-90 <= self.dec <= 90, f"declination {self.dec}: give -90 to 90 degrees")
        _demand(
            0 <= self.pointing_error_arcsec <= 600,
            f"pointing error {self.pointing_error_arcsec}: give 0 to 600 arcsec",
        )
        _demand(0 <= self.rotation_deg <= 5, f"rotation {self.rotation_deg}: give 0 to 5 degrees")
        _demand(
            0 <= self.nonlinearity <= 5e-7,
            f"non-linearity {self.nonlinearity}: give 0 to 5e-7 per ADU",
        )
        _demand(
            0 <= self.cosmic_rays_per_minute <= 1e4,
            f"{self.cosmic_rays_per_minute} cosmic rays a minute: give 0 to 10000",
        )
        _demand(
            0 < self.first_number < 10**8,
            f"exposure number {self.first_exposure}: give 1 to 99999999",
        )

    @property
    def first_number(self) -> int:
        """EXPNUM of the first exposure; zeros, flats and objects of one night do not collide."""
        if self.first_exposure is not None:
            return self.first_exposure
        return _FIRST_NUMBERS.get(self.kind, _FIRST_NUMBERS[Kind.OBJECT])

    @property
    def first_start(self) -> datetime:
        """Start of the first exposure, UTC."""
        start = self.start
        if start is None:
            start = _FIRST_STARTS[self.kind] + timedelta(days=_nights_until_up(self.ra, self.dec))
        return start.astimezone(UTC) if start.tzinfo else start.replace(tzinfo=UTC)

    @property
    def star_field(self) -> StarField:
        """The stars given, or those that the seed generates around the pointing."""
        return self.stars if self.stars is not None else _generated(self.ra, self.dec, self.seed)


def _nights_until_up(ra: float, dec: float) -> int:
    """Nights after the first one until the field is high, or else culminates, at its hour."""
    hour_angle, zenith_distance, _ = horizontal(ra, dec, _FIRST_STARTS[Kind.OBJECT])
    if zenith_distance <= COMFORTABLE_ZENITH_DISTANCE:
        return 0
    return round((-hour_angle % 360.0) / SIDEREAL_GAIN_DEG)


@cache
def _generated(ra: float, dec: float, seed: int) -> StarField:
    return StarField.generate(ra, dec, seed=seed)


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(f"simulate: {message}.")


def _names(kinds: tuple[Kind, ...]) -> str:
    return ", ".join(kind.value for kind in kinds)
