"""Headers of a simulated exposure: the real cards in their real order, with new values.

The templates are headers of exposure 941420 from the public archive of NOIRLab;
the people and the programme in them are replaced, and the sky camera's numbers
are the string ``'NaN'``, as on nights when it did not work.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from importlib.resources import files

from prepipe.model import Kind
from prepipe.simulate.focal_plane import HALF_WIDTH, Channel, Detector
from prepipe.simulate.observation import Observation
from prepipe.simulate.pointing import degrees_text, hours_text
from prepipe.simulate.rawfile import CARD, card, header_block
from prepipe.simulate.settings import BANDS

__all__ = ["checksum_comments", "distortion", "extension_cards", "primary_header"]

Value = bool | int | float | str

PROGRAMME = "2020A-0000"
READOUT_S = 20.0


def primary_header(observation: Observation, extensions: int) -> bytes:
    """The primary header block of an exposure with a number of extensions."""
    values = _identity(observation, extensions) | _circumstances(observation) | _times(observation)
    cards = [_with_value(line, values) for line in _template("primary.hdr")]
    recorded = _stamp(observation, observation.exposure_s + READOUT_S + 3.0)
    first_comment = next(i for i, line in enumerate(cards) if line.startswith("COMMENT"))
    cards[first_comment] = f"COMMENT {observation.field}".ljust(CARD)[:CARD]
    hierarch = next(i for i, line in enumerate(cards) if line.startswith("HIERARCH"))
    cards[hierarch] = f"HIERARCH time_recorded = '{recorded}.186804'".ljust(CARD)
    comments = dict(zip(("CHECKSUM", "DATASUM"), checksum_comments(observation), strict=True))
    cards = [_with_comment(line, comments) for line in cards]
    return header_block(cards, 0)


def extension_cards(detector: Detector, observation: Observation) -> list[str]:
    """The cards of one CCD's extension, from BUNIT to CHECKVER, 80 characters each."""
    values: dict[str, Value] = {
        "CCDNUM": detector.number,
        "DETPOS": detector.name,
        "EXTNAME": detector.name,
        "CRPIX1": detector.crpix[0],
        "CRPIX2": detector.crpix[1],
        "CRVAL1": observation.ra,
        "CRVAL2": observation.dec,
        "DETSEC": _section(detector, 0, 2 * HALF_WIDTH),
        **_electronics()[detector.number],
        **distortion(detector),
    }
    for channel in detector.channels:
        values |= _channel_values(detector, channel)
    lines = _template(_template_name(detector))
    return [_with_value(line, values) for line in lines if values.get(_keyword(line)) != ""]


def distortion(detector: Detector) -> dict[str, Value]:
    """CD and PV cards of a science CCD; empty for a focus chip, whose template has its own."""
    if detector.focus:
        return {}
    return {key: float(value) for key, value in _table("distortion.csv")[detector.number].items()}


def checksum_comments(observation: Observation) -> tuple[str, str]:
    """Comments of CHECKSUM and DATASUM, which tell when the frame was read out."""
    when = _stamp(observation, observation.exposure_s + READOUT_S)
    return f"HDU checksum updated {when}", f"data unit checksum updated {when}"


def _identity(observation: Observation, extensions: int) -> dict[str, Value]:
    kind = observation.kind
    name = observation.file_name
    return {
        "NEXTEND": extensions,
        "FILENAME": name.removesuffix(".fz"),
        "EXPNUM": observation.number,
        "OBJECT": observation.field,
        "OBSTYPE": "dome flat" if kind is Kind.DOME_FLAT else kind.value,
        "CAMSHUT": "Closed" if kind is Kind.ZERO else "Open",
        "AOS": kind is Kind.OBJECT,
        "GUIDER": 1 if kind is Kind.OBJECT else 0,
        "FILTER": BANDS[observation.band].card,
        "DTACQNAM": f"/data_local/images/DTS/{PROGRAMME}/{name}",
        "DTNSANAM": f"c4d_{observation.start:%y%m%d_%H%M%S}_ori.fits.fz",
    }


def _circumstances(observation: Observation) -> dict[str, Value]:
    ra, dec = hours_text(observation.ra), degrees_text(observation.dec)
    return {
        "EXPREQ": observation.exposure_s,
        "EXPTIME": observation.exposure_s,
        "DARKTIME": observation.exposure_s + 0.04,
        "RA": ra,
        "DEC": dec,
        "TELRA": ra,
        "TELDEC": dec,
        "HA": hours_text(observation.hour_angle_deg),
        "ZD": round(observation.zenith_distance_deg, 2),
        "AZ": round(observation.azimuth_deg, 4),
        "DOMEAZ": round(observation.azimuth_deg, 2),
        "AIRMASS": round(observation.airmass, 2),
        "DIMM2SEE": round(0.9 * observation.seeing_arcsec, 3),
        "G-SEEING": round(1.2 * observation.seeing_arcsec, 3),
    }


def _times(observation: Observation) -> dict[str, Value]:
    start = observation.start
    full = f"{start:%Y-%m-%dT%H:%M:%S.%f}"
    return {
        "OBSID": f"ct4m{start:%Y%m%dt%H%M%S}",
        "DATE-OBS": full,
        "ODATEOBS": full,
        "TIME-OBS": f"{start:%H:%M:%S.%f}",
        "MJD-OBS": round(observation.mjd, 8),
        "OPENSHUT": f"{start + timedelta(milliseconds=2):%Y-%m-%dT%H:%M:%S.%f}",
        "SKYUPDAT": _stamp(observation, -20.0),
        "INSTANCE": f"DECam_{observation.night.date:%Y%m%d}",
        "DTCALDAT": str(observation.night),
    }


def _stamp(observation: Observation, seconds: float) -> str:
    return f"{observation.start + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}"


def _channel_values(detector: Detector, channel: Channel) -> dict[str, Value]:
    first = 0 if channel.left else HALF_WIDTH
    suffix = channel.name
    return {
        f"DETSEC{suffix}": _section(detector, first, first + HALF_WIDTH),
        f"GAIN{suffix}": channel.gain,
        f"RDNOISE{suffix}": channel.read_noise,
        f"SATURAT{suffix}": channel.saturation,
    }


def _section(detector: Detector, first: int, last: int) -> str:
    x, y = detector.detsec
    return f"[{x + first}:{x + last - 1},{y}:{y + detector.data_rows - 1}]"


def _template_name(detector: Detector) -> str:
    if detector.name in ("FS3", "FS4"):
        return f"focus_{detector.name.lower()}.hdr"
    side = "s" if detector.postscan_first else "n"
    return f"{'focus' if detector.focus else 'extension'}_{side}.hdr"


@cache
def _template(name: str) -> tuple[str, ...]:
    text = files("prepipe.simulate").joinpath(name).read_text()
    return tuple(line.ljust(CARD) for line in text.splitlines())


@cache
def _table(name: str) -> dict[int, dict[str, str]]:
    text = files("prepipe.simulate").joinpath(name).read_text()
    rows = csv.DictReader(text.splitlines())
    return {int(row.pop("ccd")): row for row in rows}


def _electronics() -> dict[int, dict[str, str]]:
    return _table("electronics.csv")


def _keyword(line: str) -> str:
    return line[:8].rstrip() if line[8:10] == "= " else ""


def _with_value(line: str, values: Mapping[str, Value]) -> str:
    keyword = _keyword(line)
    if keyword not in values:
        return line
    return card(keyword, values[keyword], line.partition(" / ")[2].rstrip())


def _with_comment(line: str, comments: Mapping[str, str]) -> str:
    keyword = _keyword(line)
    return card(keyword, "", comments[keyword]) if keyword in comments else line
