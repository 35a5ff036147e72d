"""Exposures in which the telescope jumped: every star is there twice, at the same offset."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.sky.matching import log10_chance, vote_for_offset

__all__ = ["is_doubled"]

Array = NDArray[np.float64]

CROWDED = 20
"""A field is crowded with so many detections for each of the bright ones looked at."""


def is_doubled(
    detections: tuple[Array, Array],
    matches: int,
    *,
    bright: int,
    width: float,
    reach: float,
    chance: float,
) -> bool:
    """Whether many of the bright detections have a companion at one and the same offset.

    In a crowded field the brightest unsaturated stars are so much alike that the fainter
    images of most are not among them, hence a second look there, at four times as many.

    Parameters
    ----------
    detections : tuple of ndarray, shape (n,)
        Columns and rows, pixels, brightest first.
    matches : int
        Of them that are in the catalogue.
    bright : int
        How many of the brightest to look at.
    width : float
        Of a bin of offsets, pixels.
    reach : float
        Largest offset in each coordinate, pixels.
    chance : float
        log10 of the number of false alarms tolerated per frame.
    """
    counts = [bright]
    if detections[0].size > CROWDED * bright:
        counts.append(4 * bright)
    looks = ((detections[0][:count], detections[1][:count]) for count in counts)
    return any(_have_companions(stars, matches, width, reach, chance) for stars in looks)


def _have_companions(
    stars: tuple[Array, Array], matches: int, width: float, reach: float, chance: float
) -> bool:
    """Whether many of the stars have one, and not by chance."""
    vote = vote_for_offset(stars, stars, (0.0, 0.0), np.zeros(1), reach, width, avoid=width)
    # Of many faint detections few are doubled, but of the stars in the catalogue all are.
    many = min(0.2 * stars[0].size, 0.5 * matches)
    # A list against itself has most pairs at the smallest offsets: for a small frame, or stars
    # in a corner, many more than the mean over the reach.
    area = max(float(np.ptp(stars[0]) * np.ptp(stars[1])), width**2)
    expected = (2.0 * width * stars[0].size) ** 2 / area
    here = log10_chance(vote.votes, expected) + 2.0 * math.log10(2.0 * reach / width)
    return max(here, vote.log10_chance) < chance and vote.votes > many
