"""Maps of bad pixels: which one holds for a CCD at a time, and what it says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray

from prepipe.calibrate.detector.bad_pixels import bad_from_boxes, bad_from_image
from prepipe.engines.detector.tables import csv_rows, fitting_hdu, modified_ns, understood
from prepipe.errors import ConfigError
from prepipe.model import Ccd, Layout

__all__ = ["BadPixelMap", "find_map", "read_map", "read_maps"]

BOX = ("x0", "y0", "width", "height")
FITS_ENDINGS = (".fits", ".fits.fz", ".fits.gz")
ENDINGS = (".ecsv", ".csv", *FITS_ENDINGS)
ALWAYS = datetime.min.replace(tzinfo=UTC)
WHAT = "the bad-pixel map"

_DETECTOR = re.compile(r"\bDETECTOR:\s*['\"]?(\d+)")
_DATE = re.compile(r"(?<!\d)(\d{4})-?(\d\d)-?(\d\d)(?!\d)")


@dataclass(frozen=True)
class BadPixelMap:
    """A file of bad pixels.

    Parameters
    ----------
    path : Path
    ccds : frozenset of int
        What it tells about, as it says itself; empty if it does not say.
    since : datetime
        From when on it holds (CALIBDATE, or a date in its name); the beginning of time if
        neither tells.
    """

    path: Path
    ccds: frozenset[int]
    since: datetime

    def tells_of(self, ccd: Ccd, root: Path) -> bool:
        """Whether it is a map of the CCD, by its own words or by its name below `root`."""
        if self.ccds:
            return ccd.number in self.ccds
        name = str(self.path.relative_to(root) if self.path != root else self.path.name)
        words = set(re.split(r"[^a-z0-9]+", name.lower()))
        number = ccd.number
        return bool(
            words
            & {
                ccd.name.lower(),
                *(f"{c}{n}" for c in ("ccd", "c") for n in (number, f"{number:02d}")),
            }
        )


def find_map(path: Path, ccd: Ccd, start: datetime) -> BadPixelMap | None:
    """The map that holds for a CCD: of those not after the exposure, the latest.

    Parameters
    ----------
    path : Path
        A file, or a directory in which, at any depth, the maps of single CCDs lie.
    ccd : Ccd
    start : datetime
        Of the exposure, UTC.

    Returns
    -------
    BadPixelMap or None

    Raises
    ------
    ConfigError
        If there is no such file or directory, it has no maps, or a map is not understood.
    """
    maps = read_maps(path)
    if path.is_file() and not maps[0].ccds and not maps[0].tells_of(ccd, path) and ccd.number != 1:
        raise ConfigError(
            f"{WHAT} {path} does not say which CCD it is of: give it a card CCDNUM, a line "
            f"`# DETECTOR: {ccd.number}` or a name like ccd{ccd.number:02d}{path.suffix}"
        )
    alone = path.is_file() and not maps[0].ccds
    fitting = [m for m in maps if m.since <= start and (alone or m.tells_of(ccd, path))]
    return max(fitting, key=lambda found: (found.since, found.path.name), default=None)


def read_maps(path: Path) -> list[BadPixelMap]:
    """All maps of a file or directory, as they describe themselves.

    Raises
    ------
    ConfigError
        As `find_map`.
    """
    return [_described(file, modified_ns(WHAT, file)) for file in _files(path)]


def read_map(found: BadPixelMap, ccd: Ccd, layout: Layout) -> NDArray[np.bool_]:
    """The bad pixels of a CCD.

    Parameters
    ----------
    found : BadPixelMap
    ccd : Ccd
    layout : Layout
        Of the frame; of a cut-out its part of the map is taken.

    Returns
    -------
    ndarray of bool, shape `layout.trimmed_shape`

    Raises
    ------
    ConfigError
        If it cannot be read, or is of another shape than the CCD.
    """
    path = found.path
    if not _is_fits(path):
        return bad_from_boxes(_boxes(path, modified_ns(WHAT, path), ccd.number), layout)
    with understood(WHAT, path), fits.open(path) as hdus:
        images = _images(hdus)
        hdu = images[0] if len(images) == 1 else fitting_hdu(images, ccd)
        if hdu is None:
            raise ConfigError(f"it has no image of CCD {ccd.number}")
        return bad_from_image(np.asarray(hdu.data), layout)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.name.lower().endswith(ENDINGS))
    if not found:
        raise ConfigError(f"{WHAT}s: the directory {path} has no {', '.join(ENDINGS)} files")
    return found


def _is_fits(path: Path) -> bool:
    return path.name.lower().endswith(FITS_ENDINGS)


def _images(hdus: Iterable[Any]) -> list[Any]:
    return [hdu for hdu in hdus if hdu.is_image and hdu.header.get("NAXIS") == 2]


@lru_cache(maxsize=8192)
def _described(path: Path, _mtime_ns: int) -> BadPixelMap:
    """What a map says of itself, without its pixels."""
    with understood(WHAT, path):
        if _is_fits(path):
            with fits.open(path) as hdus:
                cards = [hdu.header for hdu in hdus]
                numbers = {int(header["CCDNUM"]) for header in cards if "CCDNUM" in header}
                date = next((str(h["CALIBDATE"]) for h in cards if h.get("CALIBDATE")), "")
        elif path.name.lower().endswith((".ecsv", ".csv")):
            remarks = "".join(line for line in path.open() if line.startswith("#"))
            numbers = {int(found) for found in _DETECTOR.findall(remarks)}
            told = re.search(r"\bCALIBDATE:\s*(.+)", remarks)
            date = told[1] if told else ""
            if not numbers and path.suffix.lower() == ".csv":
                rows = csv_rows(path, BOX)
                numbers = {int(row["ccd"]) for row in rows if "ccd" in row}
        else:
            raise ConfigError(f"it ends in none of {', '.join(ENDINGS)}")
        return BadPixelMap(path, frozenset(numbers), _date(date) or _date(path.name) or ALWAYS)


def _date(text: str) -> datetime | None:
    """The last date in a text, with its time of day if that follows."""
    for found in reversed(list(_DATE.finditer(text))):
        try:
            day = datetime(int(found[1]), int(found[2]), int(found[3]), tzinfo=UTC)
        except ValueError:
            continue
        clock = re.match(r"T(\d\d):(\d\d):(\d\d)", text[found.end() :])
        return day.replace(hour=int(clock[1]), minute=int(clock[2])) if clock else day
    return None


@lru_cache(maxsize=128)
def _boxes(path: Path, _mtime_ns: int, ccd: int) -> NDArray[np.int64]:
    with understood(WHAT, path):
        if path.suffix.lower() == ".csv":
            rows = csv_rows(path, BOX)
            rows = [row for row in rows if int(row.get("ccd", ccd)) == ccd]
            boxes = np.array([[float(row[name]) for name in BOX] for row in rows]).reshape(-1, 4)
        else:
            table = Table.read(path, format="ascii.ecsv")
            missing = [name for name in BOX if name not in table.colnames]
            if missing:
                raise ConfigError(f"it has no column {missing[0]} (of {', '.join(BOX)})")
            boxes = np.array([np.asarray(table[name], np.float64) for name in BOX]).T
        whole = np.isfinite(boxes).all() and (boxes == np.floor(boxes)).all()
        if not (whole and (boxes[:, 2:] > 0).all()):
            raise ConfigError("a box is not of whole, finite numbers with a width and a height")
        return boxes.astype(np.int64)
