"""Transients put into a raw frame: faint stars at known places on empty sky."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from prepipe.calibrate.stars.sources import Sources
from prepipe.model import Layout
from prepipe.quality.scene import Scene
from prepipe.quality.star_profile import StarProfile

__all__ = ["Transients", "inject", "place_transients"]

Floats = NDArray[np.float64]

FAINTEST_SNR, BRIGHTEST_SNR = 5.0, 10.0
"""Signal to noise of those injected: what a search for transients lives on."""

MOST = 400
"""Enough to know a fraction of 0.9 to 0.015; the codecs compared share that error."""

_APART_FWHM = 8.0
_CLEAR_FWHM = 3.0
_TRIES = 6


@dataclass(frozen=True, eq=False)
class Transients:
    """Point sources that were added to a frame.

    Parameters
    ----------
    x, y : (n,) float64 ndarray
        Pixels of the trimmed CCD.
    flux : (n,) float64 ndarray
        e-.
    snr : (n,) float64 ndarray
        Flux over its standard error when the profile is fitted to it in the noise of the
        empty sky: ``flux * sqrt(sum(P^2)) / noise``.
    """

    x: Floats
    y: Floats
    flux: Floats
    snr: Floats

    def __len__(self) -> int:
        return self.x.size


def place_transients(scene: Scene, seed: int, most: int = MOST) -> Transients:
    """Choose places and fluxes, the same for the same `seed`.

    Places lie on sound pixels, 8 FWHM from each other, 3 FWHM from every source and farther
    from bright ones: as far as a Moffat profile of their brightness reaches.

    Parameters
    ----------
    scene : Scene
    seed : int
    most : int
        How many at most; small frames have room for fewer.
    """
    rng = np.random.default_rng([seed, 0x7A5])
    fwhm, half = scene.profile.fwhm_px, scene.profile.half + 2
    ny, nx = scene.mask.shape
    if min(ny, nx) <= 2 * half + 1:
        return Transients(*(np.empty(0) for _ in range(4)))
    count = int(min(_TRIES * most, ny * nx / (2.0 * fwhm) ** 2)) + 1
    x, y = rng.uniform(half, nx - 1 - half, count), rng.uniform(half, ny - 1 - half, count)
    kept = _is_sound(scene, x, y) & ~_is_near_a_source(scene.sources, scene.profile, x, y)
    x, y = _apart(x[kept], y[kept], _APART_FWHM * fwhm, most)
    noise = scene.flat.noise_at(x, y)
    x, y, noise = (values[np.isfinite(noise)] for values in (x, y, noise))
    snr = rng.uniform(FAINTEST_SNR, BRIGHTEST_SNR, x.size)
    power = np.sum(scene.profile.stamps(x, y).light ** 2, axis=(1, 2))
    return Transients(x, y, snr * noise / np.sqrt(power), snr)


def inject(
    raw: NDArray[Any], layout: Layout, transients: Transients, profile: StarProfile, seed: int
) -> NDArray[Any]:
    """Add transients to a raw frame, with the noise of their own light.

    Parameters
    ----------
    raw : ndarray, shape `layout.shape`
        ADU; not changed.
    layout : Layout
    transients : Transients
    profile : StarProfile
        Of the frame's stars.
    seed : int
        Of the photon noise.

    Returns
    -------
    ndarray, shape `layout.shape`
        Of the type of `raw`. Whole numbers are rounded up or down by chance, in proportion,
        lest the faint parts of a profile be lost.
    """
    rng = np.random.default_rng([seed, 0x11])
    stamps = profile.stamps(transients.x, transients.y)
    light = np.zeros(layout.trimmed_shape, np.float32)
    electrons = rng.poisson(stamps.light * transients.flux[:, None, None]).astype(np.float32)
    np.add.at(light, (stamps.rows, stamps.columns), electrons)
    added = raw.astype(raw.dtype.newbyteorder("="))
    for amplifier in layout.amplifiers:
        adu = light[amplifier.trimmed.slices] / np.float32(amplifier.gain)
        data = added[amplifier.data.slices]
        if added.dtype.kind == "f":
            data += adu
            continue
        lit = adu > 0.0
        whole = np.floor(adu[lit] + rng.uniform(size=int(lit.sum()))).astype(np.int64)
        highest = np.iinfo(added.dtype).max
        data[lit] = np.minimum(data[lit].astype(np.int64) + whole, highest).astype(added.dtype)
    return added


def _is_sound(scene: Scene, x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Whether no pixel within the core of a star there has any bit."""
    stamps = scene.profile.stamps(x, y)
    sound: NDArray[np.bool_] = np.all(scene.mask[stamps.rows, stamps.columns] == 0, axis=(1, 2))
    return sound


def _is_near_a_source(
    sources: Sources, profile: StarProfile, x: Floats, y: Floats
) -> NDArray[np.bool_]:
    """Whether a place lies within reach of any source: far from bright ones, too."""
    near = np.zeros(x.size, np.bool_)
    if not len(sources) or not x.size:
        return near
    # the wing of a Moffat profile falls as r^(-2 beta)
    brightness = np.maximum(sources.snr / FAINTEST_SNR, 1.0)
    reach = _CLEAR_FWHM * profile.fwhm_px * brightness ** (0.5 / profile.beta)
    reach = np.where(np.isfinite(reach), reach, _CLEAR_FWHM * profile.fwhm_px)
    places = cKDTree(np.column_stack([x, y]))
    for hit in places.query_ball_point(np.column_stack([sources.x, sources.y]), reach):
        near[hit] = True
    return near


def _apart(x: Floats, y: Floats, distance: float, most: int) -> tuple[Floats, Floats]:
    """The first places of a list that keep their distance from each other."""
    tree = cKDTree(np.column_stack([x, y]))
    kept = np.ones(x.size, np.bool_)
    for first, second in sorted(map(tuple, tree.query_pairs(distance, output_type="ndarray"))):
        if kept[first]:
            kept[second] = False
    return x[kept][:most], y[kept][:most]
