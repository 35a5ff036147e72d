"""What packing with a loss costs: an original frame held against what came back.

Pure functions on arrays. Errors of pixels are told in units of the sky's own noise, those of
fluxes in units of the noise that the flux has anyway: 0.2 there adds 2 % to it, as
``sqrt(1 + 0.2^2)`` says. Differences are taken between the two frames, source by source, so that
the noise they share does not hide what packing did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from prepipe.calibrate.flags import SourceFlag
from prepipe.calibrate.stars.background import Background
from prepipe.calibrate.stars.detection import Peaks, detect, matched_filter
from prepipe.calibrate.stars.measurement import DISTURBED, measure
from prepipe.calibrate.stars.sources import Sources
from prepipe.codec.pixels import sky_noise
from prepipe.model import Layout
from prepipe.quality.fidelity_figures import (
    Brightness,
    Fidelity,
    FluxChanges,
    PixelErrors,
    SourceChanges,
    TransientChanges,
    clipped_scatter,
)
from prepipe.quality.injection import Transients
from prepipe.quality.scene import DETECTION_SNR, Flattened, Scene
from prepipe.quality.star_profile import StarProfile

__all__ = [
    "SNR_EDGES",
    "averaged",
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
        sky_shift=seen.sky_shift,
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


def averaged(found: Sequence[Fidelity]) -> Fidelity:
    """Means over several frames of what each could tell; counts are sums, `max_error` the largest.

    Parameters
    ----------
    found : sequence of Fidelity
        One at least.
    """
    told: dict[str, Any] = {}
    for each in fields(Fidelity):
        values = [getattr(one, each.name) for one in found]
        if isinstance(values[0], float):
            known = [value for value in values if np.isfinite(value)]
            told[each.name] = float(np.mean(known)) if known else float("nan")
        elif isinstance(values[0], bool):
            told[each.name] = all(values)
        elif isinstance(values[0], int):
            told[each.name] = sum(values)
    told["max_error"] = float(np.fmax.reduce([one.max_error for one in found]))
    classes = zip(*(one.by_brightness for one in found), strict=True)
    told["by_brightness"] = tuple(_averaged_class(same) for same in classes)
    return Fidelity(**told)


def _averaged_class(same: Sequence[Brightness]) -> Brightness:
    def mean(name: str) -> float:
        values = np.array([getattr(each, name) for each in same])
        stars = np.array([each.stars for each in same], np.float64)
        known = np.isfinite(values) & (stars > 0)
        return float(np.average(values[known], weights=stars[known])) if known.any() else np.nan

    return replace(
        same[0],
        stars=sum(each.stars for each in same),
        magnitude=mean("magnitude"),
        bias_mmag=mean("bias_mmag"),
        scatter=mean("scatter"),
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
        What came back, flattened with mask and sky of the original.
    """
    before, after = _peaks(scene, scene.flat), _peaks(scene, decoded)
    known = _measured(scene, scene.flat, before.certain)
    undisturbed = (known.flags & DISTURBED) == 0
    radius = max(_NEAREST_PX, _MATCHED_FWHM * scene.profile.fwhm_px)
    kept = _is_near(before.certain, after.shown, radius)[undisturbed]
    old = _is_near(after.own, before.shown, radius)
    moved, moved_sigmas = _shifts(known, _measured(scene, decoded, before.certain))
    noise = scene.flat.background.median_rms
    return SourceChanges(
        sources=kept.size,
        recovered=_part(int(kept.sum()), kept.size),
        new=_part(int((~old).sum()), kept.size),
        noise_ratio=decoded.background.median_rms / noise if noise > 0.0 else float("nan"),
        sky_shift=_sky_shift(scene.flat.background, decoded.background),
        centroid_px=moved,
        centroid=moved_sigmas,
        fluxes=_source_fluxes(scene, decoded, known.take(undisturbed)),
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


def _sky_shift(before: Background, after: Background) -> float:
    noise = before.median_rms
    shift = float(np.median(after.level - before.level))
    return shift / noise if noise > 0.0 else float("nan")


class _Found(NamedTuple):
    """Places (column, row) of maxima, and of `certain` the peaks themselves.

    Attributes
    ----------
    certain : Peaks
        At 5 sigma of the original's noise.
    shown : (n, 2) ndarray
        At 4 or 5: what is taken for a part of a brighter source depends on the threshold.
    own : (n, 2) ndarray
        At 5 sigma of the frame's own noise.
    """

    certain: Peaks
    shown: Floats
    own: Floats


def _peaks(scene: Scene, flat: Flattened) -> _Found:
    width = scene.profile.fwhm_px
    filtered, gain = matched_filter(flat.image, width, scene.search_mask)

    def found(background: Background, snr: float) -> Peaks:
        return detect(
            filtered,
            background.rms,
            scene.search_mask,
            fwhm_px=width,
            noise_gain=gain,
            snr=snr,
            box=background.box,
        )

    certain = found(scene.flat.background, DETECTION_SNR)
    shown = found(scene.flat.background, SHOWN_SNR)
    own = found(flat.background, DETECTION_SNR)
    return _Found(certain, np.concatenate([_places(certain), _places(shown)]), _places(own))


def _places(peaks: Peaks) -> Floats:
    return np.column_stack([peaks.x, peaks.y]).astype(np.float64)


def _is_near(peaks: Peaks | Floats, others: Floats, radius: float) -> NDArray[np.bool_]:
    """Whether each has one of the others near it."""
    places = _places(peaks) if isinstance(peaks, Peaks) else peaks
    if not len(places) or not len(others):
        return np.zeros(len(places), np.bool_)
    distance, _ = cKDTree(others).query(places)
    return np.asarray(distance <= radius, np.bool_)


def _measured(scene: Scene, flat: Flattened, peaks: Peaks) -> Sources:
    """Measure a frame at the same pixels as another."""
    noise = scene.flat.background.median_rms
    return measure(
        flat.image,
        scene.search_mask,
        peaks,
        fwhm_px=scene.profile.fwhm_px,
        sky_variance=noise**2 if np.isfinite(noise) else 0.0,
    )


def _shifts(before: Sources, after: Sources) -> tuple[float, float]:
    """Scatter of the centroids' shifts, in pixels and in their own standard errors."""
    clear = ((before.flags | after.flags) & DISTURBED) == 0
    clear &= before.snr >= CENTROID_SNR
    shift = np.concatenate([(after.x - before.x)[clear], (after.y - before.y)[clear]])
    error = np.tile(before.position_sigma[clear], 2)
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
