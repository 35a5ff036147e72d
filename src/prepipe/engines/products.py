"""Writing what was made: a calibrated CCD, its source table, a master; and reading a master.

An image is tile-compressed with Rice. Floating-point planes are quantised in steps
of an eighth of their noise with subtractive dither, which adds (1/8)^2/12, that is
0.07 %, to the noise (White, Greenfield & Pence; measured in the study of codecs).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fitsio
import numpy as np
from astropy.io import fits
from astropy.io.fits import Header
from numpy.typing import NDArray

from prepipe.errors import FitsError
from prepipe.files import atomic_path

__all__ = [
    "NOISE_STEPS",
    "Card",
    "Plane",
    "read_master",
    "write_catalogue",
    "write_image",
    "write_master",
]

Card = tuple[str, Any, str]
"""Keyword, value, comment."""

NOISE_STEPS = 8.0
"""Quantisation steps to one sigma of the noise."""

# What belongs to the raw frame's own structure, or is no longer true of the trimmed one.
_STALE = frozenset(
    """
    SIMPLE XTENSION BITPIX NAXIS NAXIS1 NAXIS2 PCOUNT GCOUNT EXTEND NEXTEND BSCALE BZERO
    CHECKSUM DATASUM ZHECKSUM ZDATASUM CHECKVER BUNIT EXTNAME INHERIT
    LTV1 LTV2 LTM1_1 LTM1_2 LTM2_1 LTM2_2
    """.split()
)
_STALE_PREFIXES = (
    *("TRIMSEC", "DATASEC", "BIASSEC", "PRESEC", "POSTSEC", "AMPSEC", "CCDSEC", "DETSEC"),
    *("PV1_", "PV2_", "CD1_", "CD2_"),
)


@dataclass(frozen=True)
class Plane:
    """Pixels of one extension.

    Parameters
    ----------
    pixels : ndarray, shape (ny, nx)
        float32 or uint8.
    step : float or None
        Quantisation step of floating-point pixels, in their own unit.
    """

    pixels: NDArray[Any]
    step: float | None = None


def write_image(
    path: Path,
    primary: Header,
    extension: Header,
    planes: Mapping[str, Plane],
    cards: Iterable[Card],
) -> None:
    """Write a calibrated CCD: primary header, then one compressed extension a plane.

    Parameters
    ----------
    path : Path
        Final name; it appears whole or not at all.
    primary, extension : Header
        Of the raw file; cards that are no longer true are left out.
    planes : mapping
        By extension name; ``"IMAGE"`` comes first.
    cards : iterable of (keyword, value, comment)
        WCS and quality, for the first plane.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    own = list(cards)
    told = {keyword for keyword, _, _ in own}
    with atomic_path(path) as partial, fitsio.FITS(str(partial), "rw", clobber=True) as stream:
        stream.write_image(None, header=_records(primary, told=set()))
        for name, plane in planes.items():
            header = _records(extension, told, own) if name == "IMAGE" else None
            stream.write_image(plane.pixels, header=header, extname=name, **_compression(plane))
            stream[-1].write_checksum()


def write_master(path: Path, image: NDArray[np.float32], noise: float, cards: list[Card]) -> None:
    """Write a master bias or dome flat as one compressed extension.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    empty = Header()
    write_image(path, empty, empty, {"IMAGE": Plane(image, noise / NOISE_STEPS)}, cards)


def read_master(path: Path) -> tuple[NDArray[np.float32], float]:
    """Read a master written by `write_master`.

    Returns
    -------
    image : ndarray of float32, shape (ny, nx)
    noise : float
        Typical standard error of a pixel, in the image's unit.

    Raises
    ------
    FitsError
        If it is damaged.
    """
    try:
        image, header = fitsio.read(str(path), ext=1, header=True)
        return image.astype(np.float32, copy=False), float(header["NOISE"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise FitsError(f"{path}: this master cannot be read; make it again") from error


def write_catalogue(
    path: Path, columns: Mapping[str, tuple[NDArray[Any], str]], cards: Iterable[Card]
) -> None:
    """Write a source table.

    Parameters
    ----------
    path : Path
    columns : mapping
        Name to (values, unit).
    cards : iterable of (keyword, value, comment)

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    names = list(columns)
    arrays = [np.ascontiguousarray(values) for values, _ in columns.values()]
    units = [unit for _, unit in columns.values()]
    header = [{"name": key, "value": value, "comment": note} for key, value, note in cards]
    with atomic_path(path) as partial, fitsio.FITS(str(partial), "rw", clobber=True) as stream:
        stream.write_table(arrays, names=names, units=units, header=header, extname="SOURCES")
        stream[-1].write_checksum()


def _compression(plane: Plane) -> dict[str, Any]:
    if plane.step is None:
        return {"compress": "RICE"}
    # A negative level is cfitsio's absolute step.
    return {"compress": "RICE", "qlevel": -plane.step, "qmethod": "SUBTRACTIVE_DITHER_2"}


def _records(header: Header, told: set[str], own: Iterable[Card] = ()) -> fitsio.FITSHDR:
    records = fitsio.FITSHDR()
    for card in header.cards:
        stale = card.keyword in _STALE or card.keyword.startswith(_STALE_PREFIXES)
        if not stale and card.keyword not in told and not isinstance(card.value, fits.Undefined):
            records.add_record(
                {"name": card.keyword or None, "value": card.value, "comment": card.comment}
            )
    for keyword, value, comment in own:
        records.add_record({"name": keyword, "value": value, "comment": comment})
    return records
