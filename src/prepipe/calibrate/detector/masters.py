"""Master biases and dome flats.

Frames are combined band by band of rows, so that memory holds one band of each:
give frames that wait in files (`odd_frames.Frame`) when there are many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import gammaincinv

from prepipe.calibrate.detector.detrend import MINIMUM_FLAT
from prepipe.calibrate.detector.odd_frames import Frame, scatter
from prepipe.errors import ConfigError, PixelError
from prepipe.model import Layout

__all__ = [
    "Master",
    "combine",
    "combine_bias",
    "combine_flat",
    "to_electrons",
    "typical_light",
]

CLIP = 5.0
"""Values farther than this many sigma from a pixel's median are left out."""

BAND_ROWS = 32
"""Rows combined at a time."""


@dataclass(frozen=True)
class Master:
    """A combined calibration frame.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
        Clipped mean; NaN where no frame has a finite pixel.
    noise : ndarray of float32, shape (ny, nx)
        Its standard error, from the scatter of the frames; NaN likewise, and
        everywhere if there was one frame only.
    n : int
        Frames that were combined.
    rejected : float
        Fraction of the finite values that were clipped.
    """

    image: NDArray[np.float32]
    noise: NDArray[np.float32]
    n: int
    rejected: float

    @property
    def typical_noise(self) -> float:
        """Standard error of a typical pixel; NaN if there was one frame only.

        The scatter of a few values is mostly too small: it is divided by the root of the median of
        a chi-squared distribution over its degrees of freedom, 0.67 for two frames, 0.98 for 20.
        """
        freedom = self.n - 1
        if freedom < 1:
            return float("nan")
        mostly = math.sqrt(2.0 * float(gammaincinv(freedom / 2.0, 0.5)) / freedom)
        return float(np.nanmedian(self.noise)) / mostly


@njit(cache=True)
def _sorted_values(stack: NDArray[np.float32], y: int, x: int, values: NDArray[np.float32]) -> int:
    """Fill `values` with a pixel's finite values in order (insertion sort); return their number."""
    n = 0
    for k in range(stack.shape[0]):
        value = stack[k, y, x]
        if not np.isfinite(value):
            continue
        place = n
        while place > 0 and values[place - 1] > value:
            values[place] = values[place - 1]
            place -= 1
        values[place] = value
        n += 1
    return n


@njit(cache=True)
def _combine_band(
    stack: NDArray[np.float32],
    typical: float,
    clip: float,
    image: NDArray[np.float32],
    noise: NDArray[np.float32],
) -> tuple[int, int]:
    """Clipped mean of a band; return how many values were finite and how many were clipped."""
    values = np.empty(stack.shape[0], dtype=np.float32)
    finite = 0
    clipped = 0
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            n = _sorted_values(stack, y, x, values)
            if n == 0:
                image[y, x] = np.nan
                noise[y, x] = np.nan
                continue
            # Of two middle values the lower: a cosmic ray only ever adds.
            centre = np.float64(values[(n - 1) // 2])
            quartiles = (values[(3 * (n - 1)) // 4] - values[(n - 1) // 4]) / 1.349
            reach = clip * max(typical, quartiles if n >= 5 else 0.0)
            total = 0.0
            squares = 0.0
            kept = 0
            for k in range(n):
                offset = values[k] - centre
                if abs(offset) <= reach:
                    total += offset
                    squares += offset * offset
                    kept += 1
            mean = total / kept
            image[y, x] = centre + mean
            scatter = typical
            if kept > 1:
                scatter = np.sqrt(max(squares - total * mean, 0.0) / (kept - 1))
            noise[y, x] = scatter / np.sqrt(kept)
            finite += n
            clipped += n - kept
    return finite, clipped


def _typical_noise(stack: NDArray[np.float32]) -> float:
    """Noise of one value, from the differences of neighbouring frames of the band.

    A bad frame spoils two of the differences: the lower third of them does not see it, as
    soon as there are three frames. Cosmic rays touch too few pixels to be seen.
    """
    n = stack.shape[0]
    if n < 2:
        return 0.0
    sample = stack[:, :, :: max(1, stack.shape[2] // 512)]
    pairs = [(k, (k + 1) % n) for k in range(n if n > 2 else 1)]
    noises = sorted(_pair_noise(sample[k] - sample[other]) for k, other in pairs)
    noises = [noise for noise in noises if np.isfinite(noise)]
    return noises[(len(noises) - 1) // 3] if noises else 0.0


def _pair_noise(difference: NDArray[np.float32]) -> float:
    """Noise of one of two frames, from their difference; NaN if it is nowhere finite."""
    noise = scatter(difference)
    if noise == 0.0:
        # Whole numbers of little noise are mostly equal: the others tell it, cosmic rays aside.
        sizes = np.abs(difference[np.isfinite(difference)])
        usual = sizes[sizes <= np.percentile(sizes, 99.9)]
        noise = float(np.sqrt(np.mean(usual * usual)))
    return noise / math.sqrt(2.0)


def _check_stack(frames: Sequence[Frame]) -> tuple[int, int]:
    """Shape that all frames share."""
    if len(frames) == 0:
        raise ConfigError("a master needs at least one frame: none was given")
    ny, nx = frames[0].shape
    for k, frame in enumerate(frames):
        if frame.shape != (ny, nx):
            raise PixelError(
                f"frame {k} of the stack has shape {frame.shape}, the first {(ny, nx)}: "
                "combine frames of one CCD and one read-out only"
            )
    return ny, nx


def combine(
    frames: Sequence[Frame],
    *,
    scales: Sequence[float] | None = None,
    offset: Frame | None = None,
    clip: float = CLIP,
) -> Master:
    """Combine frames to the clipped mean of ``(frame - offset) * scale``.

    A pixel's values are compared with their median in units of the noise that is
    typical for the band of rows (or of the pixel's own, if larger), since a
    handful of frames does not tell a single pixel's noise.

    Parameters
    ----------
    frames : sequence of ndarray of float32, shape (ny, nx)
        May be memory-mapped.
    scales : sequence of float, optional
        One factor per frame; 1 if absent.
    offset : ndarray of float32, shape (ny, nx), optional
        Subtracted from every frame first.
    clip : float
        Sigmas.

    Returns
    -------
    Master

    Raises
    ------
    ConfigError
        If there is no frame, or not one scale per frame.
    PixelError
        If the shapes differ.
    """
    ny, nx = _check_stack(frames)
    if scales is not None and len(scales) != len(frames):
        raise ConfigError(f"{len(frames)} frames need as many scales, not {len(scales)}")
    if offset is not None and offset.shape != (ny, nx):
        raise PixelError(f"offset of shape {offset.shape} does not fit frames of {(ny, nx)}")
    factors = np.ones(len(frames)) if scales is None else np.asarray(scales)
    image = np.empty((ny, nx), dtype=np.float32)
    noise = np.empty((ny, nx), dtype=np.float32)
    finite = 0
    clipped = 0
    for y in range(0, ny, BAND_ROWS):
        band = slice(y, min(ny, y + BAND_ROWS))
        stack = np.stack([np.asarray(frame[band], dtype=np.float32) for frame in frames])
        if offset is not None:
            stack -= offset[band]
        if scales is not None:
            stack *= factors[:, None, None].astype(np.float32)
        counts = _combine_band(stack, _typical_noise(stack), clip, image[band], noise[band])
        finite += counts[0]
        clipped += counts[1]
    if len(frames) == 1:
        noise[:] = np.nan
    return Master(image, noise, len(frames), clipped / finite if finite else 0.0)


def combine_bias(stack: Sequence[Frame]) -> Master:
    """Combine zeros to a master bias.

    Parameters
    ----------
    stack : sequence of ndarray of float32, shape (ny, nx)
        Overscan-subtracted, trimmed, ADU (`detrend.overscan_subtract_trim`).

    Returns
    -------
    Master
        ADU; 0 where no frame has a finite pixel.

    Raises
    ------
    ConfigError
        If there is no frame.
    PixelError
        If the shapes differ.
    """
    master = combine(stack)
    image = np.nan_to_num(master.image, copy=False, nan=0.0)
    return Master(image, master.noise, master.n, master.rejected)


def to_electrons(image: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """Multiply every amplifier's part by its gain.

    Parameters
    ----------
    image : ndarray of float32, shape `layout.trimmed_shape`
        ADU.
    layout : Layout

    Returns
    -------
    ndarray of float32, shape (ny, nx)
        e-; NaN where no amplifier reads.
    """
    electrons = np.full(layout.trimmed_shape, np.nan, dtype=np.float32)
    for amplifier in layout.amplifiers:
        part = amplifier.trimmed.slices
        electrons[part] = image[part] * np.float32(amplifier.gain)
    return electrons


def _typical_light(values: NDArray[np.float32]) -> float:
    """Median of the lit pixels; NaN if there is none. A dead amplifier has no say."""
    values = values[np.isfinite(values)]
    if values.size == 0:
        return float("nan")
    lit = values[values > MINIMUM_FLAT * np.percentile(values, 90.0)]
    return float(np.median(lit)) if lit.size else float("nan")


def typical_light(frame: Frame, bias: Frame | None = None) -> float:
    """Typical signal of a flat above the bias, from a sample of the rows.

    Parameters
    ----------
    frame : ndarray of float32, shape (ny, nx)
        Overscan-subtracted, trimmed, ADU.
    bias : ndarray of float32, shape (ny, nx), optional
        Master bias, ADU.

    Returns
    -------
    float
        Median of the lit pixels, ADU; NaN if there is none.
    """
    step = max(1, frame.shape[0] // 512)
    sample = np.asarray(frame[::step], dtype=np.float32)
    return _typical_light(sample if bias is None else sample - bias[::step])


def combine_flat(
    stack: Sequence[Frame], *, bias: Frame | None = None, layout: Layout | None = None
) -> Master:
    """Combine dome flats to the response of the pixels to uniform light.

    Every frame is normalised by the median of its lit pixels first, since the lamp varies.

    Parameters
    ----------
    stack : sequence of ndarray of float32, shape (ny, nx)
        Overscan-subtracted, trimmed, ADU (`detrend.overscan_subtract_trim`).
    bias : ndarray of float32, shape (ny, nx), optional
        Master bias, ADU.
    layout : Layout, optional
        Gives the gains. Needed wherever a CCD has several amplifiers: `detrend`
        applies gains before it divides, so the flat must not hold them again.

    Returns
    -------
    Master
        Median of the lit pixels 1. NaN where no frame has a finite pixel; `detrend` does not divide
        by those, nor by pixels of at most `detrend.MINIMUM_FLAT`.

    Raises
    ------
    ConfigError
        If there is no frame.
    PixelError
        If shapes differ, or a frame holds no light.
    """
    shape = _check_stack(stack)
    if bias is not None and bias.shape != shape:
        raise PixelError(f"bias of shape {bias.shape} does not fit flats of {shape}")
    scales = []
    for k, frame in enumerate(stack):
        light = typical_light(frame, bias)
        if not light > 0:
            raise PixelError(
                f"flat {k} of {len(stack)} holds no light (median {light:g} ADU): leave it out"
            )
        scales.append(1.0 / light)
    master = combine(stack, scales=scales, offset=bias)
    image = master.image
    noise = master.noise
    if layout is not None:
        image = to_electrons(image, layout)
        noise = to_electrons(noise, layout)
    typical = np.float32(_typical_light(image))
    return Master(image / typical, noise / typical, master.n, master.rejected)
