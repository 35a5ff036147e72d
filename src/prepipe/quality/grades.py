"""Grades: each figure against its limits, each flag by a table; the worst one gives the colour."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prepipe.config import Limits
from prepipe.model import Colour, Grade, Reduction

__all__ = ["grade", "limits_for"]


@dataclass(frozen=True)
class _Figure:
    """One number of a reduction that has limits; larger is worse."""

    name: str
    words: str
    unit: str
    decimals: int
    optional: bool = False


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
    _Figure("extinction_mag", "light lost to clouds or airmass", " mag", 2, optional=True),
    _Figure("sky_fraction", "sky, as a part of saturation,", "", 2, optional=True),
)

_STARS = frozenset({"seeing_arcsec", "ellipticity"})
_WCS = frozenset({"wcs_rms_mas"})
_ZERO_POINT = frozenset({"zero_point", "zero_point_scatter"})
_OF_THE_BAND = frozenset({"zero_point_scatter", "extinction_mag"})
"""Figures that say nothing where the catalogue is of another band."""

_ALL = _STARS | _WCS | _ZERO_POINT

_RED, _ORANGE, _YELLOW = Colour.RED, Colour.ORANGE, Colour.YELLOW

_NO_WCS = _Meaning(_RED, "no WCS found: check the field and the pointing", _WCS | _ZERO_POINT)

_FLAGS = {
    # the frame
    "DEAD": _Meaning(_RED, "the whole CCD is dead: it gives no signal", _ALL),
    "BLANK": _Meaning(_RED, "the frame is blank: there is no sky in it", _ALL),
    "SATURATED_FRAME": _Meaning(_RED, "the whole frame is saturated", _ALL),
    "CORRUPT_PIXELS": _Meaning(_RED, "pixels are corrupt: send the raw file again"),
    "CORRUPT_TILES": _Meaning(_ORANGE, "some rows could not be decompressed and are masked"),
    "STALE_SUM": _Meaning(
        _YELLOW, "the raw file's checksum is not that of its pixels: changed or damaged?"
    ),
    "PARTIAL_DEAD": _Meaning(_ORANGE, "part of the CCD is dead and masked"),
    "NO_OVERSCAN": _Meaning(_ORANGE, "no overscan in the frame: its level is not subtracted"),
    "NO_BIAS": _Meaning(_YELLOW, "no bias given, or none near enough in time: not subtracted"),
    "NO_FLAT": _Meaning(_YELLOW, "no dome flat given, or none near enough in time: not divided"),
    "OLD_BIAS": _Meaning(_YELLOW, "its bias is {r.bias_nights} nights away"),
    "OLD_FLAT": _Meaning(_YELLOW, "its dome flat is {r.flat_nights} nights away"),
    "OTHER_KIND": _Meaning(
        _ORANGE,
        "its header calls it neither an exposure of the sky nor a zero or dome flat: "
        "a sky flat, a dark, a focus frame?",
    ),
    "NO_EXPOSURE_TIME": _Meaning(
        _ORANGE, "the header tells an exposure time of 0 s: no zero point without one", _ZERO_POINT
    ),
    "MANY_COSMIC_RAYS": _Meaning(
        _ORANGE, "{r.n_cosmic_rays} pixels are cosmic rays, or stars far sharper than supposed"
    ),
    "CROSSTALK_PARTIAL": _Meaning(
        _YELLOW, "another CCD or amplifier was not at hand: its crosstalk is not subtracted"
    ),
    "NO_LINEARITY": _Meaning(_YELLOW, "the linearity table has nothing about this CCD"),
    "NO_BAD_PIXELS": _Meaning(_YELLOW, "no map of bad pixels of this CCD at this time"),
    # the sources
    "NO_SOURCES": _Meaning(_RED, "no source was found in the frame", _ALL),
    "NO_PSF_STARS": _Meaning(_ORANGE, "no star is fit to measure the seeing", _STARS),
    "TRAILED": _Meaning(_ORANGE, "stars are trailed: the telescope moved"),
    # astrometry: no WCS, and why
    "NO_WCS": _NO_WCS,
    "ASTROMETRY_FAILED": _NO_WCS,
    "NO_NOMINAL_WCS": _Meaning(_RED, "the header holds no WCS to begin with", _WCS),
    "TOO_FEW_SOURCES": _Meaning(_RED, "too few sources for a WCS", _WCS),
    "TOO_FEW_REFERENCES": _Meaning(
        _RED, "too few catalogue stars on the CCD: does the catalogue cover this field?", _WCS
    ),
    "NO_MATCH": _Meaning(_RED, "the sources match no part of the catalogue in reach", _WCS),
    "AMBIGUOUS": _Meaning(_RED, "two pointings fit: doubled exposure, or a jump", _WCS),
    "BAD_SCALE": _Meaning(_RED, "the pixel scale or shear found is not the camera's", _WCS),
    "FEW_MATCHES": _Meaning(_RED, "too few stars match the catalogue", _WCS),
    "FEW_REFERENCES": _Meaning(
        _RED, "only {r.wcs_matches} reference stars matched: the WCS cannot be trusted", _WCS
    ),
    "HIGH_RMS": _Meaning(_RED, "matched stars lie too far from their places", _WCS),
    "CHANCE": _Meaning(_RED, "as many stars might match by chance", _WCS),
    "POORLY_SPREAD": _Meaning(
        _ORANGE, "the WCS's stars lie in one part of the CCD: far from them it may be off"
    ),
    "LOW_FRACTION": _Meaning(_YELLOW, "few of the bright sources are in the catalogue"),
    "NO_REFERENCE": _Meaning(
        _ORANGE, "no star catalogue given: neither WCS nor zero point checked", _WCS | _ZERO_POINT
    ),
    # an external pipeline's own words
    "POOR_WCS": _Meaning(_RED, "its WCS, from {r.wcs_matches} stars, is too poor to be kept", _WCS),
    "NO_WCS_STARS": _Meaning(_RED, "no star was matched for its WCS", _WCS),
    "NOT_TOLD": _Meaning(Colour.GREEN, "", _STARS | _ZERO_POINT),
    # photometry
    "NO_ZERO_POINT": _Meaning(
        _ORANGE, "no zero point: no catalogue star could be measured", _ZERO_POINT
    ),
    "TOO_MUCH_LIGHT": _Meaning(
        _RED,
        "more light came than a clear sky lets through: a doubled exposure, or a wrong "
        "exposure time or gain in the header?",
    ),
    "FEW_ZP_STARS": _Meaning(_YELLOW, "zero point from {r.zero_point_stars} stars only"),
    "ZP_SCATTER": _Meaning(_YELLOW, "stars disagree on the zero point"),
    "OTHER_BAND": _Meaning(
        _YELLOW,
        "the catalogue has neither this band nor Gaia colours: the zero point is approximate",
    ),
}


def limits_for(limits: Mapping[str, Limits], camera: str, band: str) -> Limits:
    """Limits of one camera and band, figure by figure from the most specific that tells it.

    Parameters
    ----------
    limits : mapping
        By ``"camera.band"``, ``"camera"``, ``"band"`` and ``"default"``; any may be missing.
    camera, band : str

    Returns
    -------
    Limits
    """
    told: dict[str, object] = {}
    for name in ("default", band, camera, f"{camera}.{band}"):
        if name in limits:
            told |= limits[name].model_dump(exclude_unset=True)
    return Limits.model_validate(told)


def grade(reduction: Reduction, limits: Limits) -> Grade:
    """Grade one reduced CCD of an object exposure.

    Parameters
    ----------
    reduction : Reduction
        Its figures; None, NaN and negative values count as not measured, which is never green.
    limits : Limits
        Those of the camera and band, see `limits_for`. A figure equal to a limit is above it.

    Returns
    -------
    Grade
        The worst colour of all, and a reason for each that is not green, worst first.
    """
    findings = [*_from_flags(reduction), *_from_figures(reduction, limits)]
    findings.sort(key=lambda finding: -finding[0].rank)
    worst = findings[0][0] if findings else Colour.GREEN
    reasons = (reason for colour, reason in findings if colour is not Colour.GREEN)
    return Grade(worst, tuple(dict.fromkeys(reasons)))


def _from_flags(reduction: Reduction) -> Iterator[tuple[Colour, str]]:
    for flag in reduction.flags:
        meaning = _FLAGS.get(flag)
        if meaning is None:
            yield Colour.YELLOW, flag.replace("_", " ").lower() or "a flag without a name"
        else:
            yield meaning.colour, meaning.sentence.format(r=reduction)


def _from_figures(reduction: Reduction, limits: Limits) -> Iterator[tuple[Colour, str]]:
    known = [_FLAGS[flag] for flag in reduction.flags if flag in _FLAGS]
    meaningless = _OF_THE_BAND if "OTHER_BAND" in reduction.flags else frozenset()
    explained = frozenset().union(*(meaning.explains for meaning in known))
    for figure in _FIGURES:
        if figure.name in meaningless:
            continue
        value = _measured(getattr(reduction, figure.name))
        if value is not None:
            yield from _against_limits(figure, value, getattr(limits, figure.name))
        elif figure.name not in explained and not figure.optional:
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
