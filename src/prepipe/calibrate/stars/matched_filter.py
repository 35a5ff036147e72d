"""Smoothing an image with the point-spread function, before looking for sources in it.

The filter that gives a point source in white noise the highest signal-to-noise
is the point-spread function itself; a Gaussian of the same width loses less than
3 % of it for real seeing discs (Bertin, SExtractor manual, "Filtering") and is
separable, so that one pass over the pixels is enough.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.calibrate.flags import Mask
from prepipe.errors import ConfigError, PixelError

__all__ = ["SIGMA_TO_FWHM", "UNKNOWN", "matched_filter"]

SIGMA_TO_FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))
"""Full width at half maximum of a Gaussian of unit standard deviation."""

UNKNOWN = Mask.BAD | Mask.DEAD | Mask.CORRUPT
"""Pixels whose true value nobody knows: nothing is detected on them."""

_LARGEST = np.float32(1e30)
_REACH = 1.1


def matched_filter(
    image: NDArray[np.float32],
    fwhm_px: float,
    mask: NDArray[np.uint8] | None = None,
    out: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], float]:
    """Convolve an image with a Gaussian as wide as a star.

    The kernel has unit sum and ends at 1.1 FWHM. Outside of the frame, at
    non-finite pixels and, if a `mask` is given, at pixels that are `UNKNOWN`,
    the image is taken as zero.

    Parameters
    ----------
    image : (ny, nx) float32 ndarray
        Background-subtracted image, e-.
    fwhm_px : float
        FWHM of a star, pixels.
    mask : (ny, nx) uint8 ndarray, optional
        `Mask` bits of each pixel.
    out : (ny, nx) float32 ndarray, optional
        Where to write; not `image` itself. Used if its shape is that of the image.

    Returns
    -------
    filtered : (ny, nx) float32 ndarray
        Smoothed image, e-.
    noise_gain : float
        Rms of `filtered` where `image` is white noise of unit rms: the square
        root of the sum of the squared kernel.

    Raises
    ------
    ConfigError
        If `fwhm_px` is not a positive number.
    PixelError
        If `image` is not two-dimensional or `mask` has another shape.
    """
    if mask is None:
        mask = np.zeros(image.shape, np.uint8)
    image, mask = check_frame(image, mask)
    taps = _half_kernel(fwhm_px)
    fits = out is not None and out.shape == image.shape
    filtered = out if out is not None and fits else np.empty(image.shape, np.float32)
    _convolve(image, mask, np.uint8(UNKNOWN), taps, filtered)
    # The kernel is an outer product: the root of its summed squares is the sum in one dimension.
    noise_gain = float(taps[0] ** 2 + 2.0 * np.sum(taps[1:] ** 2))
    return filtered, noise_gain


def check_frame(
    image: NDArray[np.float32], mask: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Refuse an image that is not a plane, or a mask that does not belong to it.

    Parameters
    ----------
    image : (ny, nx) ndarray
    mask : (ny, nx) ndarray

    Returns
    -------
    image : (ny, nx) float32 ndarray
    mask : (ny, nx) uint8 ndarray
        The same, in the one memory layout that kernels are compiled for; copied only if needed.

    Raises
    ------
    PixelError
        If `image` is not two-dimensional or `mask` has another shape.
    """
    if image.ndim != 2:
        raise PixelError(f"An image of {image.ndim} dimensions has no sources: give one plane.")
    if mask.shape != image.shape:
        raise PixelError(
            f"The mask has shape {mask.shape} but the image {image.shape}: give the image's own."
        )
    return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(mask, np.uint8)


def check_fwhm(fwhm_px: float) -> None:
    """Refuse a star width that is not a positive number of pixels.

    Raises
    ------
    ConfigError
        If it is zero, negative, infinite or NaN.
    """
    if not (math.isfinite(fwhm_px) and fwhm_px > 0.0):
        raise ConfigError(f"A star's FWHM of {fwhm_px} pixels makes no sense: give a positive one.")


def _half_kernel(fwhm_px: float) -> NDArray[np.float32]:
    """Centre and right half of a Gaussian of unit sum."""
    check_fwhm(fwhm_px)
    reach = max(2, math.ceil(_REACH * fwhm_px))
    taps = np.exp(-0.5 * (np.arange(reach + 1) * SIGMA_TO_FWHM / fwhm_px) ** 2)
    taps /= taps[0] + 2.0 * taps[1:].sum()
    return np.asarray(taps, np.float32)


@njit(cache=True)
def _convolve(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    unknown: np.uint8,
    taps: NDArray[np.float32],
    filtered: NDArray[np.float32],
) -> None:
    """Smooth rows into a ring of as many rows as the kernel is high, and sum that ring."""
    ny, nx = image.shape
    reach = taps.size - 1
    height = 2 * reach + 1
    ring = np.zeros((height, nx), np.float32)
    padded = np.zeros(nx + 2 * reach, np.float32)
    for y in range(ny + reach):
        newest = ring[y % height]
        if y < ny:
            _copy_known(image[y], mask[y], unknown, padded[reach:])
            _smooth_row(padded, taps, newest)
        else:
            newest[:] = np.float32(0)
        if y >= reach:
            _sum_ring(ring, y, taps, filtered[y - reach])


@njit(cache=True)
def _copy_known(
    pixels: NDArray[np.float32],
    mask: NDArray[np.uint8],
    unknown: np.uint8,
    out: NDArray[np.float32],
) -> None:
    """Copy a row, with zero for what is masked or not finite."""
    zero = np.float32(0)
    for x in range(pixels.size):
        value = pixels[x] if abs(pixels[x]) < _LARGEST else zero
        out[x] = zero if mask[x] & unknown else value


@njit(cache=True)
def _smooth_row(
    padded: NDArray[np.float32], taps: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Convolve one row; the loops run along the row so that they become vector code."""
    reach = taps.size - 1
    nx = out.size
    centre = padded[reach : reach + nx]
    for x in range(nx):
        out[x] = taps[0] * centre[x]
    for k in range(1, reach + 1):
        left = padded[reach - k : reach - k + nx]
        right = padded[reach + k : reach + k + nx]
        weight = taps[k]
        for x in range(nx):
            out[x] += weight * (left[x] + right[x])


@njit(cache=True)
def _sum_ring(
    ring: NDArray[np.float32],
    newest: int,
    taps: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Convolve along columns: the output row lies `reach` rows behind the newest one."""
    reach = taps.size - 1
    height = 2 * reach + 1
    middle = newest - reach + height
    centre = ring[middle % height]
    for x in range(out.size):
        out[x] = taps[0] * centre[x]
    for k in range(1, reach + 1):
        above = ring[(middle - k) % height]
        below = ring[(middle + k) % height]
        weight = taps[k]
        for x in range(out.size):
            out[x] += weight * (above[x] + below[x])
