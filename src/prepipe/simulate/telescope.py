"""A telescope for people who have none: it writes raw exposures and the truth about them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prepipe.errors import ConfigError
from prepipe.files import atomic_write, storage_errors
from prepipe.model import Kind
from prepipe.simulate.detector import (
    Bias,
    bias_of,
    read_out,
    respond,
    saturate,
    typical_response,
)
from prepipe.simulate.focal_plane import HALF_WIDTH, Detector, chosen_detectors
from prepipe.simulate.headers import checksum_comments, extension_cards, primary_header
from prepipe.simulate.light import PointSources, add_cosmic_rays, add_sources
from prepipe.simulate.observation import Observation, plan
from prepipe.simulate.projection import VisibleSky
from prepipe.simulate.rawfile import compressed_image
from prepipe.simulate.settings import BANDS, PIXEL_SCALE_ARCSEC, Settings
from prepipe.simulate.truth import CCD_DTYPE, STAR_DTYPE, truth_path, write_truth

__all__ = ["Frame", "Progress", "simulate_ccd", "simulate_exposure", "simulate_night"]

Progress = Callable[[int, int], None]
"""Told after each CCD how many of how many are written."""

HALF_READOUT_S = 10.0
FLAT_LEVEL_E = 60_000.0
LAMP_GRADIENT = 0.01
WRITING_SHARE = 0.6
WRITING_STEPS = 8


@dataclass(frozen=True)
class Frame:
    """One read-out CCD and the truth about it.

    Parameters
    ----------
    raw : NDArray[np.uint16]
        ADU, shape ``detector.shape``.
    ccd : tuple
        A row of `CCD_DTYPE`.
    stars : NDArray[Any]
        Of `STAR_DTYPE`.
    """

    raw: NDArray[np.uint16]
    ccd: tuple[Any, ...]
    stars: NDArray[Any]


def simulate_night(
    out: Path,
    exposures: int,
    ccds: int | tuple[int, ...] | None = None,
    seed: int = 1,
    kind: Kind = Kind.OBJECT,
    cadence: float | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write several exposures, one after the other.

    Parameters
    ----------
    out : Path
        Directory; made if needed.
    exposures : int
        How many.
    ccds, seed, kind
        As in `Settings`; they replace what `settings` says.
    cadence : float or None
        Seconds from the start of one exposure to that of the next on the wall
        clock; each file then grows slowly under its final name, as an
        instrument writes it. None: as fast as possible, each file appearing whole.
    settings : Settings or None
        Everything else.
    progress : callable or None

    Returns
    -------
    list of Path
        The exposures, in order.

    Raises
    ------
    ConfigError
        If a setting makes no sense.
    StorageError
        If the disk is full or the directory cannot be written.
    """
    if exposures < 1 or (cadence is not None and cadence <= 0):
        raise ConfigError("simulate: give at least one exposure, and a cadence above 0 s.")
    settings = replace(settings or Settings(), ccds=ccds, seed=seed, kind=kind)
    total = exposures * len(chosen_detectors(settings.ccds, settings.focus_chips))
    done = 0
    paths = []

    def tell(_: int, __: int) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    begin = time.monotonic()
    for index in range(exposures):
        if cadence is not None:
            time.sleep(max(0.0, begin + index * cadence - time.monotonic()))
        slowly = 0.0 if cadence is None else cadence * WRITING_SHARE
        paths.append(simulate_exposure(settings, index, out, slowly, tell))
    return paths


def simulate_exposure(
    settings: Settings,
    index: int,
    out: Path,
    writing_s: float = 0.0,
    progress: Progress | None = None,
) -> Path:
    """Write exposure `index` (from 0) as ``DECam_NNNNNNNN.fits.fz``, and its truth beside it.

    Parameters
    ----------
    settings : Settings
    index : int
    out : Path
        Directory; made if needed.
    writing_s : float
        The file grows under its final name for at least so long; 0 writes it at
        once under a temporary name and renames it.
    progress : callable or None

    Returns
    -------
    Path
        The exposure.

    Raises
    ------
    ConfigError, StorageError
    """
    observation = plan(settings, index)
    chosen = chosen_detectors(settings.ccds, settings.focus_chips)
    path = out / observation.file_name
    rows: list[tuple[Any, ...]] = []
    stars: list[NDArray[Any]] = []
    parts = _parts(settings, observation, chosen, rows, stars, progress)
    if writing_s > 0:
        _write_slowly(path, parts, writing_s / (len(chosen) + 1))
    else:
        with atomic_write(path) as stream:
            stream.writelines(parts)
    write_truth(
        truth_path(path), observation, np.array(rows, dtype=CCD_DTYPE), np.concatenate(stars)
    )
    return path


def simulate_ccd(
    settings: Settings, observation: Observation, detector: Detector, sky: VisibleSky | None
) -> Frame:
    """Expose and read out one CCD.

    Parameters
    ----------
    settings : Settings
    observation : Observation
    detector : Detector
    sky : VisibleSky or None
        None if no star is seen: zeros, flats, focus chips.
    """
    seed = [settings.seed, 0xCCD, observation.number, detector.number]
    rng = np.random.Generator(np.random.SFC64(seed))
    bias = bias_of(detector, settings.camera_seed, rng)
    dead = detector.is_dead(observation.start)
    stars = np.empty(0, dtype=STAR_DTYPE)
    charge = None
    cosmic_rays = full = 0
    if not dead:
        charge = _diffuse_light(observation, detector)
        if sky is not None:
            stars = _add_stars(charge, observation, detector, sky)
        if observation.kind is not Kind.ZERO:
            respond(charge, detector, settings.camera_seed)
        minutes = (observation.exposure_s + HALF_READOUT_S) / 60.0
        cosmic_rays = int(rng.poisson(settings.cosmic_rays_per_minute * minutes))
        add_cosmic_rays(charge, cosmic_rays, rng)
        full = saturate(charge, detector, bias)
    raw = read_out(charge, detector, bias, rng, settings.crosstalk, settings.nonlinearity)
    response = 0.0 if dead else typical_response(detector, settings.camera_seed)
    row = _ccd_row(observation, detector, bias, response, full, cosmic_rays)
    return Frame(raw, row, stars)


def _parts(
    settings: Settings,
    observation: Observation,
    chosen: tuple[Detector, ...],
    rows: list[tuple[Any, ...]],
    stars: list[NDArray[Any]],
    progress: Progress | None,
) -> Iterator[bytes]:
    """The file, header by header; fills in the truth as it goes."""
    yield primary_header(observation, len(chosen))
    looks_up = observation.kind is Kind.OBJECT
    sky = VisibleSky(settings.star_field, observation) if looks_up else None
    comments = checksum_comments(observation)
    for done, detector in enumerate(chosen, start=1):
        frame = simulate_ccd(settings, observation, detector, None if detector.focus else sky)
        rows.append(frame.ccd)
        stars.append(frame.stars)
        yield compressed_image(frame.raw, extension_cards(detector, observation), comments)
        if progress is not None:
            progress(done, len(chosen))


def _write_slowly(path: Path, parts: Iterator[bytes], seconds_each: float) -> None:
    """Each part takes at least so long, in a few steps, so that the file is seen to grow."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            due = time.monotonic()
            for part in parts:
                step = -(-len(part) // WRITING_STEPS)
                for start in range(0, len(part), step):
                    stream.write(part[start : start + step])
                    stream.flush()
                    due += seconds_each / WRITING_STEPS
                    time.sleep(max(0.0, due - time.monotonic()))


def _diffuse_light(observation: Observation, detector: Detector) -> NDArray[np.float32]:
    """Sky, or the lamp of the dome, before the response; nothing for a zero."""
    shape = (detector.data_rows, 2 * HALF_WIDTH)
    if observation.kind is Kind.ZERO:
        return np.zeros(shape, dtype=np.float32)
    if observation.kind is Kind.OBJECT:
        return np.full(shape, observation.sky_e, dtype=np.float32)
    x, y = detector.detsec
    rows = (y + np.arange(shape[0], dtype=np.float32)) / 29050.0 - 0.5
    columns = (x + np.arange(shape[1], dtype=np.float32)) / 29400.0 - 0.5
    lamp = 1.0 + LAMP_GRADIENT * (rows[:, None] + columns[None, :])
    return (FLAT_LEVEL_E * lamp).astype(np.float32)


def _add_stars(
    light: NDArray[np.float32], observation: Observation, detector: Detector, sky: VisibleSky
) -> NDArray[Any]:
    """Draw the stars of a CCD and return their truth."""
    index, x, y = sky.on_detector(detector)
    field = sky.field.chosen(index)
    magnitudes = field.magnitudes(BANDS[observation.band].colour_terms)
    flux = 10 ** (0.4 * (observation.zero_point - magnitudes)) * observation.exposure_s
    from_axis_x = x + detector.data.x0 + 1 - detector.crpix[0]
    from_axis_y = y + detector.data.y0 + 1 - detector.crpix[1]
    seeing = observation.seeing_px(np.hypot(from_axis_x, from_axis_y))
    fwhm = np.hypot(seeing, field.size_arcsec / PIXEL_SCALE_ARCSEC)
    e1, e2 = observation.shape_at(from_axis_x, from_axis_y)
    add_sources(light, PointSources(x, y, flux, fwhm, e1, e2))
    inside = (x >= -0.5) & (x < light.shape[1] - 0.5) & (y >= -0.5) & (y < light.shape[0] - 0.5)
    truth = np.empty(int(inside.sum()), dtype=STAR_DTYPE)
    truth["ccd"] = detector.number
    truth["id"] = field.number[inside]
    truth["ra"], truth["dec"] = sky.ra[index][inside], sky.dec[index][inside]
    truth["x"], truth["y"] = x[inside], y[inside]
    truth["flux_e"], truth["mag"] = flux[inside], magnitudes[inside]
    truth["size_arcsec"], truth["listed"] = field.size_arcsec[inside], field.listed[inside]
    return truth


def _ccd_row(
    observation: Observation,
    detector: Detector,
    bias: Bias,
    response: float,
    full: int,
    cosmic_rays: int,
) -> tuple[Any, ...]:
    centre_x = np.array([detector.data.x0 + HALF_WIDTH - detector.crpix[0]])
    centre_y = np.array([detector.data.y0 + detector.data_rows / 2 - detector.crpix[1]])
    seeing = observation.seeing_px(np.hypot(centre_x, centre_y))[0] * PIXEL_SCALE_ARCSEC
    e1, e2 = observation.shape_at(centre_x, centre_y)
    named = dict(zip(("left", "right"), detector.channels, strict=True))
    levels = dict(zip((c.name for c in named.values()), bias.levels, strict=True))
    channels = {c.name: c for c in named.values()}
    return (
        detector.number,
        detector.name,
        response == 0.0,
        seeing,
        float(np.hypot(e1, e2)[0]),
        observation.sky_e if observation.kind is Kind.OBJECT else 0.0,
        observation.zero_point,
        response,
        channels["A"].gain,
        channels["B"].gain,
        channels["A"].read_noise,
        channels["B"].read_noise,
        levels["A"],
        levels["B"],
        full,
        cosmic_rays,
    )
