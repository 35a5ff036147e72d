"""A simulated raw frame, small or big."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint16]
SKY_ADU = 2100.0
SKY_NOISE_ADU = 12.0
OVERSCAN_ADU = 2000.0
OVERSCAN_NOISE_ADU = 2.0


def simulated_frame(rows: int, columns: int, seed: int = 1, noise: float = SKY_NOISE_ADU) -> Frame:
    """Sky of Gaussian noise, stars of 3.5 pixels, one saturated with a bleed, an overscan."""
    rng = np.random.default_rng(seed)
    frame = rng.normal(SKY_ADU, noise, (rows, columns))
    y, x = np.mgrid[-10:11, -10:11]
    star = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    for _ in range(rows * columns // 4000):
        row, column = rng.integers(10, rows - 11), rng.integers(30, columns - 11)
        patch = frame[row - 10 : row + 11, column - 10 : column + 11]
        patch += 10 ** rng.uniform(1, 4) * star
    frame[:, :20] = rng.normal(OVERSCAN_ADU, OVERSCAN_NOISE_ADU, (rows, 20))
    frame[rows // 4 : rows // 2, columns // 2 : columns // 2 + 3] = 65535
    return np.clip(np.rint(frame), 0, 65535).astype(np.uint16)
