"""Grades: every figure against its limits, every flag by its meaning."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prepipe.calibrate.sky.astrometry import VETOES
from prepipe.config import Limits
from prepipe.model import Colour, Reduction
from prepipe.quality import grade, limits_for

LIMITS = Limits()
GOOD = Reduction(
    exposure=941420,
    ccd=25,
    wcs_rms_mas=30.0,
    wcs_matches=120,
    zero_point=25.1,
    zero_point_scatter=0.02,
    zero_point_stars=80,
    seeing_arcsec=1.1,
    ellipticity=0.05,
)
FIGURES = ("seeing_arcsec", "wcs_rms_mas", "zero_point_scatter", "ellipticity")
FLAGS = (
    "NO_WCS",
    "ASTROMETRY_FAILED",
    "FEW_REFERENCES",
    "DEAD",
    "BLANK",
    "SATURATED_FRAME",
    "NO_SOURCES",
    "CORRUPT_PIXELS",
    "PARTIAL_DEAD",
    "NO_OVERSCAN",
    "NO_ZERO_POINT",
    "NO_REFERENCE",
    "TRAILED",
    "NO_BIAS",
    "NO_FLAT",
    "SOMETHING_NEW",
)
numbers = st.floats(min_value=0, allow_nan=False)


def test_a_good_ccd_is_green_and_says_nothing():
    verdict = grade(GOOD, LIMITS)
    assert verdict.colour is Colour.GREEN
    assert verdict.reasons == ()


@pytest.mark.parametrize("figure", FIGURES)
def test_the_colour_worsens_with_each_limit_passed(figure):
    first, second, third = getattr(LIMITS, figure)
    values = [first / 2, (first + second) / 2, (second + third) / 2, 2 * third]
    colours = [grade(replace(GOOD, **{figure: value}), LIMITS).colour for value in values]
    assert colours == list(Colour)


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_exactly_at_its_first_limit_is_not_green(figure):
    at_limit = replace(GOOD, **{figure: getattr(LIMITS, figure)[0]})
    assert grade(at_limit, LIMITS).colour is Colour.YELLOW


def test_a_reason_names_the_number_and_the_limit_it_passed():
    verdict = grade(replace(GOOD, seeing_arcsec=2.31), LIMITS)
    assert verdict.reasons == ("seeing 2.31 arcsec above 2",)
    verdict = grade(replace(GOOD, ellipticity=0.2), LIMITS)
    assert verdict.reasons == ("ellipticity of the stars 0.20 above 0.15",)


def test_rounding_never_hides_that_a_limit_was_passed():
    verdict = grade(replace(GOOD, seeing_arcsec=2.001), LIMITS)
    assert verdict.reasons == ("seeing 2.0010 arcsec above 2",)


@pytest.mark.parametrize("missing", [None, float("nan"), -1.0])
@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_that_could_not_be_measured_is_orange_and_said(figure, missing):
    verdict = grade(replace(GOOD, **{figure: missing}), LIMITS)
    assert verdict.colour is Colour.ORANGE
    assert len(verdict.reasons) == 1
    assert verdict.reasons[0].endswith("could not be measured")


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_missing_zero_point_is_orange(missing):
    verdict = grade(replace(GOOD, zero_point=missing), LIMITS)
    assert verdict.colour is Colour.ORANGE
    assert verdict.reasons == ("zero point could not be measured",)


@pytest.mark.parametrize(
    ("flag", "colour"),
    [
        ("NO_WCS", Colour.RED),
        ("ASTROMETRY_FAILED", Colour.RED),
        ("FEW_REFERENCES", Colour.RED),
        ("DEAD", Colour.RED),
        ("BLANK", Colour.RED),
        ("SATURATED_FRAME", Colour.RED),
        ("NO_SOURCES", Colour.RED),
        ("CORRUPT_PIXELS", Colour.RED),
        ("PARTIAL_DEAD", Colour.ORANGE),
        ("NO_OVERSCAN", Colour.ORANGE),
        ("NO_ZERO_POINT", Colour.ORANGE),
        ("NO_REFERENCE", Colour.ORANGE),
        ("TRAILED", Colour.ORANGE),
        ("NO_BIAS", Colour.YELLOW),
        ("NO_FLAT", Colour.YELLOW),
        ("NO_PSF_STARS", Colour.ORANGE),
        ("NO_NOMINAL_WCS", Colour.RED),
        ("OTHER_BAND", Colour.YELLOW),
        ("FEW_ZP_STARS", Colour.YELLOW),
        ("LOW_FRACTION", Colour.YELLOW),
        ("OTHER_KIND", Colour.ORANGE),
    ],
)
def test_each_flag_has_its_colour_and_one_reason(flag, colour):
    verdict = grade(replace(GOOD, flags=(flag,)), LIMITS)
    assert verdict.colour is colour
    assert len(verdict.reasons) == 1
    assert flag not in verdict.reasons[0]


@pytest.mark.parametrize("veto", VETOES)
def test_what_forbids_a_wcs_is_told_beside_it_in_plain_words(veto):
    lost = replace(GOOD, wcs_rms_mas=None, zero_point=None, zero_point_scatter=None)
    verdict = grade(replace(lost, flags=("NO_WCS", veto)), LIMITS)
    assert verdict.colour is Colour.RED
    assert verdict.reasons[0].startswith("no WCS found")
    assert len(verdict.reasons) == 2
    assert verdict.reasons[1] != veto.replace("_", " ").lower()


def test_a_flag_nobody_told_us_of_is_yellow_in_plain_words():
    verdict = grade(replace(GOOD, flags=("ODD_MOON_GHOST",)), LIMITS)
    assert verdict.colour is Colour.YELLOW
    assert verdict.reasons == ("odd moon ghost",)


def test_what_a_flag_explains_is_not_complained_of_twice():
    nothing = Reduction(exposure=1, ccd=1, flags=("DEAD",))
    assert grade(nothing, LIMITS).reasons == ("the whole CCD is dead: it gives no signal",)


def test_the_worst_reason_comes_first():
    verdict = grade(replace(GOOD, flags=("NO_BIAS", "TRAILED"), seeing_arcsec=9.0), LIMITS)
    assert verdict.colour is Colour.RED
    assert [reason.split()[0] for reason in verdict.reasons] == ["seeing", "stars", "no"]


@given(
    figure=st.sampled_from(FIGURES),
    pair=st.tuples(numbers, numbers),
    flags=st.lists(st.sampled_from(FLAGS), max_size=3),
)
def test_a_worse_number_never_gives_a_better_colour(figure, pair, flags):
    better, worse = sorted(pair)
    base = replace(GOOD, flags=tuple(flags))
    first = grade(replace(base, **{figure: better}), LIMITS).colour
    second = grade(replace(base, **{figure: worse}), LIMITS).colour
    assert second.rank >= first.rank


@given(
    figures=st.fixed_dictionaries(
        {name: st.one_of(st.none(), st.floats()) for name in (*FIGURES, "zero_point")}
    ),
    flags=st.lists(st.sampled_from(FLAGS), max_size=4),
)
def test_there_is_a_reason_unless_it_is_green(figures, flags):
    verdict = grade(replace(GOOD, **figures, flags=tuple(flags)), LIMITS)
    assert (verdict.colour is Colour.GREEN) == (verdict.reasons == ())


@given(
    figures=st.fixed_dictionaries(
        {name: st.one_of(st.none(), numbers) for name in (*FIGURES, "zero_point")}
    ),
    flags=st.lists(st.sampled_from(FLAGS), max_size=3),
    flag=st.sampled_from(FLAGS).filter(lambda flag: flag != "OTHER_BAND"),
)
def test_a_further_flag_never_gives_a_better_colour_where_figures_are_known(figures, flags, flag):
    known = {name: 0.01 if value is None else value for name, value in figures.items()}
    base = replace(GOOD, **known, flags=tuple(flags))
    more = replace(base, flags=(*base.flags, flag))
    assert grade(more, LIMITS).colour.rank >= grade(base, LIMITS).colour.rank


def test_a_catalogue_of_another_band_cannot_accuse_the_zero_point():
    poor = replace(GOOD, zero_point_scatter=0.7, extinction_mag=5.0)
    assert grade(poor, LIMITS).colour is Colour.RED
    assert grade(replace(poor, flags=("OTHER_BAND",)), LIMITS).colour is Colour.YELLOW


def test_light_lost_to_clouds_costs_the_grade():
    assert grade(replace(GOOD, extinction_mag=None), LIMITS).colour is Colour.GREEN
    assert grade(replace(GOOD, extinction_mag=0.3), LIMITS).colour is Colour.GREEN
    assert grade(replace(GOOD, extinction_mag=3.0), LIMITS).colour is Colour.RED


@pytest.mark.parametrize(("flag", "what"), [("OLD_BIAS", "bias"), ("OLD_FLAT", "dome flat")])
def test_a_master_from_far_away_in_time_is_yellow_and_says_how_far(flag, what):
    verdict = grade(replace(GOOD, flags=(flag,), bias_nights=12, flat_nights=12), LIMITS)
    assert verdict.colour is Colour.YELLOW
    assert verdict.reasons == (f"its {what} is 12 nights away",)


@pytest.mark.parametrize(
    ("tables", "seeing"),
    [
        ({}, Limits().seeing_arcsec),
        ({"default": 1.0}, (1.0, 5.0, 9.0)),
        ({"default": 1.0, "g": 2.0}, (2.0, 5.0, 9.0)),
        ({"g": 2.0, "decam": 3.0}, (3.0, 5.0, 9.0)),
        ({"decam": 3.0, "decam.g": 4.0, "g": 2.0}, (4.0, 5.0, 9.0)),
        ({"decam.r": 4.0, "sdss": 3.0, "r": 2.0, "default": 1.0}, (1.0, 5.0, 9.0)),
    ],
)
def test_the_most_specific_limits_hold(tables, seeing):
    told = {name: Limits(seeing_arcsec=(first, 5.0, 9.0)) for name, first in tables.items()}
    assert limits_for(told, "decam", "g").seeing_arcsec == seeing


def test_what_specific_limits_leave_out_comes_from_the_less_specific():
    told = {
        "default": Limits(ellipticity=(0.5, 0.6, 0.7), seeing_arcsec=(1.0, 2.0, 3.0)),
        "decam.g": Limits(seeing_arcsec=(2.0, 3.0, 4.0)),
    }
    found = limits_for(told, "decam", "g")
    assert found.seeing_arcsec == (2.0, 3.0, 4.0)
    assert found.ellipticity == (0.5, 0.6, 0.7)
    assert found.wcs_rms_mas == Limits().wcs_rms_mas


@pytest.mark.parametrize(
    ("part", "colour"),
    [(0.02, Colour.GREEN), (0.25, Colour.YELLOW), (0.35, Colour.ORANGE), (0.7, Colour.RED)],
)
def test_a_bright_sky_costs_the_grade(part, colour):
    verdict = grade(replace(GOOD, sky_fraction=part), LIMITS)
    assert verdict.colour is colour
    assert all(reason.startswith("sky") for reason in verdict.reasons)
