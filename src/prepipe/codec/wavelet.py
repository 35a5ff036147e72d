"""Codec ``wavelet``: lossy, with the noise of the sky and the shape of a star in mind.

Each amplifier, and each part that sees no sky, is a tile. Its pixels, in units of its own
noise, are split by the CDF 9/7 wavelet, and each band is rounded as coarsely as a star can
bear (`wavelet_loss`). Saturated pixels come back bit for bit. What is left is packed by zstd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod, sqrt

import numpy as np
from numpy.typing import NDArray

from prepipe.codec.base import Encoded, Pixels, Unit
from prepipe.codec.pixels import as_samples, from_samples, require_image
from prepipe.codec.saturated import HIGHEST, SaturatedReader, saturated_pixels
from prepipe.codec.wavelet_frame import least_steps, load_tile, store_tile
from prepipe.codec.wavelet_loss import PRESETS, BandStep, Preset, band_steps
from prepipe.codec.wavelet_payload import BandHead, Payload, Streams
from prepipe.codec.wavelet_symbols import (
    FILL_SIGMA,
    WHOLE,
    BandReader,
    BandWriter,
    Coding,
    coding_for,
)
from prepipe.codec.wavelet_tiles import Tile, tiles_of
from prepipe.codec.wavelet_transform import Arena, Plane
from prepipe.codec.wavelet_tree import Tree
from prepipe.errors import ConfigError, PacketError
from prepipe.model import Box, Packet

__all__ = ["DEFAULT_PRESET", "WaveletCodec", "WaveletSettings", "compile_kernels"]

DEFAULT_PRESET = "fast"

_KINDS = "uint16 int16"
_TREE = Tree()
_NAMES = ("preset", "seeing_px", "ratio", "fill")
_SEEING_PX = (1.0, 30.0)
_SCATTER = (0.01, 1.0)
_RATIO_TRIES = 8
_RATIO_TOLERANCE = 0.02
_SAMPLE_PIXELS = 1 << 20
_SEED = 0x5EED
_BRIGHT, _LEAST_BRIGHT = 30.0, 5.0
"""The brightest pixel of a star of 40 sigma, times its width; noise itself reaches less, sigma."""


@dataclass(frozen=True)
class WaveletSettings:
    """What is asked of the codec.

    Parameters
    ----------
    preset : Preset
        The loss; its seeing replaced by a measured one, if that is known.
    ratio : float or None
        Bytes of the pixels over bytes of the payload, in place of the preset's scatter.
    fill : bool
        Whether to decode with noise where there is none left.
    """

    preset: Preset
    ratio: float | None
    fill: bool

    @classmethod
    def read(cls, parameters: Mapping[str, object]) -> WaveletSettings:
        """Settings of the parameters that a site gave.

        Raises
        ------
        ConfigError
            If one is unknown or makes no sense.
        """
        if unknown := sorted(set(parameters) - set(_NAMES)):
            raise ConfigError(f"codec wavelet takes {', '.join(_NAMES)}, not {unknown}")
        name = parameters.get("preset", DEFAULT_PRESET)
        if not isinstance(name, str) or name not in PRESETS:
            known = ", ".join(PRESETS)
            raise ConfigError(f"codec wavelet: preset is {name!r}; choose one of {known}")
        preset = PRESETS[name]
        if (seeing := _number(parameters, "seeing_px", *_SEEING_PX)) is not None:
            preset = preset._replace(seeing_px=seeing)
        fill = parameters.get("fill", False)
        if not isinstance(fill, bool):
            raise ConfigError(f"codec wavelet: fill is {fill!r}; say true or false")
        return cls(preset, _number(parameters, "ratio", 1.0, 1000.0), fill)


class WaveletCodec:
    """PSF-weighted, noise-scaled wavelet compression of 16-bit frames.

    Parameters of `encode`: ``preset`` (``precise``, ``fast``, the default, or
    ``faint-link``), ``seeing_px`` (FWHM of the stars, if measured: the loss of the preset,
    at the ratio that the seeing allows), ``ratio`` (to aim at), ``fill`` (decode with noise
    in the place of what was rounded to zero).
    """

    name = "wavelet"
    lossless = False

    def encode(
        self, pixels: Pixels, parameters: Mapping[str, object], unit: Unit | None = None
    ) -> Encoded:
        """Compress 16-bit `pixels`; the header of `unit` tells the amplifiers.

        Raises
        ------
        ConfigError
            If a parameter is unknown or makes no sense.
        PixelError
            If the pixels are no 16-bit integers.
        """
        asked = WaveletSettings.read(parameters)
        plain = require_image(pixels, _KINDS, self.name)
        samples = as_samples(plain)
        tiles = tiles_of(samples, unit, zero=1 << 15 if plain.dtype == np.int16 else 0)
        if asked.ratio is None:
            payload = _encode(samples, tiles, asked)
        else:
            asked, payload = _encode_to_ratio(samples, tiles, asked, asked.ratio)
        chosen: dict[str, object] = {
            "seeing_px": asked.preset.seeing_px,
            "expected_scatter": round(asked.preset.scatter, 4),
            "noise_of_tiles_adu": [round(tile.noise, 3) for tile in tiles],
        }
        return Encoded(payload, chosen)

    def decode(self, payload: bytes, packet: Packet, header: bytes = b"") -> Pixels:
        """Decompress; `header` is not needed.

        Raises
        ------
        PacketError
            If the payload is damaged, or of a version unknown here.
        """
        try:
            samples = _decode(payload, packet.shape)
        except PacketError as error:
            raise PacketError(f"{packet.file_name}: {error}") from error
        return from_samples(samples, packet.dtype)

    def decode_unfilled(self, payload: bytes, packet: Packet) -> Pixels:
        """Decompress without noise in the place of what was rounded away, whatever was asked.

        Raises
        ------
        PacketError
            As `decode`.
        """
        try:
            samples = _decode(payload, packet.shape, filled=False)
        except PacketError as error:
            raise PacketError(f"{packet.file_name}: {error}") from error
        return from_samples(samples, packet.dtype)


def compile_kernels() -> None:
    """Run every kernel once on a small frame, lest the first exposure wait for them."""
    frame = np.random.default_rng(1).normal(2000.0, 10.0, (64, 64)).astype(np.uint16)
    frame[0, 0] = HIGHEST
    settings = WaveletSettings.read({"fill": True})
    _decode(_encode(frame, tiles_of(frame, None), settings), frame.shape)


def _encode(samples: NDArray[np.uint16], tiles: Sequence[Tile], asked: WaveletSettings) -> bytes:
    steps = band_steps(_TREE, *asked.preset)
    codings = [coding_for(step.step, zeros_prevail=step.quantiser.wide) for step in steps[:-1]] + [
        Coding.DIFFERENCES
    ]
    sizes = [_TREE.shapes(tile.box.shape) for tile in tiles]
    writers = [
        BandWriter(coding, sum(prod(shape) for shape in shapes))
        for coding, shapes in zip(codings, zip(*sizes, strict=True), strict=True)
    ]
    widths = [np.float32(step.width) for step in steps]
    bright = np.float32(max(_LEAST_BRIGHT, _BRIGHT / asked.preset.seeing_px))
    saturated = []
    arena = _arena_for(tiles)
    for tile in tiles:
        arena.clear()
        plane = arena.plane(tile.box.shape)
        count = load_tile(samples, tile.box, tile.offset, tile.saturation, plane)
        saturated.append(saturated_pixels(samples, tile.box, tile.saturation, count))
        noise = np.float32(tile.noise)
        least = least_steps(plane, bright * noise)
        bands = _TREE.analyse(plane, arena)
        for writer, band, step, width in zip(writers, bands, steps, widths, strict=True):
            writer.add(band, width * noise, least if step.sees_stars else WHOLE)
    heads = [
        BandHead(coding, float(width), _one(writer, width), _fill(coding, step, asked.fill))
        for coding, width, writer, step in zip(codings, widths, writers, steps, strict=True)
    ]
    streams = [writer.streams for writer in writers]
    return Payload(_TREE, tiles, heads, _joined(saturated), streams).to_bytes()


def _one(writer: BandWriter, width: np.float32) -> float:
    return writer.centroid * float(width)


def _fill(coding: Coding, step: BandStep, wanted: bool) -> float:
    if not wanted or coding != Coding.RUNS:
        return 0.0
    return step.quantiser.fill * step.sigma / FILL_SIGMA


def _joined(saturated: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint16]]]) -> Streams:
    places = np.concatenate([places for places, _ in saturated])
    values = np.concatenate([values for _, values in saturated])
    # only a frame without saturated pixels needs no word of where they are
    return (places if values.size else places[:0]), values.astype("<u2").view(np.uint8)


def _encode_to_ratio(
    samples: NDArray[np.uint16], tiles: Sequence[Tile], asked: WaveletSettings, ratio: float
) -> tuple[WaveletSettings, bytes]:
    """The payload nearest to a ratio, found on a part of the frame, and its settings."""
    part = _sample_of(samples, tiles)
    pixels = sum(prod(tile.box.shape) for tile in part)
    low, high = _SCATTER
    for _ in range(_RATIO_TRIES):
        asked = _with_scatter(asked, sqrt(low * high))
        reached = 2 * pixels / len(_encode(samples, part, asked))
        if abs(reached / ratio - 1) < _RATIO_TOLERANCE:
            break
        low, high = (sqrt(low * high), high) if reached < ratio else (low, sqrt(low * high))
    payload = _encode(samples, tiles, asked)
    reached = samples.nbytes / len(payload)
    if abs(reached / ratio - 1) < _RATIO_TOLERANCE:
        return asked, payload
    # the part was not like the whole
    second = _with_scatter(asked, asked.preset.scatter * ratio / reached)
    better = _encode(samples, tiles, second)
    nearer = abs(samples.nbytes / len(better) - ratio) < abs(reached - ratio)
    return (second, better) if nearer else (asked, payload)


def _with_scatter(asked: WaveletSettings, scatter: float) -> WaveletSettings:
    return replace(asked, preset=asked.preset._replace(scatter=scatter))


def _sample_of(samples: NDArray[np.uint16], tiles: Sequence[Tile]) -> Sequence[Tile]:
    """The middle of each tile of a big frame; those of a small one whole."""
    share = _SAMPLE_PIXELS / samples.size
    if share >= 1:
        return tiles
    part = []
    for tile in tiles:
        box = tile.box
        rows = max(1, round(box.shape[0] * share))
        start = box.y0 + (box.shape[0] - rows) // 2
        part.append(replace(tile, box=Box(box.x0, box.x1, start, start + rows)))
    return part


def _decode(content: bytes, shape: tuple[int, int], *, filled: bool = True) -> NDArray[np.uint16]:
    payload = Payload.from_bytes(content, shape)
    if not filled:
        payload = replace(payload, bands=[replace(band, fill=0.0) for band in payload.bands])
    samples = np.empty(shape, np.uint16)
    readers = [
        BandReader(head.coding, *streams)
        for head, streams in zip(payload.bands, payload.streams, strict=True)
    ]
    places, values = payload.saturated
    if values.size % 2:
        raise _damaged()
    saturated = SaturatedReader(places, values.view("<u2").astype(np.uint16))
    arena = _arena_for(payload.tiles)
    for number, tile in enumerate(payload.tiles):
        arena.clear()
        plane = payload.tree.synthesise(_read_bands(payload, readers, number, arena), arena)
        store_tile(plane, samples, tile.box, tile.offset, tile.saturation)
        if places.size and not saturated.restore(samples, tile.box):
            raise _damaged()
    if not saturated.finished or not all(reader.finished for reader in readers):
        raise _damaged()
    return samples


def _arena_for(tiles: Sequence[Tile]) -> Arena:
    return Arena(max(prod(tile.box.shape) for tile in tiles))


def _read_bands(
    payload: Payload, readers: Sequence[BandReader], number: int, arena: Arena
) -> list[Plane]:
    tile = payload.tiles[number]
    noise = np.float32(tile.noise)
    bands = []
    shapes = payload.tree.shapes(tile.box.shape)
    for place, (head, shape) in enumerate(zip(payload.bands, shapes, strict=True)):
        # single precision, each product by itself: the same on every machine
        step, one, fill = (np.float32(size) * noise for size in (head.step, head.one, head.fill))
        seed = _SEED + number * len(shapes) + place
        band = arena.plane(shape)
        if not readers[place].read(band, step, one, fill, seed):
            raise _damaged()
        bands.append(band)
    return bands


def _damaged() -> PacketError:
    return PacketError("the wavelet payload is damaged; send it again")


def _number(
    parameters: Mapping[str, object], name: str, lowest: float, highest: float
) -> float | None:
    value = parameters.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"codec wavelet: {name} is {value!r}, not a number")
    if not (isfinite(value) and lowest <= value <= highest):
        raise ConfigError(
            f"codec wavelet: {name} is {value}; it must lie between {lowest} and {highest}"
        )
    return float(value)
