"""Ghosts of bright pixels in amplifiers that are read out at the same moment.

The signal of one amplifier couples into the electronics of others: a star leaves a faint, sharp
and often mirrored image of itself where another amplifier was just being read. What is subtracted
from a victim's pixel is a share of the source's pixel read at the same moment; both in ADU above
their own overscan, before bias, linearity and gain, as the shares were measured.

Notes
-----
The shares of DECam (``DECam_xtalk_20130606.txt``) are meant as DESDM's ``DECam_crosstalk``
applies them: a source of x ADU above its overscan gives ``c x`` up to an onset X, also in ADU above
the overscan, and beyond it ``c X + p1 (x - X) + p2 (x - X)^2 + p3 (x - X)^3``: the polynomial takes
the place of the linear term, from the onset on, and is continuous with it. (LSST's ``obs_decam``
leaves the polynomial away.) That program mirrors the columns where the amplifiers' sides differ
and never the rows; none of the table's 249 couplings joins a northern and a southern CCD, where
the order of the rows differs, so both agree with the read order that is used here.

Sources are taken as they were read, with the crosstalk that is in themselves: the error is of
second order in the shares, 1e-6 of a pixel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.calibrate.detector.overscan import Raw, overscan_levels, raw_pixels
from prepipe.errors import PixelError
from prepipe.model import Amplifier, Layout

__all__ = [
    "NEGLIGIBLE",
    "Coupling",
    "CrosstalkTable",
    "Ghosts",
    "Sources",
    "Spots",
    "bright_ghosts",
    "gather_ghosts",
    "is_covered",
    "joined",
    "read_together",
    "sources_of",
    "typical_noise",
]

NEGLIGIBLE = 0.05
"""A ghost of another CCD below this fraction of a pixel's noise is left alone.

The 40 pixels that hold most of a star in seeing of 1.1 arcsec then hide 0.3 of their own noise.
"""

_SAMPLE_STEP = 32


@dataclass(frozen=True)
class Coupling:
    """How one amplifier shows in another.

    Parameters
    ----------
    victim, source : str
        Names of the amplifiers.
    coefficient : float
        Share of the source's signal that appears in the victim.
    onset : float
        ADU of the source above its overscan from which on the polynomial holds.
    polynomial : tuple of float
        Coefficients of the first and higher powers of what lies above the onset.
    """

    victim: str
    source: str
    coefficient: float
    onset: float = float("inf")
    polynomial: tuple[float, ...] = ()

    def ghost(self, adu: NDArray[Any]) -> NDArray[np.float64]:
        """What a source's pixels leave in the victim.

        Parameters
        ----------
        adu : ndarray
            Source, ADU above its overscan.

        Returns
        -------
        ndarray of float64, same shape
            ADU.
        """
        beyond = np.maximum(np.asarray(adu, np.float64) - self.onset, 0.0)
        powers = np.polynomial.polynomial.polyval(beyond, (0.0, *self.polynomial))
        ghost: NDArray[np.float64] = self.coefficient * np.minimum(adu, self.onset) + powers
        return ghost


@dataclass(frozen=True)
class CrosstalkTable:
    """All couplings of a camera, by CCD numbers (victim, source)."""

    couplings: Mapping[tuple[int, int], tuple[Coupling, ...]]

    def within(self, ccd: int) -> tuple[Coupling, ...]:
        """Couplings between the amplifiers of a CCD."""
        return self.couplings.get((ccd, ccd), ())

    def between(self, ccd: int) -> dict[int, tuple[Coupling, ...]]:
        """Couplings into a CCD from others, by the number of the source."""
        return {
            source: found
            for (victim, source), found in self.couplings.items()
            if victim == ccd and source != ccd
        }


class Line(NamedTuple):
    """Along one axis: victim pixel i is read with raw pixel ``start + step i`` of the source.

    It holds for ``first <= i < last``; i counts from the first of the victim's data.
    """

    start: int
    step: int
    first: int
    last: int


class Sources(NamedTuple):
    """What leaves ghosts in one amplifier, as the kernels take it; n couplings.

    Parameters
    ----------
    places : ndarray of int64, shape (n, 8)
        `Line` of the rows and of the columns.
    levels : ndarray of float32, shape (n, rows of the victim)
        Overscan of the source's row that is read with the victim's, ADU.
    coefficients, onsets : ndarray of float32, shape (n,)
    polynomials : ndarray of float64, shape (n, degree)
    """

    places: NDArray[np.int64]
    levels: NDArray[np.float32]
    coefficients: NDArray[np.float32]
    onsets: NDArray[np.float32]
    polynomials: NDArray[np.float64]


class Spots(NamedTuple):
    """Single ghosts in a trimmed CCD: rows, columns and ADU, shape (n,) each."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    adu: NDArray[np.float32]


class Ghosts(NamedTuple):
    """Ghosts sorted by their rows: those of row y are ``starts[y]`` to ``starts[y + 1]``."""

    starts: NDArray[np.int64]
    columns: NDArray[np.int64]
    adu: NDArray[np.float32]


def _line(
    victim: tuple[int, int], source: tuple[int, int], orders: tuple[int, int], before: int
) -> Line:
    """Line of two intervals; `before`: how many more the victim lacks of those read first."""
    (v0, v1), (s0, s1) = victim, source
    step = orders[0] * orders[1]
    moment = before + (0 if orders[0] > 0 else v1 - v0 - 1)
    start = s0 + moment if orders[1] > 0 else s1 - 1 - moment
    first, last = (s0 - start, s1 - start) if step > 0 else (start - s1 + 1, start - s0 + 1)
    first = min(max(first, 0), v1 - v0)
    return Line(start, step, first, max(first, min(last, v1 - v0)))


def read_together(victim: Amplifier, source: Amplifier) -> tuple[Line, Line]:
    """Which pixels of a source are read at the moment of a victim's.

    Parameters
    ----------
    victim, source : Amplifier
        Each with the read order of its own frame.

    Returns
    -------
    rows, columns : Line
    """
    v, s = victim.data, source.data
    columns, rows = (
        _line(a, b, (victim.read_order[k], source.read_order[k]), before)
        for k, (a, b, before) in enumerate(
            (
                ((v.x0, v.x1), (s.x0, s.x1), victim.read_before[0] - source.read_before[0]),
                ((v.y0, v.y1), (s.y0, s.y1), victim.read_before[1] - source.read_before[1]),
            )
        )
    )
    return rows, columns


def is_covered(victim: Amplifier, source: Amplifier | None) -> bool:
    """Whether the source tells of all pixels of the victim; a cut-out may lack some."""
    if source is None:
        return False
    rows, columns = read_together(victim, source)
    return (rows.last - rows.first, columns.last - columns.first) == victim.data.shape


def sources_of(
    victim: Amplifier,
    couplings: Iterable[Coupling],
    layout: Layout,
    levels: Sequence[NDArray[np.float32]],
    dead: Collection[str] = (),
) -> Sources:
    """What leaves ghosts in an amplifier from its own CCD.

    Parameters
    ----------
    victim : Amplifier
    couplings : iterable of Coupling
        Of the CCD; those into other victims are passed over.
    layout : Layout
    levels : sequence of ndarray of float32
        Of all amplifiers, as `overscan.overscan_levels` gives them.
    dead : collection of str
        Amplifiers without signal.

    Returns
    -------
    Sources
        Without amplifiers that are dead or not in `layout`.
    """
    known = {a.name: (a, level) for a, level in zip(layout.amplifiers, levels, strict=True)}
    found = [
        (coupling, *known[coupling.source])
        for coupling in couplings
        if coupling.victim == victim.name
        and coupling.source in known
        and coupling.source not in dead
    ]
    height = victim.data.shape[0]
    places = np.zeros((len(found), 8), np.int64)
    of_rows = np.zeros((len(found), height), np.float32)
    degree = max((len(coupling.polynomial) for coupling, _, _ in found), default=0)
    polynomials = np.zeros((len(found), degree))
    for k, (coupling, source, level) in enumerate(found):
        rows, columns = read_together(victim, source)
        places[k] = (*rows, *columns)
        inside = np.arange(rows.first, rows.last)
        of_rows[k, inside] = level[rows.start + rows.step * inside - source.data.y0]
        polynomials[k, : len(coupling.polynomial)] = coupling.polynomial
    return Sources(
        places,
        of_rows,
        np.array([coupling.coefficient for coupling, _, _ in found], np.float32),
        np.array([coupling.onset for coupling, _, _ in found], np.float32),
        polynomials,
    )


def joined(sources: Sequence[Sources]) -> Sources:
    """The sources of several amplifiers, one after the other.

    Parameters
    ----------
    sources : sequence of Sources

    Returns
    -------
    Sources
    """
    count = sum(len(some.coefficients) for some in sources)
    rows = max((some.levels.shape[1] for some in sources), default=0)
    degree = max((some.polynomials.shape[1] for some in sources), default=0)
    every = Sources(
        np.zeros((count, 8), np.int64),
        np.zeros((count, rows), np.float32),
        np.zeros(count, np.float32),
        np.zeros(count, np.float32),
        np.zeros((count, degree)),
    )
    first = 0
    for some in sources:
        inside = slice(first, first + len(some.coefficients))
        every.places[inside], every.coefficients[inside] = some.places, some.coefficients
        every.onsets[inside] = some.onsets
        every.levels[inside, : some.levels.shape[1]] = some.levels
        every.polynomials[inside, : some.polynomials.shape[1]] = some.polynomials
        first = inside.stop
    return every


def typical_noise(raw: NDArray[Any], amplifier: Amplifier, bias_level: float = 0.0) -> float:
    """Noise of an amplifier's sky pixels, from its gain, read noise and median signal.

    Parameters
    ----------
    raw : ndarray, shape (ny, nx)
        Raw frame, ADU.
    amplifier : Amplifier
    bias_level : float
        Level where there is no overscan, ADU.

    Returns
    -------
    float
        ADU.
    """
    level = bias_level
    if amplifier.overscan is not None and not amplifier.overscan.empty:
        level = float(np.nanmedian(raw[amplifier.overscan.slices][::_SAMPLE_STEP]))
    sample = raw[amplifier.data.slices][::_SAMPLE_STEP, ::_SAMPLE_STEP]
    sky = max((float(np.nanmedian(sample)) - level) * amplifier.gain, 0.0)
    return float(np.sqrt(sky + amplifier.read_noise**2)) / amplifier.gain


@njit(cache=True)
def _above(
    raw: Raw, x0: int, x1: int, y0: int, y1: int, levels: NDArray[np.float32], threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Rows, columns (raw) and ADU above the overscan of what lies above the threshold."""
    counts = np.zeros(y1 - y0, np.int64)
    for y in range(y1 - y0):
        limit = np.float32(levels[y] + threshold)
        row = raw[y0 + y, x0:x1]
        bright = np.int32(0)
        for x in range(x1 - x0):
            bright += np.int32(np.float32(row[x]) > limit)
        counts[y] = bright
    total = counts.sum()
    rows = np.empty(total, np.int64)
    columns = np.empty(total, np.int64)
    adu = np.empty(total, np.float32)
    n = 0
    for y in range(y1 - y0):
        if counts[y] == 0:
            continue
        limit = np.float32(levels[y] + threshold)
        for x in range(x0, x1):
            value = np.float32(raw[y0 + y, x])
            if value > limit:
                rows[n], columns[n], adu[n] = y0 + y, x, value - levels[y]
                n += 1
    return rows, columns, adu


def bright_ghosts(
    raw: NDArray[Any],
    layout: Layout,
    couplings: Iterable[Coupling],
    victims: Layout,
    noise: Mapping[str, float],
    dead: Collection[str] = (),
) -> Spots:
    """Ghosts that the bright pixels of one CCD leave in another.

    Only pixels are looked at whose ghost exceeds `NEGLIGIBLE` of the victim's noise: at
    a share of 3e-5 and a noise of 5 ADU, those 8000 ADU above their overscan.

    Parameters
    ----------
    raw : ndarray, shape `layout.shape`
        The source's raw frame, ADU.
    layout : Layout
        Of the source.
    couplings : iterable of Coupling
        From the source into the victim.
    victims : Layout
        Of the victim.
    noise : mapping
        Noise of a pixel of each of the victim's amplifiers, ADU.
    dead : collection of str
        The source's amplifiers without signal.

    Returns
    -------
    Spots

    Raises
    ------
    PixelError
        If `raw` does not fit `layout`.
    """
    pixels = raw_pixels(raw, layout.shape)
    names = [amplifier.name for amplifier in layout.amplifiers]
    levels = dict(zip(names, overscan_levels(pixels, layout), strict=True))
    sources = {a.name: a for a in layout.amplifiers if a.name not in dead}
    targets = {a.name: a for a in victims.amplifiers}
    parts = []
    for coupling in couplings:
        source, victim = sources.get(coupling.source), targets.get(coupling.victim)
        if source is None or victim is None or coupling.coefficient == 0:
            continue
        box = source.data
        threshold = NEGLIGIBLE * noise[victim.name] / abs(coupling.coefficient)
        found = _above(
            pixels, box.x0, box.x1, box.y0, box.y1, levels[source.name], float(threshold)
        )
        parts.append(_in_victim(coupling, victim, source, Spots(*found)))
    return _joined(parts)


def _in_victim(coupling: Coupling, victim: Amplifier, source: Amplifier, bright: Spots) -> Spots:
    """Where in the trimmed victim the ghosts of bright pixels of the source lie."""
    rows, columns = read_together(victim, source)
    y = (bright.rows - rows.start) * rows.step
    x = (bright.columns - columns.start) * columns.step
    adu = bright.adu
    inside = (rows.first <= y) & (y < rows.last) & (columns.first <= x) & (x < columns.last)
    inside &= np.isfinite(adu)
    ghosts = coupling.ghost(adu[inside]).astype(np.float32)
    return Spots(y[inside] + victim.trimmed.y0, x[inside] + victim.trimmed.x0, ghosts)


def _joined(parts: Sequence[Spots]) -> Spots:
    nothing = Spots(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    return Spots(*(np.concatenate(field) for field in zip(nothing, *parts, strict=True)))


def gather_ghosts(parts: Sequence[Spots], shape: tuple[int, int]) -> Ghosts:
    """Sort ghosts by their rows, as `detrend` takes them.

    Parameters
    ----------
    parts : sequence of Spots
        Of one source each.
    shape : tuple of int
        Of the trimmed CCD, (rows, columns).

    Returns
    -------
    Ghosts

    Raises
    ------
    PixelError
        If a ghost lies outside the CCD.
    """
    spots = _joined(parts)
    inside = (spots.rows >= 0) & (spots.rows < shape[0])
    inside &= (spots.columns >= 0) & (spots.columns < shape[1])
    if not inside.all():
        raise PixelError(f"ghosts lie outside a CCD of shape {shape}: use this CCD's own layout")
    order = np.argsort(spots.rows, kind="stable")
    starts = np.searchsorted(spots.rows[order], np.arange(shape[0] + 1))
    return Ghosts(starts.astype(np.int64), spots.columns[order], spots.adu[order])
