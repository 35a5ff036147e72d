"""Hyper Suprime-Cam on the Subaru telescope: 104 science CCDs, one raw file each.

A raw frame has 2144 x 4241 pixels: four channels side by side, each of 512 columns with
overscan columns beside and overscan rows above. The header tells the sections channel by channel.

Sources: headers of raw frames; the HSC pages of NAOJ; obs_subaru for the rule of the visit.
"""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Any

from astropy.io.fits import Header
from numpy.typing import NDArray

from prepipe.cameras.base import (
    ColourTerms,
    band_name,
    card,
    exposure_time,
    number,
    parse_utc,
)
from prepipe.errors import HeaderError
from prepipe.model import Amplifier, Box, Ccd, Exposure, Kind, Layout, Location, Night

__all__ = ["Hsc"]

RAW_SHAPE = (4241, 2144)
CHANNELS = "1234"
LAST_SCIENCE_CCD = 103
MAUNAKEA = Location(19.82556, -155.47611)
NOON_UTC = 22
"""Noon in Hawaii: later hours belong to the night that begins on that UTC date."""
READ_NOISE = 4.5
SATURATION_E = 150_000.0
"""e-; both of the instrument's page."""

KINDS = {
    **dict.fromkeys(("OBJECT", "STANDARD_STAR", "STANDARD"), Kind.OBJECT),
    "BIAS": Kind.ZERO,
    "DOMEFLAT": Kind.DOME_FLAT,
}
"""DATA-TYP; anything else (DARK, SKYFLAT, FOCUSING) is `Kind.OTHER`."""

_FRAME = re.compile(r"HSC([A-Z])(\d{6})(\d\d)")
_NEW_EXPOSURE = re.compile(r"HSCE(\d{8})")


class Hsc:
    """HSC, as its raw headers describe it."""

    name = "hsc"
    pixel_scale = 0.168
    needs_masters = True
    edge_columns = 0
    location: Location | None = MAUNAKEA

    def exposure(self, header: Header) -> Exposure:
        """Read what was observed, and when; its number is the visit; see `Camera.exposure`."""
        start = parse_utc(f"{card(header, 'DATE-OBS')}T{card(header, 'UT-STR')}")
        kind = KINDS.get(str(card(header, "DATA-TYP")).strip().upper(), Kind.OTHER)
        return Exposure(
            camera=self.name,
            number=_visit(header),
            kind=kind,
            field=str(header.get("OBJECT", "")).strip(),
            band="" if kind is Kind.ZERO else band_name(str(header.get("FILTER01", ""))),
            start=start,
            exposure_s=exposure_time(header, "EXPTIME"),
            night=Night.of(start, NOON_UTC),
        )

    def ccd(self, header: Header) -> Ccd | None:
        """Tell the detector by DET-ID; the eight beyond 103 focus; see `Camera.ccd`."""
        detector = int(number(header, "DET-ID"))
        if not 0 <= detector <= LAST_SCIENCE_CCD:
            return None
        side, place = int(number(header, "T_BEEID")), int(number(header, "T_SDOID"))
        return Ccd(detector, f"{side}_{place:02d}")

    def layout(self, header: Header, pixels: NDArray[Any]) -> Layout:
        """Four channels; a cut-out cannot be told where it lay; see `Camera.layout`."""
        if pixels.shape != RAW_SHAPE:
            raise HeaderError(
                f"an HSC frame has {RAW_SHAPE[1]} x {RAW_SHAPE[0]} pixels, this one "
                f"{' x '.join(str(n) for n in reversed(pixels.shape))}: give the whole frame"
            )
        boxes = {channel: _effective(header, channel) for channel in CHANNELS}
        order = sorted(CHANNELS, key=lambda channel: boxes[channel].x0)
        amplifiers, column = [], 0
        for channel in order:
            amplifiers.append(_channel(header, channel, boxes[channel], column))
            column += boxes[channel].shape[1]
        first = boxes[order[0]]
        return Layout(RAW_SHAPE, (first.shape[0], column), tuple(amplifiers), (first.x0, first.y0))

    def wcs_header(self, header: Header, layout: Layout) -> Header:
        """Nominal TAN, rough as the header says itself; see `Camera.wcs_header`."""
        trimmed = header.copy()
        trimmed["CRPIX1"] = number(header, "CRPIX1") - layout.origin[0]
        trimmed["CRPIX2"] = number(header, "CRPIX2") - layout.origin[1]
        return trimmed

    def dead_amplifiers(self, ccd: int, start: datetime) -> tuple[str, ...]:
        """None is listed here; see `Camera.dead_amplifiers`."""
        return ()

    def clear_sky_zero_point(self, band: str) -> float | None:
        """Not known; see `Camera.clear_sky_zero_point`."""
        return None

    def gaia_colour_terms(self, band: str) -> ColourTerms | None:
        """Not known; see `Camera.gaia_colour_terms`."""
        return None

    def focal_plane(self) -> dict[int, tuple[float, float, float, float]]:
        """Not known: pictures lay the CCDs out in a grid; see `Camera.focal_plane`."""
        return {}


def _visit(header: Header) -> int:
    """The even shot number, plus a million for each letter after A; as hscPipe counts."""
    told = str(card(header, "EXP-ID")).strip()
    if found := _NEW_EXPOSURE.fullmatch(told):
        return int(found[1])
    # Of the old scheme FRAMEID is never wrong; odd shots are the other half of the CCDs.
    frame = _FRAME.fullmatch(str(card(header, "FRAMEID")).strip())
    if frame is None:
        raise HeaderError(
            f"cards EXP-ID = {told!r} and FRAMEID = {header['FRAMEID']!r} tell no visit: "
            "HSCE00217870 or HSCA21787010 is needed"
        )
    return int(frame[2]) // 2 * 2 + 1_000_000 * (ord(frame[1]) - ord("A"))


def _effective(header: Header, channel: str) -> Box:
    """Light-sensitive pixels of a channel."""
    (left, right), (bottom, top) = (_range(header, "EF", channel, axis) for axis in "12")
    box = Box(left, right, bottom, top)
    if box.empty or box != box.clipped(RAW_SHAPE):
        raise HeaderError(f"cards T_EFMN{channel}1 to T_EFMX{channel}2 tell no part of the frame")
    return box


def _range(header: Header, region: str, channel: str, axis: str) -> tuple[int, int]:
    """First pixel and the one after the last, zero-based, of one-based, inclusive cards."""
    first, last = (int(number(header, f"T_{region}{end}{channel}{axis}")) for end in ("MN", "MX"))
    return first - 1, last


def _channel(header: Header, channel: str, data: Box, column: int) -> Amplifier:
    overscan = Box(*_range(header, "OS", channel, "1"), data.y0, data.y1).clipped(RAW_SHAPE)
    gain = number(header, f"T_GAIN{channel}")
    if not (gain > 0.0 and math.isfinite(gain)):
        raise HeaderError(f"card T_GAIN{channel} says {gain:g}, which is no gain")
    rows, columns = data.shape
    return Amplifier(
        name=channel,
        data=data,
        overscan=None if overscan.empty else overscan,
        trimmed=Box(column, column + columns, 0, rows),
        gain=gain,
        read_noise=READ_NOISE,
        saturation=min(SATURATION_E / gain, 65_000.0),
    )
