"""From a raw frame to electrons above zero.

The order is that of DESDM (``DECam_crosstalk``, ``pixcorrect``) and of LSST (``ip_isr`` with the
settings of ``obs_decam``): overscan, crosstalk, bias, linearity, gain, flat. Saturation is judged
on the raw ADU, before any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.calibrate.detector.crosstalk import (
    Coupling,
    Ghosts,
    Sources,
    gather_ghosts,
    joined,
    sources_of,
)
from prepipe.calibrate.detector.detrend_kernels import (
    MINIMUM_FLAT,
    Amplifiers,
    detrend_rows,
    trim_amplifier,
)
from prepipe.calibrate.detector.overscan import Raw, overscan_levels, raw_pixels
from prepipe.calibrate.flags import Mask
from prepipe.errors import PixelError
from prepipe.model import Amplifier, Box, Layout

__all__ = ["MINIMUM_FLAT", "Detrended", "detrend", "overscan_subtract_trim"]

ROUNDING_VARIANCE = 1.0 / 12.0
"""Of a number rounded to whole ADU."""

_DEAD = np.uint8(Mask.DEAD)


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


def _excess(
    linearity: Mapping[str, NDArray[np.float32]] | None, amplifier: Amplifier
) -> NDArray[np.float32]:
    """By how much an amplifier's 0, 1, 2, ... ADU exceed the linear ones; empty without a table."""
    table = None if linearity is None else linearity.get(amplifier.name)
    if table is None:
        return np.empty(0, np.float32)
    return (np.arange(len(table), dtype=np.float64) - table).astype(np.float32)


def _for_kernel(
    amplifiers: Sequence[tuple[Amplifier, NDArray[np.float32]]],
    rounding: float,
    sources: Sequence[Sources],
    tables: Sequence[NDArray[np.float32]],
) -> Amplifiers:
    """What the kernel has to know of amplifiers and levels; `rounding` is a variance in ADU^2."""
    count = len(amplifiers)
    levels = np.zeros((count, max((len(level) for _, level in amplifiers), default=0)), np.float32)
    places = np.empty((count, 6), np.int64)
    numbers = np.empty((count, 3), np.float32)
    for k, (amp, level) in enumerate(amplifiers):
        box = amp.trimmed
        levels[k, : len(level)] = level
        places[k] = amp.data.x0, amp.data.y0, box.x0, box.x1, box.y0, box.y1
        numbers[k] = amp.gain, amp.read_noise**2 + rounding * amp.gain**2, amp.saturation
    couplings = np.cumsum([0, *(len(some.coefficients) for some in sources)])
    return Amplifiers(places, levels, numbers, couplings, np.cumsum([0, *map(len, tables)]))


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
    crosstalk: Sequence[Coupling] = (),
    ghosts: Ghosts | None = None,
    linearity: Mapping[str, NDArray[np.float32]] | None = None,
    coding_error: float = 0.0,
    weak_response: float = 0.0,
    out: Detrended | None = None,
) -> Detrended:
    """Calibrate the pixels of one CCD.

    ``image = linear(raw - overscan - crosstalk - bias) * gain / flat`` and
    ``variance = (max(image * flat, 0) + read_noise^2 + gain^2 (1/12 + coding_error^2)) / flat^2``:
    shot noise of what was counted, read noise, and that of rounding to whole ADU (Janesick
    2001, Scientific Charge-Coupled Devices, 2.2.8), absent where `raw` is not of integers,
    and of packing. The noise of the masters is not in it.

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
    crosstalk : sequence of Coupling
        Between the amplifiers of this CCD; those of amplifiers not in `layout` are ignored.
    ghosts : Ghosts, optional
        What other CCDs left in this one (`crosstalk.gather_ghosts`).
    linearity : mapping, optional
        By the amplifiers' names: linear ADU of 0, 1, 2, ... ADU above the bias, float32
        (`linearity.linear_table`). An amplifier without one is taken to be linear.
    coding_error : float
        Noise that packing added, as a star sees it, ADU.
    weak_response : float
        Pixels of less response than this are BAD, too.
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
    ghosts = gather_ghosts((), shape) if ghosts is None else ghosts
    if len(ghosts.starts) != shape[0] + 1:
        raise PixelError(
            f"the ghosts are those of {len(ghosts.starts) - 1} rows, the trimmed CCD has "
            f"{shape[0]}: gather them for this CCD"
        )
    levels = overscan_levels(pixels, layout)
    rounding = (ROUNDING_VARIANCE if raw.dtype.kind in "iu" else 0.0) + coding_error**2
    # from left to right, as the pixels of a row lie in memory
    ordered = sorted(
        zip(layout.amplifiers, levels, strict=True), key=lambda pair: pair[0].trimmed.x0
    )
    sources = [sources_of(amp, crosstalk, layout, levels, dead) for amp, _ in ordered]
    tables = [_excess(linearity, amplifier) for amplifier, _ in ordered]
    detrend_rows(
        pixels,
        _for_kernel(ordered, rounding, sources, tables),
        joined(sources),
        ghosts,
        np.concatenate([np.empty(0, np.float32), *tables]),
        bias_plane,
        flat_plane,
        bad_plane,
        np.float32(weak_response),
        result.image,
        result.mask,
        result.variance,
    )
    for amplifier in layout.amplifiers:
        box = amplifier.trimmed
        if box.empty:
            continue
        unread = _unread_rows(pixels, amplifier)
        if amplifier.name in dead:
            unread[:] = True
        if unread.any():
            _blank(result, box, unread)
    _blank_uncovered(result, layout)
    return result


def overscan_subtract_trim(
    raw: NDArray[Any],
    layout: Layout,
    half_width: int = 7,
    *,
    crosstalk: Sequence[Coupling] = (),
    linearity: Mapping[str, NDArray[np.float32]] | None = None,
) -> NDArray[np.float32]:
    """Subtract the overscan and trim, as the frames of a master need it.

    Parameters
    ----------
    raw : ndarray, shape `layout.shape`
        ADU.
    layout : Layout
    half_width : int
        As `overscan.smooth_rows` takes it.
    crosstalk : sequence of Coupling
        As `detrend` takes it; for flats.
    linearity : mapping, optional
        As `detrend` takes it; for flats. The few ADU of bias structure that are still in them
        change the correction by their share of its slope only.

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
    nothing = gather_ghosts((), layout.trimmed_shape)
    for amplifier, level in zip(layout.amplifiers, levels, strict=True):
        box = amplifier.trimmed
        trim_amplifier(
            pixels,
            amplifier.data.x0,
            amplifier.data.y0,
            level,
            sources_of(amplifier, crosstalk, layout, levels),
            nothing,
            _excess(linearity, amplifier),
            (box.x0, box.x1, box.y0, box.y1),
            trimmed,
        )
    return trimmed
