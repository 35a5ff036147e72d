"""The WCS of products: its cards in the wanted words, and other words for what is written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from prepipe.calibrate.sky.sip import sip_of
from prepipe.calibrate.sky.tpv import Tpv
from prepipe.codec.cards import join_cards, keyword_of
from prepipe.codec.checksums import with_new_sums
from prepipe.codec.fits_bytes import FitsFile, HduSpan
from prepipe.engines.names import NO_PRODUCT, catalogue_paths
from prepipe.engines.products import Card, value_card
from prepipe.errors import FitsError, HeaderError
from prepipe.files import atomic_path, atomic_write

__all__ = ["convert_wcs", "wcs_cards"]

# What `wcs_cards` writes, and nothing else.
_WCS = re.compile(
    r"C(TYPE|UNIT|RVAL|RPIX)[12]|CD[12]_[12]|PV[12]_\d+|[AB]P?_(ORDER|DMAX|\d_\d)|SIPDEV"
)


def wcs_cards(wcs: Tpv, shape: tuple[int, int], form: str) -> list[Card]:
    """Cards of a WCS.

    Parameters
    ----------
    wcs : Tpv
    shape : tuple of int
        Rows and columns of the CCD.
    form : {"tpv", "sip"}
        How the distortion is told; without any, it is a plain TAN.

    Raises
    ------
    HeaderError
        If no SIP says the same.
    """
    if form == "tpv" or not wcs.distorted:
        return [(key, value, "") for key, value in wcs.to_cards().items()]
    sip = sip_of(wcs, shape)
    deviation = ("SIPDEV", sip.deviation_mas, "[mas] largest deviation from the TPV")
    return [*((key, value, "") for key, value in sip.to_cards().items()), deviation]


def convert_wcs(product: Path, directory: Path, form: str) -> Path:
    """Copy a product and its source tables with the distortion told in other words.

    The pixels are copied as they lie, compressed; only headers are written anew.

    Parameters
    ----------
    product : Path
    directory : Path
        Where the copy goes, under the same name.
    form : {"tpv", "sip"}

    Returns
    -------
    Path
        Of the copy.

    Raises
    ------
    FitsError
        If it is no product, or the copy would replace it.
    HeaderError
        If it has no WCS, or one that cannot be told so.
    StorageError
        If the copy cannot be written.
    """
    path = directory / product.name
    if path.exists() and path.samefile(product):
        raise FitsError(f"{product}: the copy would replace it; give another directory")
    with FitsFile(product) as file:
        if not any(span.has("PREPIPE") for span in file.spans):
            raise FitsError(f"{product}: {NO_PRODUCT}")
        if not any(span.has("CTYPE1") for span in file.spans):
            raise HeaderError(f"{product}: has no WCS that could be told in other words")
        headers = [_converted(file, span, form) for span in file.spans]
        for table in catalogue_paths(product, "both"):
            # Its absence is no obstacle: the image alone is of use.
            if table.exists():
                with atomic_path(directory / table.name) as partial:
                    shutil.copyfile(table, partial)
        with atomic_write(path) as stream:
            for span, header in zip(file.spans, headers, strict=True):
                stream.write(header)
                stream.write(file.data_unit(span))
    return path


def _converted(file: FitsFile, span: HduSpan, form: str) -> bytes:
    """The header of an HDU, with its WCS in the wanted words."""
    if not span.has("CTYPE1") or len(span.image_shape) != 2:
        return span.header
    try:
        rows, columns = span.image_shape
        fresh = wcs_cards(Tpv.from_header(span.astropy_header), (rows, columns), form)
    except HeaderError as error:
        raise HeaderError(f"{file.path}[{span.index}]: {error}") from error
    cards = [card for card in span.cards if _WCS.fullmatch(keyword_of(card)) is None]
    place = [keyword_of(card) for card in span.cards].index("CTYPE1")
    cards[place:place] = [value_card(*card) for card in fresh]
    return join_cards(with_new_sums(cards, file.data_unit(span)))
