"""Simulated frames of stars whose truth is known; profiles are sampled at pixel centres."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Profile = Callable[[FloatArray, FloatArray], FloatArray]
SIGMA_TO_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))


def gaussian(fwhm: float, e1: float = 0.0, e2: float = 0.0) -> Profile:
    """Unit-flux Gaussian with xx + yy = 2 sigma^2 and the ellipticity of its moments."""
    variance = (fwhm / SIGMA_TO_FWHM) ** 2
    xx, yy, xy = variance * (1 + e1), variance * (1 - e1), variance * e2
    determinant = xx * yy - xy * xy

    def profile(dx: FloatArray, dy: FloatArray) -> FloatArray:
        exponent = (yy * dx * dx - 2 * xy * dx * dy + xx * dy * dy) / determinant
        return np.exp(-0.5 * exponent) / (2 * np.pi * np.sqrt(determinant))

    return profile


def moffat(fwhm: float, beta: float) -> Profile:
    """Unit-flux Moffat profile."""
    alpha = moffat_alpha(fwhm, beta)

    def profile(dx: FloatArray, dy: FloatArray) -> FloatArray:
        shape = (1 + (dx * dx + dy * dy) / alpha**2) ** -beta
        return (beta - 1) / (np.pi * alpha**2) * shape

    return profile


def moffat_alpha(fwhm: float, beta: float) -> float:
    return float(fwhm / 2 / np.sqrt(2 ** (1 / beta) - 1))


@dataclass(frozen=True)
class Field:
    """A frame and the truth behind it; `image` holds sky noise but no sky."""

    image: NDArray[np.float32]
    x: FloatArray
    y: FloatArray
    flux: FloatArray
    sky_variance: float

    @property
    def mask(self) -> NDArray[np.uint8]:
        return np.zeros(self.image.shape, np.uint8)

    @property
    def rms(self) -> float:
        return float(np.sqrt(self.sky_variance))


def render(
    shape: tuple[int, int],
    x: FloatArray,
    y: FloatArray,
    flux: FloatArray,
    profile: Profile,
    *,
    sky: float,
    rng: np.random.Generator,
    reach: int = 25,
) -> Field:
    """Stars with the photon noise of their own light and of `sky` e- per pixel."""
    light = np.zeros(shape)
    for x0, y0, f in zip(x, y, flux, strict=True):
        rows = slice(max(0, int(y0) - reach), min(shape[0], int(y0) + reach + 1))
        columns = slice(max(0, int(x0) - reach), min(shape[1], int(x0) + reach + 1))
        dy, dx = np.mgrid[rows, columns].astype(float)
        light[rows, columns] += f * profile(dx - x0, dy - y0)
    image = rng.normal(light, np.sqrt(light + sky)).astype(np.float32)
    return Field(image, np.asarray(x), np.asarray(y), np.asarray(flux), sky)


def grid_of_stars(
    n: int,
    spacing: int,
    flux: float | FloatArray,
    profile: Profile,
    *,
    sky: float,
    seed: int,
) -> Field:
    """n x n stars at random places within a pixel of a grid, so that none disturbs another."""
    rng = np.random.default_rng(seed)
    nodes = (np.arange(n) + 0.5) * spacing
    y, x = (a.ravel() + rng.uniform(-0.5, 0.5, n * n) for a in np.meshgrid(nodes, nodes))
    fluxes = np.broadcast_to(np.asarray(flux, float), (n * n,))
    side = n * spacing
    return render(
        (side, side), x, y, fluxes, profile, sky=sky, rng=rng, reach=min(25, spacing // 2)
    )


def match(x: FloatArray, y: FloatArray, field: Field) -> tuple[NDArray[np.intp], FloatArray]:
    """For each true star the nearest of the positions given, and its distance."""
    distance = np.hypot(x[None, :] - field.x[:, None], y[None, :] - field.y[:, None])
    nearest = distance.argmin(axis=1)
    return nearest, distance[np.arange(field.x.size), nearest]
