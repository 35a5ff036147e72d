"""Which calibration frames are so unlike the others that they would spoil a master.

Every pair of frames is compared on a sample of their pixels. A frame is judged by how far
it lies from the nearer half of the others, so that one bad frame among three or more
cannot make the good ones look bad.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["MINIMUM_LIGHT_ADU", "Frame", "odd_flats", "odd_zeros", "scatter"]

MINIMUM_LIGHT_ADU = 1000.0
"""A flat with less light adds noise and, with the lamp off, a false response."""

ODD_SCATTER = 1.5
"""A frame that differs from the others by this many times the typical difference is odd."""

ODD_RMS = 2.0
"""A zero whose own rms is this many times more or less than that of the others is odd."""

ODD_LEVEL = 5.0
"""A zero whose level lies this many robust sigma of all levels from their median is odd."""

SAMPLE = (256, 512)
"""Rows and columns at most that are looked at: 131072 pixels tell a scatter to 0.3 %."""

# Fraction of a normal distribution within one sigma, in percent.
_ONE_SIGMA = 68.27


class Frame(Protocol):
    """Pixels that need not be in memory: an array, or what gives a part of one when asked."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns)."""

    def __getitem__(self, where: Any, /) -> NDArray[np.float32]:
        """A slice of the rows, or of rows and columns."""


def scatter(values: NDArray[np.float32]) -> float:
    """Robust standard deviation about zero: 68.27 % of the finite values are no larger.

    Parameters
    ----------
    values : ndarray of float32
        Of any shape.

    Returns
    -------
    float
        NaN if no value is finite.
    """
    sizes = np.abs(values[np.isfinite(values)])
    return float(np.percentile(sizes, _ONE_SIGMA)) if sizes.size else float("nan")


def odd_zeros(frames: Sequence[Frame]) -> dict[int, str]:
    """Find zeros whose level or rms is not that of the others.

    Parameters
    ----------
    frames : sequence of ndarray of float32, shape (ny, nx)
        Overscan-subtracted, trimmed, ADU.

    Returns
    -------
    dict
        Place in `frames` to the reason. Two frames that disagree are both kept: nothing
        tells which of them is right.
    """
    samples = [_sample(frame) for frame in frames]
    levels = np.array([_median(sample) for sample in samples])
    rms = np.array(
        [scatter(sample - np.float32(level)) for sample, level in zip(samples, levels, strict=True)]
    )
    unlike = _unlikeness(samples, np.ones(len(frames)))
    level, typical = _centre(levels), _centre(rms)
    spread = 1.4826 * _centre(np.abs(levels - level))
    # Levels of a few good frames may agree by chance to far less than matters.
    reach = max(ODD_LEVEL * spread, typical)
    odd = {}
    for k in range(len(frames)):
        if not abs(levels[k] - level) <= reach:
            odd[k] = f"its level is {levels[k]:.4g} ADU, that of the others {level:.4g}"
        elif len(frames) > 2 and not typical / ODD_RMS <= rms[k] <= typical * ODD_RMS:
            odd[k] = f"its rms is {rms[k]:.3g} ADU, that of the others {typical:.3g}"
        elif not unlike[k] <= ODD_SCATTER:
            odd[k] = f"it differs {unlike[k]:.3g} times as much as usual from the others"
    return odd


def odd_flats(
    frames: Sequence[Frame], lights: Sequence[float], bias: Frame | None = None
) -> dict[int, str]:
    """Find flats without enough light, or lit in another way than the others.

    Shot noise of a normalised flat goes with the square root of its light; beyond that,
    all are expected to differ equally.

    Parameters
    ----------
    frames : sequence of ndarray of float32, shape (ny, nx)
        Overscan-subtracted, trimmed, ADU.
    lights : sequence of float
        Typical signal of each above the bias, ADU (`masters.typical_light`).
    bias : ndarray of float32, shape (ny, nx), optional
        Master bias, ADU.

    Returns
    -------
    dict
        Place in `frames` to the reason; two frames that disagree are both kept.
    """
    odd = {
        k: f"its light is {light:.4g} ADU, a flat needs {MINIMUM_LIGHT_ADU:g}"
        for k, light in enumerate(lights)
        if not light >= MINIMUM_LIGHT_ADU
    }
    lit = [k for k in range(len(frames)) if k not in odd]
    zero = np.zeros((), np.float32) if bias is None else _sample(bias)
    samples = [(_sample(frames[k]) - zero) / np.float32(lights[k]) for k in lit]
    unlike = _unlikeness(samples, np.array([lights[k] ** -0.5 for k in lit]))
    for k, size in zip(lit, unlike, strict=True):
        if not size <= ODD_SCATTER:
            odd[k] = f"it differs {size:.3g} times as much as usual from the other flats"
    return odd


def _unlikeness(
    samples: Sequence[NDArray[np.float32]], noise: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Distance of each sample from the nearer half of the others, over the typical distance."""
    n = len(samples)
    if n < 3:
        return np.ones(n)
    apart = np.full((n, n), np.inf)
    for k in range(n):
        for other in range(k):
            distance = scatter(samples[k] - samples[other])
            distance /= float(np.hypot(noise[k], noise[other]))
            apart[k, other] = apart[other, k] = distance if np.isfinite(distance) else np.inf
    near = np.sort(apart, axis=1)[:, (n - 2) // 2]
    typical = np.sort(near)[(n - 1) // 2]
    return np.where(near > typical, near / max(typical, np.finfo(np.float64).tiny), 1.0)


def _sample(frame: Frame) -> NDArray[np.float32]:
    """Evenly spaced rows and columns, in memory."""
    rows, columns = (
        max(1, -(-size // most)) for size, most in zip(frame.shape, SAMPLE, strict=True)
    )
    return np.array(frame[::rows, ::columns], dtype=np.float32)


def _median(values: NDArray[np.float32]) -> float:
    """Median of the finite values; NaN if there is none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")


def _centre(values: NDArray[np.float64]) -> float:
    """Median of what is known of a few frames."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")
