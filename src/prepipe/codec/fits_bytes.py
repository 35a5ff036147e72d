"""The anatomy of a FITS file: where each HDU lies, without looking at a pixel.

Only header blocks are read, by position, so that a fuzzed or half-written file costs
little memory and no crash (a memory map would die of SIGBUS when a file shrinks). Plain
and gzip-compressed files are taken. Sizes: FITS Standard 4.0, sections 4.4.1 and 6.1.2.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from types import TracebackType

from astropy.io.fits import Header

from prepipe.codec.cards import (
    BLOCK,
    CARD,
    CardValue,
    card_value,
    header_from_cards,
    keyword_of,
    padding_to_block,
    split_cards,
)
from prepipe.errors import FitsError
from prepipe.files import storage_errors

__all__ = ["FitsFile", "HduSpan", "scan_fits"]

MAX_HDUS = 2000
"""No camera writes more; a file of nothing but tiny HDUs must not fill the memory."""
MAX_HEADER_BYTES = 1000 * BLOCK
MAX_GUNZIPPED_BYTES = 1 << 28
MAX_NAXIS = 999

_READ_BYTES = 16 * BLOCK
_END = b"END".ljust(CARD)
_GZIP_MAGIC = b"\x1f\x8b"
_BITPIX = (8, 16, 32, 64, -32, -64)


@dataclass(frozen=True)
class HduSpan:
    """Where one HDU lies in its file, and its header.

    Parameters
    ----------
    index : int
        0 for the primary HDU.
    header_offset : int
        Byte at which the header begins.
    header : bytes
        The header unit as it lies there, END and padding included.
    data_bytes : int
        Length of the data without padding.
    """

    index: int
    header_offset: int
    header: bytes = field(repr=False)
    data_bytes: int

    @property
    def data_offset(self) -> int:
        """Byte at which the data begin."""
        return self.header_offset + len(self.header)

    @property
    def unit_bytes(self) -> int:
        """Length of the data with padding."""
        return self.data_bytes + padding_to_block(self.data_bytes)

    @property
    def end(self) -> int:
        """Byte after the HDU's last."""
        return self.data_offset + self.unit_bytes

    @cached_property
    def cards(self) -> tuple[bytes, ...]:
        """The header's cards, 80 bytes each, without END."""
        return tuple(split_cards(self.header))

    @cached_property
    def _by_keyword(self) -> dict[str, bytes]:
        # the first of two equal keywords counts, as in cfitsio
        return {keyword_of(card): card for card in reversed(self.cards)}

    def value(self, keyword: str) -> CardValue | None:
        """Value of a standard keyword (not HIERARCH), None if absent or not readable."""
        card = self._by_keyword.get(keyword)
        return None if card is None else card_value(card)

    @property
    def keywords(self) -> tuple[str, ...]:
        """All standard keywords."""
        return tuple(self._by_keyword)

    def has(self, keyword: str) -> bool:
        """Whether the header has a card of this standard keyword."""
        return keyword in self._by_keyword

    @property
    def astropy_header(self) -> Header:
        """The header as astropy reads it, of a compressed image that of the table."""
        return header_from_cards(self.cards)

    @property
    def compressed(self) -> bool:
        """Whether this is a tile-compressed image."""
        return self.value("ZIMAGE") is True

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of the image, slowest axis first; empty if the HDU holds no image."""
        prefix = "Z" if self.compressed else ""
        if not self.compressed and self.value("XTENSION") not in (None, "IMAGE"):
            return ()
        axes = self.value(f"{prefix}NAXIS")
        if not isinstance(axes, int) or not 0 < axes <= MAX_NAXIS:
            return ()
        lengths = [self.value(f"{prefix}NAXIS{axis}") for axis in range(axes, 0, -1)]
        sound = [length for length in lengths if isinstance(length, int) and length > 0]
        return tuple(sound) if len(sound) == axes else ()


class FitsFile:
    """A FITS file open for reading by position; a context manager.

    Parameters
    ----------
    path : Path

    Raises
    ------
    StorageError
        If the file vanished or may not be read.
    FitsError
        If it is empty, no regular file, or a broken gzip file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content: bytes | None = None
        with storage_errors(path):
            # non-blocking: opening a named pipe must not hang the watcher
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self.size = self._open()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> FitsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back to the system."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer only at the end of the file.

        Raises
        ------
        StorageError
            If reading fails.
        """
        if self._content is not None:
            return self._content[offset : offset + length]
        parts = []
        with storage_errors(self.path):
            while length > 0 and (part := os.pread(self._descriptor, length, offset)):
                parts.append(part)
                offset += len(part)
                length -= len(part)
        return b"".join(parts)

    def data_unit(self, span: HduSpan) -> bytes:
        """Data of an HDU with its padding, as they lie in the file.

        Raises
        ------
        FitsError
            If the file has become shorter since it was scanned.
        """
        unit = self.read(span.data_offset, span.unit_bytes)
        if len(unit) != span.unit_bytes:
            raise FitsError(f"{self.path}: became shorter while it was read; wait for its writer")
        return unit

    @cached_property
    def spans(self) -> tuple[HduSpan, ...]:
        """All HDUs.

        Raises
        ------
        FitsError
            As `scan_fits`.
        """
        found: list[HduSpan] = []
        offset = 0
        while offset < self.size:
            if len(found) == MAX_HDUS:
                raise FitsError(f"{self.path}: has more than {MAX_HDUS} HDUs; it is damaged")
            span = self.span_at(len(found), offset)
            if span.end > self.size:
                raise FitsError(
                    f"{self.path}: truncated, HDU {span.index} ends at byte {span.end} "
                    f"and the file at {self.size}; fetch it again"
                )
            found.append(span)
            offset = span.end
        return tuple(found)

    def span_at(self, index: int, offset: int) -> HduSpan:
        """HDU number `index`, whose header begins at byte `offset`.

        Raises
        ------
        FitsError
            If no sound header begins there.
        """
        where = f"{self.path}: HDU {index}"
        first = self.read(offset, CARD)
        _check_first_card(first, index, self.path, offset, self.size)
        header = self._header_at(offset, where)
        bare = HduSpan(index, offset, header, 0)
        return HduSpan(index, offset, header, _data_bytes(bare, where))

    def _header_at(self, offset: int, where: str) -> bytes:
        """Header unit up to the block with END."""
        header = b""
        while len(header) < MAX_HEADER_BYTES:
            part = self.read(offset + len(header), _READ_BYTES)
            header += part
            end = _find_end(header, len(header) - len(part))
            length = 0 if end is None else end + CARD + padding_to_block(end + CARD)
            if 0 < length <= len(header):
                return header[:length]
            if len(part) < _READ_BYTES:
                raise FitsError(f"{where}: the file ends inside its header; fetch it again")
        raise FitsError(
            f"{where}: no END card within {MAX_HEADER_BYTES} bytes; the file is damaged"
        )

    def _open(self) -> int:
        """Size of the content; gunzips a gzip file."""
        with storage_errors(self.path):
            status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FitsError(f"{self.path}: is no regular file; give the path of a FITS file")
        if status.st_size == 0:
            raise FitsError(f"{self.path}: is empty; fetch it again")
        if self.read(0, len(_GZIP_MAGIC)) != _GZIP_MAGIC:
            return status.st_size
        self._content = self._gunzip()
        return len(self._content)

    def _gunzip(self) -> bytes:
        with storage_errors(self.path), os.fdopen(os.dup(self._descriptor), "rb") as stream:
            try:
                content = gzip.GzipFile(fileobj=stream).read(MAX_GUNZIPPED_BYTES + 1)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise FitsError(
                    f"{self.path}: the gzip stream is broken ({error}); fetch it again"
                ) from error
        if len(content) > MAX_GUNZIPPED_BYTES:
            raise FitsError(
                f"{self.path}: holds more than {MAX_GUNZIPPED_BYTES} bytes; gunzip it first"
            )
        return content


def scan_fits(path: Path) -> tuple[HduSpan, ...]:
    """Find every HDU of a FITS file and make sure that they fill it exactly.

    Parameters
    ----------
    path : Path
        Plain, tile-compressed (``.fits.fz``) or gzip-compressed.

    Returns
    -------
    tuple of HduSpan
        At least one, the primary HDU first.

    Raises
    ------
    FitsError
        If the file is empty, no FITS, truncated, has bytes after its last HDU, or
        contradicts itself.
    StorageError
        If it vanished or may not be read.
    """
    with FitsFile(path) as file:
        return file.spans


def _check_first_card(first: bytes, index: int, path: Path, offset: int, size: int) -> None:
    """A primary header begins with SIMPLE, an extension with XTENSION."""
    wanted = "XTENSION" if index else "SIMPLE"
    if len(first) == CARD and keyword_of(first) == wanted and first[8:10] == b"= ":
        return
    if index:
        raise FitsError(
            f"{path}: {size - offset} bytes after HDU {index - 1} are no extension; "
            "the file is damaged or still being written"
        )
    raise FitsError(f"{path}: is no FITS file (no SIMPLE card at its start); leave it out")


def _find_end(header: bytes, searched: int) -> int | None:
    """Position of the END card on the 80-byte grid, None if there is none."""
    start = max(0, searched - searched % CARD)
    position = header.find(_END, start)
    while position >= 0:
        if position % CARD == 0:
            return position
        position = header.find(_END, position + 1)
    return None


def _count(span: HduSpan, keyword: str, where: str, default: int | None = None) -> int:
    """A card that counts something: an integer, not negative."""
    value = span.value(keyword)
    if value is None and default is not None and not span.has(keyword):
        return default
    if type(value) is not int or value < 0:
        raise FitsError(f"{where}: {keyword} is {value!r}, not a count; the header is damaged")
    return value


def _data_bytes(span: HduSpan, where: str) -> int:
    """Length of the data unit without padding, from the mandatory cards."""
    bitpix = span.value("BITPIX")
    if bitpix not in _BITPIX:
        raise FitsError(f"{where}: BITPIX is {bitpix!r}; the header is damaged")
    axes = _count(span, "NAXIS", where)
    if axes > MAX_NAXIS:
        raise FitsError(f"{where}: NAXIS is {axes}; the header is damaged")
    lengths = [_count(span, f"NAXIS{axis}", where) for axis in range(1, axes + 1)]
    if axes == 0:
        return 0
    if span.value("GROUPS") is True and lengths[0] == 0:
        lengths = lengths[1:]
    elements = _count(span, "PCOUNT", where, 0) + prod(lengths)
    return abs(int(bitpix)) // 8 * _count(span, "GCOUNT", where, 1) * elements
