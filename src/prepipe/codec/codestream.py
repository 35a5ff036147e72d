"""The first words of a JPEG 2000 codestream (ISO/IEC 15444-1, A.5.1)."""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = ["CodestreamHead", "is_frame", "read_head"]

_SOC, _SIZ_MARKER = 0xFF4F, 0xFF51
_SIZ = struct.Struct(">HHHHIIIIIIIIHBBB")
_SIGNED = 0x80


class CodestreamHead(NamedTuple):
    """What the SIZ marker tells.

    Attributes
    ----------
    shape : tuple of int
        Rows and columns.
    tile : tuple of int
        Of its tiles.
    origins : tuple of int
        Of image and tiles; zero if both begin at the first pixel.
    components : int
    bits : int
    signed : bool
    """

    shape: tuple[int, int]
    tile: tuple[int, int]
    origins: tuple[int, ...]
    components: int
    bits: int
    signed: bool


def read_head(stream: bytes) -> CodestreamHead | None:
    """Read the head of a codestream, None if it is none.

    To be looked at before a library sees the stream, for it would take memory for whatever
    size is stated.
    """
    if len(stream) < _SIZ.size:
        return None
    start, marker, _, _, *sizes, components, depth, _, _ = _SIZ.unpack_from(stream)
    if (start, marker) != (_SOC, _SIZ_MARKER):
        return None
    columns, rows, x0, y0, tile_columns, tile_rows, tile_x0, tile_y0 = sizes
    return CodestreamHead(
        (rows, columns),
        (tile_rows, tile_columns),
        (x0, y0, tile_x0, tile_y0),
        components,
        (depth & ~_SIGNED) + 1,
        bool(depth & _SIGNED),
    )


def is_frame(stream: bytes, shape: tuple[int, int], *, signed: bool = False) -> bool:
    """Whether a codestream begins as that of a frame: one tile, one component of 16 bits."""
    return read_head(stream) == CodestreamHead(shape, shape, (0, 0, 0, 0), 1, 16, signed)
