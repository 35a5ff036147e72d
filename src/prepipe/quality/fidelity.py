"""What packing with a loss costs: an original frame held against what came back.

Pure functions on arrays. Errors of pixels are told in units of the sky's own noise, those of
fluxes in units of the noise that the flux has anyway: 0.2 there adds 2 % to it, as
``sqrt(1 + 0.2^2)`` says. Differences are taken between the two frames, source by source, so that
the noise they share does not hide what packing did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.detection import Peaks, detect, matched_filter
from prepipe.calibrate.flags import SourceFlag
from prepipe.calibrate.matching import nearest_pairs
from prepipe.calibrate.measurement import DISTURBED, measure
from prepipe.calibrate.sources import Sources
from prepipe.codec.pixels import sky_noise
from prepipe.model import Layout
from prepipe.quality.injection import Transients
from prepipe.quality.scene import DETECTION_SNR, Flattened, Scene
from prepipe.quality.star_profile import StarProfile

__all__ = [
    "SNR_EDGES",
    "Brightness",
    "Fidelity",
    "FluxChanges",
    "PixelErrors",
    "SourceChanges",
    "TransientChanges",
    "clipped_scatter",
    "compare",
    "flux_changes",
    "joined",
    "pixel_errors",
    "source_changes",
    "transient_changes",
]

Floats = NDArray[np.float64]
Pixels = NDArray[Any]

SNR_EDGES = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, np.inf)
"""Signal to noise between which fluxes are summed up; below 10 those of transients."""

SHOWN_SNR = 4.0
"""A source of 5 sigma is recovered if it is still seen at this; else half of those at the very
threshold would count as lost for a noise that nobody would notice."""

SKY_LIMITED_SNR = 60.0
BRIGHT_SNR = 60.0
CENTROID_SNR = 20.0
FOUND_SNR = 5.0
SEARCHED_PX = 2
_MATCHED_FWHM = 0.5
_NEAREST_PX = 1.0
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
        return _clipped_mean(self.change / self.flux)

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
    recovered, new, noise_ratio, centroid_px, centroid : float
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


def compare(
    errors: PixelErrors, seen: SourceChanges, transients: TransientChanges, profile: StarProfile
) -> Fidelity:
    """Put the figures of one frame together."""
    fluxes = joined((transients.fluxes, seen.fluxes))
    return Fidelity(
        rms=errors.rms,
        mean_error=errors.mean,
        max_error=errors.largest,
        saturated_changed=errors.saturated_changed,
        sources=seen.sources,
        recovered=seen.recovered,
        new=seen.new,
        noise_ratio=seen.noise_ratio,
        centroid_px=seen.centroid_px,
        centroid=seen.centroid,
        scatter=fluxes.between(-np.inf, SKY_LIMITED_SNR).scatter,
        bias_faint=transients.fluxes.bias,
        bias_bright=fluxes.between(BRIGHT_SNR, np.inf).relative_bias,
        transients=transients.transients,
        found=transients.found,
        found_original=transients.found_original,
        fwhm_px=profile.fwhm_px,
        profile_measured=profile.measured,
        by_brightness=_by_brightness(transients.fluxes, seen.fluxes),
    )


def pixel_errors(original: Pixels, decoded: Pixels, layout: Layout) -> PixelErrors:
    """Errors of the light-sensitive pixels.

    Parameters
    ----------
    original, decoded : ndarray, shape `layout.shape`
        ADU.
    layout : Layout
    """
    squares = total = largest = 0.0
    count = changed = 0
    for amplifier in layout.amplifiers:
        box = amplifier.data.slices
        before, after = original[box], decoded[box]
        full = before >= amplifier.saturation
        changed += int(np.count_nonzero(full != (after >= amplifier.saturation)))
        noise = sky_noise(before)
        if not noise > 0.0:
            continue
        error = (after.astype(np.float64) - before)[~full] / noise
        error = error[np.isfinite(error)]
        squares += float(np.sum(error**2))
        total += float(np.sum(error))
        largest = max(largest, float(np.max(np.abs(error), initial=0.0)))
        count += error.size
    if not count:
        return PixelErrors(np.nan, np.nan, np.nan, changed)
    return PixelErrors(float(np.sqrt(squares / count)), total / count, largest, changed)


def source_changes(scene: Scene, decoded: Flattened) -> SourceChanges:
    """What became of the sources of a frame.

    Parameters
    ----------
    scene : Scene
        The original.
    decoded : Flattened
        What came back, flattened with the mask of the original.
    """
    sources, profile = scene.sources, scene.profile
    undisturbed = (sources.flags & DISTURBED) == 0
    known = sources.take(undisturbed)
    shown, found_anew = _peaks(scene, decoded)
    before, _ = _peaks(scene, scene.flat)
    radius = max(_NEAREST_PX, _MATCHED_FWHM * profile.fwhm_px)
    kept, _ = nearest_pairs((known.x, known.y), _places(shown), radius)
    old, _ = nearest_pairs(_places(found_anew), _places(before), radius)
    moved, moved_sigmas = _shifts(scene, decoded)
    noise = scene.flat.background.median_rms
    return SourceChanges(
        sources=len(known),
        recovered=_part(kept.size, len(known)),
        new=_part(len(found_anew) - old.size, len(known)),
        noise_ratio=decoded.background.median_rms / noise if noise > 0.0 else float("nan"),
        centroid_px=moved,
        centroid=moved_sigmas,
        fluxes=_source_fluxes(scene, decoded, known),
    )


def transient_changes(
    original: Flattened, decoded: Flattened, transients: Transients, profile: StarProfile
) -> TransientChanges:
    """What became of transients.

    They lie on empty sky, where what a perfect template leaves of a frame is the frame without
    its sky. (To subtract the original itself would take its noise away as well, and all would
    be found.) The threshold is on the signal to noise of the matched filter, which is the sum
    of pixels weighted by the profile (e.g. Zackay & Ofek 2017, ApJ 836, 187, eq. 16).

    Parameters
    ----------
    original, decoded : Flattened
        With the transients in them: before, and what came back.
    transients : Transients
    profile : StarProfile
    """
    noise = original.noise_at(transients.x, transients.y)
    return TransientChanges(
        transients=len(transients),
        found=_found(decoded, transients, profile, noise),
        found_original=_found(original, transients, profile, noise),
        fluxes=flux_changes(original, decoded, transients.x, transients.y, profile),
    )


def flux_changes(
    original: Flattened, decoded: Flattened, x: Floats, y: Floats, profile: StarProfile
) -> FluxChanges:
    """PSF-weighted fluxes at the same places in both frames.

    The flux is ``sum(P image) / sum(P^2)``, that of a profile P fitted with equal weights, which
    is the best there is where the sky's noise outweighs the star's (e.g. Naylor 1998, MNRAS 296,
    339). Its variance is ``sum(P^2 v) / sum(P^2)^2``, v being that of the empty pixel, read
    noise in it, and of the star's own light.

    Parameters
    ----------
    original, decoded : Flattened
    x, y : (n,) float64 ndarray
        Pixels; cut-outs around them must lie in the frame.
    profile : StarProfile
    """
    stamps = profile.stamps(x, y)
    power = np.sum(stamps.light**2, axis=(1, 2))
    flux = np.sum(stamps.light * stamps.of(original.image), axis=(1, 2)) / power
    after = np.sum(stamps.light * stamps.of(decoded.image), axis=(1, 2)) / power
    sky = original.noise_at(x, y)[:, None, None] ** 2
    variance = sky + np.maximum(flux, 0.0)[:, None, None] * stamps.light
    noise = np.sqrt(np.sum(stamps.light**2 * variance, axis=(1, 2))) / power
    known = np.isfinite(noise) & (noise > 0.0)
    return FluxChanges(flux[known], (after - flux)[known], noise[known])


def joined(parts: Sequence[FluxChanges]) -> FluxChanges:
    """Several as one."""
    return FluxChanges(
        np.concatenate([part.flux for part in parts]),
        np.concatenate([part.change for part in parts]),
        np.concatenate([part.noise for part in parts]),
    )


def clipped_scatter(values: Floats) -> float:
    """Standard deviation without what lies beyond four robust ones; NaN of fewer than five."""
    values = _clipped(values)
    return float(np.std(values)) if values.size >= _FEWEST else float("nan")


def _clipped_mean(values: Floats) -> float:
    values = _clipped(values)
    return float(np.mean(values)) if values.size >= _FEWEST else float("nan")


def _clipped(values: Floats) -> Floats:
    values = values[np.isfinite(values)]
    if not values.size:
        return values
    offset = np.abs(values - np.median(values))
    limit = _CLIP * _MAD_TO_SIGMA * float(np.median(offset))
    return values[offset <= limit]


def _peaks(scene: Scene, flat: Flattened) -> tuple[Peaks, Peaks]:
    """Maxima of 4 sigma of the original's noise, and of 5 sigma of the frame's own."""
    width = scene.profile.fwhm_px
    filtered, gain = matched_filter(flat.image, width, scene.search_mask)
    judged = ((scene.flat.background, SHOWN_SNR), (flat.background, DETECTION_SNR))
    shown, own = (
        detect(
            filtered,
            background.rms,
            scene.search_mask,
            fwhm_px=width,
            noise_gain=gain,
            snr=snr,
            box=background.box,
        )
        for background, snr in judged
    )
    return shown, own


def _places(peaks: Peaks) -> tuple[Floats, Floats]:
    return peaks.x.astype(np.float64), peaks.y.astype(np.float64)


def _shifts(scene: Scene, decoded: Flattened) -> tuple[float, float]:
    """Scatter of the centroids' shifts, in pixels and in their own standard errors."""
    sources = scene.sources
    clear = ((sources.flags & DISTURBED) == 0) & (sources.snr >= CENTROID_SNR)
    before = sources.take(clear)
    rows, columns = (np.rint(values).astype(np.int32) for values in (before.y, before.x))
    ny, nx = scene.mask.shape
    rows, columns = np.clip(rows, 0, ny - 1), np.clip(columns, 0, nx - 1)
    peaks = Peaks(rows, columns, scene.flat.image[rows, columns])
    noise = scene.flat.background.median_rms
    variance = noise**2 if np.isfinite(noise) else 0.0

    def measured(image: NDArray[np.float32]) -> Sources:
        """Measured anew in both frames, so that both start from the same pixel."""
        width = scene.profile.fwhm_px
        return measure(image, scene.search_mask, peaks, fwhm_px=width, sky_variance=variance)

    old, new = measured(scene.flat.image), measured(decoded.image)
    both = ((old.flags | new.flags) & SourceFlag.NO_CENTROID) == 0
    shift = np.concatenate([(new.x - old.x)[both], (new.y - old.y)[both]])
    error = np.tile(old.position_sigma[both], 2)
    return clipped_scatter(shift), clipped_scatter(shift / np.where(error > 0.0, error, np.nan))


def _source_fluxes(scene: Scene, decoded: Flattened, known: Sources) -> FluxChanges:
    """Fluxes of isolated sources; the brighter ones only, lest noise choose them."""
    half = scene.profile.half + 1
    ny, nx = scene.mask.shape
    chosen = (known.flags & SourceFlag.NEIGHBOUR) == 0
    chosen &= (known.x > half) & (known.x < nx - 1 - half)
    chosen &= (known.y > half) & (known.y < ny - 1 - half)
    place = known.x[chosen], known.y[chosen]
    changes = flux_changes(scene.flat, decoded, *place, scene.profile)
    return changes.between(SNR_EDGES[1], np.inf)


def _found(flat: Flattened, transients: Transients, profile: StarProfile, noise: Floats) -> float:
    """Part of the transients whose matched-filter signal reaches the threshold nearby."""
    weights = profile.centred()
    reach = profile.half
    row, column = (np.rint(values).astype(np.int64) for values in (transients.y, transients.x))
    steps = np.arange(-reach - SEARCHED_PX, reach + SEARCHED_PX + 1)
    (ny, nx) = flat.image.shape
    rows = np.clip(row[:, None, None] + steps[None, :, None], 0, ny - 1)
    columns = np.clip(column[:, None, None] + steps[None, None, :], 0, nx - 1)
    around = flat.image[rows, columns].astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(around, weights.shape, axis=(1, 2))
    signal = np.einsum("nabij,ij->nab", windows, weights)
    snr = signal.max(axis=(1, 2), initial=-np.inf) / (noise * np.sqrt(np.sum(weights**2)))
    return _part(int(np.count_nonzero(snr >= FOUND_SNR)), len(transients))


def _by_brightness(transients: FluxChanges, sources: FluxChanges) -> tuple[Brightness, ...]:
    """In the first class those of the transients, in the others those of the sources."""
    classes = []
    for place, (low, high) in enumerate(pairwise(SNR_EDGES)):
        # chosen by their true flux: by a measured one, the lucky ones would be too many
        here = sources.between(low, high) if place else transients
        count = here.flux.size
        told = count > 0 and here.flux.sum() > 0.0 and 1.0 + here.bias > 0.0
        classes.append(
            Brightness(
                snr_from=low,
                snr_to=high,
                stars=count,
                magnitude=_magnitude(float(np.median(here.flux))) if count else float("nan"),
                bias_mmag=1e3 * _magnitude(1.0 + here.bias) if told else float("nan"),
                scatter=here.scatter,
            )
        )
    return tuple(classes)


def _magnitude(flux: float) -> float:
    return float(-2.5 * np.log10(flux)) if flux > 0.0 else float("nan")


def _part(count: int, total: int) -> float:
    return count / total if total else float("nan")
