"""One CCD as a measuring device: response, bias structure, read-out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prepipe.simulate.focal_plane import COLUMNS, HALF_WIDTH, Detector
from prepipe.simulate.light import bleed
from prepipe.simulate.observation import EDGE_RADIUS_PX

__all__ = [
    "Bias",
    "bias_of",
    "mean_response",
    "read_out",
    "respond",
    "saturate",
    "typical_response",
]

Image = NDArray[np.float32]
Vector = NDArray[np.float32]

STRIP_ROWS = 64

PIXEL_RESPONSE_RMS = 0.007
VIGNETTING = 0.08
CCD_RESPONSE_RMS = 0.04
BAD_COLUMNS = 2
BAD_COLUMN_RESPONSE = 0.3

BIAS_RANGE_ADU = (1700.0, 2400.0)
BIAS_WANDER_ADU = 0.5
COLUMN_PATTERN_ADU = 0.4
EDGE_GLOW_ADU = 3.0
ROW_RAMP_ADU = 1.5
DRIFT_ADU = 0.8
HOT_COLUMN_ADU = 15.0

# The full well lies above what the header calls saturated, so that no photon noise brings a full
# pixel back below it.
FULL_WELL_MARGIN = 1.03


@dataclass(frozen=True)
class Bias:
    """Bias of one frame, ADU: the sum of a row vector and a column vector in each half.

    Parameters
    ----------
    levels : tuple of float
        Mean of the overscan on the rows of the data, left and right channel.
    rows : NDArray[np.float32]
        Shape (2, rows): of the left and of the right half.
    columns : NDArray[np.float32]
        Shape (columns,): pattern that the overscan does not show.
    """

    levels: tuple[float, float]
    rows: Image
    columns: Vector


def mean_response(detector: Detector, camera_seed: int) -> float:
    """Response of a CCD as a whole, relative to the camera's mean."""
    rng = np.random.default_rng([camera_seed, 0xF1A7, detector.number])
    return float(1.0 + CCD_RESPONSE_RMS * rng.uniform(-1.7, 1.7))


def typical_response(detector: Detector, camera_seed: int) -> float:
    """Median response of a CCD's pixels, vignetting included, from a coarse grid."""
    x = np.linspace(0, 2 * HALF_WIDTH, 33) + detector.data.x0 - detector.crpix[0]
    y = np.linspace(0, detector.data_rows, 65) + detector.data.y0 - detector.crpix[1]
    squared = (x**2 + y[:, None] ** 2) / EDGE_RADIUS_PX**2
    vignetted = float(np.median(1.0 - VIGNETTING * squared))
    return vignetted * mean_response(detector, camera_seed)


def respond(light: Image, detector: Detector, camera_seed: int) -> None:
    """Multiply light by the response of the detector's pixels, in place.

    Vignetting, the CCD's own efficiency, brighter edges, two bad columns and
    0.7 % from pixel to pixel; all of it belongs to the camera, so that flats
    and objects have the same.

    Parameters
    ----------
    light : NDArray[np.float32]
        Trimmed CCD, shape (rows, 2048), e-.
    detector : Detector
    camera_seed : int
    """
    rows, columns = light.shape
    rng = np.random.Generator(np.random.SFC64([camera_seed, 0x9128, detector.number]))
    across = _edge(columns) * mean_response(detector, camera_seed)
    across[rng.integers(20, columns - 20, BAD_COLUMNS)] *= BAD_COLUMN_RESPONSE
    along = _edge(rows)
    x = (np.arange(columns) + detector.data.x0 + 1 - detector.crpix[0]) / EDGE_RADIUS_PX
    y = (np.arange(rows) + detector.data.y0 + 1 - detector.crpix[1]) / EDGE_RADIUS_PX
    falling_x = (1.0 - VIGNETTING * x**2).astype(np.float32)
    falling_y = (VIGNETTING * y**2).astype(np.float32)
    pixels = np.empty((STRIP_ROWS, columns), dtype=np.float32)
    for start in range(0, rows, STRIP_ROWS):
        strip = light[start : start + STRIP_ROWS]
        own = pixels[: len(strip)]
        rng.standard_normal(out=own, dtype=np.float32)
        own *= PIXEL_RESPONSE_RMS
        own += 1.0
        own *= falling_x - falling_y[start : start + STRIP_ROWS, None]
        own *= across
        own *= along[start : start + STRIP_ROWS, None]
        strip *= own


def bias_of(detector: Detector, camera_seed: int, rng: np.random.Generator) -> Bias:
    """Bias of a frame: the camera's fixed pattern and this frame's own slow drift.

    Rows share a ramp and a drift with their overscan, which removes them; the
    column pattern, the glow at the edges and two hot columns stay, for a master
    bias to remove.

    Parameters
    ----------
    detector : Detector
    camera_seed : int
        Of the fixed pattern.
    rng : numpy.random.Generator
        Of the frame.
    """
    fixed = np.random.default_rng([camera_seed, 0xB1A5, detector.number])
    rows = detector.shape[0]
    data = slice(detector.data.y0, detector.data.y1)
    nominal = fixed.uniform(*BIAS_RANGE_ADU, 2)
    levels = nominal + BIAS_WANDER_ADU * rng.standard_normal(2)
    order = np.arange(rows)[:: -1 if detector.postscan_first else 1]
    ramp = ROW_RAMP_ADU * np.exp(-order / 200.0)
    patterns = np.empty((2, rows), dtype=np.float32)
    for half in (0, 1):
        wave = ramp + _slow_drift(rows, rng)
        patterns[half] = levels[half] + wave - wave[data].mean()
    columns = np.zeros(COLUMNS, dtype=np.float32)
    x = np.arange(2 * HALF_WIDTH)
    glow = EDGE_GLOW_ADU * np.exp(-np.minimum(x, x[::-1]) / 40.0)
    pattern = glow + COLUMN_PATTERN_ADU * fixed.standard_normal(2 * HALF_WIDTH)
    pattern[fixed.integers(20, 2 * HALF_WIDTH - 20, 2)] += HOT_COLUMN_ADU
    columns[detector.data.x0 : detector.data.x1] = pattern
    return Bias((float(levels[0]), float(levels[1])), patterns, columns)


def saturate(charge: Image, detector: Detector, bias: Bias) -> int:
    """Let full pixels bleed, each half with its amplifier's full well, in place.

    Returns
    -------
    int
        Full pixels.
    """
    full = 0
    for half, channel in enumerate(detector.channels):
        columns = slice(half * HALF_WIDTH, (half + 1) * HALF_WIDTH)
        well = (channel.saturation - bias.levels[half]) * channel.gain * FULL_WELL_MARGIN
        full += bleed(charge[:, columns], well)
    return full


def read_out(
    charge: Image | None,
    detector: Detector,
    bias: Bias,
    rng: np.random.Generator,
    crosstalk: float = 0.0,
    nonlinearity: float = 0.0,
) -> NDArray[np.uint16]:
    """Digitise a frame: photon noise, crosstalk, gain, non-linearity, read noise, bias, overscan.

    Photon and read noise are one draw per pixel with the variance of both and
    the skewness of the Poisson part (Cornish and Fisher 1938, first term).

    Parameters
    ----------
    charge : NDArray[np.float32] or None
        Expected electrons of the trimmed CCD, shape (rows, 2048); None for no signal.
    detector : Detector
    bias : Bias
    rng : numpy.random.Generator
    crosstalk : float
        Share of a pixel that appears in the other amplifier, read at the same time.
    nonlinearity : float
        A signal of x ADU counts as ``x (1 - nonlinearity x)``.

    Returns
    -------
    NDArray[np.uint16]
        The raw frame, ADU, shape ``detector.shape``.
    """
    rows, columns = detector.shape
    raw = np.empty((rows, columns), dtype=np.uint16)
    left = np.arange(columns) < columns // 2
    gain = _per_column(left, *(c.gain for c in detector.channels))
    read_variance = _per_column(left, *(c.read_noise**2 for c in detector.channels))
    electrons = np.empty((STRIP_ROWS, columns), dtype=np.float32)
    normal = np.empty_like(electrons)
    for start in range(0, rows, STRIP_ROWS):
        stop = min(start + STRIP_ROWS, rows)
        strip = electrons[: stop - start]
        _gather(strip, charge, detector, start, crosstalk)
        _add_noise(strip, normal[: stop - start], read_variance, rng)
        strip /= gain
        if nonlinearity:
            strip -= np.float32(nonlinearity) * strip * strip
        strip += bias.columns
        strip += np.where(left, bias.rows[0, start:stop, None], bias.rows[1, start:stop, None])
        np.rint(strip, out=strip)
        np.clip(strip, 0, 65535, out=strip)
        raw[start:stop] = strip
    return raw


def _gather(
    strip: Image, charge: Image | None, detector: Detector, start: int, crosstalk: float
) -> None:
    """Lay the electrons of some rows into the raw frame's columns."""
    strip[:] = 0.0
    if charge is None:
        return
    data = detector.data
    low, high = max(start, data.y0), min(start + len(strip), data.y1)
    if low >= high:
        return
    target = strip[low - start : high - start, data.x0 : data.x1]
    target[:] = charge[low - data.y0 : high - data.y0]
    if crosstalk:
        target += np.float32(crosstalk) * target[:, ::-1].copy()


def _add_noise(mean: Image, normal: Image, read_variance: Vector, rng: np.random.Generator) -> None:
    rng.standard_normal(out=normal, dtype=np.float32)
    variance = mean + read_variance
    skewed = mean / (6.0 * variance) * (normal * normal - 1.0)
    normal *= np.sqrt(variance)
    mean += normal
    mean += skewed


def _slow_drift(rows: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Three slow waves of random phase."""
    turns = np.arange(rows) / rows
    phases = rng.uniform(0, 1, 3)
    waves = [
        np.sin(2 * np.pi * (k * turns + p)) / k for k, p in zip((1, 2, 3), phases, strict=True)
    ]
    drift: NDArray[np.float64] = DRIFT_ADU * np.sum(waves, axis=0)
    return drift


def _edge(length: int) -> Vector:
    """Pixels near the edge collect charge from outside: some 8 % more, falling over 9 pixels."""
    position = np.arange(length)
    distance = np.minimum(position, position[::-1])
    return (1.0 + 0.08 * np.exp(-distance / 9.0)).astype(np.float32)


def _per_column(left: NDArray[np.bool_], of_left: float, of_right: float) -> Vector:
    return np.where(left, of_left, of_right).astype(np.float32)
