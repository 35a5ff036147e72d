"""Which bands a plane is split into: five levels, the finest details once more.

A detail band spans an octave, over which the power of a star falls by more than an order of
magnitude. Split once more, its part near the stars can be told finely and the rest coarsely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from prepipe.codec.wavelet_transform import Arena, Plane, analyse, half_shapes, synthesise

__all__ = ["MAX_LEVELS", "Band", "Tree"]

MAX_LEVELS = 8
_DETAILS = 3
_DIRECTIONS = (("L", "L"), ("H", "L"), ("L", "H"), ("H", "H"))
"""Filters across columns and across rows, of the bands in the order of `analyse`."""

Shape = tuple[int, int]


@dataclass(frozen=True)
class Band:
    """A band by the filters that lead to it, L or H, finest first.

    Parameters
    ----------
    columns, rows : str
        Across columns, and across rows.
    """

    columns: str = ""
    rows: str = ""

    def children(self) -> list[Band]:
        """The four bands it is split into."""
        return [Band(self.columns + across, self.rows + along) for across, along in _DIRECTIONS]


@dataclass(frozen=True)
class Tree:
    """How planes are split.

    Parameters
    ----------
    splits : tuple of int
        For each level, finest first, which details are split once more: 1 across columns,
        2 across rows, 4 across both, added.
    """

    splits: tuple[int, ...] = (3, 7, 0, 0, 0)

    @cached_property
    def bands(self) -> list[Band]:
        """All bands: details of the finest level first, the low-pass plane last."""
        bands = []
        low = Band()
        for split in self.splits:
            low, *details = low.children()
            for place, band in enumerate(details):
                bands += band.children() if split >> place & 1 else [band]
        return [*bands, low]

    def shapes(self, shape: Shape) -> list[Shape]:
        """Shapes of the bands of a plane of this shape; some may be empty."""
        shapes: list[Shape] = []
        for split in self.splits:
            shape, *details = half_shapes(shape)
            for place, detail in enumerate(details):
                shapes += half_shapes(detail) if split >> place & 1 else [detail]
        return [*shapes, shape]

    def analyse(self, plane: Plane, arena: Arena) -> list[Plane]:
        """Bands of a plane."""
        bands: list[Plane] = []
        for split in self.splits:
            plane, *details = analyse(plane, arena)
            for place, detail in enumerate(details):
                bands += analyse(detail, arena) if split >> place & 1 else [detail]
        return [*bands, plane]

    def synthesise(self, bands: Sequence[Plane], arena: Arena) -> Plane:
        """Plane of its bands, inverse of `analyse`."""
        *rest, plane = bands
        for split in reversed(self.splits):
            details = []
            for place in reversed(range(_DETAILS)):
                count = 4 if split >> place & 1 else 1
                parts = [rest.pop() for _ in range(count)][::-1]
                details.append(synthesise(parts, arena) if count > 1 else parts[0])
            plane = synthesise([plane, *reversed(details)], arena)
        return plane
