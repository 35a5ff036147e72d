"""The steps on the pixels: from raw ADU to a clean image, and from there to its sources.

Each is a function from what is known to what it adds. None gives up on a poor frame: what
is wrong becomes a flag, and the flag a grade.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.detector.detrend import Detrended, detrend
from prepipe.calibrate.detector.masks import (
    blind_edges,
    find_dead,
    grow_saturation,
    interpolate_bad,
    saturated_fraction,
)
from prepipe.calibrate.flags import Mask
from prepipe.calibrate.stars.background import Background, mark_silent, measure_background, subtract
from prepipe.calibrate.stars.cosmic_rays import find_cosmic_rays
from prepipe.calibrate.stars.measurement import ApertureCorrection, aperture_correction
from prepipe.calibrate.stars.packing_noise import WEAK_RESPONSE
from prepipe.calibrate.stars.psf import Psf, find_sources
from prepipe.calibrate.stars.psf_photometry import PsfPhotometry, fit_stars
from prepipe.calibrate.stars.seeing import glimpse_seeing
from prepipe.calibrate.stars.sources import Sources
from prepipe.cameras import Camera
from prepipe.engines.builtin.buffers import Buffers
from prepipe.engines.detector.corrections import Corrections
from prepipe.engines.raw import RawCcd
from prepipe.engines.stopwatch import Stopwatch
from prepipe.model import Layout

__all__ = [
    "Clean",
    "Flags",
    "Masters",
    "Measured",
    "clean_pixels",
    "fit_profiles",
    "measure_sources",
]

FLOODED = 0.5
"""A CCD with more of its pixels saturated was flooded, not exposed."""


SILENT = 0.9
"""A CCD with more of its pixels noiseless holds no image."""


PART_DEAD = 0.02
"""A CCD with more of its pixels dead lacks a part worth telling of."""


MANY_COSMIC_RAYS = 0.02
"""A frame with more of its pixels hit is no exposure of the sky, or its stars passed for hits."""


TRAILED = 0.4
"""Ellipticity above which the telescope moved rather than focused badly."""


Flags = tuple[str, ...]


@dataclass(frozen=True)
class Masters:
    """Master frames for one CCD; None where there is none.

    Parameters
    ----------
    bias, flat : ndarray of float32, shape (ny, nx), or None
        ADU; relative response.
    bias_noise : float
        Standard error of a pixel of the bias, ADU.
    bias_name, flat_name : str
        File names.
    bias_nights, flat_nights : int or None
        Nights between the exposure and each.
    corrections : Corrections
        What else is known of the detector.
    """

    bias: NDArray[np.float32] | None = None
    flat: NDArray[np.float32] | None = None
    bias_noise: float = 0.0
    bias_name: str = ""
    flat_name: str = ""
    bias_nights: int | None = None
    flat_nights: int | None = None
    flags: Flags = ()
    corrections: Corrections = field(default_factory=Corrections)

    def noisier(self, layout: Layout) -> Layout:
        """The layout with the noise of the bias counted as read noise."""
        amplifiers = tuple(
            replace(amp, read_noise=math.hypot(amp.read_noise, self.bias_noise * amp.gain))
            for amp in layout.amplifiers
        )
        return replace(layout, amplifiers=amplifiers)


@dataclass(frozen=True)
class Clean:
    """Calibrated pixels; `image` is `frame.image` without its sky.

    In `search_mask` glowing edges count as dead: no star is brighter than the glow there.
    `fwhm_px` is the seeing with which cosmic rays were told from stars, pixels. An empty pixel has
    at least `least_noise`, e-, however smooth packing left it.
    """

    frame: Detrended
    background: Background
    image: NDArray[np.float32]
    search_mask: NDArray[np.uint8]
    n_saturated: int
    n_cosmic_rays: int
    flags: Flags
    fwhm_px: float
    least_noise: float = 0.0


@dataclass(frozen=True)
class Measured:
    """What shines on the CCD; `fitted` where profiles were fitted to the `sources`."""

    sources: Sources
    psf: Psf
    correction: ApertureCorrection
    flags: Flags
    fitted: PsfPhotometry | None = None


def clean_pixels(
    raw: RawCcd,
    layout: Layout,
    camera: Camera,
    masters: Masters,
    fwhm_px: float,
    buffers: Buffers | None = None,
    *,
    certain: bool = False,
    watch: Stopwatch | None = None,
) -> Clean:
    """From raw ADU to electrons: detrending, masks, sky, cosmic rays.

    Parameters
    ----------
    raw : RawCcd
    layout : Layout
    camera : Camera
        Knows the dead amplifiers.
    masters : Masters
    fwhm_px : float
        Seeing supposed, pixels: what is sharper is a cosmic ray.
    buffers : Buffers, optional
        Memory for the planes.
    certain : bool
        Whether that seeing is known; else bright stars are asked first.
    watch : Stopwatch, optional
        Takes the time of ``"detrend"``, ``"masks"``, ``"background"`` and ``"cosmic_rays"``.

    Raises
    ------
    PixelError
        If the pixels have a wrong type or shape.
    """
    buffers, watch = buffers or Buffers(), watch or Stopwatch()
    known_dead = camera.dead_amplifiers(raw.ccd.number, raw.exposure.start)
    dead = tuple(dict.fromkeys((*known_dead, *find_dead(raw.pixels, layout))))
    flags = _amplifier_flags(layout, dead)
    if camera.needs_masters and _lacks_overscan(layout):
        flags.append("NO_OVERSCAN")
    corrupt = raw.corrupt_mask(layout)
    if corrupt is not None:
        flags.append("CORRUPT_TILES")
    if raw.sum_fits is False:
        flags.append("STALE_SUM")
    layout = masters.noisier(layout)
    with watch.timing("detrend"):
        frame = _detrended(raw, layout, masters, dead, corrupt, buffers)
    with watch.timing("masks"):
        if saturated_fraction(frame.mask) > FLOODED:
            flags.append("SATURATED_FRAME")
        n_saturated = grow_saturation(frame.mask)
        _mark_edges(frame.mask, layout, camera.edge_columns)
        interpolate_bad(frame.image, frame.mask)
    with watch.timing("background"):
        background = of_pixels = measure_background(frame.image, frame.mask)
        least_noise, read_noise = 0.0, frame.read_noise
        if (packing := raw.packing_noise) is not None:
            least_noise = packing.least(frame.gain, masters.bias_noise)
            background = packing.corrected(background, frame.gain, masters.bias_noise)
            read_noise = 0.0
        flags += _silence_flags(frame, background, flags)
    with watch.timing("cosmic_rays"):
        if not certain:
            fwhm_px = _glimpsed(frame, background, fwhm_px)
        # packing took their sharpness, and with it the noise that they have to stand out of
        n_cosmic_rays = find_cosmic_rays(
            frame.image,
            frame.mask,
            of_pixels,
            fwhm_px,
            read_noise=read_noise,
            variance=frame.variance,
        )
    if n_cosmic_rays > MANY_COSMIC_RAYS * frame.mask.size:
        flags.append("MANY_COSMIC_RAYS")
    shape = layout.trimmed_shape
    with watch.timing("masks"):
        search_mask = blind_edges(frame.mask, buffers.array("search mask", shape, np.uint8))
    with watch.timing("background"):
        without_sky = buffers.array("without sky", shape, np.float32)
        image = subtract(frame.image, background, without_sky, search_mask)
    return Clean(
        frame,
        background,
        image,
        search_mask,
        n_saturated,
        n_cosmic_rays,
        tuple(flags),
        fwhm_px,
        least_noise,
    )


def _detrended(
    raw: RawCcd,
    layout: Layout,
    masters: Masters,
    dead: Flags,
    corrupt: NDArray[np.uint8] | None,
    buffers: Buffers,
) -> Detrended:
    """The pixels with all that is known of the detector taken out."""
    known, packing = masters.corrections, raw.packing_noise
    return detrend(
        raw.pixels,
        layout,
        bias=masters.bias,
        flat=masters.flat,
        bad_pixels=_together(corrupt, known.bad_pixels),
        dead=dead,
        crosstalk=known.crosstalk,
        ghosts=known.ghosts,
        linearity=known.linearity,
        coding_error=0.0 if packing is None else packing.added_adu,
        weak_response=0.0 if packing is None else WEAK_RESPONSE,
        out=_planes(buffers, layout.trimmed_shape),
    )


def _silence_flags(frame: Detrended, background: Background, known: list[str]) -> list[str]:
    """Mark what has no noise as dead; what that says of the frame."""
    silent = mark_silent(frame.mask, background, frame.read_noise)
    if not math.isfinite(background.median_level) or silent > SILENT:
        return ["BLANK"]
    if _dead_part(frame.mask) > PART_DEAD and "PARTIAL_DEAD" not in known:
        return ["PARTIAL_DEAD"]
    return []


def _glimpsed(frame: Detrended, background: Background, fwhm_px: float) -> float:
    """The seeing by a few bright stars, or the one supposed where they do not tell."""
    seen = glimpse_seeing(frame.image, frame.mask, background, fwhm_px, read_noise=frame.read_noise)
    return seen if math.isfinite(seen) else fwhm_px


def _planes(buffers: Buffers, shape: tuple[int, int]) -> Detrended:
    """Planes for `detrend` to fill."""
    return Detrended(
        image=buffers.array("image", shape, np.float32),
        mask=buffers.array("mask", shape, np.uint8),
        variance=buffers.array("variance", shape, np.float32),
        gain=math.nan,
        read_noise=math.nan,
    )


def measure_sources(
    clean: Clean,
    fwhm_px: float,
    snr: float,
    buffers: Buffers | None = None,
    watch: Stopwatch | None = None,
) -> Measured:
    """Detect and measure the sources, and the seeing.

    Parameters
    ----------
    clean : Clean
    fwhm_px : float
        Seeing supposed, pixels.
    snr : float
        Detection threshold.
    buffers : Buffers, optional
        Memory for the filtered image.
    watch : Stopwatch, optional
        Takes the time of ``"filter"``, ``"detect"``, ``"measure"`` and ``"psf"``.
    """
    buffers, watch = buffers or Buffers(), watch or Stopwatch()
    noise = clean.background.median_rms
    # Once the sources are found, the compressed product may take this memory.
    filtered = buffers.array("IMAGE tiles", clean.image.shape, np.float32)
    sources, psf = find_sources(
        clean.image,
        clean.search_mask,
        clean.background.rms,
        clean.background.box,
        fwhm_px,
        noise**2 if math.isfinite(noise) else 0.0,
        snr,
        filtered,
        watch.timing,
    )
    flags: Flags = ()
    if len(sources) == 0:
        flags = ("NO_SOURCES",)
    elif not psf.known:
        flags = ("NO_PSF_STARS",)
    elif math.hypot(*psf.ellipticity) > TRAILED:
        flags = ("TRAILED",)
    # What is no profile of a star tells nothing of a star's wings.
    examples = psf.stars if psf.known else psf.stars[:0]
    return Measured(sources, psf, aperture_correction(sources, examples), flags)


def fit_profiles(clean: Clean, measured: Measured, snr: float) -> Measured:
    """Fit the sources' profiles together, and add the companions that this brings to light.

    Parameters
    ----------
    clean : Clean
    measured : Measured
        Without a known PSF it is given back as it is.
    snr : float
        Detection threshold of the companions.
    """
    noise = clean.background.median_rms
    if not (measured.psf.known and math.isfinite(noise)):
        return measured
    fitted = fit_stars(
        clean.image,
        clean.search_mask,
        measured.sources,
        measured.psf,
        noise**2,
        snr,
        clean.least_noise**2,
    )
    return replace(measured, sources=fitted.sources, fitted=fitted)


def _together(
    corrupt: NDArray[np.uint8] | None, bad: NDArray[np.bool_] | None
) -> NDArray[np.uint8] | None:
    """Bits of corrupt and of known bad pixels."""
    # True is stored as 1, which is Mask.BAD.
    bits = None if bad is None else np.ascontiguousarray(bad).view(np.uint8)
    return bits if corrupt is None else corrupt if bits is None else corrupt | bits


def _amplifier_flags(layout: Layout, dead: Flags) -> list[str]:
    names = {amplifier.name for amplifier in layout.amplifiers}
    flags = []
    if names <= set(dead):
        flags.append("DEAD")
    elif names & set(dead):
        flags.append("PARTIAL_DEAD")
    return flags


def _dead_part(mask: NDArray[np.uint8]) -> float:
    """Fraction of the pixels that are dead, of every eighth row and column."""
    return float(np.mean((mask[::8, ::8] & np.uint8(Mask.DEAD)) != 0))


def _lacks_overscan(layout: Layout) -> bool:
    return not layout.bias_level and any(amp.overscan is None for amp in layout.amplifiers)


def _mark_edges(mask: NDArray[np.uint8], layout: Layout, columns: int) -> None:
    """Flag the glowing columns where the sensitive pixels meet the overscan."""
    for amplifier in layout.amplifiers:
        box, overscan = amplifier.trimmed, amplifier.overscan
        if overscan is not None and overscan.x0 == amplifier.data.x1:
            mask[box.y0 : box.y1, max(box.x0, box.x1 - columns) : box.x1] |= np.uint8(Mask.EDGE)
        if overscan is not None and overscan.x1 == amplifier.data.x0:
            mask[box.y0 : box.y1, box.x0 : min(box.x1, box.x0 + columns)] |= np.uint8(Mask.EDGE)
