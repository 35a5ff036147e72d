"""The detectors of DECam: where they stand and how they are read."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files

import numpy as np

from prepipe.cameras.decam import Decam
from prepipe.errors import ConfigError
from prepipe.model import Box

__all__ = [
    "COLUMNS",
    "HALF_WIDTH",
    "POSTSCAN_ROWS",
    "Channel",
    "Detector",
    "chosen_detectors",
    "detectors",
]

COLUMNS = 2160
FIRST_DATA_COLUMN = 56
PRESCAN_COLUMNS = 6
HALF_WIDTH = 1024
POSTSCAN_ROWS = 50

_NORTH_LIKE_FOCUS = ("FS4", "FN4")


@dataclass(frozen=True)
class Channel:
    """One amplifier of a detector.

    Parameters
    ----------
    name : str
        ``"A"`` or ``"B"``.
    left : bool
        Whether it reads the left half of the frame.
    gain : float
        e-/ADU.
    read_noise : float
        e-.
    saturation : float
        ADU in the raw frame.
    """

    name: str
    left: bool
    gain: float
    read_noise: float
    saturation: float


@dataclass(frozen=True)
class Detector:
    """One CCD of the focal plane.

    Parameters
    ----------
    order : int
        Its extension in a raw file, from 1.
    name : str
        EXTNAME, e.g. ``"S4"``.
    number : int
        CCDNUM.
    focus : bool
        Whether it is one of the eight focus chips.
    postscan_first : bool
        Whether the postscan rows precede the data (S chips) or follow them (N chips).
    crpix : tuple of float
        Tangent point in the raw frame, one-based as in the header.
    channels : tuple of Channel
        The left one first.
    detsec : tuple of int
        Lower-left corner of DETSEC, one-based.
    """

    order: int
    name: str
    number: int
    focus: bool
    postscan_first: bool
    crpix: tuple[float, float]
    channels: tuple[Channel, Channel]
    detsec: tuple[int, int]

    @property
    def data_rows(self) -> int:
        """Light-sensitive rows."""
        return 2048 if self.focus else 4096

    @property
    def shape(self) -> tuple[int, int]:
        """Raw frame, (rows, columns)."""
        return self.data_rows + POSTSCAN_ROWS, COLUMNS

    @property
    def data(self) -> Box:
        """Light-sensitive pixels in the raw frame."""
        first = POSTSCAN_ROWS if self.postscan_first else 0
        left = FIRST_DATA_COLUMN
        return Box(left, left + 2 * HALF_WIDTH, first, first + self.data_rows)

    def overscan(self, channel: Channel) -> Box:
        """Overscan of an amplifier on the rows of its data."""
        rows = self.data
        if channel.left:
            return Box(PRESCAN_COLUMNS, FIRST_DATA_COLUMN, rows.y0, rows.y1)
        return Box(rows.x1, COLUMNS - PRESCAN_COLUMNS, rows.y0, rows.y1)

    def is_dead(self, when: datetime) -> bool:
        """Whether it gave no signal on that date."""
        return len(Decam().dead_amplifiers(self.number, when)) == len(self.channels)


@cache
def detectors() -> tuple[Detector, ...]:
    """All 70 detectors in the order of the extensions of a raw file."""
    table = files("prepipe.cameras").joinpath("decam_ccds.csv").read_text()
    return tuple(_detector(row) for row in csv.DictReader(table.splitlines()))


def chosen_detectors(
    ccds: int | tuple[int, ...] | None, focus_chips: bool = False
) -> tuple[Detector, ...]:
    """The detectors of a simulation, in the order of the extensions.

    Parameters
    ----------
    ccds : int or tuple of int or None
        A count of science CCDs, taken from the centre of the field outwards; or
        CCD numbers; None for all 62.
    focus_chips : bool
        Whether the eight focus chips come along.

    Raises
    ------
    ConfigError
        If a number is no science CCD, or the count is not 1 to 62.
    """
    science = [d for d in detectors() if not d.focus]
    numbers = {d.number for d in science}
    if isinstance(ccds, int):
        if not 1 <= ccds <= len(science):
            raise ConfigError(f"simulate: {ccds} CCDs cannot be had; give 1 to {len(science)}.")
        numbers = {d.number for d in sorted(science, key=_distance)[:ccds]}
    elif ccds is not None:
        if not ccds or (unknown := set(ccds) - numbers):
            wrong = sorted(unknown) if ccds else "nothing"
            raise ConfigError(f"simulate: {wrong} is no science CCD of DECam; give 1 to 62.")
        numbers = set(ccds)
    return tuple(d for d in detectors() if d.number in numbers or (focus_chips and d.focus))


def _distance(detector: Detector) -> tuple[int, int]:
    """From the optical axis to the centre of the CCD, in tens of pixels; ties by number."""
    x, y = 1080.0 - detector.crpix[0], 2073.0 - detector.crpix[1]
    return round(float(np.hypot(x, y)) / 10.0), detector.number


def _detector(row: dict[str, str]) -> Detector:
    focus = row["side"] == "F"
    name = row["name"]
    postscan_first = name not in _NORTH_LIKE_FOCUS if focus else row["side"] == "S"
    left, right = ("B", "A") if postscan_first else ("A", "B")
    return Detector(
        order=int(row["order"]),
        name=name,
        number=int(row["ccd"]),
        focus=focus,
        postscan_first=postscan_first,
        crpix=(float(row["crpix1"]), float(row["crpix2"])),
        channels=(_channel(row, left, True), _channel(row, right, False)),
        detsec=(int(row["detsec_x0"]), int(row["detsec_y0"])),
    )


def _channel(row: dict[str, str], name: str, left: bool) -> Channel:
    suffix = name.lower()
    return Channel(
        name=name,
        left=left,
        gain=float(row[f"gain_{suffix}"]),
        read_noise=float(row[f"read_noise_{suffix}"]),
        saturation=float(row[f"saturation_{suffix}"]),
    )
