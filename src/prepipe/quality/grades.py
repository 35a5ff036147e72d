"""Grades: each figure against its limits, each flag by a table; the worst one gives the colour."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from prepipe.config import Limits
from prepipe.model import Colour, Grade, Reduction

__all__ = ["grade"]


@dataclass(frozen=True)
class _Figure:
    """One number of a reduction that has limits; larger is worse."""

    name: str
    words: str
    unit: str
    decimals: int


@dataclass(frozen=True)
class _Meaning:
    """What a flag says, and which figures are missing because of it."""

    colour: Colour
    sentence: str
    explains: frozenset[str] = frozenset()


_FIGURES = (
    _Figure("seeing_arcsec", "seeing", " arcsec", 2),
    _Figure("wcs_rms_mas", "astrometric residual", " mas", 0),
    _Figure("zero_point_scatter", "scatter of the zero point", " mag", 3),
    _Figure("ellipticity", "ellipticity of the stars", "", 2),
)

_STARS = frozenset({"seeing_arcsec", "ellipticity"})
_WCS = frozenset({"wcs_rms_mas"})
_ZERO_POINT = frozenset({"zero_point", "zero_point_scatter"})
_ALL = _STARS | _WCS | _ZERO_POINT

_NO_WCS = _Meaning(
    Colour.RED,
    "no WCS found: {r.wcs_matches} stars match the catalogue; check the field and the pointing",
    _WCS | _ZERO_POINT,
)

_FLAGS = {
    "NO_WCS": _NO_WCS,
    "ASTROMETRY_FAILED": _NO_WCS,
    "FEW_REFERENCES": _Meaning(
        Colour.RED,
        "only {r.wcs_matches} reference stars matched: the WCS cannot be trusted",
        _WCS | _ZERO_POINT,
    ),
    "DEAD": _Meaning(Colour.RED, "the whole CCD is dead: it gives no signal", _ALL),
    "BLANK": _Meaning(Colour.RED, "the frame is blank: all its pixels are the same", _ALL),
    "SATURATED_FRAME": _Meaning(Colour.RED, "the whole frame is saturated", _ALL),
    "NO_SOURCES": _Meaning(Colour.RED, "no source was found in the frame", _ALL),
    "CORRUPT_PIXELS": _Meaning(Colour.RED, "pixels are corrupt: send the raw file again"),
    "PARTIAL_DEAD": _Meaning(Colour.ORANGE, "part of the CCD is dead and masked"),
    "NO_OVERSCAN": _Meaning(Colour.ORANGE, "no overscan in the frame: a fixed level subtracted"),
    "NO_ZERO_POINT": _Meaning(
        Colour.ORANGE,
        "no zero point: {r.zero_point_stars} catalogue stars could be measured",
        _ZERO_POINT,
    ),
    "NO_REFERENCE": _Meaning(
        Colour.ORANGE,
        "no star catalogue given: neither WCS nor zero point checked",
        _WCS | _ZERO_POINT,
    ),
    "TRAILED": _Meaning(Colour.ORANGE, "stars are trailed: the telescope moved"),
    "NO_BIAS": _Meaning(Colour.YELLOW, "no bias near enough in time: bias not subtracted"),
    "NO_FLAT": _Meaning(Colour.YELLOW, "no dome flat near enough in time: not flat-fielded"),
}


def grade(reduction: Reduction, limits: Limits) -> Grade:
    """Grade one reduced CCD of an object exposure.

    Parameters
    ----------
    reduction : Reduction
        Its figures; None, NaN and negative values count as not measured, which is never green.
    limits : Limits
        Those of the exposure's band. A figure equal to a limit is above it.

    Returns
    -------
    Grade
        The worst colour of all, and a reason for each that is not green, worst first.
    """
    findings = [*_from_flags(reduction), *_from_figures(reduction, limits)]
    findings.sort(key=lambda finding: -finding[0].rank)
    worst = findings[0][0] if findings else Colour.GREEN
    return Grade(worst, tuple(dict.fromkeys(reason for _, reason in findings)))


def _from_flags(reduction: Reduction) -> Iterator[tuple[Colour, str]]:
    for flag in reduction.flags:
        meaning = _FLAGS.get(flag)
        if meaning is None:
            yield Colour.YELLOW, flag.replace("_", " ").lower() or "a flag without a name"
        else:
            yield meaning.colour, meaning.sentence.format(r=reduction)


def _from_figures(reduction: Reduction, limits: Limits) -> Iterator[tuple[Colour, str]]:
    known = [_FLAGS[flag] for flag in reduction.flags if flag in _FLAGS]
    explained = frozenset().union(*(meaning.explains for meaning in known))
    for figure in _FIGURES:
        value = _measured(getattr(reduction, figure.name))
        if value is not None:
            yield from _against_limits(figure, value, getattr(limits, figure.name))
        elif figure.name not in explained:
            yield Colour.ORANGE, f"{figure.words} could not be measured"
    zero_point = reduction.zero_point
    missing = zero_point is None or not math.isfinite(zero_point)
    if missing and "zero_point" not in explained:
        yield Colour.ORANGE, "zero point could not be measured"


def _measured(value: float | None) -> float | None:
    """The value, or None where it says nothing; infinity stays, as the worst of all."""
    return None if value is None or math.isnan(value) or value < 0 else value


def _against_limits(
    figure: _Figure, value: float, limits: tuple[float, float, float]
) -> Iterator[tuple[Colour, str]]:
    passed = sum(value >= limit for limit in limits)
    if passed:
        number = _written(value, limits[passed - 1], figure.decimals)
        limit = f"{limits[passed - 1]:g}"
        yield list(Colour)[passed], f"{figure.words} {number}{figure.unit} above {limit}"


def _written(value: float, limit: float, decimals: int) -> str:
    """The value, with a digit more where rounding would hide that it is above the limit."""
    text = f"{value:.{decimals}f}"
    return text if float(text) > limit else f"{value:.{decimals + 2}f}"
