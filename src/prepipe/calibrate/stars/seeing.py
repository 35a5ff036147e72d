"""A first look at the seeing, from a band of the frame.

All that comes after works with the width of a star: what is sharper is a cosmic ray, what
is as wide is searched for. A supposed width that is far off costs the whole work twice,
a look at a sixteenth of a CCD a few milliseconds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.stars.background import Background, subtract
from prepipe.calibrate.stars.cosmic_rays import find_cosmic_rays
from prepipe.calibrate.stars.detection import detect
from prepipe.calibrate.stars.matched_filter import SIGMA_TO_FWHM, matched_filter
from prepipe.calibrate.stars.measurement import DISTURBED, measure

__all__ = ["glimpse_seeing"]

BANDS = (4, 16)
"""Heights of the band, in meshes of the background: 256 rows, and more where stars are few."""

BRIGHT_SNR = 15.0
"""Sources fainter than this tell too little of their width to be worth the time."""

MOST_SOURCES = 200
"""Of more sources than this the brightest are measured."""

FEWEST_STARS = 10
"""A width from fewer stars may be that of something else."""

SHARP = 0.6
"""Before the width is known, what is sharper than this part of the guess is no star."""

NARROW = 0.6
"""Width of the window that the stars are measured in, of the guess: the narrower, the less
the wings of a star make it look wider than it is."""

NARROWEST_PX = 2.0
"""In a window narrower than this, pixels are too coarse to tell a width."""


def glimpse_seeing(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    background: Background,
    fwhm_guess_px: float,
    *,
    read_noise: float = 0.0,
) -> float:
    """Width of the bright stars in the middle rows.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
        e-, sky included.
    mask : ndarray of uint8, shape (ny, nx)
    background : Background
        Of `image`.
    fwhm_guess_px : float
        FWHM to begin with, pixels; may be wrong by a factor of two either way.
    read_noise : float
        e-.

    Returns
    -------
    float
        FWHM, pixels; NaN where fewer than `FEWEST_STARS` stars tell it.

    Raises
    ------
    ConfigError
        If the guess is not positive.
    PixelError
        If the shapes differ.
    """
    for meshes in BANDS:
        rows, band = _middle(background, meshes)
        if not np.isfinite(band.rms).any() or min(band.shape) < 3:
            break
        pixels, bits = image[rows].copy(), mask[rows].copy()
        find_cosmic_rays(pixels, bits, band, SHARP * fwhm_guess_px, read_noise=read_noise)
        subtract(pixels, band, pixels, bits)
        sizes = _sizes(pixels, bits, band, fwhm_guess_px)
        if sizes.size >= FEWEST_STARS:
            return SIGMA_TO_FWHM * _most_frequent(sizes)
    return float("nan")


def _sizes(
    image: NDArray[np.float32], mask: NDArray[np.uint8], background: Background, fwhm_px: float
) -> NDArray[np.float64]:
    """Standard deviations of the profiles of bright, undisturbed sources, pixels."""
    filtered, noise_gain = matched_filter(image, fwhm_px, mask)
    peaks = detect(
        filtered,
        background.rms,
        mask,
        fwhm_px=fwhm_px,
        noise_gain=noise_gain,
        snr=BRIGHT_SNR,
        box=background.box,
        limit=MOST_SOURCES,
    )
    variance = float(np.median(background.rms[np.isfinite(background.rms)])) ** 2
    window_px = max(NARROW * fwhm_px, NARROWEST_PX)
    sources = measure(image, mask, peaks, fwhm_px=window_px, sky_variance=variance)
    sizes = sources.size[(sources.flags & DISTURBED) == 0]
    finite: NDArray[np.float64] = sizes[np.isfinite(sizes)]
    return finite


def _most_frequent(sizes: NDArray[np.float64]) -> float:
    """Middle of the densest quarter: that of the stars, for galaxies have all sizes."""
    ordered = np.sort(sizes)
    quarter = max(3, ordered.size // 4)
    widths = ordered[quarter - 1 :] - ordered[: ordered.size - quarter + 1]
    first = int(np.argmin(widths))
    return float(np.median(ordered[first : first + quarter]))


def _middle(background: Background, meshes: int) -> tuple[slice, Background]:
    """The rows of the middle meshes, and their part of the background."""
    (ny, nx), my = background.shape, len(background.level)
    first = max(0, (my - meshes) // 2)
    last = min(my, first + meshes)
    inside = slice(first, last)
    rows = slice(-(-first * ny // my), -(-last * ny // my))
    return rows, Background(
        level=background.level[inside],
        rms=background.rms[inside],
        raw_rms=background.raw_rms[inside],
        box=background.box,
        shape=(rows.stop - rows.start, nx),
    )
