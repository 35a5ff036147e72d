"""How coarsely each band may be told: what a step costs a star, and what it saves.

Let the noise of the sky be white with sigma 1, and a star be measured by its own profile
(the matched filter). An error in a band reaches the star's flux as far as the band's
synthesis filters overlap with the profile. A quantiser of step S leaves some squared error
and takes some bits; a step wider than the noise also keeps less of a faint star than is
there. The cheapest steps for a given loss have the same worth of bits everywhere (reverse
water-filling, Cover & Thomas 2006, 10.3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import erf, exp, log2, pi, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prepipe.codec.wavelet_transform import LIFTING
from prepipe.codec.wavelet_tree import Tree

__all__ = ["PRESETS", "BandStep", "Preset", "Quantiser", "band_steps"]

SMALLEST_STEP, LARGEST_STEP = 0.1, 6.0
"""In sigma of the band. Cosmic rays and other sharp things survive a step of 6."""

_STEPS = np.geomspace(SMALLEST_STEP, LARGEST_STEP, 90)
_WIDE = 1.9
_SIDE = 256
_BISECTIONS = 40
_BIAS_WEIGHT = 1.0
"""What a lost part of a faint star's flux costs beside scatter: holds it below 2 %."""
_SOME_STAR = 0.003
_BETA = 3.0
_SUBPIXELS = 5

Array = NDArray[np.float64]


class Preset(NamedTuple):
    """A loss that is asked for.

    Attributes
    ----------
    seeing_px : float
        FWHM of the stars that it is meant for.
    scatter : float
        Noise added to the flux of a faint star of that width, in units of what it has.
    """

    seeing_px: float
    scatter: float


PRESETS = {
    "precise": Preset(2.6, 0.125),
    "fast": Preset(3.1, 0.18),
    "faint-link": Preset(3.3, 0.235),
}


@dataclass(frozen=True)
class Quantiser:
    """A quantiser of noise of sigma 1.

    Parameters
    ----------
    step : float
        Width of what becomes zero. From 1.9 on the other steps are half as wide: there it
        is stars and cosmic rays that they tell apart, and those are few.
    """

    step: float

    @property
    def wide(self) -> bool:
        """Whether zeros prevail."""
        return self.step > _WIDE

    @property
    def width(self) -> float:
        """Of all steps but that around zero."""
        return self.step / 2 if self.wide else self.step

    @property
    def _bins(self) -> list[tuple[float, float, float]]:
        """Probability, mean and reconstruction of each value from one on, of one sign."""
        bins = []
        value = 1
        while (value - 0.5) * self.width < 9:
            low = max(self.step / 2, (value - 0.5) * self.width)
            high = (value + 0.5) * self.width
            share = _upper_tail(low) - _upper_tail(high)
            mean = (_density(low) - _density(high)) / share if share > 0 else low
            centroid = value == 1 and self.wide
            bins.append((share, mean, mean if centroid else value * self.width))
            value += 1
        return bins

    @property
    def bits(self) -> float:
        """Entropy, bits a coefficient."""
        shares = [share for share, _, _ in self._bins if share > 0]
        zero = 1 - 2 * sum(shares)
        total = -2 * sum(share * log2(share) for share in shares)
        return total - (zero * log2(zero) if zero > 0 else 0.0)

    @property
    def squared_error(self) -> float:
        """Mean square of what is lost."""
        return 1 - 2 * sum(share * (2 * mean - back) * back for share, mean, back in self._bins)

    @property
    def response(self) -> float:
        """What comes back of a faint signal that the noise hides."""
        return 2 * sum(share * mean * back for share, mean, back in self._bins)

    @property
    def fill(self) -> float:
        """Sigma of the noise that zeros lack."""
        shares = [(share, back) for share, _, back in self._bins]
        zero = 1 - 2 * sum(share for share, _ in shares)
        lacking = 1 - 2 * sum(share * back * back for share, back in shares)
        return sqrt(lacking / zero) if lacking > 0 and zero > 0 else 0.0


class BandStep(NamedTuple):
    """What a band is quantised with, for white noise of sigma 1 in the pixels.

    Attributes
    ----------
    sigma : float
        Noise of the band's coefficients.
    step : float
        Width of what becomes zero, in units of `sigma`.
    star : float
        Its weight in a star's flux, of 1 if stars were as rich in it as noise is.
    """

    sigma: float
    step: float
    star: float

    @property
    def quantiser(self) -> Quantiser:
        """Of noise of sigma 1."""
        return Quantiser(self.step)

    @property
    def width(self) -> float:
        """Of a step, for noise of sigma 1 in the pixels."""
        return self.sigma * self.quantiser.width

    @property
    def sees_stars(self) -> bool:
        """Whether a bright star would miss what is rounded to zero."""
        return self.star > _SOME_STAR


def band_steps(tree: Tree, seeing_px: float, scatter: float) -> list[BandStep]:
    """Cheapest steps at which faint stars get no more than so much scatter.

    Parameters
    ----------
    tree : Tree
    seeing_px : float
        FWHM of the stars.
    scatter : float
        In units of the scatter that the noise of the sky gives.

    Returns
    -------
    list of BandStep
        One a band of the tree.
    """
    noise, weights, shares = _bands(tree, seeing_px)
    bits, errors, costs = _quantisers()
    low, high = -20.0, 20.0
    for _ in range(_BISECTIONS):
        worth = np.exp((low + high) / 2)
        price = shares[:, None] * bits + worth * weights[:, None] * costs
        chosen = np.argmin(price, axis=1)
        lost = float(weights @ errors[chosen])
        low, high = ((low + high) / 2, high) if lost > scatter**2 else (low, (low + high) / 2)
    return [
        BandStep(float(sigma), float(_STEPS[step]), float(weight / share))
        for sigma, step, weight, share in zip(noise, chosen, weights, shares, strict=True)
    ]


@cache
def _quantisers() -> tuple[Array, Array, Array]:
    """Of every step: bits, squared error, and what it costs."""
    quantisers = [Quantiser(float(step)) for step in _STEPS]
    errors = np.array([one.squared_error for one in quantisers])
    lost = np.array([1 - one.response for one in quantisers])
    return np.array([one.bits for one in quantisers]), errors, errors + _BIAS_WEIGHT * lost


@cache
def _bands(tree: Tree, seeing_px: float) -> tuple[Array, Array, Array]:
    """Of each band: noise of its coefficients, its weight in a star's flux, its share of pixels.

    The weight is the variance that the flux takes up if the band is lost.
    """
    power = _profile_power(seeing_px)
    noise, weights, shares = [], [], []
    for band in tree.bands:
        (across, columns), (along, rows) = _filters(band.columns), _filters(band.rows)
        sigma = sqrt(across * along)
        share = 0.5 ** (len(band.columns) + len(band.rows))
        noise.append(sigma)
        weights.append(float(rows @ power @ columns) / _SIDE**2 * sigma**2 * share)
        shares.append(share)
    return np.array(noise), np.array(weights), np.array(shares)


def _profile_power(seeing_px: float) -> Array:
    """Power spectrum of a Moffat profile of unit square sum."""
    radius = seeing_px / 2 / sqrt(2 ** (1 / _BETA) - 1)
    axis = np.fft.fftfreq(_SIDE) * _SIDE
    offsets = (np.arange(_SUBPIXELS) - _SUBPIXELS // 2) / _SUBPIXELS
    squares = (axis[:, None] + offsets).ravel() ** 2
    fine = (1 + (squares[:, None] + squares) / radius**2) ** -_BETA
    profile = fine.reshape(_SIDE, _SUBPIXELS, _SIDE, _SUBPIXELS).sum((1, 3))
    power: Array = np.abs(np.fft.fft2(profile / sqrt(float((profile**2).sum())))) ** 2
    return power


@cache
def _filters(path: str) -> tuple[float, Array]:
    """Variance of a coefficient in white noise, and the power spectrum of its synthesis filter."""
    forward = np.eye(_SIDE)
    impulse = np.zeros(_SIDE >> len(path))
    impulse[impulse.size // 2] = 1
    for turn in path:
        forward = _split(forward)["LH".index(turn)]
    for turn in reversed(path):
        nothing = np.zeros(impulse.size)
        impulse = _join(*((impulse, nothing) if turn == "L" else (nothing, impulse)))
    variance = float((forward[forward.shape[0] // 2] ** 2).sum())
    spectrum: Array = np.abs(np.fft.fft(impulse)) ** 2
    return variance, spectrum


def _split(signal: Array) -> tuple[Array, Array]:
    """The lifting steps of `wavelet_transform` along the first axis, of a periodic signal."""
    low, high = signal[0::2].copy(), signal[1::2].copy()
    first, second, third, fourth = LIFTING
    for high_step, low_step in ((first, second), (third, fourth)):
        high += high_step * (low + np.roll(low, -1, 0))
        low += low_step * (high + np.roll(high, 1, 0))
    return low, high


def _join(low: Array, high: Array) -> Array:
    """Inverse of `_split`."""
    first, second, third, fourth = LIFTING
    for high_step, low_step in ((third, fourth), (first, second)):
        low = low - low_step * (high + np.roll(high, 1, 0))
        high = high - high_step * (low + np.roll(low, -1, 0))
    joined: Array = np.stack([low, high], axis=1).reshape(-1)
    return joined


def _density(value: float) -> float:
    return exp(-value * value / 2) / sqrt(2 * pi)


def _upper_tail(value: float) -> float:
    return (1 - erf(value / sqrt(2))) / 2
