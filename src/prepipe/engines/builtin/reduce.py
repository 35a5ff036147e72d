"""The built-in engine: one CCD from raw pixels to image, weight, mask, WCS and source table."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.sky.photometry import ZeroPoint
from prepipe.calibrate.sky.refcat import ReferenceSource
from prepipe.calibrate.stars.cosmic_rays import SHARPEST
from prepipe.cameras import Camera, load_camera
from prepipe.config import Calibration, ProductForm
from prepipe.engines.base import ChosenMasters, Order, Outcome
from prepipe.engines.builtin.buffers import Buffers
from prepipe.engines.builtin.output import write_products
from prepipe.engines.builtin.sky import Results, calibrate_flux, solve_wcs
from prepipe.engines.builtin.steps import (
    Clean,
    Masters,
    Measured,
    clean_pixels,
    fit_profiles,
    measure_sources,
)
from prepipe.engines.detector.corrections import find_corrections
from prepipe.engines.names import (
    catalogue_paths,
    chosen_by_name,
    master_name,
    nights_apart,
    product_path,
)
from prepipe.engines.products import read_master
from prepipe.engines.raw import RawCcd, read_ccd
from prepipe.engines.references.manifest import MANIFEST
from prepipe.engines.references.source import load_reference
from prepipe.engines.sanity import exposure_flags, light_flags, require_sane
from prepipe.engines.stopwatch import Stopwatch
from prepipe.errors import InputError, StorageError
from prepipe.model import Layout, Night, Reduction
from prepipe.quality.grades import grade, limits_for

__all__ = ["Stopwatch", "carry_out", "reduce_ccd"]


@dataclass(frozen=True)
class _Master:
    name: str
    plane: NDArray[np.float32]
    noise: float
    nights: int


def carry_out(order: Order) -> Outcome:
    """Reduce and grade the CCD of an order; this is what a worker runs.

    Raises
    ------
    InputError
        If the packet or file cannot be read at all.
    StorageError
        If the products cannot be written.
    """
    watch = Stopwatch()
    camera = _camera(order.camera)
    with watch.timing("read"):
        raw = read_ccd(order.source, order.hdu, camera)
    settings = order.calibration
    reference = None
    if settings.reference is not None:
        with watch.timing("reference"):
            columns = tuple(sorted(settings.columns.items()))
            reference = _reference(settings.reference, raw.exposure.band, columns)
    return reduce_ccd(raw, camera, order, reference, watch, _own_buffers())


def reduce_ccd(
    raw: RawCcd,
    camera: Camera,
    order: Order,
    reference: ReferenceSource | None,
    watch: Stopwatch | None = None,
    buffers: Buffers | None = None,
) -> Outcome:
    """Reduce and grade one CCD, and write its products.

    Parameters
    ----------
    raw : RawCcd
    camera : Camera
    order : Order
        Settings, limits, hints, and where things are; its source was read already.
    reference : ReferenceSource or None
        Without one, neither WCS nor zero point is found.
    watch : Stopwatch, optional
    buffers : Buffers, optional
        A worker's memory, written over CCD after CCD; the outcome keeps nothing of it.

    Returns
    -------
    Outcome

    Raises
    ------
    HeaderError
        If the header does not tell where the amplifiers are, or its gain cannot be.
    ConfigError
        If a table of the detector is missing or wrong.
    PixelError
        If the pixels have a wrong type or shape.
    StorageError
        If the products cannot be written.
    """
    watch = watch or Stopwatch()
    buffers = buffers or Buffers()
    settings = order.calibration
    layout = require_sane(camera.layout(raw.header, raw.pixels))
    with watch.timing("masters"):
        masters = Masters()
        if camera.needs_masters:
            masters = _masters(raw, layout, settings, order.calibrations)
    with watch.timing("corrections"):
        known = find_corrections(raw, layout, camera, settings, order.source, order.hdu)
        masters = replace(masters, corrections=known, flags=(*masters.flags, *known.flags))
    clean, measured = _pixels_to_sources(raw, layout, camera, masters, settings, watch, buffers)
    with watch.timing("astrometry"):
        astrometry = solve_wcs(
            raw, layout, camera, measured.sources, reference, settings, order.hints
        )
    with watch.timing("photometry"):
        photometry = calibrate_flux(raw, camera, clean, measured, astrometry)
    results = Results(masters, clean, measured, astrometry, photometry)
    product = product_path(order.products, raw.exposure, raw.ccd.number)
    reduction = _summary(raw, layout, camera, results, product, settings.output)
    limits = limits_for(order.limits, raw.exposure.camera, raw.exposure.band)
    outcome = Outcome(raw.exposure, raw.ccd, reduction, grade(reduction, limits))
    catalogue = settings.reference.name if settings.reference is not None else ""
    with watch.timing("write"):
        write_products(product, raw, results, outcome, catalogue, settings.output, buffers)
    return replace(outcome, reduction=replace(reduction, seconds=watch.seconds))


def _pixels_to_sources(
    raw: RawCcd,
    layout: Layout,
    camera: Camera,
    masters: Masters,
    settings: Calibration,
    watch: Stopwatch,
    buffers: Buffers,
) -> tuple[Clean, Measured]:
    fwhm_px = settings.seeing_guess_arcsec / camera.pixel_scale
    for certain in (False, True):
        clean = clean_pixels(
            raw, layout, camera, masters, fwhm_px, buffers, certain=certain, watch=watch
        )
        measured = measure_sources(clean, clean.fwhm_px, settings.detection_snr, buffers, watch)
        # Stars much sharper than supposed pass for cosmic rays: once more, knowing better.
        if not measured.psf.known or measured.psf.fwhm_px >= SHARPEST * clean.fwhm_px:
            break
        fwhm_px = measured.psf.fwhm_px
    if settings.photometry == "psf":
        with watch.timing("profiles"):
            measured = fit_profiles(clean, measured, settings.detection_snr)
    return clean, measured


def _masters(
    raw: RawCcd, layout: Layout, settings: Calibration, told: ChosenMasters | Path | None
) -> Masters:
    """Bias and flat, each the first of those chosen that can be read and fits."""
    chosen = told or ChosenMasters()
    if isinstance(chosen, Path):
        chosen = chosen_by_name(chosen, raw.exposure, raw.ccd.number, settings.master_days)
    found = {
        "BIAS": _first_sound(chosen.bias, raw.exposure.night, layout.trimmed_shape),
        "FLAT": _first_sound(chosen.flat, raw.exposure.night, layout.trimmed_shape),
    }
    flags = [f"NO_{what}" for what, master in found.items() if master is None]
    flags += [f"OLD_{what}" for what, m in found.items() if m and m.nights > settings.old_days]
    bias, flat = found["BIAS"], found["FLAT"]
    return Masters(
        bias=None if bias is None else bias.plane,
        flat=None if flat is None else flat.plane,
        bias_noise=0.0 if bias is None else bias.noise,
        bias_name="" if bias is None else bias.name,
        flat_name="" if flat is None else flat.name,
        bias_nights=None if bias is None else bias.nights,
        flat_nights=None if flat is None else flat.nights,
        flags=tuple(flags),
    )


def _first_sound(paths: Sequence[Path], night: Night, shape: tuple[int, int]) -> _Master | None:
    """The first master that can be read; None if there is none that fits."""
    for path in paths:
        try:
            plane, noise = _read_master(path, path.stat().st_mtime_ns)
        except (InputError, StorageError, OSError):
            continue
        name = master_name(path)
        if plane.shape == shape and name is not None:
            return _Master(path.name, plane, noise, nights_apart(name.night, night))
    return None


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _extinction(raw: RawCcd, camera: Camera, zero: ZeroPoint | None) -> float | None:
    clear = camera.clear_sky_zero_point(raw.exposure.band)
    # Single CCDs differ by their response: a little more light than usual is no news.
    return None if clear is None or zero is None else _known(max(clear - zero.value, 0.0))


def _sky_fraction(level: float, layout: Layout) -> float | None:
    """The sky (e-) as a part of what saturates the amplifier that holds least."""
    room = min(amp.gain * (amp.saturation - layout.bias_level) for amp in layout.amplifiers)
    return _known(level / room) if room > 0.0 else None


def _summary(
    raw: RawCcd,
    layout: Layout,
    camera: Camera,
    results: Results,
    product: Path,
    form: ProductForm,
) -> Reduction:
    clean, measured = results.clean, results.measured
    astrometry, photometry = results.astrometry, results.photometry
    solution = astrometry.solution if astrometry.solved else None
    zero, offset = photometry.zero_point, astrometry.offset_arcsec
    background, gain = clean.background, clean.frame.gain
    return Reduction(
        exposure=raw.exposure.number,
        ccd=raw.ccd.number,
        flags=(
            *exposure_flags(raw.exposure),
            *results.flags,
            *light_flags(photometry, camera, raw.exposure.band),
        ),
        bias_nights=results.masters.bias_nights,
        flat_nights=results.masters.flat_nights,
        wcs_rms_mas=None if solution is None else _known(solution.rms_mas),
        wcs_worst_mas=None if solution is None else _known(solution.worst_error_mas),
        wcs_matches=0 if solution is None else solution.matches,
        wcs_tries=astrometry.tries,
        offset_east_arcsec=None if offset is None else offset[0],
        offset_north_arcsec=None if offset is None else offset[1],
        offset_arcsec=None if offset is None else math.hypot(*offset),
        extinction_mag=_extinction(raw, camera, zero),
        zero_point=None if zero is None else _known(zero.value),
        zero_point_scatter=None if zero is None else _known(zero.scatter),
        zero_point_stars=0 if zero is None else zero.stars,
        seeing_arcsec=_known(measured.psf.fwhm_px * camera.pixel_scale),
        ellipticity=_known(math.hypot(*measured.psf.ellipticity)),
        sky_adu=_known(background.median_level / gain),
        sky_noise_adu=_known(background.median_rms / gain),
        sky_fraction=_sky_fraction(background.median_level, layout),
        limiting_mag=_known(photometry.limiting_mag),
        n_sources=len(measured.sources),
        n_saturated=clean.n_saturated,
        n_cosmic_rays=clean.n_cosmic_rays,
        product=str(product),
        catalogue=str(catalogue_paths(product, form.catalogue)[0]),
    )


# A worker reduces many CCDs of one night: what they share is read once.


_OF_THIS_THREAD = threading.local()


def _own_buffers() -> Buffers:
    """Memory of the worker that calls: one thread reduces one CCD at a time."""
    if not hasattr(_OF_THIS_THREAD, "buffers"):
        _OF_THIS_THREAD.buffers = Buffers()
    buffers: Buffers = _OF_THIS_THREAD.buffers
    return buffers


@lru_cache(maxsize=4)
def _camera(name: str) -> Camera:
    return load_camera(name)


def _reference(path: Path, band: str, columns: tuple[tuple[str, str], ...]) -> ReferenceSource:
    """The reference catalogue, opened anew once it was replaced."""
    told = path / MANIFEST if path.is_dir() else path
    changed_ns = told.stat().st_mtime_ns if told.is_file() else 0
    return _opened(path, band, columns, changed_ns)


@lru_cache(maxsize=4)
def _opened(
    path: Path, band: str, columns: tuple[tuple[str, str], ...], _mtime_ns: int
) -> ReferenceSource:
    return load_reference(path, band, dict(columns))


# One CCD's bias and flat: more of them would take more memory than all else of a worker.
@lru_cache(maxsize=2)
def _read_master(path: Path, _mtime_ns: int) -> tuple[NDArray[np.float32], float]:
    return read_master(path)
