"""The Dark Energy Camera on the Blanco telescope: 62 science CCDs of 2160 x 4146 raw pixels.

Sources: headers of the NOIRLab archive; the DECam data handbook; obs_decam and
pixcorrect for the night rule and the dead chips.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from astropy.io.fits import Header
from numpy.typing import NDArray

from prepipe.cameras.base import (
    ColourTerms,
    band_name,
    card,
    exposure_number,
    exposure_time,
    number,
    parse_utc,
)
from prepipe.errors import HeaderError
from prepipe.model import Amplifier, Box, Ccd, Exposure, Kind, Layout, Location, Night

__all__ = ["GAIA_COLOUR_TERMS", "Decam", "DecamCcd", "decam_ccds"]

RAW_SHAPE = (4146, 2160)
LAST_SCIENCE_CCD = 62
CERRO_TOLOLO = Location(-30.16606, -70.81489)
"""OBS-LAT and OBS-LONG of raw headers; the latter counts westward there."""
FOREVER = datetime.max.replace(tzinfo=UTC)
DEAD = (
    (61, datetime(2012, 11, 7, tzinfo=UTC), FOREVER),
    (2, datetime(2013, 11, 30, tzinfo=UTC), datetime(2016, 12, 29, tzinfo=UTC)),
)
GAIA_COLOUR_TERMS = {
    "g": ColourTerms((0.13518, -0.46245, -0.25171, 0.021349), -0.5, 2.0),
    "r": ColourTerms((-0.12879, 0.24662, -0.027464, -0.049465), 0.2, 2.7),
    "i": ColourTerms((-0.29676, 0.64728, -0.10141), 0.0, 4.5),
}
"""Evans et al. 2018 (A&A 616, A4): coefficients of table A.2, colours of table A.1."""

CLEAR_SKY_ZERO_POINTS = {"g": 26.610, "r": 26.818}
"""AB mag of 1 e-/s, nominal values of the Legacy Surveys' observing bot (obsbot, ``decam.py``)."""

KINDS = {
    "object": Kind.OBJECT,
    "science": Kind.OBJECT,
    "standard": Kind.OBJECT,
    "zero": Kind.ZERO,
    "bias": Kind.ZERO,
    "dome flat": Kind.DOME_FLAT,
    "domeflat": Kind.DOME_FLAT,
}


@dataclass(frozen=True)
class DecamCcd:
    """One row of the table of CCDs.

    Parameters
    ----------
    ccd : int
        CCDNUM.
    name : str
        EXTNAME.
    side : str
        ``"N"``, ``"S"``, or ``"F"`` for a focus chip.
    crpix : tuple of float
        Nominal reference pixel of the full raw frame, one-based.
    corner : tuple of int
        Lower left corner in the mosaic of the focal plane (DETSEC), pixel.
    """

    ccd: int
    name: str
    side: str
    crpix: tuple[float, float]
    corner: tuple[int, int]


@cache
def decam_ccds() -> dict[int, DecamCcd]:
    """Table of all CCDs by CCDNUM, in the order of the extensions in a raw file."""
    text = files("prepipe.cameras").joinpath("decam_ccds.csv").read_text()
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return {
        int(row["ccd"]): DecamCcd(
            ccd=int(row["ccd"]),
            name=row["name"],
            side=row["side"],
            crpix=(float(row["crpix1"]), float(row["crpix2"])),
            corner=(int(row["detsec_x0"]), int(row["detsec_y0"])),
        )
        for row in csv.DictReader(lines)
    }


class Decam:
    """DECam, as its raw headers describe it."""

    name = "decam"
    pixel_scale = 0.2626
    needs_masters = True
    edge_columns = 35
    location: Location | None = CERRO_TOLOLO

    def exposure(self, header: Header) -> Exposure:
        """Read what was observed, and when; see `Camera.exposure`."""
        start = parse_utc(str(card(header, "DATE-OBS")))
        kind = KINDS.get(str(card(header, "OBSTYPE")).strip().lower(), Kind.OTHER)
        return Exposure(
            camera=self.name,
            number=exposure_number(header, "EXPNUM"),
            kind=kind,
            field=str(header.get("OBJECT", "")).strip(),
            band="" if kind is Kind.ZERO else _band(str(header.get("FILTER", ""))),
            start=start,
            exposure_s=exposure_time(header, "EXPTIME"),
            night=Night.of(start),
        )

    def ccd(self, header: Header) -> Ccd | None:
        """Tell the detector by CCDNUM, never by the extension's place; see `Camera.ccd`."""
        ccdnum = number(header, "CCDNUM")
        if not 1 <= ccdnum <= LAST_SCIENCE_CCD:
            return None
        known = decam_ccds()[int(ccdnum)]
        return Ccd(known.ccd, str(header.get("EXTNAME", known.name)).strip())

    def layout(self, header: Header, pixels: NDArray[Any]) -> Layout:
        """Find the amplifiers, clipped to a cut-out if it is one; see `Camera.layout`."""
        if pixels.ndim != 2:
            raise HeaderError(f"a CCD has two axes, this frame has {pixels.ndim}")
        if pixels.shape == RAW_SHAPE:
            return _cut(header, RAW_SHAPE, (0, 0))
        return _cut_out(header, pixels)

    def wcs_header(self, header: Header, layout: Layout) -> Header:
        """Nominal TPV of the trimmed CCD; see `Camera.wcs_header`."""
        crpix = number(header, "CRPIX1"), number(header, "CRPIX2")
        if layout.shape != RAW_SHAPE:
            nominal = decam_ccds()[int(number(header, "CCDNUM"))].crpix
            crpix = nominal[0] - layout.window[0], nominal[1] - layout.window[1]
        trimmed = header.copy()
        trimmed["CRPIX1"] = crpix[0] - layout.origin[0]
        trimmed["CRPIX2"] = crpix[1] - layout.origin[1]
        return trimmed

    def dead_amplifiers(self, ccd: int, start: datetime) -> tuple[str, ...]:
        """Both amplifiers of N30, and of S30 for three years; see `Camera.dead_amplifiers`."""
        dead = any(ccd == bad and since <= start < until for bad, since, until in DEAD)
        return ("A", "B") if dead else ()

    def clear_sky_zero_point(self, band: str) -> float | None:
        """Of the typical CCD; see `Camera.clear_sky_zero_point`."""
        return CLEAR_SKY_ZERO_POINTS.get(band)

    def gaia_colour_terms(self, band: str) -> ColourTerms | None:
        """Those of the like-named SDSS bands; see `Camera.gaia_colour_terms`."""
        return GAIA_COLOUR_TERMS.get(band)

    def focal_plane(self) -> dict[int, tuple[float, float, float, float]]:
        """Science CCDs in the mosaic; see `Camera.focal_plane`."""
        return {
            ccd.ccd: (ccd.corner[0], ccd.corner[1], 2048.0, 4096.0)
            for ccd in decam_ccds().values()
            if ccd.side != "F"
        }


def _band(filter_name: str) -> str:
    first = band_name(filter_name)
    return "" if first in {"", "solid", "none", "None"} else first


def _section(header: Header, keyword: str) -> Box:
    try:
        return Box.from_section(str(card(header, keyword)))
    except ValueError as error:
        raise HeaderError(f"card {keyword}: {error}") from None


def _cut(header: Header, shape: tuple[int, int], window: tuple[int, int]) -> Layout:
    """Clip the sections of the full CCD to a frame that begins at `window`."""
    whole = {name: _section(header, f"DATASEC{name}") for name in "AB"}
    boxes = {}
    for name in "AB":
        data = whole[name].shifted(-window[0], -window[1]).clipped(shape)
        bias = _section(header, f"BIASSEC{name}").shifted(-window[0], -window[1]).clipped(shape)
        if not data.empty:
            boxes[name] = (data, None if bias.empty else bias)
    if not boxes:
        raise HeaderError(f"no imaging pixels in a frame of {shape[1]} x {shape[0]} pixels")
    x0 = min(data.x0 for data, _ in boxes.values())
    y0 = min(data.y0 for data, _ in boxes.values())
    trimmed = (
        max(data.y1 for data, _ in boxes.values()) - y0,
        max(data.x1 for data, _ in boxes.values()) - x0,
    )
    orders = {name: _read_order(header, name) for name in boxes}
    amplifiers = tuple(
        Amplifier(
            name=name,
            data=data,
            overscan=bias,
            trimmed=data.shifted(-x0, -y0),
            gain=number(header, f"GAIN{name}"),
            read_noise=number(header, f"RDNOISE{name}"),
            saturation=number(header, f"SATURAT{name}"),
            read_order=orders[name],
            read_before=_read_before(data.shifted(*window), whole[name], orders[name]),
        )
        for name, (data, bias) in boxes.items()
    )
    corner = min(box.x0 for box in whole.values()), min(box.y0 for box in whole.values())
    return Layout(
        shape,
        trimmed,
        amplifiers,
        origin=(x0, y0),
        window=window,
        trimmed_window=(x0 + window[0] - corner[0], y0 + window[1] - corner[1]),
        whole_shape=None if shape == RAW_SHAPE else RAW_SHAPE,
    )


def _read_order(header: Header, name: str) -> tuple[int, int]:
    """Direction of read-out, from the card that gives the amplifier's part in read order.

    A and B of a CCD are mirrored in x. In the raw file the CCDs of the southern half are
    turned: their first row read is the last one written (AMPSECA ``[2048:1025,4096:1]``), and
    A is their right half, so that both differ in sign from the northern ones.
    """
    try:
        return Box.read_order(str(card(header, f"AMPSEC{name}")))
    except ValueError as error:
        raise HeaderError(f"card AMPSEC{name}: {error}") from None


def _read_before(part: Box, whole: Box, order: tuple[int, int]) -> tuple[int, int]:
    """Columns and rows of an amplifier that were read before those of a part of it."""
    return (
        part.x0 - whole.x0 if order[0] > 0 else whole.x1 - part.x1,
        part.y0 - whole.y0 if order[1] > 0 else whole.y1 - part.y1,
    )


def _cut_out(header: Header, pixels: NDArray[Any]) -> Layout:
    """Find where a cut-out lies in its CCD, from how far its reference pixel was moved.

    Some archives' cutters move CRPIX1 by the row and CRPIX2 by the column. A quiet
    overscan proves its place; where none is in the cut-out, the cards are believed.
    """
    known = decam_ccds().get(int(number(header, "CCDNUM")))
    if known is None:
        raise HeaderError(f"CCDNUM {header['CCDNUM']} is not a CCD of DECam")
    moved = [
        known.crpix[0] - number(header, "CRPIX1"),
        known.crpix[1] - number(header, "CRPIX2"),
    ]
    shape = (pixels.shape[0], pixels.shape[1])
    layouts = [
        _cut(header, shape, (round(x0), round(y0)))
        for x0, y0 in ((moved[0], moved[1]), (moved[1], moved[0]))
        if _inside(x0, y0, shape) and _has_data(header, shape, (round(x0), round(y0)))
    ]
    for proof in (_overscan_is_dark, _has_no_overscan, _overscan_is_quiet):
        for layout in layouts:
            if proof(layout, pixels) or layout.window[0] == layout.window[1]:
                return layout
    raise HeaderError(
        f"a frame of {shape[1]} x {shape[0]} pixels is no full DECam CCD (2160 x 4146), "
        "and its header does not tell where it was cut out"
    )


def _inside(x0: float, y0: float, shape: tuple[int, int]) -> bool:
    """Whether a frame of `shape` that begins there, at a whole pixel, lies in the CCD."""
    return (
        abs(x0 - round(x0)) <= 0.1
        and abs(y0 - round(y0)) <= 0.1
        and 0 <= round(x0) <= RAW_SHAPE[1] - shape[1]
        and 0 <= round(y0) <= RAW_SHAPE[0] - shape[0]
    )


def _has_data(header: Header, shape: tuple[int, int], window: tuple[int, int]) -> bool:
    data = (_section(header, f"DATASEC{name}").shifted(-window[0], -window[1]) for name in "AB")
    return any(not box.clipped(shape).empty for box in data)


def _has_no_overscan(layout: Layout, _pixels: NDArray[Any]) -> bool:
    return all(amplifier.overscan is None for amplifier in layout.amplifiers)


def _overscan_is_dark(layout: Layout, pixels: NDArray[Any]) -> bool:
    """Whether there is overscan, quiet, and more than its noise below the data."""
    # Half the spread is one sigma: a strip of sky lies lower than its surroundings, but not so far.
    return not _has_no_overscan(layout, pixels) and _overscan_is_quiet(layout, pixels, 0.5)


def _overscan_is_quiet(layout: Layout, pixels: NDArray[Any], spreads: float = 0.0) -> bool:
    """Whether every overscan varies less than its data, and lies so many spreads lower."""
    for amplifier in layout.amplifiers:
        if amplifier.overscan is not None:
            overscan = pixels[amplifier.overscan.slices]
            data = pixels[amplifier.data.slices]
            spread = _spread(overscan)
            lower = float(np.median(data)) - float(np.median(overscan))
            if not (spread < _spread(data) and lower > spreads * spread):
                return False
    return True


def _spread(pixels: NDArray[Any]) -> float:
    low, high = np.percentile(pixels, (16, 84))
    return float(high - low)
