"""`RawCcd`: one CCD as the telescope wrote it, from a packet or straight from a FITS file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io.fits import Header
from astropy.io.fits.verify import VerifyWarning
from astropy.utils.exceptions import AstropyUserWarning
from numpy.typing import NDArray

from prepipe.calibrate.flags import Mask
from prepipe.calibrate.stars.packing_noise import PackingNoise
from prepipe.cameras import Camera
from prepipe.codec.base import Unit
from prepipe.codec.cards import header_from_cards, split_cards
from prepipe.codec.fits_bytes import FitsFile, HduSpan
from prepipe.codec.headers import image_cards
from prepipe.codec.packet import open_packet
from prepipe.codec.tiles import decode_rows
from prepipe.errors import FitsError, HeaderError, PacketError, PixelError, PrepipeError
from prepipe.model import Ccd, Exposure, Layout, Packet

__all__ = ["RawCcd", "list_ccds", "merged", "read_ccd", "read_exposure"]

# Cards of the primary header that tell of its own structure, not of the exposure.
_STRUCTURE = ("SIMPLE", "BITPIX", "NAXIS", "EXTEND", "NEXTEND", "CHECKSUM", "DATASUM")

MAX_CORRUPT = 0.1
"""With a larger fraction of its rows corrupt, a CCD is not worth calibrating."""

Cards = tuple[bytes, ...]
"""Header cards as they lie in the file, 80 bytes each, without END."""


@dataclass(frozen=True)
class RawCcd:
    """Pixels and headers of one CCD of one exposure.

    Parameters
    ----------
    exposure : Exposure
    ccd : Ccd
    primary, extension : Header
        As the telescope wrote them, the extension's as of an image that is not compressed.
    pixels : ndarray, shape (ny, nx)
        ADU, of the raw file's own type, in native byte order.
    corrupt_rows : ndarray of intp, optional
        Rows that could not be decompressed and hold a copy of the nearest sound one.
    sum_fits : bool or None
        Whether the file's DATASUM is that of its data; None if it states none.
    cards : tuple of two tuples of bytes, optional
        The cards of both headers, byte for byte.
    packet : Packet or None
        What brought it, if a packet did.
    """

    exposure: Exposure
    ccd: Ccd
    primary: Header
    extension: Header
    pixels: NDArray[Any]
    corrupt_rows: NDArray[np.intp] | None = None
    sum_fits: bool | None = None
    cards: tuple[Cards, Cards] | None = None
    packet: Packet | None = None

    @cached_property
    def packing_noise(self) -> PackingNoise | None:
        """What packing did to the noise; None if nothing was lost, or no packet tells."""
        return None if self.packet is None else PackingNoise.told_by(self.packet.parameters)

    @cached_property
    def header(self) -> Header:
        """The extension's header with what it inherits from the primary."""
        return merged(self.primary, self.extension)

    def original_cards(self) -> tuple[Cards, Cards]:
        """Cards of the primary and of the extension, as the telescope wrote them."""
        return self.cards or (_cards_of(self.primary), _cards_of(self.extension))

    def corrupt_mask(self, layout: Layout) -> NDArray[np.uint8] | None:
        """Mask of the trimmed CCD with `Mask.CORRUPT` on `corrupt_rows`; None if none is.

        Parameters
        ----------
        layout : Layout

        Returns
        -------
        ndarray of uint8, shape (ny, nx), or None
        """
        if self.corrupt_rows is None or not self.corrupt_rows.size:
            return None
        corrupt = np.zeros(self.pixels.shape[0], np.bool_)
        corrupt[self.corrupt_rows] = True
        mask = np.zeros(layout.trimmed_shape, np.uint8)
        for amplifier in layout.amplifiers:
            rows = corrupt[amplifier.data.y0 : amplifier.data.y1]
            mask[amplifier.trimmed.slices][rows] = np.uint8(Mask.CORRUPT)
        return mask


def merged(primary: Header, extension: Header) -> Header:
    """The extension's cards, and the primary's where the extension has none."""
    header = extension.copy()
    known = set(header)
    for card in primary.cards:
        if card.keyword not in known and card.keyword not in _STRUCTURE:
            header.append(card, end=True)
    return header


def read_exposure(path: Path, camera: Camera) -> Exposure:
    """What a raw file's headers say of the exposure.

    Raises
    ------
    FitsError
        If the file cannot be read as FITS.
    HeaderError
        If a card that is needed is missing or makes no sense.
    StorageError
        If the file vanished or may not be read.
    """
    with _opened(path) as file:
        primary = file.span_at(0, 0)
        first = file.span_at(1, primary.end) if primary.end < file.size else primary
        return camera.exposure(_merged_header(primary, first))


def read_ccd(source: Path, hdu: int | None, camera: Camera) -> RawCcd:
    """Read one CCD from a packet (no `hdu`) or from an HDU of a raw file.

    Raises
    ------
    InputError
        If it cannot be read.
    StorageError
        If the file vanished or may not be read.
    """
    return _read_packet(source, camera) if hdu is None else _read_hdu(source, hdu, camera)


def list_ccds(path: Path, camera: Camera) -> list[tuple[int, Ccd]]:
    """Which HDU of a raw file holds which CCD; focus chips are left out.

    Raises
    ------
    FitsError
        If the file cannot be read as FITS or holds no CCD.
    HeaderError
        If an extension does not tell its CCD.
    StorageError
        If the file vanished or may not be read.
    """
    with _opened(path) as file:
        found = []
        for span in file.spans:
            if len(span.image_shape) == 2:
                ccd = camera.ccd(_merged_header(file.spans[0], span))
                if ccd is not None:
                    found.append((span.index, ccd))
    if not found:
        raise FitsError(f"{path}: no CCD of {camera.name} in this file; is it a raw exposure?")
    return found


def _read_packet(path: Path, camera: Camera) -> RawCcd:
    packet = open_packet(path)
    pixels = packet.pixels()
    cards = _image_cards(HduSpan(packet.hdu, 0, packet.image_header, 0))
    primary_cards = tuple(split_cards(packet.primary_header)) if packet.primary_header else cards
    with _understood(path):
        primary, extension = header_from_cards(primary_cards), header_from_cards(cards)
        exposure = camera.exposure(merged(primary, extension))
        _require_agreement(path, exposure, packet.packet)
    return RawCcd(
        exposure,
        packet.packet.ccd,
        primary,
        extension,
        pixels,
        cards=(primary_cards, cards),
        packet=packet.packet,
    )


def _require_agreement(path: Path, exposure: Exposure, packet: Packet) -> None:
    """Products are named by the cards, the journal by the packet: they must mean one exposure."""
    told = packet.exposure
    if (exposure.number, exposure.night) != (told.number, told.night):
        raise PacketError(
            f"{path}: its cards are those of exposure {exposure.number} of {exposure.night}, "
            f"not {told.number} of {told.night}; pack it again"
        )


def _read_hdu(path: Path, index: int, camera: Camera) -> RawCcd:
    with _opened(path) as file:
        first, span = _find_hdu(file, index)
        primary_cards = first.cards if index else _image_cards(first)
        cards = _image_cards(span)
        primary, extension = header_from_cards(primary_cards), header_from_cards(cards)
        header = merged(primary, extension)
        exposure, ccd = camera.exposure(header), camera.ccd(header)
        if ccd is None:
            raise HeaderError(f"{path}[{index}]: no science CCD")
        if len(span.image_shape) != 2:
            raise PixelError(f"{path}[{index}]: no image with two axes")
        unit = Unit(span.header, file.data_unit(span))
    try:
        decoded = decode_rows(unit)
    except FitsError as error:
        raise FitsError(f"{path}[{index}]: {error}") from error
    pixels, corrupt = decoded.pixels, decoded.corrupt
    if corrupt.size > MAX_CORRUPT * len(pixels):
        raise FitsError(
            f"{path}[{index}]: {corrupt.size} of {len(pixels)} rows are corrupt; fetch it again"
        )
    raw = RawCcd(
        exposure,
        ccd,
        primary,
        extension,
        pixels,
        corrupt if corrupt.size else None,
        decoded.sum_fits,
        (primary_cards, cards),
    )
    vars(raw)["header"] = header  # known already
    return raw


def _find_hdu(file: FitsFile, index: int) -> tuple[HduSpan, HduSpan]:
    """The primary HDU and the wanted one; what comes after is not looked at."""
    primary = span = file.span_at(0, 0)
    while span.index < index:
        if span.end >= file.size:
            raise FitsError(f"{file.path}: ends before HDU {index}; is it the right file?")
        span = file.span_at(span.index + 1, span.end)
    if span.end > file.size:
        raise FitsError(
            f"{file.path}: truncated, HDU {index} ends at byte {span.end} and the file at "
            f"{file.size}; fetch it again"
        )
    return primary, span


def _merged_header(primary: HduSpan, extension: HduSpan) -> Header:
    return merged(primary.astropy_header, header_from_cards(_image_cards(extension)))


def _image_cards(span: HduSpan) -> Cards:
    return tuple(image_cards(span))


def _cards_of(header: Header) -> Cards:
    return tuple(split_cards(header.tostring().encode("ascii", "replace")))


@contextmanager
def _opened(path: Path) -> Iterator[FitsFile]:
    """Open a FITS file; whatever its headers make the library stumble over is a `FitsError`."""
    with FitsFile(path) as file, _understood(path):
        yield file


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerifyWarning)
        warnings.simplefilter("ignore", AstropyUserWarning)
        try:
            yield
        except PrepipeError:
            raise
        except Exception as error:  # astropy raises whatever odd cards lead it to
            what = str(error).split("\n")[0] or type(error).__name__
            raise FitsError(f"{path}: cannot be read as FITS ({what}); copy it again") from error
