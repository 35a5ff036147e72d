"""What is told of a packing with a loss: the figures that `fidelity` finds, without how."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Brightness",
    "Fidelity",
    "FluxChanges",
    "PixelErrors",
    "SourceChanges",
    "TransientChanges",
    "clipped_mean",
    "clipped_scatter",
]

Floats = NDArray[np.float64]

_CLIP = 4.0
_FEWEST = 5
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class PixelErrors:
    """Errors of the light-sensitive pixels, decoded minus original.

    In units of the sky noise of each pixel's own amplifier (`codec.pixels.sky_noise`: from
    differences of neighbours), saturated pixels left out. NaN in a frame without noise.

    Parameters
    ----------
    rms, mean : float
    largest : float
        Largest absolute one.
    saturated_changed : int
        Pixels that are saturated in one of the frames only.
    """

    rms: float
    mean: float
    largest: float
    saturated_changed: int


@dataclass(frozen=True, eq=False)
class FluxChanges:
    """Fluxes of the same stars at the same places in both frames.

    Parameters
    ----------
    flux, change : (n,) float64 ndarray
        Of the original, and decoded minus original, e-.
    noise : (n,) float64 ndarray
        Standard error of the flux from photons and read-out, e-.
    """

    flux: Floats
    change: Floats
    noise: Floats

    @property
    def snr(self) -> Floats:
        """Signal to noise."""
        return np.asarray(self.flux / self.noise, np.float64)

    @property
    def scatter(self) -> float:
        """Scatter of the changes in units of the noise."""
        return clipped_scatter(self.change / self.noise)

    @property
    def bias(self) -> float:
        """Sum of the changes over sum of the fluxes."""
        return float(self.change.sum() / self.flux.sum()) if self.flux.size else float("nan")

    @property
    def relative_bias(self) -> float:
        """Mean of the relative changes, outliers left out: no star counts more than another."""
        return clipped_mean(self.change / self.flux)

    def between(self, low: float, high: float) -> FluxChanges:
        """Those whose signal to noise is at least `low` and less than `high`."""
        kept = (self.snr >= low) & (self.snr < high)
        return FluxChanges(self.flux[kept], self.change[kept], self.noise[kept])


@dataclass(frozen=True)
class Brightness:
    """What became of fluxes of about one brightness.

    Parameters
    ----------
    snr_from, snr_to : float
    stars : int
    magnitude : float
        Median of ``-2.5 log10(flux / electron)``; NaN without stars.
    bias_mmag : float
        How much fainter they seem, by the sum of their fluxes, 0.001 mag.
    scatter : float
        In units of the noise they have.
    """

    snr_from: float
    snr_to: float
    stars: int
    magnitude: float
    bias_mmag: float
    scatter: float


@dataclass(frozen=True, eq=False)
class SourceChanges:
    """What became of the sources of a frame.

    Parameters
    ----------
    sources : int
        Undisturbed ones of 5 sigma in the original.
    recovered : float
        Part of them that the decoded frame shows at 4 sigma of the original's noise.
    new : float
        Sources of 5 sigma of the decoded frame's own noise of which the original shows nothing
        at 4, as a part of `sources`: what a pipeline that measures the noise of smoothed
        pixels would find in it.
    noise_ratio : float
        Noise of an empty pixel as a pipeline measures it, decoded over original.
    sky_shift : float
        Median change of the sky's level as a pipeline measures it (`calibrate.background`), in
        units of that noise.
    centroid_px : float
        Scatter of the shift of windowed centroids along one axis, stars of 20 sigma or more.
    centroid : float
        The same in units of the standard error of each centroid.
    fluxes : FluxChanges
        Of isolated, undisturbed sources of 10 sigma or more.
    """

    sources: int
    recovered: float
    new: float
    noise_ratio: float
    sky_shift: float
    centroid_px: float
    centroid: float
    fluxes: FluxChanges


@dataclass(frozen=True, eq=False)
class TransientChanges:
    """What became of transients of known flux and place.

    Parameters
    ----------
    transients : int
    found, found_original : float
        Part of them with a matched-filter signal of 5 sigma or more within 2 pixels, in what came
        back and before; both judged by the noise of the original.
    fluxes : FluxChanges
        At their true places.
    """

    transients: int
    found: float
    found_original: float
    fluxes: FluxChanges


@dataclass(frozen=True)
class Fidelity:
    """All figures of one frame; NaN where it has too few sources to tell.

    Parameters
    ----------
    rms, mean_error, max_error : float
        As in `PixelErrors`.
    saturated_changed : int
    sources : int
    recovered, new, noise_ratio, sky_shift, centroid_px, centroid : float
        As in `SourceChanges`.
    scatter : float
        Scatter that is added to PSF-weighted fluxes, in units of their photon and read noise:
        transients, and sources of up to 60 sigma. Above, the star's own light outweighs the
        sky's, and that figure falls.
    bias_faint : float
        Part of the light that transients of 5 to 10 sigma gain (negative: lose).
    bias_bright : float
        The same of sources of 60 sigma or more, mean over the sources.
    transients : int
    found, found_original : float
        As in `TransientChanges`.
    fwhm_px : float
        Width of the stars, pixels.
    profile_measured : bool
        Whether stars told the profile.
    by_brightness : tuple of Brightness
        Faintest first.
    """

    rms: float
    mean_error: float
    max_error: float
    saturated_changed: int
    sources: int
    recovered: float
    new: float
    noise_ratio: float
    sky_shift: float
    centroid_px: float
    centroid: float
    scatter: float
    bias_faint: float
    bias_bright: float
    transients: int
    found: float
    found_original: float
    fwhm_px: float
    profile_measured: bool
    by_brightness: tuple[Brightness, ...]


def clipped_scatter(values: Floats) -> float:
    """Standard deviation without what lies beyond four robust ones; NaN of fewer than five."""
    values = _clipped(values)
    return float(np.std(values)) if values.size >= _FEWEST else float("nan")


def clipped_mean(values: Floats) -> float:
    """Mean without outliers; NaN of too few."""
    values = _clipped(values)
    return float(np.mean(values)) if values.size >= _FEWEST else float("nan")


def _clipped(values: Floats) -> Floats:
    values = values[np.isfinite(values)]
    if not values.size:
        return values
    offset = np.abs(values - np.median(values))
    limit = _CLIP * _MAD_TO_SIGMA * float(np.median(offset))
    return values[offset <= limit]
