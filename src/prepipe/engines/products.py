"""Writing images that were made, a calibrated CCD or a master; and reading a master.

An image is tile-compressed with Rice. Floating-point planes are quantised in steps of
an eighth of their noise, which adds (1/8)^2/12, that is 0.07 %, to the noise (White,
Greenfield & Pence 2009). There is no dither: at steps so fine it changes nothing, and zero
stays zero. Every FITS reader shows the planes as images of float32 and uint8.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prepipe.codec.base import Allocate, Unit
from prepipe.codec.cards import join_cards, keyword_of, make_card
from prepipe.codec.checksums import with_new_sums
from prepipe.codec.fits_bytes import FitsFile
from prepipe.codec.plain_image import plain_image
from prepipe.codec.rice_image import compressed_image
from prepipe.codec.tiles import decode_unit
from prepipe.engines.builtin.buffers import Buffers
from prepipe.errors import FitsError, InputError
from prepipe.files import atomic_write

__all__ = [
    "NOISE_STEPS",
    "PRIMARY",
    "SUMS",
    "Card",
    "Plane",
    "is_tellable",
    "read_master",
    "value_card",
    "write_image",
    "write_master",
]

Card = tuple[str, Any, str]
"""Keyword, value, comment."""

NOISE_STEPS = 8.0
"""Quantisation steps to one sigma of the noise."""

# What belongs to the raw frame's own structure, or is no longer true of the trimmed one.
_STALE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|GROUPS|EXTEND|NEXTEND|BLOCKED|TFIELDS|THEAP"
    r"|T(TYPE|FORM|UNIT|NULL|SCAL|ZERO|DIM|DISP)\d+"
    r"|Z(IMAGE|SIMPLE|TENSION|EXTEND|BLOCKED|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|TILE\d+|CMPTYPE"
    r"|NAME\d+|VAL\d+|QUANTIZ|DITHER0|BLANK|MASKCMP|SCALE|ZERO|HECKSUM|DATASUM)"
    r"|BSCALE|BZERO|BLANK|BUNIT|DATAMIN|DATAMAX|CHECKSUM|DATASUM|CHECKVER|EXTNAME|INHERIT"
    r"|LT[VM]\d(_\d)?|(TRIM|DATA|BIAS|PRE|POST|AMP|CCD)SEC.*|DETSEC[AB]|(GAIN|RDNOISE|SATURAT)[AB]"
    # Whatever WCS there was is written anew, or not at all.
    r"|WCSAXES|C(TYPE|UNIT|RVAL|RPIX|DELT|ROTA)\d|(PC|CD|PV)\d_\d+|LONPOLE|LATPOLE"
    r"|[AB]P?_(ORDER|DMAX|\d_\d)"
)
_PRINTABLE = bytes(code if 32 <= code < 127 else ord("?") for code in range(256))
_LONGEST_TEXT = 68


@dataclass(frozen=True)
class Plane:
    """Pixels of one extension.

    Parameters
    ----------
    pixels : ndarray, shape (ny, nx)
        float32 or uint8.
    step : float or None
        Quantisation step of floating-point pixels, in their own unit; without one they are kept
        to the last bit, and not compressed.
    cards : tuple of (keyword, value, comment)
        What this extension tells besides its name.
    """

    pixels: NDArray[Any]
    step: float | None = None
    cards: tuple[Card, ...] = ()


def write_image(
    path: Path,
    primary: Iterable[bytes],
    extension: Iterable[bytes],
    planes: Mapping[str, Plane],
    cards: Iterable[Card],
    buffers: Buffers | None = None,
) -> None:
    """Write a calibrated CCD: primary header, then one compressed extension a plane.

    Parameters
    ----------
    path : Path
        Final name; it appears whole or not at all.
    primary, extension : iterable of bytes
        Cards of the raw file's headers. Those that are still true and not told anew go over
        byte for byte, the extension's into that of the first plane.
    planes : mapping
        By extension name; ``"IMAGE"`` comes first.
    cards : iterable of (keyword, value, comment)
        WCS and quality, for the first plane; they replace original ones of that keyword.
    buffers : Buffers, optional
        Memory for the compressed planes.

    Raises
    ------
    PixelError
        If a plane has another type or shape.
    StorageError
        If it cannot be written.
    """
    buffers = buffers or Buffers()
    own = [value_card(*card) for card in cards if is_tellable(card[1])]
    told = {keyword_of(card) for card in own}
    told |= {card[0] for plane in planes.values() for card in plane.cards}
    first = with_new_sums([*PRIMARY, *_still_true(primary, told), *SUMS], b"")
    parts: list[bytes | memoryview] = [join_cards(first)]
    for name, plane in planes.items():
        header = [value_card("EXTNAME", name, "name of this plane")]
        header += [value_card(*card) for card in plane.cards if is_tellable(card[1])]
        if name == "IMAGE":
            header += [*_still_true(extension, told), *own]
        parts += _hdu(plane, header, buffers.named(f"{name} tiles"))
    with atomic_write(path) as stream:
        stream.writelines(parts)


def write_master(path: Path, image: NDArray[np.float32], noise: float, cards: list[Card]) -> None:
    """Write a master bias or dome flat as one compressed extension.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    write_image(path, (), (), {"IMAGE": Plane(image, noise / NOISE_STEPS)}, cards)


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
        with FitsFile(path) as file:
            span = file.span_at(1, file.span_at(0, 0).end)
            image = decode_unit(Unit(span.header, file.data_unit(span)))
        noise = span.value("NOISE")
    except InputError as error:
        raise FitsError(f"{path}: this master cannot be read; make it again") from error
    if not isinstance(noise, int | float):
        raise FitsError(f"{path}: this master does not tell its noise; make it again")
    return image.astype(np.float32, copy=False), float(noise)


def value_card(keyword: str, value: Any, comment: str = "") -> bytes:
    """Header card that holds a number to its last digit; long text is cut.

    Parameters
    ----------
    keyword : str
        At most eight characters.
    value : bool, int, float or str
        Or their numpy kin; finite.
    comment : str

    Raises
    ------
    FitsError
        If the value does not fit into a card.
    """
    if isinstance(value, bool | np.bool_):
        return make_card(keyword, bool(value), comment)
    if isinstance(value, int | np.integer):
        return make_card(keyword, int(value), comment)
    if isinstance(value, str):
        while len(value.replace("'", "''")) > _LONGEST_TEXT:
            value = value[:-1]
        plain = value.encode("ascii", "replace").translate(_PRINTABLE).decode("ascii")
        return make_card(keyword, plain, comment)
    digits = repr(float(value)).upper()
    text = f"{keyword:<8}= {digits:>20}" + (f" / {comment}" if comment else "")
    return text[:80].ljust(80).encode("ascii", "replace")


PRIMARY = (
    make_card("SIMPLE", True, "conforms to FITS standard"),
    make_card("BITPIX", 8, "array data type"),
    make_card("NAXIS", 0, "no pixels here"),
    make_card("EXTEND", True, "the data are in the extensions"),
)
"""Header of a primary HDU without data."""


SUMS = (make_card("CHECKSUM", "0" * 16), make_card("DATASUM", "0"))
"""Room for the sums of an HDU."""


def _hdu(plane: Plane, header: list[bytes], memory: Allocate) -> list[bytes | memoryview]:
    if plane.step is None and plane.pixels.dtype.kind == "f":
        return [*plain_image(plane.pixels, header)]
    return compressed_image(plane.pixels, header, plane.step, memory)


def is_tellable(value: Any) -> bool:
    """Whether FITS has a way to write the value: not so NaN."""
    return not isinstance(value, float | np.floating) or math.isfinite(value)


def _still_true(cards: Iterable[bytes], told: Iterable[str] = ()) -> list[bytes]:
    """Cards of a raw frame that hold for the calibrated one and are not told anew."""
    again = frozenset(told)
    kept = []
    dropping = False
    for card in cards:
        keyword = keyword_of(card)
        # a CONTINUE card goes where the card before it went
        if keyword != "CONTINUE":
            dropping = keyword in again or _STALE.fullmatch(keyword) is not None
        if not dropping:
            kept.append(card.translate(_PRINTABLE))
    return kept
