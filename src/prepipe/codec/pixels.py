"""Pixels as FITS stores them and as a codec sees them, and how much a codec lost."""

from __future__ import annotations

from math import sqrt

import numpy as np
import xxhash
from numpy.typing import NDArray

from prepipe.codec.base import Pixels
from prepipe.errors import FitsError, PixelError

__all__ = [
    "fidelity",
    "from_stored",
    "native",
    "pixel_checksum",
    "require_image",
    "sky_noise",
    "stored_dtype",
    "to_stored",
]

MAX_PIXELS = 1 << 27
"""15 DECam CCDs, or one of the largest detectors made; less than the memory."""

_UNSIGNED = {("int16", 2.0**15): "uint16", ("int32", 2.0**31): "uint32", ("uint8", -128.0): "int8"}
_STORED = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_MAD_TO_SIGMA = 1.482602218505602
_NOISE_PIXELS = 1 << 21


def native(pixels: Pixels) -> Pixels:
    """Contiguous copy in this machine's byte order, or the array itself if it is so.

    Several libraries take a big-endian array for a native one without a word.
    """
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))


def require_image(pixels: Pixels, kinds: str, codec: str) -> Pixels:
    """Native `pixels` if they are two-dimensional and of one of `kinds`.

    Parameters
    ----------
    pixels : ndarray
    kinds : str
        numpy type names, separated by blanks.
    codec : str
        Who asks, for the message.

    Raises
    ------
    PixelError
    """
    if pixels.ndim != 2 or 0 in pixels.shape or pixels.size > MAX_PIXELS:
        raise PixelError(f"codec {codec} packs images of rows and columns, not {pixels.shape}")
    if pixels.dtype.name not in kinds.split():
        raise PixelError(
            f"codec {codec} packs pixels of {', '.join(kinds.split())}, not {pixels.dtype.name}; "
            "choose codec none for this camera"
        )
    return native(pixels)


def pixel_checksum(pixels: Pixels) -> str:
    """xxh3-128 of the pixels, little-endian, row by row, as 32 hexadecimal digits."""
    little = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))
    return xxhash.xxh3_128_hexdigest(little.data.cast("B"))


def stored_dtype(bitpix: int) -> np.dtype[np.generic]:
    """Type of the numbers in a FITS image of this BITPIX, big-endian.

    Raises
    ------
    FitsError
        If BITPIX is none of the six allowed.
    """
    if bitpix not in _STORED:
        raise FitsError(f"BITPIX is {bitpix}; the header is damaged")
    return np.dtype(_STORED[bitpix])


def from_stored(stored: Pixels, zero: float, scale: float) -> Pixels:
    """Pixels in ADU of the numbers that lie in a FITS image.

    An offset that only makes signed numbers unsigned (or the other way round) changes
    the type; any other scaling gives float32.

    Parameters
    ----------
    stored : ndarray
    zero, scale : float
        BZERO and BSCALE.
    """
    plain = native(stored)
    if scale == 1.0 and zero == 0.0:
        return plain
    kind = plain.dtype.name
    if scale == 1.0 and (kind, zero) in _UNSIGNED:
        return _flip_sign(plain, _UNSIGNED[kind, zero])
    return (plain * np.float64(scale) + np.float64(zero)).astype(np.float32)


def to_stored(pixels: Pixels) -> Pixels:
    """Numbers that a FITS image stores for integer `pixels`: signed, bytes unsigned."""
    plain = native(pixels)
    stored = {"uint16": "int16", "uint32": "int32", "int8": "uint8"}
    return _flip_sign(plain, stored[plain.dtype.name]) if plain.dtype.name in stored else plain


def sky_noise(pixels: Pixels) -> float:
    """Noise of a frame, ADU, robust against stars, gradients and bad columns.

    Median of the absolute differences of neighbours in a row, divided by sqrt(2) and
    times 1.4826 (the ratio for Gaussian noise). Of integers the median is interpolated
    inside its step, or a noise of 2 ADU would be known to 30 % only; so it is to 2 %, and
    one of 0.8 ADU to 10 %.

    Parameters
    ----------
    pixels : ndarray, shape (rows, columns)

    Returns
    -------
    float
        0 for a constant frame and for one of a single column.
    """
    step = max(1, pixels.size // _NOISE_PIXELS)
    rows = pixels[::step].astype(np.float64 if pixels.dtype.kind == "f" else np.int64)
    differences = np.abs(np.diff(rows, axis=1)).ravel()
    finite = differences[np.isfinite(differences)]
    if not finite.size:
        return 0.0
    # the upper median, which unlike the mean of the middle two is a value that occurs
    median = float(np.partition(finite, finite.size // 2)[finite.size // 2])
    if pixels.dtype.kind != "f":
        median = _median_inside_step(finite, int(median))
    return _MAD_TO_SIGMA * median / sqrt(2)


def fidelity(original: Pixels, decoded: Pixels) -> dict[str, object]:
    """What a lossy codec did to a frame.

    Returns
    -------
    dict
        ``rms_error_adu``, ``max_error_adu``, ``noise_adu`` (`sky_noise` of the
        original) and ``rms_error_sigma``, their quotient (None if there is no noise).
    """
    error = decoded.astype(np.float32) - original.astype(np.float32)
    rms = float(np.sqrt(np.mean(np.square(error), dtype=np.float64)))
    noise = sky_noise(original)
    return {
        "rms_error_adu": round(rms, 4),
        "max_error_adu": float(np.max(np.abs(error))),
        "noise_adu": round(noise, 4),
        "rms_error_sigma": round(rms / noise, 4) if noise > 0 else None,
    }


def _flip_sign(plain: Pixels, wanted: str) -> Pixels:
    """Add or take away half the range: the top bit flipped, the type `wanted`."""
    unsigned = plain.view(f"u{plain.dtype.itemsize}")
    top = unsigned.dtype.type(1 << (8 * plain.dtype.itemsize - 1))
    flipped: Pixels = (unsigned ^ top).view(wanted)
    return flipped


def _median_inside_step(values: NDArray[np.int64], median: int) -> float:
    """Median as if each integer k were spread evenly over k - 1/2 .. k + 1/2."""
    below = int(np.count_nonzero(values < median))
    inside = int(np.count_nonzero(values == median))
    if median == 0:
        # |difference| = 0 is half a step wide; a constant frame has no noise at all
        return 0.0 if inside == values.size else 0.5 * (values.size / 2) / inside
    return median - 0.5 + (values.size / 2 - below) / inside
