"""The bytes of a wavelet payload; docs/packet.md tells them one by one."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, prod
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from prepipe.codec.numbers import LONGEST_NUMBER
from prepipe.codec.saturated import HIGHEST
from prepipe.codec.wavelet_symbols import NUMBER_BYTES, Coding
from prepipe.codec.wavelet_tiles import MAX_TILE_PIXELS, MAX_TILES, Tile
from prepipe.codec.wavelet_tree import MAX_LEVELS, Tree
from prepipe.codec.zstd_streams import inflate
from prepipe.errors import PacketError
from prepipe.model import Box

__all__ = ["BandHead", "Payload", "Streams"]

MAGIC = b"PPWV"
VERSION = 1

_WHAT = "the wavelet payload"
_PREFIX = struct.Struct("<4sBBHH")
_TILE = struct.Struct("<IIIIHHf")
_BAND = struct.Struct("<BfffII")
_SATURATED = struct.Struct("<II")
_MOST_SPLITS = 7
_SMALLEST, _LARGEST = 1e-6, 1e6
"""Of noise and steps: whatever these are in a damaged payload, no number becomes infinite."""

_PARAMETERS = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    min_match=7,
    window_log=14,
    hash_log=6,
    write_content_size=True,
    write_checksum=False,
)
"""Noise never repeats: zstd shall look little for repetitions, and count bytes."""

Bytes = NDArray[np.uint8]
Streams = tuple[Bytes, Bytes]


@dataclass(frozen=True)
class BandHead:
    """How a band is told.

    Parameters
    ----------
    coding : Coding
    step, one, fill : float
        In units of a tile's noise: a step, what was quantised to one step, noise in the
        place of zeros. Single precision.
    """

    coding: Coding
    step: float
    one: float
    fill: float


@dataclass(frozen=True)
class Payload:
    """All that a payload holds.

    Parameters
    ----------
    tree : Tree
    tiles : sequence of Tile
    bands : sequence of BandHead
        One a band of the tree.
    saturated : tuple of ndarray of uint8
        Places and values of saturated pixels, tile after tile.
    streams : sequence of tuple of ndarray of uint8
        Of each band its codes and its numbers, tile after tile.
    """

    tree: Tree
    tiles: Sequence[Tile]
    bands: Sequence[BandHead]
    saturated: Streams = field(repr=False)
    streams: Sequence[Streams] = field(repr=False)

    def to_bytes(self) -> bytes:
        """The payload as it is sent."""
        places, values = (_deflate(stream) for stream in self.saturated)
        packed = [tuple(_deflate(stream) for stream in pair) for pair in self.streams]
        head = [_PREFIX.pack(MAGIC, VERSION, len(self.tree.splits), len(self.tiles), 0)]
        head.append(bytes(self.tree.splits))
        for tile in self.tiles:
            rows, columns = tile.box.shape
            head.append(
                _TILE.pack(
                    *(tile.box.y0, tile.box.x0, rows, columns),
                    *(tile.offset, tile.saturation, tile.noise),
                )
            )
        for band, (codes, numbers) in zip(self.bands, packed, strict=True):
            told = band.step, band.one, band.fill, len(codes), len(numbers)
            head.append(_BAND.pack(band.coding, *told))
        head.append(_SATURATED.pack(len(places), len(values)))
        return b"".join([*head, places, values, *(part for pair in packed for part in pair)])

    @classmethod
    def from_bytes(cls, content: bytes, shape: tuple[int, int]) -> Payload:
        """Read a payload of a frame of `shape`, which may be anything.

        Raises
        ------
        PacketError
            If it is none, of another version, or damaged.
        """
        reader = _Reader(content)
        magic, version, levels, count, reserved = reader.take(_PREFIX)
        if magic != MAGIC:
            raise PacketError("the payload is no wavelet payload")
        if version != VERSION:
            raise PacketError(
                f"the wavelet payload is of version {version}, this program reads {VERSION}; "
                "update it"
            )
        splits = tuple(reader.bytes(levels))
        _require(reserved == 0 and 0 < count <= MAX_TILES and levels <= MAX_LEVELS)
        _require(all(split <= _MOST_SPLITS for split in splits))
        tree = Tree(splits)
        tiles = [_tile(*reader.take(_TILE)) for _ in range(count)]
        _require(_covered(tiles, shape))
        heads = [reader.take(_BAND) for _ in tree.bands]
        bands = [_band(*head[:4]) for head in heads]
        pixels = prod(shape)
        places, values = reader.take(_SATURATED)
        most_places = LONGEST_NUMBER * (2 * pixels + len(tiles))
        saturated = reader.stream(places, most_places), reader.stream(values, 2 * pixels)
        streams = []
        sizes = _band_sizes(tree, tiles)
        for (*_, codes, numbers), size in zip(heads, sizes, strict=True):
            aside = NUMBER_BYTES * size
            streams.append((reader.stream(codes, size), reader.stream(numbers, aside)))
        _require(reader.finished)
        return cls(tree, tiles, bands, saturated, streams)


class _Reader:
    """Takes bytes off the front, and complains if there are too few."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0

    def bytes(self, count: int) -> bytes:
        """The next bytes."""
        _require(count <= len(self._content) - self._place)
        self._place += count
        return self._content[self._place - count : self._place]

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The next numbers."""
        return layout.unpack(self.bytes(layout.size))

    def stream(self, count: int, most: int) -> Bytes:
        """The next stream, of at most so many bytes."""
        return inflate(self.bytes(count), most, _WHAT)

    @property
    def finished(self) -> bool:
        """Whether nothing is left."""
        return self._place == len(self._content)


def _deflate(stream: Bytes) -> bytes:
    if not stream.size:
        return b""
    return zstandard.ZstdCompressor(compression_params=_PARAMETERS).compress(stream.data)


def _require(sound: bool) -> None:
    if not sound:
        raise PacketError(f"{_WHAT} is damaged; send it again")


def _tile(
    y0: int, x0: int, rows: int, columns: int, offset: int, saturation: int, noise: float
) -> Tile:
    _require(0 < rows * columns <= MAX_TILE_PIXELS and 0 < saturation <= HIGHEST)
    _require(_sound(noise))
    return Tile(Box(x0, x0 + columns, y0, y0 + rows), offset, saturation, noise)


def _band(coding: int, step: float, one: float, fill: float) -> BandHead:
    _require(coding in list(Coding) and _sound(step) and _sound(one))
    _require(fill == 0 or _sound(fill))
    return BandHead(Coding(coding), step, one, fill)


def _sound(number: float) -> bool:
    return isfinite(number) and _SMALLEST <= number <= _LARGEST


def _covered(tiles: Sequence[Tile], shape: tuple[int, int]) -> bool:
    """Whether the tiles cover the frame, each pixel once."""
    boxes = [tile.box for tile in tiles]
    if any(box != box.clipped(shape) for box in boxes):
        return False
    if sum(prod(box.shape) for box in boxes) != prod(shape):
        return False
    return not any(
        _overlap(first, second) for place, first in enumerate(boxes) for second in boxes[:place]
    )


def _overlap(first: Box, second: Box) -> bool:
    columns = first.x0 < second.x1 and second.x0 < first.x1
    return columns and first.y0 < second.y1 and second.y0 < first.y1


def _band_sizes(tree: Tree, tiles: Sequence[Tile]) -> list[int]:
    """Coefficients of each band in all tiles."""
    shapes = zip(*(tree.shapes(tile.box.shape) for tile in tiles), strict=True)
    return [sum(prod(shape) for shape in of_band) for of_band in shapes]
