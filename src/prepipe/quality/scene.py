"""A raw frame as an astronomer sees it: without bias and sky, with its sources and their width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.detector.detrend import detrend
from prepipe.calibrate.detector.masks import find_dead, grow_saturation, interpolate_bad
from prepipe.calibrate.flags import Mask
from prepipe.calibrate.stars.background import Background, measure_background, subtract
from prepipe.calibrate.stars.cosmic_rays import find_cosmic_rays
from prepipe.calibrate.stars.psf import find_sources
from prepipe.calibrate.stars.seeing import glimpse_seeing
from prepipe.calibrate.stars.sources import Sources
from prepipe.model import Layout
from prepipe.quality.star_profile import StarProfile

__all__ = ["Flattened", "Scene", "flatten", "see"]

Floats = NDArray[np.float64]
Bits = NDArray[np.uint8]

FILLED = Mask.BAD | Mask.NO_FLAT | Mask.CORRUPT | Mask.COSMIC_RAY
"""Pixels that are replaced by what lies around them, in the original as in what came back."""

DETECTION_SNR = 5.0


@dataclass(frozen=True, eq=False)
class Flattened:
    """Pixels of a frame, e-, without bias and sky.

    Parameters
    ----------
    image : (ny, nx) float32 ndarray
        Less a sky, its own or that of a frame to compare it with.
    background : Background
        Its own sky, and the noise of an empty pixel.
    """

    image: NDArray[np.float32]
    background: Background

    def noise_at(self, x: Floats, y: Floats) -> Floats:
        """Noise of an empty pixel at places, e-; infinite where it is not known."""
        (ny, nx), (my, mx) = self.background.shape, self.background.rms.shape
        row = np.clip(np.rint(y).astype(np.int64) * my // ny, 0, my - 1)
        column = np.clip(np.rint(x).astype(np.int64) * mx // nx, 0, mx - 1)
        noise = np.asarray(self.background.rms[row, column], np.float64)
        return np.where(noise > 0.0, noise, np.inf)


@dataclass(frozen=True, eq=False)
class Scene:
    """An original frame.

    Parameters
    ----------
    flat : Flattened
    mask : (ny, nx) uint8 ndarray
        `Mask` bits.
    search_mask : (ny, nx) uint8 ndarray
        The same, with cosmic rays as BAD: nothing is detected on them.
    sources : Sources
        Found at 5 sigma.
    profile : StarProfile
    dead : tuple of str
        Amplifiers that give nothing.
    """

    flat: Flattened
    mask: Bits
    search_mask: Bits
    sources: Sources
    profile: StarProfile
    dead: tuple[str, ...]


def see(
    raw: NDArray[Any], layout: Layout, supposed_fwhm_px: float, dead: Sequence[str] = ()
) -> Scene:
    """Find what is in an original frame.

    Parameters
    ----------
    raw : ndarray, shape `layout.shape`
        ADU.
    layout : Layout
    supposed_fwhm_px : float
        Seeing to begin with, pixels; may be wrong by a factor of two.
    dead : sequence of str
        Amplifiers known to give nothing, besides those that show it.

    Raises
    ------
    PixelError
        If the pixels have a wrong type or shape.
    """
    dead = tuple(dict.fromkeys((*dead, *find_dead(raw, layout))))
    mask, fwhm_px = _mask(raw, layout, supposed_fwhm_px, dead)
    flat = flatten(raw, layout, mask, dead)
    search_mask = mask | np.where(mask & np.uint8(Mask.COSMIC_RAY), np.uint8(Mask.BAD), 0)
    noise = flat.background.median_rms
    sources, psf = find_sources(
        flat.image,
        search_mask.astype(np.uint8),
        flat.background.rms,
        flat.background.box,
        fwhm_px,
        noise**2 if np.isfinite(noise) else 0.0,
        DETECTION_SNR,
    )
    profile = StarProfile.of(psf, fwhm_px)
    return Scene(flat, mask, search_mask.astype(np.uint8), sources, profile, dead)


def flatten(
    raw: NDArray[Any],
    layout: Layout,
    mask: Bits,
    dead: Sequence[str] = (),
    sky: Background | None = None,
) -> Flattened:
    """Take bias and sky out of a frame: of the original, or of what came back.

    Each has its own overscan subtracted, as a pipeline does it; which pixels count is the
    original's affair.

    Parameters
    ----------
    raw : ndarray, shape `layout.shape`
        ADU.
    layout : Layout
    mask : (ny, nx) uint8 ndarray
        Of the original.
    dead : sequence of str
    sky : Background, optional
        Its shape, brought to the frame's own height, is subtracted instead of the frame's own:
        two frames that are to be compared need the same, or the uncertainty of their skies
        (0.2 of a faint star's noise) passes for a loss.
    """
    image = detrend(raw, layout, dead=dead).image
    interpolate_bad(image, mask, FILLED)
    background = measure_background(image, mask)
    taken = background if sky is None else _shifted(sky, background)
    return Flattened(subtract(image, taken, image, mask), background)


def _shifted(sky: Background, own: Background) -> Background:
    """A sky as high as a frame's own."""
    shift = np.median(own.level - sky.level)
    return replace(sky, level=(sky.level + shift).astype(np.float32))


def _mask(
    raw: NDArray[Any], layout: Layout, fwhm_px: float, dead: Sequence[str]
) -> tuple[Bits, float]:
    """Bits of the original's pixels, and its seeing as far as bright stars tell it."""
    frame = detrend(raw, layout, dead=dead)
    grow_saturation(frame.mask)
    interpolate_bad(frame.image, frame.mask)
    background = measure_background(frame.image, frame.mask)
    glimpsed = glimpse_seeing(
        frame.image, frame.mask, background, fwhm_px, read_noise=frame.read_noise
    )
    fwhm_px = glimpsed if np.isfinite(glimpsed) else fwhm_px
    find_cosmic_rays(
        frame.image,
        frame.mask,
        background,
        fwhm_px,
        read_noise=frame.read_noise,
        variance=frame.variance,
    )
    return frame.mask, fwhm_px
