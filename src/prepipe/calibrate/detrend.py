"""From a raw frame to electrons above zero: overscan, trim, bias, gain, flat, mask, variance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.calibrate.flags import Mask
from prepipe.calibrate.overscan import Raw, overscan_levels, raw_pixels
from prepipe.errors import PixelError
from prepipe.model import Amplifier, Box, Layout

__all__ = ["MINIMUM_FLAT", "Detrended", "detrend", "overscan_subtract_trim"]

MINIMUM_FLAT = 0.1
"""A pixel with less of the typical response than this is not divided by it."""

_MINIMUM_FLAT = np.float32(MINIMUM_FLAT)
_BAD = np.uint8(Mask.BAD)
_SATURATED = np.uint8(Mask.SATURATED)
_DEAD = np.uint8(Mask.DEAD)
_NO_FLAT = np.uint8(Mask.NO_FLAT)


@dataclass(frozen=True)
class Detrended:
    """One CCD in electrons.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
        e-, sky included; finite everywhere, 0 where nothing was measured.
    mask : ndarray of uint8, shape (ny, nx)
        Bits of `Mask`.
    variance : ndarray of float32, shape (ny, nx)
        e-^2; infinite where nothing was measured, so that its inverse is a weight.
    gain : float
        Median over the amplifiers, e-/ADU.
    read_noise : float
        Median over the amplifiers, e-.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    variance: NDArray[np.float32]
    gain: float
    read_noise: float


@njit(cache=True)
def _detrend_amplifier(
    raw: Raw,
    x0: int,
    y0: int,
    levels: NDArray[np.float32],
    bias: NDArray[np.float32],
    flat: NDArray[np.float32],
    bad: NDArray[np.uint8],
    gain: np.float32,
    read_variance: np.float32,
    saturation: np.float32,
    trimmed: tuple[int, int, int, int],
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    variance: NDArray[np.float32],
) -> None:
    """Fill one amplifier's part of the planes; a plane of one row holds for all rows."""
    tx0, tx1, ty0, ty1 = trimmed
    columns = tx1 - tx0
    zero = np.float32(0.0)
    one = np.float32(1.0)
    infinite = np.float32(np.inf)
    nothing = np.uint8(0)
    for y in range(ty0, ty1):
        level = levels[y - ty0]
        raw_row = raw[y0 + y - ty0, x0 : x0 + columns]
        bias_row = bias[y if bias.shape[0] > 1 else 0, tx0:tx1]
        flat_row = flat[y if flat.shape[0] > 1 else 0, tx0:tx1]
        bad_row = bad[y if bad.shape[0] > 1 else 0, tx0:tx1]
        image_row = image[y, tx0:tx1]
        mask_row = mask[y, tx0:tx1]
        variance_row = variance[y, tx0:tx1]
        for x in range(columns):
            value = np.float32(raw_row[x])
            response = flat_row[x]
            lit = (response > _MINIMUM_FLAT) & (response < infinite)
            inverse = one / response if lit else one
            electrons = (value - level - bias_row[x]) * gain
            finite = abs(electrons) < infinite
            electrons = electrons if finite else zero
            image_row[x] = electrons * inverse
            noise = (max(electrons, zero) + read_variance) * inverse * inverse
            variance_row[x] = noise if lit & finite else infinite
            bits = bad_row[x] | (_SATURATED if value >= saturation else nothing)
            bits |= nothing if lit else _NO_FLAT
            mask_row[x] = bits | (nothing if finite else _BAD)


@njit(cache=True)
def _constant_rows(raw: Raw, x0: int, x1: int, y0: int, y1: int) -> NDArray[np.bool_]:
    """Rows whose pixels are all the same; a row of real pixels is left at its second one."""
    constant = np.zeros(y1 - y0, dtype=np.bool_)
    for y in range(y0, y1):
        x = x0 + 1
        while x < x1 and raw[y, x] == raw[y, x0]:
            x += 1
        constant[y - y0] = x == x1
    return constant


def _unread_rows(raw: Raw, amplifier: Amplifier) -> NDArray[np.bool_]:
    """Rows that were never read out: one value throughout, and not for being saturated."""
    box = amplifier.data
    if box.shape[1] < 8:
        return np.zeros(box.shape[0], dtype=np.bool_)
    constant: NDArray[np.bool_] = _constant_rows(raw, box.x0, box.x1, box.y0, box.y1)
    constant &= raw[box.y0 : box.y1, box.x0] < amplifier.saturation
    return constant


def _check_boxes(layout: Layout) -> None:
    """Refuse a layout whose boxes do not fit each other or the frame."""
    for amplifier in layout.amplifiers:
        data = amplifier.data
        trimmed = amplifier.trimmed
        fits = (
            data.shape == trimmed.shape
            and data == data.clipped(layout.shape)
            and trimmed == trimmed.clipped(layout.trimmed_shape)
        )
        if not fits:
            raise PixelError(
                f"amplifier {amplifier.name}: its data {data} and its place {trimmed} do not fit "
                f"each other or the frame {layout.shape}: check the section cards"
            )


def _plane(
    plane: NDArray[Any] | None, shape: tuple[int, int], dtype: type, fill: float, name: str
) -> NDArray[Any]:
    """Return a calibration plane as the kernel takes it; one constant row stands for none."""
    if plane is None:
        return np.full((1, shape[1]), fill, dtype=dtype)
    if plane.shape != shape:
        raise PixelError(
            f"the {name} has shape {plane.shape}, the trimmed CCD {shape}: "
            f"take the {name} of this CCD"
        )
    return np.ascontiguousarray(plane, dtype=dtype)


def _bits(bad_pixels: NDArray[np.bool_] | NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    """Return mask bits of the static defects."""
    if bad_pixels is None:
        return None
    if bad_pixels.dtype in (np.bool_, np.uint8):
        # True is stored as 1, which is Mask.BAD.
        return bad_pixels.view(np.uint8)
    raise PixelError(f"bad pixels are {bad_pixels.dtype}, not bool or uint8: convert them first")


def _blank(detrended: Detrended, box: Box, rows: NDArray[np.bool_]) -> None:
    """Mark `rows` of `box` as dead."""
    y = box.y0 + np.flatnonzero(rows)
    x = slice(box.x0, box.x1)
    detrended.image[y, x] = 0.0
    detrended.mask[y, x] |= _DEAD
    detrended.variance[y, x] = np.inf


def _blank_uncovered(detrended: Detrended, layout: Layout) -> None:
    """Mark what no amplifier reads as dead; `np.empty` left anything there."""
    if sum(a.trimmed.shape[0] * a.trimmed.shape[1] for a in layout.amplifiers) == (
        layout.trimmed_shape[0] * layout.trimmed_shape[1]
    ):
        return
    uncovered = np.ones(layout.trimmed_shape, dtype=np.bool_)
    for amplifier in layout.amplifiers:
        uncovered[amplifier.trimmed.slices] = False
    detrended.image[uncovered] = 0.0
    detrended.mask[uncovered] = _DEAD
    detrended.variance[uncovered] = np.inf


def _empty(layout: Layout, out: Detrended | None) -> Detrended:
    """Planes to be filled, those of `out` if they fit."""
    amplifiers = layout.amplifiers
    shape = layout.trimmed_shape
    reuse = out is not None and out.image.shape == shape
    return Detrended(
        image=out.image if out and reuse else np.empty(shape, dtype=np.float32),
        mask=out.mask if out and reuse else np.empty(shape, dtype=np.uint8),
        variance=out.variance if out and reuse else np.empty(shape, dtype=np.float32),
        gain=float(np.median([a.gain for a in amplifiers])) if amplifiers else float("nan"),
        read_noise=(
            float(np.median([a.read_noise for a in amplifiers])) if amplifiers else float("nan")
        ),
    )


def detrend(
    raw: NDArray[Any],
    layout: Layout,
    *,
    bias: NDArray[np.float32] | None = None,
    flat: NDArray[np.float32] | None = None,
    bad_pixels: NDArray[np.bool_] | NDArray[np.uint8] | None = None,
    dead: Sequence[str] = (),
    out: Detrended | None = None,
) -> Detrended:
    """Calibrate the pixels of one CCD.

    ``image = (raw - overscan - bias) * gain / flat`` and
    ``variance = (max(image * flat, 0) + read_noise^2) / flat^2``: shot noise of
    what was counted plus read noise. The noise of the masters is not in it.

    Parameters
    ----------
    raw : ndarray, shape `layout.shape`
        uint16, int16, int32 or float32, ADU.
    layout : Layout
        May be that of a cut-out: amplifiers may be missing or have no overscan.
    bias : ndarray of float32, shape `layout.trimmed_shape`, optional
        Overscan-subtracted master bias, ADU.
    flat : ndarray of float32, shape `layout.trimmed_shape`, optional
        Response to uniform light in e-, typical pixel 1 (`masters.combine_flat`).
    bad_pixels : ndarray of bool or uint8, shape `layout.trimmed_shape`, optional
        Static defects: True is BAD; uint8 holds bits of `Mask`, taken over as they are.
    dead : sequence of str
        Names of amplifiers that are dead; names not in `layout` are ignored.
    out : Detrended, optional
        An earlier result whose planes may be written over; spares a third of the
        time in a worker that calibrates one CCD after another.

    Returns
    -------
    Detrended
        With BAD, SATURATED (raw value at or above the amplifier's saturation),
        NO_FLAT (response at most `MINIMUM_FLAT` or not finite; the pixel is not
        divided) and DEAD (dead amplifier, row never read out, or pixel that no
        amplifier reads). Pixels that are not finite become 0 and BAD.

    Raises
    ------
    PixelError
        If a type or shape is wrong, or boxes of the layout contradict each other.
    """
    pixels = raw_pixels(raw, layout.shape)
    _check_boxes(layout)
    shape = layout.trimmed_shape
    bias_plane = _plane(bias, shape, np.float32, 0.0, "bias")
    flat_plane = _plane(flat, shape, np.float32, 1.0, "flat")
    bad_plane = _plane(_bits(bad_pixels), shape, np.uint8, 0, "bad-pixel mask")
    result = _empty(layout, out)
    for amplifier, levels in zip(layout.amplifiers, overscan_levels(pixels, layout), strict=True):
        box = amplifier.trimmed
        if box.empty:
            continue
        _detrend_amplifier(
            pixels,
            amplifier.data.x0,
            amplifier.data.y0,
            levels,
            bias_plane,
            flat_plane,
            bad_plane,
            np.float32(amplifier.gain),
            np.float32(amplifier.read_noise**2),
            np.float32(amplifier.saturation),
            (box.x0, box.x1, box.y0, box.y1),
            result.image,
            result.mask,
            result.variance,
        )
        unread = _unread_rows(pixels, amplifier)
        if amplifier.name in dead:
            unread[:] = True
        if unread.any():
            _blank(result, box, unread)
    _blank_uncovered(result, layout)
    return result


def overscan_subtract_trim(
    raw: NDArray[Any], layout: Layout, half_width: int = 7
) -> NDArray[np.float32]:
    """Subtract the overscan and trim, as the frames of a master need it.

    Parameters
    ----------
    raw : ndarray, shape `layout.shape`
        ADU.
    layout : Layout
    half_width : int
        As `overscan.smooth_rows` takes it.

    Returns
    -------
    ndarray of float32, shape `layout.trimmed_shape`
        ADU; NaN where no amplifier reads.

    Raises
    ------
    PixelError
        If `raw` does not fit `layout`.
    """
    pixels = raw_pixels(raw, layout.shape)
    _check_boxes(layout)
    trimmed = np.full(layout.trimmed_shape, np.nan, dtype=np.float32)
    levels = overscan_levels(pixels, layout, half_width)
    for amplifier, level in zip(layout.amplifiers, levels, strict=True):
        trimmed[amplifier.trimmed.slices] = pixels[amplifier.data.slices] - level[:, None]
    return trimmed
