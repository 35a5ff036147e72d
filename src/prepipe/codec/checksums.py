"""DATASUM and CHECKSUM of FITS: read, compared, written.

Formulae: FITS Standard 4.0, section 4.4.2.7 and appendix J (Seaman, Pence & Rots). In a
tile-compressed HDU both cards speak of the table, while ZDATASUM and ZHECKSUM keep
those of the uncompressed image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prepipe.codec.cards import join_cards, replace_value
from prepipe.codec.fits_bytes import FitsFile, HduSpan

__all__ = ["HduSums", "fits_sum", "verify_checksums", "with_new_sums"]

_READ_BYTES = 1 << 23
_ALL_ONES = 0xFFFFFFFF
_ASCII_ZERO = 0x30
_PUNCTUATION = frozenset(range(0x3A, 0x41)) | frozenset(range(0x5B, 0x61))
_UNSET = "0" * 16
_DATASUM, _CHECKSUM = b"DATASUM ", b"CHECKSUM"


@dataclass(frozen=True)
class HduSums:
    """Whether an HDU's own sums fit it; None where the card is absent or unreadable.

    Parameters
    ----------
    index : int
        Number of the HDU.
    data : bool or None
        DATASUM.
    hdu : bool or None
        CHECKSUM.
    """

    index: int
    data: bool | None
    hdu: bool | None


def fits_sum(content: bytes, start: int = 0) -> int:
    """Ones' complement sum of `content` taken as big-endian 32-bit words.

    Parameters
    ----------
    content : bytes
        A multiple of four bytes long.
    start : int
        Sum of what came before.
    """
    total = start + int(np.frombuffer(content, ">u4").sum(dtype=np.uint64))
    while total > _ALL_ONES:
        total = (total & _ALL_ONES) + (total >> 32)
    return total


def verify_checksums(path: Path) -> tuple[HduSums, ...]:
    """Compare the sums that each HDU states with those it has.

    A mismatch is told, not raised: archives hand out cut-outs that keep the sums of the
    frame they were cut from, and those are good data.

    Raises
    ------
    FitsError, StorageError
        As `scan_fits`.
    """
    with FitsFile(path) as file:
        return tuple(_verify(file, span) for span in file.spans)


def with_new_sums(cards: list[bytes], data_unit: bytes) -> list[bytes]:
    """The cards with DATASUM and CHECKSUM, where they have them, made right.

    Parameters
    ----------
    cards : list of bytes
        Without END.
    data_unit : bytes
        With its padding.
    """
    data = fits_sum(data_unit)
    values = {_DATASUM: str(data), _CHECKSUM: _UNSET}
    fresh = [_with_values(card, values) for card in cards]
    values[_CHECKSUM] = _encode(_ALL_ONES - fits_sum(join_cards(fresh), data))
    return [_with_values(card, values) for card in fresh]


def _verify(file: FitsFile, span: HduSpan) -> HduSums:
    stated = str(span.value("DATASUM") or "").strip()
    total = 0
    for offset in range(span.data_offset, span.end, _READ_BYTES):
        total = fits_sum(file.read(offset, min(_READ_BYTES, span.end - offset)), total)
    data = total == int(stated) if stated.isdecimal() else None
    if span.value("CHECKSUM") is None:
        return HduSums(span.index, data, None)
    # minus zero and zero are the same number in ones' complement
    return HduSums(span.index, data, fits_sum(span.header, total) in (0, _ALL_ONES))


def _with_values(card: bytes, values: Mapping[bytes, str]) -> bytes:
    value = values.get(card[:8])
    return card if value is None else replace_value(card, value)


def _encode(value: int) -> str:
    """Sixteen letters and digits that add `value` to the HDU's sum (appendix J)."""
    columns = [_spread(byte) for byte in value.to_bytes(4, "big")]
    letters = [columns[place][turn] for turn in range(4) for place in range(4)]
    # the value begins in column 12 of its card, one byte off the 32-bit grid
    return bytes(letters[-1:] + letters[:-1]).decode("ascii")


def _spread(byte: int) -> list[int]:
    """Four ASCII letters or digits whose excess over "0" adds up to `byte`."""
    quotient, remainder = divmod(byte, 4)
    parts = [quotient + remainder + _ASCII_ZERO] + [quotient + _ASCII_ZERO] * 3
    while any(part in _PUNCTUATION for part in parts):
        for first in (0, 2):
            if parts[first] in _PUNCTUATION or parts[first + 1] in _PUNCTUATION:
                parts[first] += 1
                parts[first + 1] -= 1
    return parts
