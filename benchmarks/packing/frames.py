"""Simulated frames of one full DECam CCD: what is measured on, and the truth behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from prepipe.model import Amplifier, Box, Layout
from prepipe.quality.injection import Transients
from prepipe.simulate.light import PointSources, add_cosmic_rays, add_sources, bleed

ROWS, COLUMNS, FIRST_ROW, FIRST_COLUMN, HALF = 4146, 2160, 50, 56, 1024
GAINS, READ_NOISE_E = (4.03, 4.21), (6.8, 7.4)
BIAS_ADU, FULL_WELL_E = (1687.0, 2231.0), (185e3, 268e3)
SATURATION_ADU = (44_000.0, 64_000.0)
ZERO_POINT_E = 29.75
"""mag of 1 e- in 20 s of g."""

STARS, GALAXIES, TRANSIENTS, COSMIC_RAYS = 2000, 1400, 700, 70
TEMPLATE_DEPTH = 16
"""Exposures in the template that the frame is held against."""

Image = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Truth:
    """A frame and what is in it.

    Parameters
    ----------
    raw : (4146, 2160) uint16 ndarray
        ADU.
    layout : Layout
    transients : Transients
        5 to 10 sigma, two in five on galaxies; not in the template.
    template : (4096, 2048) float32 ndarray
        The same sky and sources through the same pixels, with less noise, e-.
    """

    raw: NDArray[np.uint16]
    layout: Layout
    transients: Transients
    template: Image


def grey_frame(fwhm_px: float = 4.0, sky_e: float = 400.0, seed: int = 2) -> Truth:
    """20 s of g under a grey sky: 98 ADU of sky, its noise 5.25 ADU, read noise 1.75 ADU.

    Stars down to 24.8 mag, two of them saturated with bleed trails, galaxies (wide Moffat
    profiles), cosmic rays, hot and bad columns, pixels of unequal response, drifting bias.
    """
    rng = np.random.default_rng(seed)
    shape = ROWS - FIRST_ROW, 2 * HALF
    light = np.zeros(shape, np.float32)
    add_sources(light, _stars(rng, shape, fwhm_px))
    galaxies = _galaxies(rng, shape, fwhm_px)
    add_sources(light, galaxies)
    sky = _sky(shape, sky_e)
    transients = _transients(rng, shape, galaxies, fwhm_px, sky_e)
    response = _response(rng, shape)
    expected = (light + sky) * response
    variance = (np.maximum(expected, 0) + np.mean(READ_NOISE_E) ** 2) / TEMPLATE_DEPTH
    template = expected + np.sqrt(variance) * rng.standard_normal(shape, np.float32)
    drawn = np.zeros(shape, np.float32)
    add_sources(drawn, _as_sources(transients, fwhm_px))
    electrons = rng.poisson(expected + drawn * response).astype(np.float32)
    add_cosmic_rays(electrons, COSMIC_RAYS, rng)
    for half, well in enumerate(FULL_WELL_E):
        bleed(electrons[:, half * HALF : (half + 1) * HALF], well)
    return Truth(_read_out(rng, electrons), _layout(), transients, template.astype(np.float32))


def _magnitudes(rng: np.random.Generator, count: int, slope: float, bright: float) -> Floats:
    """Magnitudes whose number rises as ``10^(slope mag)`` down to 24.8."""
    share = rng.uniform(10 ** (slope * bright), 10 ** (slope * 24.8), count)
    return np.log10(share) / slope


def _sources(
    rng: np.random.Generator, shape: tuple[int, int], magnitudes: Floats, fwhm: Floats, e: Floats
) -> PointSources:
    count = magnitudes.size
    angle = rng.uniform(0, 2 * np.pi, count)
    return PointSources(
        x=rng.uniform(0, shape[1], count),
        y=rng.uniform(0, shape[0], count),
        flux=10 ** (0.4 * (ZERO_POINT_E - magnitudes)),
        fwhm=fwhm,
        e1=e * np.cos(angle),
        e2=e * np.sin(angle),
    )


def _stars(rng: np.random.Generator, shape: tuple[int, int], fwhm_px: float) -> PointSources:
    magnitudes = _magnitudes(rng, STARS, 0.25, 11.0)
    magnitudes[:2] = 8.6, 12.3
    return _sources(rng, shape, magnitudes, np.full(STARS, fwhm_px), np.zeros(STARS))


def _galaxies(rng: np.random.Generator, shape: tuple[int, int], fwhm_px: float) -> PointSources:
    magnitudes = _magnitudes(rng, GALAXIES, 0.42, 18.0)
    half_light = 2.2 * 10 ** (-0.12 * (magnitudes - 22)) * np.exp(rng.normal(0, 0.35, GALAXIES))
    width = np.hypot(fwhm_px, 2 * np.maximum(half_light, 1.0))
    return _sources(rng, shape, magnitudes, width, rng.uniform(0, 0.6, GALAXIES))


def _transients(
    rng: np.random.Generator,
    shape: tuple[int, int],
    galaxies: PointSources,
    fwhm_px: float,
    sky_e: float,
) -> Transients:
    margin = 30
    x = rng.uniform(margin, shape[1] - margin, TRANSIENTS)
    y = rng.uniform(margin, shape[0] - margin, TRANSIENTS)
    hosted = int(0.4 * TRANSIENTS)
    host = rng.permutation(GALAXIES)[:hosted]
    x[:hosted] = np.clip(galaxies.x[host] + rng.normal(0, 2, hosted), margin, shape[1] - margin)
    y[:hosted] = np.clip(galaxies.y[host] + rng.normal(0, 2, hosted), margin, shape[0] - margin)
    snr = rng.uniform(5, 10, TRANSIENTS)
    noise = np.sqrt(sky_e + np.mean(READ_NOISE_E) ** 2)
    one = np.zeros((65, 65), np.float32)
    add_sources(one, _points(np.array([32.0]), np.array([32.0]), np.array([1e6]), fwhm_px))
    flux = snr * noise / np.sqrt(np.sum((one / 1e6) ** 2, dtype=np.float64))
    return Transients(x, y, flux, snr)


def _as_sources(transients: Transients, fwhm_px: float) -> PointSources:
    return _points(transients.x, transients.y, transients.flux, fwhm_px)


def _points(x: Floats, y: Floats, flux: Floats, fwhm_px: float) -> PointSources:
    nothing = np.zeros(x.size)
    return PointSources(x, y, flux, np.full(x.size, fwhm_px), nothing, nothing)


def _sky(shape: tuple[int, int], sky_e: float) -> Image:
    y = np.linspace(-0.5, 0.5, shape[0])[:, None]
    x = np.linspace(-0.5, 0.5, shape[1])[None, :]
    return (sky_e * (1 + 0.03 * x + 0.02 * y)).astype(np.float32)


def _response(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """Of the pixels: 0.6 % each to each, brighter edges, a bad column."""
    response = 1 + 0.006 * rng.standard_normal(shape, np.float32)
    for axis, length in enumerate(shape):
        place = np.arange(length)
        edge = 1 + 0.08 * np.exp(-np.minimum(place, place[::-1]) / 9.0)
        response *= np.expand_dims(edge, 1 - axis).astype(np.float32)
    response[:, rng.integers(0, shape[1])] *= 0.3
    return response.astype(np.float32)


def _read_out(rng: np.random.Generator, electrons: Image) -> NDArray[np.uint16]:
    """Bias with a drift, column pattern, hot columns and pixels, read noise, whole ADU."""
    raw = np.zeros((ROWS, COLUMNS), np.float32)
    middle = FIRST_COLUMN + HALF
    settling = 0.8 * np.exp(-np.arange(ROWS) / 200.0)
    drift = np.cumsum(rng.normal(0, 0.02, ROWS))
    rows = drift - drift.mean() + settling
    for half, columns in enumerate((slice(0, middle), slice(middle, COLUMNS))):
        part = raw[:, columns]
        part += BIAS_ADU[half] + rows[:, None]
        part += rng.normal(0, 0.15, part.shape[1])
        part += rng.normal(0, READ_NOISE_E[half] / GAINS[half], part.shape)
        data = slice(FIRST_COLUMN, None) if half == 0 else slice(0, HALF)
        part[FIRST_ROW:, data] += electrons[:, half * HALF : (half + 1) * HALF] / GAINS[half]
    for excess in (8, 40, 300, 2500, 15):
        row, column = FIRST_ROW + rng.integers(0, 3000), FIRST_COLUMN + rng.integers(0, 2 * HALF)
        raw[row:, column] += excess
    hot = rng.integers(0, electrons.size, 400)
    place = FIRST_ROW + hot // (2 * HALF), FIRST_COLUMN + hot % (2 * HALF)
    raw[place] += np.exp(rng.normal(4, 1.2, 400))
    return np.clip(np.rint(raw), 0, 65535).astype(np.uint16)


def _layout() -> Layout:
    rows = FIRST_ROW, ROWS
    overscans = Box(6, FIRST_COLUMN, *rows), Box(COLUMNS - FIRST_COLUMN, COLUMNS - 6, *rows)
    amplifiers = []
    for half, name in enumerate("AB"):
        trimmed = Box(half * HALF, (half + 1) * HALF, 0, ROWS - FIRST_ROW)
        data = trimmed.shifted(FIRST_COLUMN, FIRST_ROW)
        amplifiers.append(
            Amplifier(
                name,
                data,
                overscans[half],
                trimmed,
                GAINS[half],
                READ_NOISE_E[half],
                SATURATION_ADU[half],
            )
        )
    return Layout(
        shape=(ROWS, COLUMNS),
        trimmed_shape=(ROWS - FIRST_ROW, 2 * HALF),
        amplifiers=tuple(amplifiers),
        origin=(FIRST_COLUMN, FIRST_ROW),
    )


def header_of(layout: Layout) -> bytes:
    """An image's header unit that tells its sections, as codecs get it with the pixels."""
    hdu = fits.ImageHDU(np.zeros((1, 1), np.uint16))
    for amplifier in layout.amplifiers:
        for keyword, box in (("DATASEC", amplifier.data), ("BIASSEC", amplifier.overscan)):
            assert box is not None
            section = f"[{box.x0 + 1}:{box.x1},{box.y0 + 1}:{box.y1}]"
            hdu.header[f"{keyword}{amplifier.name}"] = section
        hdu.header[f"SATURAT{amplifier.name}"] = amplifier.saturation
    hdu.header["NAXIS1"], hdu.header["NAXIS2"] = layout.shape[1], layout.shape[0]
    return hdu.header.tostring().encode("ascii")
