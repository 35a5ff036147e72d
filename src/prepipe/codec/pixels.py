"""Pixels as FITS stores them and as a codec sees them, and how much a codec lost."""

from __future__ import annotations

from math import sqrt

import numpy as np
import xxhash

from prepipe.codec.base import Pixels
from prepipe.codec.noise import compare, count_pixels, noise_of_counts
from prepipe.errors import FitsError, PixelError
from prepipe.model import Box

__all__ = [
    "as_samples",
    "fidelity",
    "from_samples",
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
_MOST_NOISE = 1 << 20
_SIXTEEN_BITS = ("uint16", "int16")


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


def as_samples(pixels: Pixels) -> Pixels:
    """Pixels of 16 bits as unsigned ones, in the same order; the inverse of `from_samples`."""
    return _flip_sign(pixels, "uint16") if pixels.dtype == np.int16 else pixels


def from_samples(samples: Pixels, dtype: str) -> Pixels:
    """Unsigned samples as pixels of 16 bits of type `dtype`."""
    return _flip_sign(samples, "int16") if dtype == "int16" else samples


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
    if pixels.dtype.name in _SIXTEEN_BITS:
        samples = as_samples(native(pixels))
        whole = Box(0, samples.shape[1], 0, samples.shape[0])
        return noise_of_counts(count_pixels(samples, whole, _NOISE_PIXELS)[1])
    rows = pixels[:: max(1, pixels.size // _NOISE_PIXELS)]
    rows = rows.astype(np.float64 if pixels.dtype.kind == "f" else np.int64)
    differences = np.abs(np.diff(rows, axis=1)).ravel()
    finite = differences[np.isfinite(differences)]
    if pixels.dtype.kind != "f":
        return noise_of_counts(np.bincount(np.minimum(finite, _MOST_NOISE)))
    return _MAD_TO_SIGMA * float(np.median(finite)) / sqrt(2) if finite.size else 0.0


def fidelity(original: Pixels, decoded: Pixels) -> dict[str, object]:
    """What a lossy codec did to a frame.

    Returns
    -------
    dict
        ``rms_error_adu``, ``max_error_adu``, ``noise_adu`` (`sky_noise` of the
        original) and ``rms_error_sigma``, their quotient (None if there is no noise).
    """
    largest: float
    if original.dtype.name in _SIXTEEN_BITS:
        squares, largest = compare(*(as_samples(native(frame)) for frame in (original, decoded)))
        rms = sqrt(squares / original.size)
    else:
        error = decoded.astype(np.float64) - original.astype(np.float64)
        rms, largest = float(np.sqrt(np.mean(np.square(error)))), float(np.max(np.abs(error)))
    noise = sky_noise(original)
    return {
        "rms_error_adu": round(rms, 4),
        "max_error_adu": float(largest),
        "noise_adu": round(noise, 4),
        "rms_error_sigma": round(rms / noise, 4) if noise > 0 else None,
    }


def _flip_sign(plain: Pixels, wanted: str) -> Pixels:
    """Add or take away half the range: the top bit flipped, the type `wanted`."""
    unsigned = plain.view(f"u{plain.dtype.itemsize}")
    top = unsigned.dtype.type(1 << (8 * plain.dtype.itemsize - 1))
    flipped: Pixels = (unsigned ^ top).view(wanted)
    return flipped
