"""A frame with a handful of stars, searched around the pointing that another frame told."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sky_fields import SHAPE, Field, grid_error_mas, make_field

from prepipe.calibrate.sky.astrometry import AstrometrySettings, AstrometrySolution, solve
from prepipe.calibrate.sky.refcat import ReferenceStars
from prepipe.calibrate.sky.tpv import Tpv

RELAXED = AstrometrySettings(search_arcsec=25.0, rms_limit_mas=275.0, min_matches=5)
SPURIOUS = 40


def centre(wcs: Tpv) -> tuple[float, float]:
    ra, dec = wcs.pixel_to_sky((SHAPE[1] - 1) / 2, (SHAPE[0] - 1) / 2)
    return float(ra), float(dec)


def pointed(field: Field, rng: np.random.Generator) -> Tpv:
    """The header's WCS moved as another frame tells, to half an arcsec."""
    (ra, dec), (true_ra, true_dec) = centre(field.nominal), centre(field.truth)
    east, north = rng.normal(0, 0.5 / 3600, 2)
    turn = east / math.cos(math.radians(dec))
    return field.nominal.repointed(true_ra - ra + turn, true_dec - dec + north, 0.0)


def solved(
    field: Field, stars: int, start: Tpv | None, rng: np.random.Generator, wrong: bool = False
) -> AstrometrySolution:
    """Solve with so many true stars and others in no catalogue, or with stars of elsewhere."""
    seen = np.flatnonzero(field.source_star >= 0)
    true = rng.choice(seen[np.argsort(-field.flux[seen])][: 2 * stars], stars, replace=False)
    others = rng.choice(np.setdiff1d(np.arange(len(field.x)), seen), SPURIOUS, replace=False)
    chosen = np.concatenate([true, others])
    flux = np.concatenate([field.flux[true], rng.choice(field.flux[true], SPURIOUS)])
    rows = field.source_star[true]
    ra, dec = field.reference.ra[rows], field.reference.dec[rows]
    if wrong:
        middle = centre(field.truth)
        ra = middle[0] + rng.uniform(-0.1, 0.1, stars) / math.cos(math.radians(middle[1]))
        dec = middle[1] + rng.uniform(-0.1, 0.1, stars)
    reference = ReferenceStars(
        ra, dec, field.reference.mag[rows], field.reference.position_error_mas[rows]
    )
    arrays = field.x[chosen], field.y[chosen], flux, field.sigma[chosen]
    if start is None:
        return solve(*arrays, reference, field.nominal, SHAPE)
    return solve(*arrays, reference, start, SHAPE, RELAXED)


@pytest.mark.parametrize("stars", [5, 6, 7])
def test_five_stars_do_where_the_pointing_is_known_and_not_without(stars: int) -> None:
    helped, alone = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        field = make_field(seed, stars=300, rotation_deg=0.0)
        helped.append((solved(field, stars, pointed(field, rng), rng), field))
        alone.append(solved(field, stars, None, rng))
    assert not any(solution.accepted for solution in alone)
    right = [pair for pair in helped if pair[0].accepted]
    assert len(right) >= 18
    for solution, field in right:
        assert grid_error_mas(solution.wcs, field.truth, SHAPE) < 4 * solution.worst_error_mas


def test_four_stars_are_never_enough() -> None:
    rng = np.random.default_rng(4)
    field = make_field(4, stars=300, rotation_deg=0.0)
    assert not solved(field, 4, pointed(field, rng), rng).accepted


def test_a_wrong_field_is_never_taken_for_right_whatever_pointing_is_told() -> None:
    field = make_field(1, stars=300, rotation_deg=0.0)
    rng = np.random.default_rng(1)
    for trial in range(200):
        stars = (6, 10, 20, 40)[trial % 4]
        assert not solved(field, stars, pointed(field, rng), rng, wrong=True).accepted
