"""Light on a detector: stars with their point spread function, saturation, cosmic rays.

Pure functions on a trimmed CCD in electrons; those that say so change it in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PointSources", "add_cosmic_rays", "add_sources", "bleed"]

Image = NDArray[np.float32]
Floats = NDArray[np.float64]

STAMP_RADII = (10, 16, 26, 42, 70, 120, 220, 420)
FAINTEST_WING_E = 0.15
BATCH_PIXELS = 400_000

# Tracks of muons and Compton electrons in thick CCDs (Flaugher et al. 2015, AJ 150, 150, sec. 8.4,
# show their kinds; numbers here only have the order of magnitude).
TRACK_LENGTH_PX = 12.0
TRACK_CHARGE_E = 1500.0
TRACK_STEP_PX = 0.5


@dataclass(frozen=True)
class PointSources:
    """Sources to be drawn; one element each.

    Parameters
    ----------
    x, y : NDArray[np.float64]
        Centre, zero-based pixels of the trimmed CCD.
    flux : NDArray[np.float64]
        e-.
    fwhm : NDArray[np.float64]
        Pixels.
    e1, e2 : NDArray[np.float64]
        Ellipticity along the axes and the diagonals, ``(1 - q^2) / (1 + q^2)``.
    """

    x: Floats
    y: Floats
    flux: Floats
    fwhm: Floats
    e1: Floats
    e2: Floats

    def chosen(self, index: NDArray[np.int64]) -> PointSources:
        """The sources at these positions."""
        return PointSources(
            self.x[index],
            self.y[index],
            self.flux[index],
            self.fwhm[index],
            self.e1[index],
            self.e2[index],
        )


def add_sources(image: Image, sources: PointSources) -> None:
    """Add sources to an image, in place.

    Each is an elliptical Moffat profile with beta = 3 (Moffat 1969, A&A 3, 455),
    sampled at the pixel centres, cut where it falls below 0.15 e-/pixel: the
    FWHM is that of the effective point spread function, pixel included.

    Parameters
    ----------
    image : NDArray[np.float32]
        Shape (rows, columns), e-.
    sources : PointSources
        Those outside the image cost nothing and add what of them reaches into it.
    """
    needed = _wing_radius(sources.flux, sources.fwhm)
    classes = np.searchsorted(STAMP_RADII[:-1], needed)
    for order, radius in enumerate(STAMP_RADII):
        members = np.flatnonzero(classes == order)
        batch = max(1, BATCH_PIXELS // (2 * radius + 1) ** 2)
        for start in range(0, len(members), batch):
            _add_stamps(image, sources.chosen(members[start : start + batch]), radius)


def bleed(image: Image, full_well: float) -> int:
    """Let charge above the full well flow along its column, in place.

    Half of the excess goes up and half down, filling each pixel to the full well.

    Parameters
    ----------
    image : NDArray[np.float32]
        Shape (rows, columns), e-; the columns of one amplifier.
    full_well : float
        e-.

    Returns
    -------
    int
        Pixels that are full.
    """
    columns = np.flatnonzero(image.max(axis=0) > full_well)
    for column in columns:
        charge = image[:, column].astype(np.float64)
        full = np.concatenate([[False], charge > full_well, [False]])
        edges = np.flatnonzero(full[1:] != full[:-1])
        for first, last in zip(edges[0::2], edges[1::2], strict=True):
            excess = float((charge[first:last] - full_well).clip(0).sum())
            charge[first:last] = np.minimum(charge[first:last], full_well)
            _pour(charge[last:], excess / 2, full_well)
            _pour(charge[first - 1 :: -1] if first else charge[:0], excess / 2, full_well)
        image[:, column] = charge
    return int((image[:, columns] >= full_well).sum())


def add_cosmic_rays(image: Image, count: int, rng: np.random.Generator) -> None:
    """Add straight tracks of random place, length, direction and charge, in place.

    Parameters
    ----------
    image : NDArray[np.float32]
        Shape (rows, columns), e-.
    count : int
        Number of tracks.
    rng : numpy.random.Generator
    """
    rows, columns = image.shape
    for _ in range(count):
        length = 1.0 + rng.exponential(TRACK_LENGTH_PX)
        angle = rng.uniform(0, 2 * np.pi)
        steps = np.arange(0.0, length, TRACK_STEP_PX)
        charge = TRACK_CHARGE_E * np.exp(0.7 * rng.standard_normal()) * TRACK_STEP_PX
        x = np.rint(rng.uniform(0, columns) + steps * np.cos(angle)).astype(np.int64)
        y = np.rint(rng.uniform(0, rows) + steps * np.sin(angle)).astype(np.int64)
        weights = charge * rng.uniform(0.4, 1.6, len(steps))
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        np.add.at(image, (y[inside], x[inside]), weights[inside].astype(np.float32))


def _wing_radius(flux: Floats, fwhm: Floats) -> Floats:
    """Where the profile falls to the faintest wing that is drawn, pixels."""
    core = _core_radius(fwhm)
    peak = 2.0 * np.maximum(flux, 1.0) / (np.pi * core**2)
    wing = np.sqrt(np.maximum(np.cbrt(peak / FAINTEST_WING_E) - 1.0, 0.0)) * core
    return np.maximum(wing, 2.5 * fwhm)


def _core_radius(fwhm: Floats) -> Floats:
    core: Floats = fwhm / (2.0 * np.sqrt(np.cbrt(2.0) - 1.0))
    return core


def _add_stamps(image: Image, sources: PointSources, radius: int) -> None:
    rows, columns = image.shape
    x0, y0 = np.rint(sources.x).astype(np.int64), np.rint(sources.y).astype(np.int64)
    stamps = _profiles(sources, x0, y0, radius)
    for stamp, x, y in zip(stamps, x0 - radius, y0 - radius, strict=True):
        left, right = max(x, 0), min(x + 2 * radius + 1, columns)
        low, high = max(y, 0), min(y + 2 * radius + 1, rows)
        if left < right and low < high:
            image[low:high, left:right] += stamp[low - y : high - y, left - x : right - x]


def _profiles(
    sources: PointSources, x0: NDArray[np.int64], y0: NDArray[np.int64], radius: int
) -> Image:
    """Moffat stamps, shape (n, 2 radius + 1, 2 radius + 1)."""
    offsets = np.arange(-radius, radius + 1, dtype=np.float32)
    dx = offsets - (sources.x - x0).astype(np.float32)[:, None]
    dy = offsets - (sources.y - y0).astype(np.float32)[:, None]
    core = _core_radius(sources.fwhm)
    # r^2 of an ellipse of the same area: the inverse of [[1 + e1, e2], [e2, 1 - e1]].
    area = np.sqrt(1.0 - sources.e1**2 - sources.e2**2)
    scale = 1.0 / (core**2 * area)
    xx = ((1.0 - sources.e1) * scale).astype(np.float32)[:, None]
    yy = ((1.0 + sources.e1) * scale).astype(np.float32)[:, None]
    xy = (-2.0 * sources.e2 * scale).astype(np.float32)[:, None]
    terms = np.float32(1.0) + (yy * dy**2)[:, :, None] + (xx * dx**2)[:, None, :]
    terms += (xy * dy)[:, :, None] * dx[:, None, :]
    height = (2.0 * sources.flux / (np.pi * core**2)).astype(np.float32)
    stamps: Image = height[:, None, None] / (terms * terms * terms)
    return stamps


def _pour(charge: Floats, amount: float, full_well: float) -> None:
    """Fill pixels, in the order given, up to the full well; what is left over is lost."""
    room = np.maximum(full_well - charge, 0.0)
    before = np.cumsum(room) - room
    charge += np.clip(amount - before, 0.0, room)
