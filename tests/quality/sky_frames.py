"""Raw frames of two amplifiers whose sky, noise and stars are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prepipe.model import Amplifier, Box, Layout
from prepipe.simulate.light import PointSources, add_sources

GAIN, READ_NOISE_E, SATURATION = 4.0, 7.0, 45_000.0
SKY_E = 400.0
BIAS_ADU = 2000.0
OVERSCAN = 50
SKY_NOISE_E = float(np.sqrt(SKY_E + READ_NOISE_E**2 + GAIN**2 / 12))
"""Of an empty pixel: photons, read-out and rounding to whole ADU."""


@dataclass(frozen=True)
class SkyFrame:
    raw: NDArray[np.uint16]
    layout: Layout
    stars: PointSources


def sky_frame(
    rows: int = 1000, columns: int = 1000, stars: int = 250, fwhm: float = 4.0, seed: int = 1
) -> SkyFrame:
    """A frame of sky and stars from 5 to some thousand sigma, an overscan at either side."""
    rng = np.random.default_rng(seed)
    light = np.full((rows, columns), SKY_E, np.float32)
    ones = np.ones(stars)
    drawn = PointSources(
        x=rng.uniform(0, columns - 1, stars),
        y=rng.uniform(0, rows - 1, stars),
        flux=10 ** rng.uniform(2.8, 5.5, stars),
        fwhm=fwhm * ones,
        e1=0 * ones,
        e2=0 * ones,
    )
    add_sources(light, drawn)
    layout = two_amplifiers(rows, columns)
    electrons = np.zeros(layout.shape)
    electrons[:, OVERSCAN:-OVERSCAN] = rng.poisson(light)
    electrons += rng.normal(0.0, READ_NOISE_E, layout.shape)
    raw = np.clip(np.rint(electrons / GAIN + BIAS_ADU), 0, 65535).astype(np.uint16)
    return SkyFrame(raw, layout, drawn)


def two_amplifiers(rows: int, columns: int) -> Layout:
    half = columns // 2
    left, right = Box(0, half, 0, rows), Box(half, columns, 0, rows)
    return Layout(
        shape=(rows, columns + 2 * OVERSCAN),
        trimmed_shape=(rows, columns),
        amplifiers=(
            _amplifier("A", left, Box(0, OVERSCAN, 0, rows)),
            _amplifier("B", right, Box(OVERSCAN + columns, columns + 2 * OVERSCAN, 0, rows)),
        ),
        origin=(OVERSCAN, 0),
    )


def _amplifier(name: str, trimmed: Box, overscan: Box) -> Amplifier:
    data = trimmed.shifted(OVERSCAN, 0)
    return Amplifier(name, data, overscan, trimmed, GAIN, READ_NOISE_E, SATURATION)


def with_noise(frame: SkyFrame, sigma: float, seed: int = 5) -> NDArray[np.uint16]:
    """The frame with white noise of some part of its sky noise added."""
    rng = np.random.default_rng(seed)
    adu = rng.normal(0.0, sigma * SKY_NOISE_E / GAIN, frame.raw.shape)
    return np.clip(np.rint(frame.raw + adu), 0, 65535).astype(np.uint16)
