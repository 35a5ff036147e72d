"""Codec ``htj2k``: high-throughput JPEG 2000, for sites that want a standard and speed.

A codestream of ISO/IEC 15444-15 by OpenJPH behind imagecodecs: 9/7 wavelet, one tile. The
library leaves it to its caller that numbers do not pass the ends of their range, where they
would wrap around (a saturated star would come back black): pixels are moved away from the
ends, and the few that cannot be are kept aside, bit for bit, with those that are saturated.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import ceil

import imagecodecs
import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray

from prepipe.codec.base import Encoded, Pixels, Unit
from prepipe.codec.codestream import is_frame
from prepipe.codec.pixels import as_samples, from_samples, require_image, sky_noise
from prepipe.codec.saturated import HIGHEST, SaturatedReader, saturated_pixels
from prepipe.codec.target import one_target
from prepipe.codec.zstd_streams import inflate
from prepipe.errors import PacketError
from prepipe.model import Box, Packet

__all__ = ["Htj2kCodec"]

DEFAULT_STEP_SIGMA = 0.75
"""About 7:1, as `jpeg2000` with an rms error of 0.3 of the noise."""

_KINDS = "uint16 int16"
_TARGETS = ("step_sigma", "qstep")
_SCALE = 65536.0
_SMALLEST_STEP_ADU = 0.7
"""Below 10^-5 of its range the library takes a step of its own without a word."""

_SMALLEST_MARGIN, _LARGEST_MARGIN = 256, 8192
_MARGIN_STEPS = 16
_WHAT = "the HTJ2K payload"
_TAIL = struct.Struct("<16siII")
_LOWEST_SIGNED = -32768
_LIMIT = 1 << 30


class Htj2kCodec:
    """High-throughput JPEG 2000 with one of two targets.

    ``step_sigma``: quantiser step in units of the frame's own noise (`sky_noise`), the
    default, 0.75. ``qstep``: the legacy system's, as a fraction of 65536 ADU.
    """

    name = "htj2k"
    lossless = False

    def encode(
        self, pixels: Pixels, parameters: Mapping[str, object], unit: Unit | None = None
    ) -> Encoded:
        """Compress 16-bit `pixels`.

        Raises
        ------
        ConfigError
            If more than one target is given, or an unknown or senseless one.
        PixelError
            If the pixels are no 16-bit integers.
        """
        default = ("step_sigma", DEFAULT_STEP_SIGMA)
        target, value = one_target(self.name, parameters, _TARGETS, default)
        samples = as_samples(require_image(pixels, _KINDS, self.name))
        unit_adu = _SCALE if target == "qstep" else sky_noise(samples)
        step = min(max(_SMALLEST_STEP_ADU, value * unit_adu), _SCALE / 2)
        margin = int(min(max(_SMALLEST_MARGIN, ceil(_MARGIN_STEPS * step)), _LARGEST_MARGIN))
        shift = int(samples.min()) - margin - _LOWEST_SIGNED
        aside = min(HIGHEST, shift - _LOWEST_SIGNED - margin)
        moved = np.minimum(samples, aside).astype(np.int32) - shift
        stream = bytes(
            imagecodecs.htj2k_encode(moved.astype(np.int16), level=step / _SCALE, reversible=False)
        )
        library = f"{imagecodecs.htj2k_version()}, imagecodecs {imagecodecs.__version__}"
        payload = stream + _tail(stream, samples, shift, aside)
        return Encoded(payload, {"step_adu": round(step, 4), "by": library})

    def decode(self, payload: bytes, packet: Packet, header: bytes = b"") -> Pixels:
        """Decompress; `header` is not needed.

        Raises
        ------
        PacketError
            If the payload is no codestream of this shape with what belongs behind it.
        """
        try:
            samples = _decode(payload, packet.shape)
        except PacketError as error:
            raise PacketError(f"{packet.file_name}: {error}") from error
        return from_samples(samples, packet.dtype)


def _tail(stream: bytes, samples: NDArray[np.uint16], shift: int, aside: int) -> bytes:
    """What follows the codestream: pixels kept aside, then how to undo the shift."""
    whole = Box(0, samples.shape[1], 0, samples.shape[0])
    count = int(np.count_nonzero(samples >= aside))
    places, values = saturated_pixels(samples, whole, aside, count)
    packer = zstandard.ZstdCompressor(level=3)
    packed = packer.compress(places.data), packer.compress(values.astype("<u2").tobytes())
    lengths = len(packed[0]), len(packed[1])
    return b"".join([*packed, _TAIL.pack(xxhash.xxh3_128_digest(stream), shift, *lengths)])


def _decode(payload: bytes, shape: tuple[int, int]) -> NDArray[np.uint16]:
    if len(payload) < _TAIL.size:
        raise _damaged()
    checksum, shift, *lengths = _TAIL.unpack_from(payload, len(payload) - _TAIL.size)
    end = len(payload) - _TAIL.size - sum(lengths)
    # the library dies of a damaged codestream, so that it must not see one
    stream = payload[: max(0, end)]
    if end <= 0 or xxhash.xxh3_128_digest(stream) != checksum or abs(shift) > _LIMIT:
        raise _damaged()
    if not is_frame(stream, shape, signed=True):
        raise _damaged()
    places = inflate(payload[end : end + lengths[0]], 10 * shape[0] * shape[1] + 5, _WHAT)
    values = inflate(payload[end + lengths[0] : -_TAIL.size], 2 * shape[0] * shape[1], _WHAT)
    if values.size % 2:
        raise _damaged()
    try:
        numbers = imagecodecs.htj2k_decode(stream)
    except (imagecodecs.Htj2kError, RuntimeError, ValueError) as error:
        raise PacketError(f"no HTJ2K codestream ({error})") from error
    samples = np.clip(numbers.reshape(shape).astype(np.int32) + shift, 0, HIGHEST - 1)
    restored: NDArray[np.uint16] = samples.astype(np.uint16)
    reader = SaturatedReader(places, values.view("<u2").astype(np.uint16))
    if not reader.restore(restored, Box(0, shape[1], 0, shape[0])) or not reader.finished:
        raise _damaged()
    return restored


def _damaged() -> PacketError:
    return PacketError("the payload is no HTJ2K frame of its shape; send it again")
