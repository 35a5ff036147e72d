"""Small raw frames whose truth is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prepipe.model import Amplifier, Box, Layout

GAINS = (4.1, 3.7)
READ_NOISE = 6.0
SATURATION = 45000.0


def two_amplifiers(rows: int = 400, columns: int = 128, overscan: int = 50) -> Layout:
    """Two amplifiers side by side, overscan outside, six rows of prescan below: a small DECam."""
    left = Box(overscan, overscan + columns, 6, 6 + rows)
    right = left.shifted(columns, 0)
    return Layout(
        shape=(rows + 6, 2 * (columns + overscan)),
        trimmed_shape=(rows, 2 * columns),
        origin=(overscan, 6),
        amplifiers=(
            Amplifier(
                "B",
                left,
                Box(0, overscan, 6, 6 + rows),
                Box(0, columns, 0, rows),
                GAINS[0],
                READ_NOISE,
                SATURATION,
            ),
            Amplifier(
                "A",
                right,
                Box(right.x1, right.x1 + overscan, 6, 6 + rows),
                Box(columns, 2 * columns, 0, rows),
                GAINS[1],
                READ_NOISE,
                SATURATION,
            ),
        ),
    )


def drift(rows: int, level: float) -> NDArray[np.float64]:
    """An amplifier's zero, ADU: a slow wave and a slope."""
    y = np.arange(rows) / rows
    return level + 1.5 * np.sin(9.0 * y) + 3.0 * y


def read_out(
    electrons: NDArray[np.float64],
    layout: Layout,
    rng: np.random.Generator,
    bias: NDArray[np.float32] | None = None,
) -> NDArray[np.uint16]:
    """What the camera writes of a CCD that collected `electrons` (shape of the trimmed CCD)."""
    raw = np.zeros(layout.shape)
    for k, amplifier in enumerate(layout.amplifiers):
        zero = drift(amplifier.data.shape[0], 2000.0 + 300.0 * k)[:, None]
        signal = electrons[amplifier.trimmed.slices] / amplifier.gain
        if bias is not None:
            signal = signal + bias[amplifier.trimmed.slices]
        raw[amplifier.data.slices] = signal + zero
        if amplifier.overscan is not None:
            raw[amplifier.overscan.slices] = zero
        noise = READ_NOISE / amplifier.gain
        for box in (amplifier.data, amplifier.overscan):
            if box is not None:
                raw[box.slices] += rng.normal(0.0, noise, box.shape)
    return np.clip(np.rint(raw), 0, 65535).astype(np.uint16)
