"""Which parts of a raw frame have a noise of their own: amplifiers, overscan, what is left."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prepipe.codec.base import Unit
from prepipe.codec.fits_bytes import HduSpan
from prepipe.codec.noise import count_pixels, median_of_counts, noise_of_counts
from prepipe.codec.saturated import HIGHEST
from prepipe.model import Box

__all__ = ["MAX_TILES", "MAX_TILE_PIXELS", "Tile", "tiles_of"]

MAX_TILES = 256
MAX_TILE_PIXELS = 1 << 24
"""Keeps the memory that a tile takes small beside that of the frame."""

_MAX_BOXES = 64
"""No camera has more; leaves room for cutting the large ones."""

SMALLEST_NOISE = 0.5
"""ADU. Rounding alone gives 0.3; a frame of no noise loses no more than this."""

_DATA_SECTION = re.compile(r"DATASEC[A-Z0-9]?")
_EFFECTIVE = re.compile(r"T_EFMN([1-9])1")
_MOST_SATURATED = 0.05
_SATURATED_SIGMAS = 20.0
_WINDOW = 16
_SAMPLED_LINES = 256
_SAMPLED_PIXELS = 1 << 19
_NOISE_JUMP = 1.5
_LEVEL_JUMP = 3.0
_PLATEAU = 0.8
_CLIP = 5


@dataclass(frozen=True)
class Tile:
    """A part of a frame that is packed by itself.

    Parameters
    ----------
    box : Box
        Where it lies.
    offset : int
        Its median, ADU.
    saturation : int
        Pixels from here on are kept bit for bit, ADU.
    noise : float
        ADU; the unit of the steps.
    """

    box: Box
    offset: int
    saturation: int
    noise: float


def tiles_of(samples: NDArray[np.uint16], unit: Unit | None, zero: int = 0) -> list[Tile]:
    """Cut a frame into tiles and measure them.

    Parameters
    ----------
    samples : ndarray of uint16, shape (rows, columns)
    unit : Unit, optional
        The HDU they come from: its header may tell amplifiers (DATASEC, DATASECA ...;
        HSC's T_EFMN11 ...) and where they saturate (SATURATE, SATURATA ...). What it does
        not tell, or tells wrongly, is found in the pixels.
    zero : int
        Sample of a pixel of 0 ADU.
    """
    shape = samples.shape[0], samples.shape[1]
    span = HduSpan(0, 0, unit.header, 0) if unit is not None else None
    sections = _told_sections(span, shape) if span is not None else {}
    boxes = _partition(shape, list(sections.values()))
    if not sections or len(boxes) > _MAX_BOXES:
        boxes = _found(samples)
    levels = {name: _told_saturation(span, name, zero) for name in sections}
    tiles = []
    for box in _small_enough(boxes):
        inside = [levels[name] for name, section in sections.items() if _within(box, section)]
        level = min(inside) if inside else _told_saturation(span, "", zero)
        tiles.append(_measured(samples, box, level))
    return tiles


def _measured(samples: NDArray[np.uint16], box: Box, told: float) -> Tile:
    values, *differences = count_pixels(samples, box, _SAMPLED_PIXELS)
    # an edge that glows, or a bad column, makes one of the two too large
    measured = [noise_of_counts(counts) for counts in differences if counts.any()]
    noise = max(SMALLEST_NOISE, min(measured, default=0.0))
    median = median_of_counts(values)
    saturation = HIGHEST
    # a level that lies in the sky, or that half the stars pass, is none
    if median + _SATURATED_SIGMAS * noise < told < HIGHEST:
        above = int(values[int(told) :].sum())
        if above <= _MOST_SATURATED * int(values.sum()):
            saturation = int(told)
    return Tile(box, median, saturation, noise)


def _told_sections(span: HduSpan, shape: tuple[int, int]) -> dict[str, Box]:
    """Light-sensitive sections by the name of their amplifier; none if one is out of place."""
    sections: dict[str, Box] = {}
    for keyword in span.keywords:
        if _DATA_SECTION.fullmatch(keyword):
            name = keyword.removeprefix("DATASEC")
            try:
                box = Box.from_section(str(span.value(keyword)))
            except ValueError:
                return {}
        elif channel := _EFFECTIVE.fullmatch(keyword):
            name = channel[1]
            limits = [
                span.value(f"T_EF{end}{name}{axis}") for axis in (1, 2) for end in ("MN", "MX")
            ]
            x0, x1, y0, y1 = (limit if isinstance(limit, int) else 0 for limit in limits)
            box = Box(x0 - 1, x1, y0 - 1, y1)
        else:
            continue
        if box.empty or box != box.clipped(shape):
            return {}
        sections[name] = box
    return sections


def _told_saturation(span: HduSpan | None, name: str, zero: int) -> float:
    """Where pixels of an amplifier saturate, as a sample."""
    for keyword in (f"SATURAT{name or 'E'}", "SATURATE"):
        value = span.value(keyword) if span is not None else None
        if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
            return float(np.ceil(min(value, HIGHEST))) + zero
    return float(HIGHEST)


def _partition(shape: tuple[int, int], sections: Sequence[Box]) -> list[Box]:
    """Boxes that cover the frame, each inside a section or outside of all."""
    rows, columns = shape
    boxes = []
    for x0, x1 in _pairs({0, columns}.union(*({box.x0, box.x1} for box in sections))):
        here = [box for box in sections if box.x0 <= x0 and x1 <= box.x1]
        for y0, y1 in _pairs({0, rows}.union(*({box.y0, box.y1} for box in here))):
            boxes.append(Box(x0, x1, y0, y1))
    return boxes


def _pairs(cuts: set[int]) -> Iterable[tuple[int, int]]:
    ordered = sorted(cuts)
    return pairwise(ordered)


def _within(box: Box, section: Box) -> bool:
    """Whether a box lies in a section."""
    columns = section.x0 <= box.x0 and box.x1 <= section.x1
    return columns and section.y0 <= box.y0 and box.y1 <= section.y1


def _small_enough(boxes: Iterable[Box]) -> Iterable[Box]:
    """The boxes, those cut that have too many pixels for a tile."""
    for box in boxes:
        rows, columns = box.shape
        if rows * columns <= MAX_TILE_PIXELS:
            yield box
        elif rows >= columns:
            middle = box.y0 + rows // 2
            halves = Box(box.x0, box.x1, box.y0, middle), Box(box.x0, box.x1, middle, box.y1)
            yield from _small_enough(halves)
        else:
            middle = box.x0 + columns // 2
            halves = Box(box.x0, middle, box.y0, box.y1), Box(middle, box.x1, box.y0, box.y1)
            yield from _small_enough(halves)


def _found(samples: NDArray[np.uint16]) -> list[Box]:
    """Boxes between columns across which noise or level jump, and rows within them."""
    rows, columns = samples.shape
    boxes = []
    for x0, x1 in _pairs({0, columns, *_jumps(samples)}):
        for y0, y1 in _pairs({0, rows, *_jumps(samples[:, x0:x1].T)}):
            boxes.append(Box(x0, x1, y0, y1))
    return boxes if len(boxes) <= _MAX_BOXES else [Box(0, columns, 0, rows)]


def _jumps(samples: NDArray[np.uint16]) -> list[int]:
    """Columns at which noise or level jump.

    Sixteen columns on either side are compared, by the median of each, so that stars, bad
    columns and the slope of the sky do not count.
    """
    rows, columns = samples.shape
    if columns < 3 * _WINDOW or rows < 2:
        return []
    first = np.unique(np.linspace(0, rows - 2, _SAMPLED_LINES).astype(int))
    upper = samples[first].astype(np.int32)
    differences = np.abs(samples[first + 1] - upper)
    # a mean, for the median of small whole numbers jumps by itself
    clipped = np.minimum(differences, _CLIP * (np.median(differences) + 1))
    noise = _window_medians(clipped.mean(axis=0)) + SMALLEST_NOISE
    level = _window_medians(np.median(upper, axis=0))
    before, after = noise[:-_WINDOW], noise[_WINDOW:]
    contrast: NDArray[Any] = np.maximum(
        np.abs(np.log(after / before)) / np.log(_NOISE_JUMP),
        np.abs(level[_WINDOW:] - level[:-_WINDOW]) / (_LEVEL_JUMP * np.maximum(before, after)),
    )
    jumps = []
    while contrast.size and (highest := contrast.max()) > 1:
        start = max(0, int(np.argmax(contrast)) - _WINDOW)
        here = contrast[start : start + 2 * _WINDOW + 1]
        # medians flip when half of a window is across, and stay until half of the other is
        jumps.append(start + round(float(np.median(np.flatnonzero(here > _PLATEAU * highest)))))
        here[:] = 0
    return sorted(jump + _WINDOW for jump in jumps)


def _window_medians(values: NDArray[Any]) -> NDArray[Any]:
    """Median of the sixteen values from each one on."""
    windows = np.lib.stride_tricks.sliding_window_view(values, _WINDOW)
    medians: NDArray[Any] = np.median(windows, axis=1)
    return medians
