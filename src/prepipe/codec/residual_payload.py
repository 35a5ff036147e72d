"""The bytes of a residual's payload; docs/packet.md tells them one by one."""

from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np
import zstandard

from prepipe.codec.numbers import LONGEST_NUMBER
from prepipe.codec.rans import SYMBOLS
from prepipe.codec.residual_coder import CLASSES, LARGEST_LIMIT, NEIGHBOURS, PERIOD, Coded
from prepipe.codec.zstd_streams import inflate
from prepipe.errors import PacketError

__all__ = ["coded_from_bytes", "coded_to_bytes"]

MAGIC = b"PPRS"
VERSION = 1

_WHAT = "the residual"
_PREFIX = struct.Struct("<4sBBHII")
_TABLE_BYTES = 2 * CLASSES * SYMBOLS
_ZSTD_LEVEL = 6
_WEIGHT, _FREQUENCY, _WORD = "<i2", "<u2", "<u4"


def coded_to_bytes(coded: Coded) -> bytes:
    """The payload as it is sent."""
    packer = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    table = packer.compress(coded.table.astype(_FREQUENCY).tobytes())
    numbers = packer.compress(coded.numbers.tobytes()) if coded.numbers.size else b""
    period = 1 if len(coded.weights) == 1 else PERIOD
    head = _PREFIX.pack(MAGIC, VERSION, period, coded.limit, len(table), len(numbers))
    weights, words = coded.weights.astype(_WEIGHT), coded.words.astype(_WORD)
    return b"".join([head, weights.tobytes(), table, numbers, words.tobytes()])


def coded_from_bytes(content: bytes, pixels: int) -> Coded:
    """Read a payload, which may be anything, of a frame of so many pixels.

    Raises
    ------
    PacketError
        If it is none, of another version, or damaged.
    """
    if content[:4] != MAGIC or len(content) < _PREFIX.size:
        raise PacketError("the payload is no residual")
    _, version, period, limit, table_bytes, number_bytes = _PREFIX.unpack_from(content)
    if version != VERSION:
        raise PacketError(
            f"the residual is of version {version}, this program reads {VERSION}; update it"
        )
    _require(period in (1, PERIOD) and limit <= LARGEST_LIMIT)
    phases = period * period
    lengths = (2 * phases * NEIGHBOURS, table_bytes, number_bytes)
    ends = np.cumsum([_PREFIX.size, *lengths]).tolist()
    words = len(content) - ends[-1]
    # each pixel takes less than one word
    _require(words >= 8 and words % 4 == 0 and words <= 4 * (pixels + 2))
    weights, table, numbers = (content[start:end] for start, end in pairwise(ends))
    frequencies = inflate(table, _TABLE_BYTES, _WHAT)
    _require(frequencies.size == _TABLE_BYTES)
    return Coded(
        np.frombuffer(weights, _WEIGHT).astype(np.int16).reshape(phases, NEIGHBOURS),
        limit,
        frequencies.view(_FREQUENCY).astype(np.uint16).reshape(CLASSES, SYMBOLS),
        inflate(numbers, LONGEST_NUMBER * pixels, _WHAT),
        np.frombuffer(content, _WORD, offset=ends[-1]).astype(np.uint32),
    )


def _require(sound: bool) -> None:
    if not sound:
        raise PacketError(f"{_WHAT} is damaged; send it again")
