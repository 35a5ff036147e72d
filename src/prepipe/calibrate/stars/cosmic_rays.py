"""Cosmic rays: pixels that stand out more sharply than any star could.

A pixel belongs to a cosmic ray if, along one of the four directions through it,
its two opposite neighbours are fainter than the sharpest possible point source
would make them. The test is that of the SDSS photometric pipeline as the LSST
stack carries it on (``meas_algorithms``, ``findCosmicRays``); unlike a Laplacian
filter it leaves the cores of stars alone.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.calibrate.flags import Mask
from prepipe.calibrate.stars.background import Background
from prepipe.errors import ConfigError, PixelError

__all__ = ["find_cosmic_rays"]

CORE_NOISE = 2.5
"""Sigmas by which noise may lower a pixel or raise its neighbours (LSST, ``cond3_fac``)."""

CORE_MARGIN = 0.6
"""Factor on the contrast, for all that is wrong with the PSF (LSST, ``cond3_fac2``)."""

NEIGHBOUR_THRESHOLD = 2.0
"""Sigmas above its neighbours for a pixel that touches a cosmic ray already found."""

ITERATIONS = 6
"""Rounds of growing along a track."""

SHARPEST = 0.85
"""Part of the given FWHM that the sharpest star may have, as seeing varies over a frame."""

MAXIMUM_FRACTION = 0.05
"""The search stops when so many pixels are flagged: the FWHM is wrong, or the frame is broken."""

_COSMIC_RAY = np.uint8(Mask.COSMIC_RAY)

_WORD = 8
"""Flags that are looked at in one go."""


@njit(cache=True)
def _flag_sharp(
    image: NDArray[np.float32],
    y: int,
    needed: NDArray[np.float32],
    sky: NDArray[np.float32],
    share: np.float32,
    pair: NDArray[np.float32],
    flags: NDArray[np.uint8],
) -> bool:
    """Flag the pixels of row `y` that may pass `_is_sharp`; whether there are any.

    Twice a pixel must exceed the faintest of its four pairs of neighbours by what is `needed`,
    and the pair must be fainter than a `share` of it. There is no branch, so that this is
    vector code. `pair` is scratch space.
    """
    nx = image.shape[1]
    middle = image[y, 1 : nx - 1]
    west, east = image[y, : nx - 2], image[y, 2:]
    north, south = image[y + 1, 1 : nx - 1], image[y - 1, 1 : nx - 1]
    north_west, north_east = image[y + 1, : nx - 2], image[y + 1, 2:]
    south_west, south_east = image[y - 1, : nx - 2], image[y - 1, 2:]
    least, level = needed[1:], sky[1:]
    for x in range(nx - 2):
        straight = min(west[x] + east[x], north[x] + south[x])
        slanted = min(north_west[x] + south_east[x], north_east[x] + south_west[x])
        pair[x] = min(straight, slanted)
    half, one = np.float32(0.5), np.float32(1.0)
    found = np.uint8(0)
    for x in range(nx - 2):
        over = middle[x] + middle[x] - pair[x] - least[x]
        sharp = share * middle[x] + (one - share) * level[x] - half * pair[x]
        flags[x] = min(over, sharp) > np.float32(0.0)
        found |= flags[x]
    return bool(found != 0)


@njit(cache=True)
def _is_sharp(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    y: int,
    x: int,
    sky: float,
    sky_variance: float,
    threshold: float,
    core_noise: float,
    contrast: tuple[float, float],
) -> bool:
    """Whether one pair of neighbours is fainter than under the sharpest point source.

    `contrast` is the PSF at a distance of 1 and of sqrt(2) pixels over its centre. What is
    sharp is so with a lower `sky_variance`, too.
    """
    pixel = image[y, x] - sky
    if not pixel > threshold * np.sqrt(sky_variance):
        return False
    least = CORE_MARGIN * (pixel - core_noise * np.sqrt(sky_variance + pixel))
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        # A masked neighbour tells nothing, but other cosmic-ray pixels are clean by now.
        if (mask[y + dy, x + dx] | mask[y - dy, x - dx]) & ~_COSMIC_RAY:
            continue
        pair = 0.5 * (image[y + dy, x + dx] + image[y - dy, x - dx]) - sky
        pair_variance = sky_variance + max(pair, 0.0)
        room = (contrast[1] if dy * dx else contrast[0]) * least - pair
        # most pixels are in the cores of stars, where there is none
        if (
            room > 0.0
            and room > core_noise * np.sqrt(0.5 * pair_variance)
            and pixel - pair > threshold * np.sqrt(pair_variance)
        ):
            return True
    return False


@njit(cache=True)
def _own_variance(
    image: NDArray[np.float32],
    total: NDArray[np.float32],
    y: int,
    x: int,
    sky: float,
    sky_variance: float,
    read_variance: float,
) -> float:
    """Variance of the sky in one pixel: more than around it where its response is low.

    Light v behind the flat and its variance, ``v / f + read_variance / f^2``, tell the flat f.
    """
    if total.size == 0:
        return sky_variance
    light, variance = max(float(image[y, x]), 0.0), float(total[y, x])
    root = light + np.sqrt(light * light + 4.0 * read_variance * variance)
    if not 0.0 < root < np.inf:
        return sky_variance
    inverse = 2.0 * variance / root
    own: float = inverse * (max(sky, 0.0) + inverse * read_variance)
    return max(sky_variance, own)


@njit(cache=True)
def _is_ray(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    total: NDArray[np.float32],
    y: int,
    x: int,
    sky: float,
    around: float,
    read_variance: float,
    threshold: float,
    core_noise: float,
    contrast: tuple[float, float],
) -> bool:
    """Whether a pixel is sharp in the noise around it, and in its own."""
    if not _is_sharp(image, mask, y, x, sky, around, threshold, core_noise, contrast):
        return False
    own = _own_variance(image, total, y, x, sky, around, read_variance)
    return bool(
        own == around or _is_sharp(image, mask, y, x, sky, own, threshold, core_noise, contrast)
    )


@njit(cache=True)
def _median(values: NDArray[np.float32]) -> float:
    """Median of a few values, which are put in order."""
    for k in range(1, values.size):
        value = values[k]
        place = k
        while place > 0 and values[place - 1] > value:
            values[place] = values[place - 1]
            place -= 1
        values[place] = value
    middle: float = 0.5 * (values[(values.size - 1) // 2] + values[values.size // 2])
    return middle


@njit(cache=True)
def _clean(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    level: NDArray[np.float32],
    found: NDArray[np.int64],
) -> None:
    """Replace pixels by the median of the good ones around them, or by the sky."""
    ny, nx = image.shape
    my, mx = level.shape
    values = np.empty(25, dtype=np.float32)
    for place in found:
        y = place // nx
        x = place % nx
        n = 0
        for row in range(max(0, y - 2), min(ny, y + 3)):
            for column in range(max(0, x - 2), min(nx, x + 3)):
                if mask[row, column] == 0:
                    values[n] = image[row, column]
                    n += 1
        image[y, x] = _median(values[:n]) if n > 0 else level[y * my // ny, x * mx // nx]


@njit(cache=True)
def _seeds(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    level: NDArray[np.float32],
    variance: NDArray[np.float32],
    total: NDArray[np.float32],
    read_variance: float,
    threshold: float,
    contrast: tuple[float, float],
    found: NDArray[np.int64],
) -> int:
    """Flag the pixels that are sharp in the untouched image; return how many."""
    ny, nx = image.shape
    my, mx = level.shape
    needed, sky, pair = np.empty(nx, np.float32), np.empty(nx, np.float32), np.empty(nx, np.float32)
    # of the pixels from the second to the last but one, filled up to whole words
    flags = np.zeros(-(-(nx - 2) // _WORD) * _WORD, np.uint8)
    words = flags.view(np.uint64)
    share = np.float32(CORE_MARGIN * contrast[0])
    mesh_row = -1
    n = 0
    for y in range(1, ny - 1):
        j = y * my // ny
        if j != mesh_row:
            mesh_row = j
            for x in range(nx):
                needed[x] = 2.0 * threshold * np.sqrt(variance[j, x * mx // nx])
                sky[x] = level[j, x * mx // nx]
        if not _flag_sharp(image, y, needed, sky, share, pair, flags[: nx - 2]):
            continue
        for word in range(words.size):
            if words[word] == 0:
                continue
            for k in range(_WORD * word, _WORD * word + _WORD):
                x = k + 1
                if not flags[k] or mask[y, x]:
                    continue
                around = variance[j, x * mx // nx]
                light = (image, mask, total, y, x, float(sky[x]), float(around), read_variance)
                if not _is_ray(*light, threshold, CORE_NOISE, contrast):
                    continue
                if n == found.size:
                    return n
                found[n] = y * nx + x
                n += 1
                mask[y, x] |= _COSMIC_RAY
    return n


@njit(cache=True)
def _grow(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    level: NDArray[np.float32],
    variance: NDArray[np.float32],
    total: NDArray[np.float32],
    read_variance: float,
    contrast: tuple[float, float],
    found: NDArray[np.int64],
    first: int,
    last: int,
) -> int:
    """Flag the sharp neighbours of ``found[first:last]``; return how many are found in all."""
    ny, nx = image.shape
    my, mx = level.shape
    n = last
    for k in range(first, last):
        row, column = found[k] // nx, found[k] % nx
        for step in range(9):
            y, x = row + step // 3 - 1, column + step % 3 - 1
            if y < 1 or x < 1 or y >= ny - 1 or x >= nx - 1 or mask[y, x]:
                continue
            j, i = y * my // ny, x * mx // nx
            light = (
                image,
                mask,
                total,
                y,
                x,
                float(level[j, i]),
                float(variance[j, i]),
                read_variance,
            )
            if n < found.size and _is_ray(*light, NEIGHBOUR_THRESHOLD, 0.5 * CORE_NOISE, contrast):
                found[n] = y * nx + x
                n += 1
                mask[y, x] |= _COSMIC_RAY
    return n


@njit(cache=True)
def _search(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    level: NDArray[np.float32],
    variance: NDArray[np.float32],
    total: NDArray[np.float32],
    read_variance: float,
    threshold: float,
    contrast: tuple[float, float],
    found: NDArray[np.int64],
) -> int:
    """Find seeds, clean them, and follow their tracks on the cleaned image."""
    first = 0
    last: int = _seeds(
        image, mask, level, variance, total, read_variance, threshold, contrast, found
    )
    for _ in range(ITERATIONS):
        _clean(image, mask, level, found[first:last])
        grown = _grow(
            image, mask, level, variance, total, read_variance, contrast, found, first, last
        )
        first = last
        last = grown
    _clean(image, mask, level, found[first:last])
    return last


def _moffat(radius: float, fwhm: float) -> float:
    """Moffat profile of beta 3 over its centre."""
    core = 0.5 * fwhm / np.sqrt(2.0 ** (1.0 / 3.0) - 1.0)
    return float((1.0 + (radius / core) ** 2) ** -3.0)


def find_cosmic_rays(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    background: Background,
    fwhm_px: float,
    *,
    read_noise: float = 0.0,
    variance: NDArray[np.float32] | None = None,
    threshold: float = 5.0,
) -> int:
    """Flag the pixels of cosmic rays and fill them with the median of their surroundings.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
        e-, sky included; changed in place.
    mask : ndarray of uint8, shape (ny, nx)
        Pixels with any bit are neither tested nor used; COSMIC_RAY is set in place.
    background : Background
        Of `image`.
    fwhm_px : float
        Seeing, pixels. Down to `SHARPEST` of it stars are safe; if it turns out
        to have been too large by more, repeat with the measured one.
    read_noise : float
        Least noise of a pixel, e-, should the background's be lower.
    variance : ndarray of float32, shape (ny, nx), optional
        Of each pixel's light and read noise, e-^2 (`Detrended.variance`): it tells pixels of low
        response, whose noise the flat has raised above that of their surroundings.
    threshold : float
        Sigmas by which a pixel must exceed the sky and its neighbours.

    Returns
    -------
    int
        Pixels flagged; at most `MAXIMUM_FRACTION` of the frame (but 1000 are
        always allowed), where the search gives up.

    Raises
    ------
    ConfigError
        If `fwhm_px` is not positive.
    PixelError
        If the shapes differ.
    """
    if not fwhm_px > 0:
        raise ConfigError(f"a seeing of {fwhm_px} pixels makes no sense: give a positive FWHM")
    shapes = [image.shape, mask.shape, background.shape]
    shapes += [] if variance is None else [variance.shape]
    if len(set(shapes)) > 1:
        told = ", ".join(str(shape) for shape in shapes)
        raise PixelError(f"image, mask, background and variance must be of one frame, not {told}")
    if min(image.shape) < 3:
        return 0
    sharpest = SHARPEST * fwhm_px
    noise = np.maximum(background.rms, np.float32(read_noise))
    found = np.empty(max(1000, int(MAXIMUM_FRACTION * image.size)), dtype=np.int64)
    return int(
        _search(
            image,
            mask,
            background.level,
            noise * noise,
            np.empty((0, 0), np.float32) if variance is None else variance,
            read_noise * read_noise,
            threshold,
            (_moffat(1.0, sharpest), _moffat(np.sqrt(2.0), sharpest)),
            found,
        )
    )
