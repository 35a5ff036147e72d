"""The one pass over the pixels behind `detrend`: kernels that call each other, in one file."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.calibrate.detector.crosstalk import Ghosts, Sources
from prepipe.calibrate.detector.overscan import Raw
from prepipe.calibrate.flags import Mask

__all__ = ["MINIMUM_FLAT", "Amplifiers", "detrend_rows", "trim_amplifier"]

MINIMUM_FLAT = 0.1
"""A pixel with less of the typical response than this is not divided by it."""

_MINIMUM_FLAT = np.float32(MINIMUM_FLAT)
_BAD = np.uint8(Mask.BAD)
_SATURATED = np.uint8(Mask.SATURATED)
_NO_FLAT = np.uint8(Mask.NO_FLAT)

Row = NDArray[np.float32]


class Amplifiers(NamedTuple):
    """The amplifiers of a CCD as the kernel takes them; n of them.

    Parameters
    ----------
    places : ndarray of int64, shape (n, 6)
        x0 and y0 of the raw data; x0, x1, y0 and y1 of their place in the trimmed CCD.
    levels : ndarray of float32, shape (n, rows)
        Overscan of each row of the data, ADU.
    numbers : ndarray of float32, shape (n, 3)
        Gain (e-/ADU), variance of read noise and rounding (e-^2), saturation (ADU).
    couplings, tables : ndarray of int64, shape (n + 1,)
        Where each one's begin among the sources of ghosts, and among the tables of linearity.
    """

    places: NDArray[np.int64]
    levels: NDArray[np.float32]
    numbers: NDArray[np.float32]
    couplings: NDArray[np.int64]
    tables: NDArray[np.int64]


@njit(cache=True)
def _add_share(
    raw: Raw, y: int, sources: Sources, k: int, level: np.float32, ghost: Row, share: Row
) -> None:
    """Add the linear share of one source to a row of ghosts; `share` is scratch space.

    What is negative or not finite leaves no ghost.
    """
    start, step, first, last = sources.places[k, 4:]
    count = last - first
    left = start + first if step > 0 else start - last + 1
    source = raw[y, left : left + count]
    coefficient = sources.coefficients[k]
    zero = np.float32(0.0)
    infinite = np.float32(np.inf)
    for x in range(count):
        value = np.float32(source[x]) - level
        value = value if (value > zero) & (value < infinite) else zero
        share[x] = coefficient * value
    victim = ghost[first:last]
    if step > 0:
        for x in range(count):
            victim[x] += share[x]
    else:
        # An unsigned index spares numba's question whether it is negative: four times faster.
        end = np.uint64(count - 1)
        for x in range(count):
            victim[x] += share[end - np.uint64(x)]


@njit(cache=True)
def _is_bright(raw: Raw, y: int, sources: Sources, k: int, level: np.float32) -> bool:
    """Whether some pixel of a source's row lies above the onset of the polynomial."""
    start, step, first, last = sources.places[k, 4:]
    left = start + first if step > 0 else start - last + 1
    source = raw[y, left : left + last - first]
    peak = raw.dtype.type(0)
    for x in range(source.size):
        peak = source[x] if source[x] > peak else peak
    return bool(np.float32(peak) - level > sources.onsets[k])


@njit(cache=True)
def _bend_share(raw: Raw, y: int, sources: Sources, k: int, level: np.float32, ghost: Row) -> None:
    """Replace the linear share by the polynomial where the source lies above the onset."""
    start, step, first, last = sources.places[k, 4:]
    coefficient = np.float64(sources.coefficients[k])
    onset = sources.onsets[k]
    for x in range(first, last):
        value = np.float32(raw[y, start + step * x]) - level
        if (value > onset) & (value < np.inf):
            beyond = np.float64(value) - onset
            power = 1.0
            share = 0.0
            for factor in sources.polynomials[k]:
                power *= beyond
                share += factor * power
            ghost[x] += np.float32(share - coefficient * beyond)


@njit(cache=True)
def _gather_ghosts(
    raw: Raw,
    y: int,
    sources: Sources,
    couplings: tuple[int, int],
    ghosts: Ghosts,
    row: int,
    x0: int,
    ghost: Row,
    share: Row,
) -> None:
    """Fill a victim's row with the ghosts in it: of its own CCD (row y), of others (`row`)."""
    ghost[:] = np.float32(0.0)
    for k in range(couplings[0], couplings[1]):
        start, step, first, last = sources.places[k, :4]
        if first <= y < last:
            level = sources.levels[k, y]
            _add_share(raw, start + step * y, sources, k, level, ghost, share)
            if sources.onsets[k] < np.inf and _is_bright(raw, start + step * y, sources, k, level):
                _bend_share(raw, start + step * y, sources, k, level, ghost)
    for j in range(ghosts.starts[row], ghosts.starts[row + 1]):
        x = ghosts.columns[j] - x0
        if 0 <= x < ghost.size:
            ghost[x] += ghosts.adu[j]


@njit(cache=True)
def _add_excess(
    raw_row: NDArray[np.uint16] | Row,
    level: np.float32,
    offset: Row,
    excess: Row,
    entry: NDArray[np.int32],
    out: Row,
) -> None:
    """What is to be subtracted so that the rest is linear: `offset`, and what counts too much.

    Two loops are twice as fast as one: the first one is vectorised. `entry` is scratch space.
    """
    top = np.nextafter(np.float32(excess.size - 1), np.float32(0.0))
    zero = np.float32(0.0)
    for x in range(out.size):
        value = np.float32(raw_row[x]) - level - offset[x]
        # What is not a number lands at 0, and stays what it is.
        value = value if value > zero else zero
        value = value if value < top else top
        entry[x] = np.int32(value)
        out[x] = value - np.float32(entry[x])
    for x in range(out.size):
        below = np.uint64(entry[x])
        low = excess[below]
        out[x] = offset[x] + (low + out[x] * (excess[below + np.uint64(1)] - low))


# One loop for all of a row's planes has too many arrays that might overlap to be vector code.


@njit(cache=True)
def _add(row: Row, total: Row) -> None:
    """Add a row to another."""
    for x in range(total.size):
        total[x] += row[x]


@njit(cache=True)
def _to_electrons(
    raw_row: NDArray[np.uint16] | Row, level: np.float32, offset: Row, gain: np.float32, out: Row
) -> None:
    """Electrons of a row as they were counted, not yet divided by the flat."""
    for x in range(out.size):
        out[x] = (np.float32(raw_row[x]) - level - offset[x]) * gain


@njit(cache=True)
def _divide_by_flat(
    electrons: Row, flat: Row, read_variance: np.float32, image: Row, variance: Row
) -> None:
    """Light and variance of a row; what is not finite is 0, of infinite variance."""
    zero = np.float32(0.0)
    one = np.float32(1.0)
    infinite = np.float32(np.inf)
    for x in range(image.size):
        lit = (flat[x] > _MINIMUM_FLAT) & (flat[x] < infinite)
        inverse = one / (flat[x] if lit else one)
        finite = abs(electrons[x]) < infinite
        light = electrons[x] if finite else zero
        image[x] = light * inverse
        noise = (max(light, zero) + read_variance) * inverse * inverse
        variance[x] = noise if lit & finite else infinite


@njit(cache=True)
def _judge(
    electrons: Row,
    raw_row: NDArray[np.uint16] | Row,
    saturation: np.float32,
    flat: Row,
    bad: NDArray[np.uint8],
    weak: np.float32,
    mask: NDArray[np.uint8],
) -> None:
    """Mask bits of a row; what responds less than `weak` is bad."""
    infinite = np.float32(np.inf)
    nothing = np.uint8(0)
    for x in range(mask.size):
        lit = (flat[x] > _MINIMUM_FLAT) & (flat[x] < infinite)
        bits = bad[x] | (_SATURATED if np.float32(raw_row[x]) >= saturation else nothing)
        bits |= nothing if lit else _NO_FLAT
        bits |= _BAD if flat[x] < weak else nothing
        mask[x] = bits | (nothing if abs(electrons[x]) < infinite else _BAD)


@njit(cache=True)
def detrend_rows(
    raw: Raw,
    amplifiers: Amplifiers,
    sources: Sources,
    ghosts: Ghosts,
    excess: Row,
    bias: NDArray[np.float32],
    flat: NDArray[np.float32],
    bad: NDArray[np.uint8],
    weak: np.float32,
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    variance: NDArray[np.float32],
) -> None:
    """Fill the planes as far as amplifiers reach; a plane of one row holds for all rows.

    `excess` holds what 0, 1, 2, ... ADU count too much; less response than `weak` is bad. All
    amplifiers of a row come in turn: half rows alone lie so far apart that the processor would
    wait for each.
    """
    nx = image.shape[1]
    ghost, scratch = np.empty(nx, np.float32), np.empty(nx, np.float32)
    electrons, entry = np.empty(nx, np.float32), np.empty(nx, np.int32)
    places, couplings, tables = amplifiers.places, amplifiers.couplings, amplifiers.tables
    for y in range(image.shape[0]):
        for a in range(places.shape[0]):
            x0, y0, tx0, tx1, ty0, ty1 = places[a]
            if not ty0 <= y < ty1:
                continue
            level, columns = amplifiers.levels[a, y - ty0], tx1 - tx0
            gain, read_variance, saturation = amplifiers.numbers[a]
            raw_row = raw[y0 + y - ty0, x0 : x0 + columns]
            flat_row = flat[y if flat.shape[0] > 1 else 0, tx0:tx1]
            bad_row = bad[y if bad.shape[0] > 1 else 0, tx0:tx1]
            offset = bias[y if bias.shape[0] > 1 else 0, tx0:tx1]
            own = (couplings[a], couplings[a + 1])
            if own[0] < own[1] or ghosts.adu.size > 0:
                haunted = ghost[:columns]
                _gather_ghosts(raw, y - ty0, sources, own, ghosts, y, tx0, haunted, scratch)
                _add(offset, haunted)
                offset = haunted
            if tables[a] < tables[a + 1]:
                table = excess[tables[a] : tables[a + 1]]
                _add_excess(raw_row, level, offset, table, entry, scratch[:columns])
                offset = scratch[:columns]
            counted = electrons[:columns]
            _to_electrons(raw_row, level, offset, gain, counted)
            _divide_by_flat(
                counted, flat_row, read_variance, image[y, tx0:tx1], variance[y, tx0:tx1]
            )
            _judge(counted, raw_row, saturation, flat_row, bad_row, weak, mask[y, tx0:tx1])


@njit(cache=True)
def trim_amplifier(
    raw: Raw,
    x0: int,
    y0: int,
    levels: NDArray[np.float32],
    sources: Sources,
    ghosts: Ghosts,
    excess: Row,
    trimmed: tuple[int, int, int, int],
    out: NDArray[np.float32],
) -> None:
    """Fill one amplifier's part of a trimmed frame with ADU above the overscan."""
    tx0, tx1, ty0, ty1 = trimmed
    columns = tx1 - tx0
    ghost = np.zeros(columns, np.float32)
    scratch = np.empty(columns, np.float32)
    entry = np.empty(columns, np.int32)
    for y in range(ty0, ty1):
        level = levels[y - ty0]
        raw_row = raw[y0 + y - ty0, x0 : x0 + columns]
        out_row = out[y, tx0:tx1]
        offset_row = ghost
        if sources.coefficients.size > 0:
            every = (0, sources.coefficients.size)
            _gather_ghosts(raw, y - ty0, sources, every, ghosts, y, tx0, ghost, scratch)
        if excess.size > 1:
            _add_excess(raw_row, level, ghost, excess, entry, scratch)
            offset_row = scratch
        for x in range(columns):
            out_row[x] = np.float32(raw_row[x]) - level - offset_row[x]
