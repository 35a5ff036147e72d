"""Calibrated CCDs as the LSST stack and hscPipe write them: image, mask and variance in one file.

Their products go on as plain FITS with the same three planes and all they tell, but with the
WCS in TPV: photometry codes (SExtractor, SWarp) know no SIP, and the stack writes no other.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.io.fits import Header
from astropy.io.fits.verify import VerifyWarning
from astropy.utils.exceptions import AstropyUserWarning
from numpy.typing import NDArray

from prepipe.calibrate.sky.sip_as_tpv import tpv_cards
from prepipe.engines.products import Card, is_tellable
from prepipe.errors import EngineError, HeaderError
from prepipe.files import atomic_path, storage_errors

__all__ = ["PLANES", "StackImage", "read_stack_image", "write_stack_image"]

PLANES = ("IMAGE", "MASK", "VARIANCE")

_STRUCTURE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|BSCALE|BZERO|BLANK|CHECKSUM|DATASUM"
    r"|EXTNAME|EXTTYPE|INHERIT|Z(SIMPLE|TENSION|PCOUNT|GCOUNT|BLANK|HECKSUM|DATASUM)"
    # places of the stack's own tables, which do not come along
    r"|AR_HDU|\w+_ID|ARCHIVE_ID_\w+"
)
_WCS = re.compile(
    r"WCSAXES|C(TYPE|UNIT|RVAL|RPIX|DELT)[12]|(CD|PC)[12]_[12]|PV[12]_\d+|LONPOLE|LATPOLE"
    r"|[AB]P?_(ORDER|DMAX|\d_\d)"
)
_SUMMARY = "ExposureSummaryStats"
_FIGURE = re.compile(rb"(\w+): (-?\d[\d.]*(?:[eE][-+]?\d+)?)\s")


@dataclass(frozen=True)
class StackImage:
    """What the stack tells of one CCD.

    Parameters
    ----------
    primary : Header
        Of the exposure.
    headers : dict
        Of each of `PLANES`.
    pixels : dict
        Of each of `PLANES`, shape (ny, nx).
    summary : dict
        Figures of its table of summary statistics, where there is one (`psfSigma`, pixels).
    """

    primary: Header
    headers: Mapping[str, Header]
    pixels: Mapping[str, NDArray[Any]]
    summary: Mapping[str, float]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.pixels["IMAGE"].shape
        return rows, columns

    def tpv_cards(self) -> dict[str, float | str]:
        """Its WCS as a TPV.

        Raises
        ------
        HeaderError
            If it has none, or none that a TPV can tell.
        """
        return tpv_cards(self.headers["IMAGE"], self.shape)

    def number(self, *keywords: str) -> float | None:
        """The first of some cards that is there as a finite number."""
        for keyword in keywords:
            for header in (self.headers["IMAGE"], self.primary):
                value = header.get(keyword)
                if isinstance(value, int | float) and np.isfinite(value):
                    return float(value)
        return None


def read_stack_image(path: Path) -> StackImage:
    """Read the planes of a calibrated CCD.

    Raises
    ------
    EngineError
        If it is damaged, or no such file.
    StorageError
        If it cannot be opened.
    """
    with storage_errors(path), path.open("rb"):
        pass
    try:
        with _quiet(), fits.open(path, memmap=False) as hdus:
            planes = _planes(hdus)
            return StackImage(
                hdus[0].header.copy(),
                {name: hdu.header.copy() for name, hdu in planes.items()},
                {name: np.asarray(hdu.data) for name, hdu in planes.items()},
                _summary(hdus),
            )
    except (OSError, ValueError, TypeError, KeyError, IndexError, HeaderError) as error:
        raise EngineError(
            f"{path}: is no calibrated CCD with image, mask and variance ({error})"
        ) from error


def write_stack_image(
    product: Path, made: StackImage, wcs: Mapping[str, float | str], cards: Iterable[Card]
) -> None:
    """Write a product: a primary header, then one plain image a plane.

    Parameters
    ----------
    product : Path
        Final name; it appears whole or not at all.
    made : StackImage
    wcs : mapping
        Cards that replace the stack's own WCS; empty keeps that.
    cards : iterable of (keyword, value, comment)
        What is added to the primary header.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    with _quiet():
        primary = _kept(made.primary, stale=None)
        for keyword, value, comment in cards:
            if is_tellable(value):
                primary[keyword] = (value, comment)
        hdus = fits.HDUList([fits.PrimaryHDU(header=primary)])
        for name in PLANES:
            header = _kept(made.headers[name], stale=_WCS if wcs else None)
            header.update(wcs)
            hdus.append(fits.ImageHDU(made.pixels[name], header, name))
        with atomic_path(product) as partial:
            hdus.writeto(partial, checksum=True, output_verify="silentfix")


def _planes(hdus: fits.HDUList) -> dict[str, Any]:
    """The HDU of each plane, by what it calls itself; else they are the first three images."""
    images = [hdu for hdu in hdus if hdu.is_image and hdu.header.get("NAXIS") == 2]
    named = {str(hdu.header.get("EXTTYPE", hdu.name)).strip(): hdu for hdu in reversed(images)}
    if not set(PLANES) <= set(named):
        named = dict(zip(PLANES, images, strict=False))
    found = {name: named[name] for name in PLANES}
    shapes = {hdu.data.shape for hdu in found.values()}
    if len(shapes) != 1:
        raise ValueError("its planes are of different sizes")
    return found


def _summary(hdus: fits.HDUList) -> dict[str, float]:
    """Figures that newer stacks write as YAML into a table."""
    for hdu in hdus:
        if hdu.header.get("AR_NAME") == _SUMMARY and not hdu.is_image and len(hdu.data):
            text = bytes(np.asarray(hdu.data[0][0], np.uint8)) + b"\n"
            return {name.decode(): float(value) for name, value in _FIGURE.findall(text)}
    return {}


def _kept(header: Header, stale: re.Pattern[str] | None) -> Header:
    """Cards that still hold in the product."""
    kept = Header()
    for card in header.cards:
        gone = _STRUCTURE.fullmatch(card.keyword) or (stale and stale.fullmatch(card.keyword))
        if not gone:
            kept.append(card, end=True)
    return kept


@contextmanager
def _quiet() -> Iterator[None]:
    """Without astropy's remarks on cards that somebody else wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerifyWarning)
        warnings.simplefilter("ignore", AstropyUserWarning)
        yield
