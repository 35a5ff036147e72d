"""The nouns of prepipe: frozen dataclasses without I/O.

Every room speaks of these. A pixel is named by zero-based ``[row, column]``; a
`Box` is half-open, so that its slices cut arrays directly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

__all__ = [
    "Amplifier",
    "Box",
    "Ccd",
    "Colour",
    "Exposure",
    "Grade",
    "Kind",
    "Layout",
    "Location",
    "Mark",
    "Night",
    "Packet",
    "PointingHint",
    "Reduction",
    "Stage",
    "WcsTry",
]


class Kind(StrEnum):
    """What the shutter looked at."""

    OBJECT = "object"
    ZERO = "zero"
    DOME_FLAT = "dome-flat"
    OTHER = "other"


class Mark(StrEnum):
    """Whether a master may be used; one that is held waits for a person to look at it."""

    GOOD = "good"
    BAD = "bad"
    HELD = "held"


class Stage(StrEnum):
    """How far a CCD has come; the order of the members is the way it takes."""

    FOUND = "found"
    PACKED = "packed"
    SENT = "sent"
    LANDED = "landed"
    CALIBRATED = "calibrated"
    QUARANTINED = "quarantined"


class Colour(StrEnum):
    """The grade of a reduced CCD, best first."""

    GREEN = "green"
    YELLOW = "yellow"
    ORANGE = "orange"
    RED = "red"

    @property
    def rank(self) -> int:
        """0 for green to 3 for red."""
        return list(Colour).index(self)


@dataclass(frozen=True, order=True)
class Night:
    """An observing night, named by the local date on which it began.

    It is computed from the exposure's own UTC, never from the clock of the
    machine, so that reprocessing years later gives the same names.
    """

    date: date

    @classmethod
    def of(cls, start: datetime, turn_hour: int = 14) -> Night:
        """Night of an exposure that started at `start` (UTC).

        Parameters
        ----------
        start : datetime
            Start of the exposure; naive values are taken as UTC.
        turn_hour : int
            UTC hours above this one belong to the night that begins on that
            date, the others to the night before. 14 is the rule of the Dark
            Energy Survey for CTIO (pixcorrect, ``NITE``).
        """
        utc = start.astimezone(UTC) if start.tzinfo else start
        day = utc.date()
        return cls(day if utc.hour > turn_hour else day - timedelta(days=1))

    @classmethod
    def parse(cls, text: str) -> Night:
        """Read ``YYYY-MM-DD``, ``YYYYMMDD`` (local date) or ``utYYMMDD`` (photpipe).

        Raises
        ------
        ValueError
            If `text` is none of them.
        """
        if text.startswith("ut"):
            return cls(datetime.strptime(text[2:], "%y%m%d").date() - timedelta(days=1))
        for form in ("%Y-%m-%d", "%Y%m%d"):
            try:
                return cls(datetime.strptime(text, form).date())
            except ValueError:
                continue
        raise ValueError(f"{text!r} is not a night: write YYYY-MM-DD or utYYMMDD")

    @property
    def ut_name(self) -> str:
        """photpipe's name of the night, ``utYYMMDD``: the UT date after midnight."""
        return (self.date + timedelta(days=1)).strftime("ut%y%m%d")

    def __str__(self) -> str:
        return self.date.isoformat()


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels, zero-based and half-open: columns x0..x1, rows y0..y1."""

    x0: int
    x1: int
    y0: int
    y1: int

    @classmethod
    def from_section(cls, section: str) -> Box:
        """Read an IRAF section card, ``[x0:x1,y0:y1]``, one-based and inclusive.

        A section written backwards (read-out order) gives the same box.

        Raises
        ------
        ValueError
            If `section` has another form.
        """
        numbers = re.fullmatch(r"\s*\[(\d+):(\d+),(\d+):(\d+)\]\s*", section)
        if numbers is None:
            raise ValueError(f"{section!r} is not a section like [1:2048,1:4096]")
        a, b, c, d = (int(n) for n in numbers.groups())
        return cls(min(a, b) - 1, max(a, b), min(c, d) - 1, max(c, d))

    @staticmethod
    def read_order(section: str) -> tuple[int, int]:
        """Tell in which direction, x and y, a section is written: 1 ascending, -1 descending.

        Raises
        ------
        ValueError
            If `section` is no section.
        """
        Box.from_section(section)
        a, b, c, d = (int(n) for n in re.findall(r"\d+", section))
        return (1 if a <= b else -1), (1 if c <= d else -1)

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, columns)``."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def empty(self) -> bool:
        """Whether no pixel is inside."""
        return self.x1 <= self.x0 or self.y1 <= self.y0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the box into an array ``[row, column]``."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def shifted(self, dx: int, dy: int) -> Box:
        """The same box, moved by `dx` columns and `dy` rows."""
        return Box(self.x0 + dx, self.x1 + dx, self.y0 + dy, self.y1 + dy)

    def clipped(self, shape: tuple[int, int]) -> Box:
        """The part of the box that lies in an array of `shape` (rows, columns)."""
        ny, nx = shape
        x0, y0 = min(max(self.x0, 0), nx), min(max(self.y0, 0), ny)
        return Box(x0, max(x0, min(self.x1, nx)), y0, max(y0, min(self.y1, ny)))


@dataclass(frozen=True)
class Amplifier:
    """One read-out channel of a CCD.

    Parameters
    ----------
    name : str
        The observatory's name, e.g. ``"A"``.
    data : Box
        Its light-sensitive pixels in the raw frame.
    overscan : Box or None
        Its overscan in the raw frame, on the same rows as `data`;
        None if the frame has none (already subtracted, or a cut-out).
    trimmed : Box
        Where `data` goes in the trimmed CCD.
    gain : float
        e-/ADU.
    read_noise : float
        e-.
    saturation : float
        ADU, in the raw frame (before overscan subtraction).
    read_order : tuple of int
        Whether the columns, and the rows, of `data` are read in ascending (1) or
        descending (-1) order.
    read_before : tuple of int
        Columns and rows of the amplifier that were read before the first of `data`;
        not (0, 0) only where a cut-out lacks them.
    """

    name: str
    data: Box
    overscan: Box | None
    trimmed: Box
    gain: float
    read_noise: float
    saturation: float
    read_order: tuple[int, int] = (1, 1)
    read_before: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Layout:
    """How a raw frame is cut into amplifiers, from its own header sections.

    Parameters
    ----------
    shape : tuple of int
        Raw frame, (rows, columns).
    trimmed_shape : tuple of int
        CCD without overscan and prescan, (rows, columns).
    amplifiers : tuple of Amplifier
    origin : tuple of int
        Column and row of the trimmed CCD's first pixel in the raw frame.
    window : tuple of int
        Column and row of the frame's first pixel in the full raw frame; not (0, 0) for a cut-out.
    bias_level : float
        ADU to subtract where there is no overscan (a soft bias).
    trimmed_window : tuple of int
        Column and row of the trimmed frame's first pixel in the whole trimmed CCD; not (0, 0)
        for a cut-out.
    whole_shape : tuple of int or None
        The whole raw frame, (rows, columns), of a cut-out; None if the frame is whole.
    """

    shape: tuple[int, int]
    trimmed_shape: tuple[int, int]
    amplifiers: tuple[Amplifier, ...]
    origin: tuple[int, int] = (0, 0)
    window: tuple[int, int] = (0, 0)
    bias_level: float = 0.0
    trimmed_window: tuple[int, int] = (0, 0)
    whole_shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class Exposure:
    """One opening of the shutter, as its primary header tells it.

    Parameters
    ----------
    camera : str
        ``"decam"``, ``"hsc"`` or the name of a camera described in TOML.
    number : int
        The observatory's running number (EXPNUM).
    kind : Kind
    field : str
        OBJECT, as observed (free text).
    band : str
        Short filter name, e.g. ``"g"``; empty for zeros.
    start : datetime
        UTC.
    exposure_s : float
        Open-shutter time, s.
    night : Night
    """

    camera: str
    number: int
    kind: Kind
    field: str
    band: str
    start: datetime
    exposure_s: float
    night: Night

    @property
    def name(self) -> str:
        """``decam_00941420``: unique, sortable, safe as a file name."""
        return f"{self.camera}_{self.number:08d}"

    @property
    def safe_field(self) -> str:
        """The field's letters, digits, ``+`` and ``-``, as many as a file name can bear."""
        return re.sub(r"[^A-Za-z0-9+-]+", "", self.field)[:64] or "unnamed"


@dataclass(frozen=True)
class Location:
    """Where a telescope stands.

    Parameters
    ----------
    latitude : float
        degrees, north positive
    longitude : float
        degrees, east positive
    """

    latitude: float
    longitude: float


@dataclass(frozen=True)
class Ccd:
    """One detector, known by its number on the focal plane, never by extension order."""

    number: int
    name: str


@dataclass(frozen=True)
class Packet:
    """One CCD of one exposure on its way: what its file says of itself.

    Parameters
    ----------
    exposure : Exposure
    ccd : Ccd
    codec : str
    parameters : dict
        What the codec was told, and what it measured (ratio, rms error).
    shape : tuple of int
        (rows, columns) of the pixels.
    dtype : str
        numpy name of the pixels' type.
    payload_bytes : int
    payload_checksum : str
        xxh3-128 of the payload, hexadecimal.
    pixel_checksum : str
        xxh3-128 of the decoded pixels, little-endian, row by row.
    """

    exposure: Exposure
    ccd: Ccd
    codec: str
    parameters: dict[str, object]
    shape: tuple[int, int]
    dtype: str
    payload_bytes: int
    payload_checksum: str
    pixel_checksum: str

    @property
    def file_name(self) -> str:
        """``decam_00941420_25.packet``."""
        return f"{self.exposure.name}_{self.ccd.number:02d}.packet"


@dataclass(frozen=True)
class Grade:
    """How far a reduced CCD can be trusted, and why."""

    colour: Colour
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class PointingHint:
    """Where a CCD may have looked, told by another one.

    Parameters
    ----------
    rung : str
        Who told.
    east_arcsec, north_arcsec : float
        Pointing error, on the sky.
    relaxed : bool
        Whether a poorer fit is accepted.
    """

    rung: str
    east_arcsec: float
    north_arcsec: float
    relaxed: bool = False


@dataclass(frozen=True)
class WcsTry:
    """One attempt at a CCD's WCS.

    Parameters
    ----------
    rung : str
        ``"header"``, or the rung of the rescue ladder.
    relaxed : bool
    accepted : bool
    flags : tuple of str
        Why not, where it was not.
    """

    rung: str
    relaxed: bool
    accepted: bool
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reduction:
    """What the calibration of one CCD gave; NaN or None where it could not be measured.

    Parameters
    ----------
    exposure, ccd : int
        Exposure number and CCD number.
    flags : tuple of str
        What the engine noticed, e.g. ``"NO_BIAS"``.
    bias_nights, flat_nights : int or None
        Nights between the exposure and its bias, its flat.
    wcs_rms_mas : float or None
        One-dimensional residual of the astrometric fit, milli-arcsec.
    wcs_worst_mas : float or None
        Largest formal error of the solution on the CCD, milli-arcsec.
    wcs_matches : int
        Reference stars in that fit.
    wcs_tries : tuple of WcsTry
        All attempts at it, the last one that decided last.
    offset_arcsec : float or None
        Pointing error found, arcsec.
    offset_east_arcsec, offset_north_arcsec : float or None
        Its components on the sky.
    zero_point : float or None
        mag of a source of 1 e-/s.
    zero_point_scatter : float or None
        mag.
    zero_point_stars : int
    seeing_arcsec : float or None
        FWHM.
    ellipticity : float or None
    sky_adu : float or None
        Median background, ADU.
    sky_noise_adu : float or None
        Its rms, ADU.
    sky_fraction : float or None
        The background as a part of what saturates a pixel.
    extinction_mag : float or None
        Zero point of a clear sky at the zenith minus this one, where the camera's is known, mag.
    limiting_mag : float or None
        5 sigma, point source.
    n_sources, n_saturated, n_cosmic_rays : int
    product, catalogue : str or None
        Paths of the image and of the source table.
    seconds : dict
        Wall time of each step, s.
    """

    exposure: int
    ccd: int
    flags: tuple[str, ...] = ()
    bias_nights: int | None = None
    flat_nights: int | None = None
    wcs_rms_mas: float | None = None
    wcs_worst_mas: float | None = None
    wcs_matches: int = 0
    wcs_tries: tuple[WcsTry, ...] = ()
    offset_arcsec: float | None = None
    offset_east_arcsec: float | None = None
    offset_north_arcsec: float | None = None
    zero_point: float | None = None
    zero_point_scatter: float | None = None
    zero_point_stars: int = 0
    seeing_arcsec: float | None = None
    ellipticity: float | None = None
    sky_adu: float | None = None
    sky_noise_adu: float | None = None
    sky_fraction: float | None = None
    extinction_mag: float | None = None
    limiting_mag: float | None = None
    n_sources: int = 0
    n_saturated: int = 0
    n_cosmic_rays: int = 0
    product: str | None = None
    catalogue: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
