"""The bits of a mask plane and of a source's flags."""

from __future__ import annotations

from enum import IntFlag

__all__ = ["Mask", "SourceFlag"]


class Mask(IntFlag):
    """Why a pixel is not to be trusted; one bit each, in a uint8 plane."""

    BAD = 1
    SATURATED = 2
    COSMIC_RAY = 4
    DEAD = 8
    EDGE = 16
    NO_FLAT = 32
    CORRUPT = 64


class SourceFlag(IntFlag):
    """What disturbed the measurement of a source."""

    NEIGHBOUR = 1
    SATURATED = 2
    EDGE = 4
    BAD_PIXEL = 8
    COSMIC_RAY = 16
    NO_CENTROID = 32
    COMPANION = 64
