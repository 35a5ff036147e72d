"""The astrometric solution: right where it can be, silent where it cannot.

A fit of p coefficients to n stars of error sigma has a variance of p / sum(1 / sigma^2),
averaged over the frame; what a polynomial of its order cannot follow comes on top. Tests
ask for less than 2.5 times the root of the sum: for the least p, 3 (6 degrees of freedom in
two coordinates), chance exceeds that once in 10^5.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from sky_fields import DECAM, SHAPE, Field, grid_error_mas, make_field, nominal

from prepipe.calibrate.flags import SourceFlag
from prepipe.calibrate.sky.astrometry import VETOES, AstrometrySettings, solve
from prepipe.calibrate.sky.refcat import ReferenceStars
from prepipe.calibrate.sky.tpv import POWERS, Tpv, gnomonic
from prepipe.calibrate.stars.sources import Sources
from prepipe.engines.builtin.sky import _attempt
from prepipe.engines.references.source import load_reference

SDSS = Tpv.from_header(
    {
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CRVAL1": 351.65,
        "CRVAL2": 0.1037,
        "CRPIX1": 1024.5,
        "CRPIX2": 744.5,
        "CD1_1": 1.95e-8,
        "CD1_2": 1.09985e-4,
        "CD2_1": 1.10004e-4,
        "CD2_2": 9.74e-9,
    }
)
SDSS_SHAPE = (1489, 2048)


def unmodelled_mas(field: Field, order: int, wcs: Tpv | None = None) -> float:
    """One-dimensional rms of the distortion that a polynomial of `order` leaves."""
    wcs = wcs or field.nominal
    side = np.linspace(-1, 1, 25)
    a, b = (g.ravel() for g in np.meshgrid(side, side))
    x, y = (a + 1) / 2 * (field.shape[1] - 1), (b + 1) / 2 * (field.shape[0] - 1)
    centre = np.array(field.truth.pixel_to_sky(x.mean(), y.mean()))
    true = np.stack(gnomonic(*field.truth.pixel_to_sky(x, y), centre))
    middle = np.array(wcs.pixel_to_sky(x.mean(), y.mean()))
    given = np.stack(gnomonic(*wcs.pixel_to_sky(x, y), middle))
    terms = np.stack([a**i * b**j for i, j in POWERS if i + j <= order], axis=-1)
    rest = (true - given).T
    rest = rest - terms @ np.linalg.lstsq(terms, rest, rcond=None)[0]
    return 3.6e6 * math.sqrt(np.square(rest).mean())


def tolerance_mas(field: Field, solution, wcs: Tpv | None = None) -> float:
    """Largest grid error to expect of a solution, from the noise of its own stars."""
    scale = 1e3 * field.nominal.pixel_scale
    error = field.reference.position_error_mas[solution.reference]
    precision = (1.0 / (np.square(field.sigma[solution.source] * scale) + error**2 + 25.0)).sum()
    terms = {1: 3, 2: 6, 3: 10}[solution.order]
    return 2.5 * math.hypot(
        math.sqrt(terms / precision), unmodelled_mas(field, solution.order, wcs)
    )


@pytest.mark.parametrize("rotation", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("offset", [0.0, 10.0, 30.0, 60.0])
@pytest.mark.parametrize("stars", [60, 900, 8000], ids=["sparse", "medium", "dense"])
def test_a_pointing_error_is_found_and_the_sky_recovered_to_the_noise(stars, offset, rotation):
    seed = int(stars + 7 * offset + 100 * rotation)
    field = make_field(seed, stars, offset, rotation, faint_per_star=2.0 if stars < 5000 else 0.7)
    solution = solve(*field.given)
    assert solution.accepted
    assert solution.flags == ()
    assert grid_error_mas(solution.wcs, field.truth, SHAPE) < tolerance_mas(field, solution)
    # The simulated shear of 5e-5 alone turns the frame by up to 0.003 deg.
    assert solution.rotation_deg == pytest.approx(rotation, abs=0.01)
    assert (field.source_star[solution.source] == solution.reference).mean() > 0.98


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_order_is_at_most_what_was_allowed(order):
    field = make_field(5, 2000)
    solution = solve(*field.given, AstrometrySettings(max_order=order))
    assert solution.accepted
    assert solution.order == order
    assert grid_error_mas(solution.wcs, field.truth, SHAPE) < tolerance_mas(field, solution)


def test_without_distortion_the_fit_stays_linear_and_a_tan_stays_a_tan():
    for seed in range(5):
        field = make_field(seed, 300, 30.0, 0.1, SDSS_SHAPE, SDSS, distortion_mas=0.0)
        solution = solve(*field.given)
        assert solution.accepted
        assert solution.order == 1
        assert solution.wcs.to_cards()["CTYPE1"] == "RA---TAN"


def test_stars_in_one_corner_do_not_let_the_others_run_away():
    for seed in range(10):
        field = make_field(seed, 100)
        corner = (field.x < 0.45 * SHAPE[1]) & (field.y < 0.3 * SHAPE[0])
        given = (column[corner] for column in field.given[:4])
        solution = solve(*given, *field.given[4:])
        # A line through some 10 stars of 20 mas, continued to three times their extent:
        # 20 / sqrt(10) x 3 in each coordinate, and the distortion of 13 mas a term.
        if solution.accepted:
            assert grid_error_mas(solution.wcs, field.truth, SHAPE) < 100.0


def worst_corner_mas(wcs: Tpv, truth: Tpv, shape) -> float:
    """Largest distance of two WCS at the four corners."""
    x, y = np.meshgrid([0, shape[1] - 1], [0, shape[0] - 1])
    ra, dec = np.stack(wcs.pixel_to_sky(x, y)) - np.stack(truth.pixel_to_sky(x, y))
    return 3.6e6 * float(np.hypot(ra * np.cos(np.radians(truth.crval[1])), dec).max())


def corner_field(seed, stars, share, sigma_px=0.03):
    """Stars in a corner of `share` of each side, of 16th to 20th magnitude."""
    field = make_field(seed, 400, 30.0, 0.15, distortion_mas=0.0, faint_per_star=0.0)
    rng = np.random.default_rng(seed)
    x, y = (rng.uniform(0, share * side, stars) for side in SHAPE[::-1])
    ra, dec = field.truth.pixel_to_sky(x, y)
    mag = rng.uniform(16, 20, stars)
    reference = ReferenceStars(ra, dec, mag, np.full(stars, 10.0))
    noise = rng.normal(0, math.hypot(sigma_px, 0.010 / field.nominal.pixel_scale), (2, stars))
    sigma = np.full(stars, sigma_px)
    return field, (x + noise[0], y + noise[1], 10 ** (-0.4 * (mag - 25.0)), sigma, reference)


@pytest.mark.parametrize(("stars", "share"), [(16, 0.05), (16, 0.1), (40, 0.1), (40, 0.3)])
def test_the_formal_error_holds_in_the_corner_farthest_from_the_stars(stars, share):
    ratios = []
    for seed in range(12):
        field, columns = corner_field(seed, stars, share)
        solution = solve(*columns, field.nominal, SHAPE)
        if solution.accepted:
            error = worst_corner_mas(solution.wcs, field.truth, SHAPE)
            ratios.append(error / solution.worst_error_mas)
    assert len(ratios) >= 8
    # A radial error in units of the one-dimensional has a mean square of 2 (Rayleigh).
    assert max(ratios) < math.sqrt(2.0 * math.log(12 * 1e4))
    assert math.sqrt(np.square(ratios).mean()) < 2.0 * math.sqrt(2.0)


def test_a_solution_from_stars_in_a_corner_says_that_these_are_poorly_spread():
    field, columns = corner_field(1, 16, 0.05, sigma_px=0.1)
    solution = solve(*columns, field.nominal, SHAPE)
    assert solution.accepted
    assert "POORLY_SPREAD" in solution.flags
    assert solution.worst_error_mas > 300.0


def test_the_formal_error_of_well_spread_stars_is_that_of_their_number():
    field = make_field(3, 900, distortion_mas=0.0)
    solution = solve(*field.given, AstrometrySettings(max_order=1))
    # In the corners of a uniform square a linear fit has 7 times a mean's variance, 3 on its
    # sides; the stars lie between the best, 7 mas with the atmosphere, and 40 mas.
    mean = solution.matches**-0.5
    assert math.sqrt(3) * 5.0 * mean < solution.worst_error_mas < math.sqrt(8) * 40.0 * mean


def test_the_distortion_turns_with_the_camera():
    # Strong terms that are not symmetric about the axis: PV1_4 as on an outer CCD of DECam.
    strong = Tpv.from_header(
        DECAM | {"CRPIX1": 8914.4, "PV1_4": -0.0316, "PV2_4": -0.0164, "PV1_10": -0.0907}
    )
    field = make_field(9, 900, 60.0, 0.2, wcs=strong, distortion_mas=0.0)
    solution = solve(*field.given, AstrometrySettings(max_order=1))
    noise = tolerance_mas(replace(field, nominal=field.truth), solution)
    assert noise < 2.5
    assert grid_error_mas(solution.wcs, field.truth, SHAPE) < noise


def test_a_tenth_of_displaced_stars_does_no_harm():
    # Blends and fast stars, a pixel off and all to one side: unclipped they shift by 26 mas.
    field = make_field(10, 900, distortion_mas=0.0)
    rng = np.random.default_rng(10)
    field.x[rng.random(field.x.size) < 0.1] += 1.0
    solution = solve(*field.given)
    assert solution.accepted
    assert grid_error_mas(solution.wcs, field.truth, SHAPE) < tolerance_mas(field, solution)


@pytest.mark.parametrize("stars", [60, 300, 1500])
def test_a_plain_tan_frame_with_large_pixels_is_solved(stars):
    for seed in range(4):
        field = make_field(seed, stars, 30.0, 0.1, SDSS_SHAPE, SDSS)
        solution = solve(*field.given)
        assert solution.accepted
        assert grid_error_mas(solution.wcs, field.truth, SDSS_SHAPE) < tolerance_mas(
            field, solution
        )


@pytest.mark.parametrize("stars", [200, 900, 8000])
def test_a_header_without_its_distortion_is_solved(stars):
    field = make_field(stars, stars, 30.0, 0.1, faint_per_star=0.7)
    plain = Tpv(field.nominal.crval, field.nominal.crpix, field.nominal.cd)
    solution = solve(*field.given[:5], plain, field.shape, AstrometrySettings(search_arcsec=120.0))
    assert solution.accepted
    assert grid_error_mas(solution.wcs, field.truth, SHAPE) < tolerance_mas(field, solution, plain)


@pytest.mark.parametrize(("shape", "stars"), [((217, 400), 41), ((300, 300), 43), ((500, 500), 27)])
def test_a_small_crop_is_solved(shape, stars):
    for seed in range(5):
        field = make_field(seed, stars, 30.0, 0.1, shape)
        solution = solve(*field.given)
        assert solution.accepted
        assert grid_error_mas(solution.wcs, field.truth, shape) < tolerance_mas(field, solution)


@pytest.mark.parametrize("spurious", [0, 20, 100])
@pytest.mark.parametrize("stars", [5, 8, 10, 20])
def test_with_few_stars_a_solution_is_right_or_there_is_none(stars, spurious):
    accepted = 0
    for seed in range(10):
        field = make_field(seed, 400, 45.0, 0.1, faint_per_star=0.0)
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(np.argsort(-field.flux)[: 2 * stars])[:stars]
        x = np.append(field.x[chosen], rng.uniform(0, SHAPE[1], spurious))
        y = np.append(field.y[chosen], rng.uniform(0, SHAPE[0], spurious))
        flux = np.append(field.flux[chosen], rng.choice(field.flux[chosen], spurious))
        sigma = np.append(field.sigma[chosen], np.full(spurious, 0.05))
        solution = solve(x, y, flux, sigma, *field.given[4:])
        accepted += solution.accepted
        if solution.accepted:
            assert solution.matches >= 8
            assert grid_error_mas(solution.wcs, field.truth, SHAPE) < 50.0
    if stars >= 10:
        # One in fifty of them is in no catalogue, so that 8 of 10 all but always are.
        assert accepted >= 9


@pytest.mark.parametrize(("stars", "frames"), [(60, 100), (300, 100), (900, 100), (8000, 10)])
def test_no_catalogue_of_another_field_is_ever_accepted(stars, frames):
    for seed in range(frames):
        field = make_field(seed, stars, faint_per_star=2.0 if stars < 5000 else 0.7)
        other = make_field(seed + 10_000, stars, faint_per_star=0.0)
        solution = solve(*field.given[:4], other.reference, *field.given[5:])
        assert not solution.accepted
        assert solution.wcs is field.nominal
        assert set(solution.flags) & set(VETOES)


@pytest.mark.parametrize("shift_arcsec", [1.5, 4.0, 20.0, 60.0, 130.0])
@pytest.mark.parametrize("share", [0.5, 0.7])
@pytest.mark.parametrize("stars", [60, 900])
def test_a_doubled_exposure_is_ambiguous(stars, share, shift_arcsec):
    for seed in range(3):
        field = make_field(seed, stars, 20.0)
        shift = shift_arcsec / field.nominal.pixel_scale
        angle = np.random.default_rng(seed).uniform(0, 2 * math.pi)
        solution = solve(
            np.append(field.x, field.x + shift * math.cos(angle)),
            np.append(field.y, field.y + shift * math.sin(angle)),
            np.append(share * field.flux, (1 - share) * field.flux),
            np.append(field.sigma, field.sigma),
            *field.given[4:],
        )
        assert not solution.accepted
        assert "AMBIGUOUS" in solution.flags


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_doubled_exposure_of_a_crowded_field_is_ambiguous(seed):
    # The brightest images below saturation are so much alike that each star has one among them.
    field = make_field(seed, 8000, 20.0, faint_per_star=1.0)
    angle = np.random.default_rng(seed).uniform(0, 2 * math.pi)
    shift = 20.0 / field.nominal.pixel_scale
    flux = np.append(0.62 * field.flux, 0.38 * field.flux)
    solution = solve(
        np.append(field.x, field.x + shift * math.cos(angle)),
        np.append(field.y, field.y + shift * math.sin(angle)),
        np.where(flux < 10 ** (-0.4 * (17.0 - 25.0)), flux, np.nan),
        np.append(field.sigma, field.sigma),
        *field.given[4:],
    )
    assert "AMBIGUOUS" in solution.flags


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_crowded_field_exposed_once_is_not_ambiguous(seed):
    assert solve(*make_field(seed, 8000, 20.0, faint_per_star=1.0).given).flags == ()


@pytest.mark.parametrize("seed", [3, 5, 18, 167, 173, 279])
@pytest.mark.parametrize("shift_arcsec", [2.0, 3.0])
def test_a_few_stars_of_a_doubled_exposure_are_never_mixed(seed, shift_arcsec):
    # 20 catalogued stars among fainter ones, of whose second images few are deep enough.
    field = make_field(seed, 20, 45.0, faint_per_star=20.0)
    angle = np.random.default_rng(seed).uniform(0, 2 * math.pi)
    step = shift_arcsec / field.nominal.pixel_scale * np.array([math.cos(angle), math.sin(angle)])
    seen = np.random.default_rng(seed + 5).random((2, field.x.size)) < 0.9
    first, second = seen & (np.outer([0.7, 0.3], field.flux) > 10 ** (-0.4 * (22.8 - 25.0)))
    solution = solve(
        np.append(field.x[first], field.x[second] + step[0]),
        np.append(field.y[first], field.y[second] + step[1]),
        np.append(0.7 * field.flux[first], 0.3 * field.flux[second]),
        np.append(field.sigma[first], field.sigma[second]),
        *field.given[4:],
    )
    if solution.accepted:
        moved = replace(field.truth, crpix=field.truth.crpix + step)
        assert min(grid_error_mas(solution.wcs, w, SHAPE) for w in (field.truth, moved)) < 300.0


def test_a_sheared_solution_is_not_accepted():
    field = make_field(4, 900, 5.0)
    sheared = replace(field.nominal, cd=field.nominal.cd @ np.array([[1.0, 0.004], [0.0, 1.0]]))
    assert solve(*field.given[:5], sheared, field.shape).flags == ("BAD_SCALE",)


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_many_stars_in_a_corner_are_no_doubled_exposure(share):
    for seed in range(5):
        field, columns = corner_field(seed, 80, share)
        assert "AMBIGUOUS" not in solve(*columns, field.nominal, SHAPE).flags


def test_three_stars_are_too_few():
    field = make_field(1, 900)
    solution = solve(*(column[:3] for column in field.given[:4]), *field.given[4:])
    assert not solution.accepted
    assert solution.flags == ("TOO_FEW_SOURCES",)


def test_nothing_at_all_is_too_few():
    empty = np.empty(0)
    field = make_field(1, 100)
    solution = solve(empty, empty, empty, empty, *field.given[4:])
    assert solution.flags == ("TOO_FEW_SOURCES",)
    nobody = ReferenceStars(empty, empty, empty, empty)
    assert solve(*field.given[:4], nobody, *field.given[5:]).flags == ("TOO_FEW_REFERENCES",)


def test_a_catalogue_of_another_part_of_the_sky_has_too_few_references():
    field = make_field(1, 300)
    away = replace(field.reference, dec=field.reference.dec + 5.0)
    solution = solve(*field.given[:4], away, *field.given[5:])
    assert solution.flags == ("TOO_FEW_REFERENCES",)


def test_an_offset_beyond_the_search_is_not_found_and_found_with_a_wider_one():
    field = make_field(2, 900, 150.0)
    assert not solve(*field.given).accepted
    solution = solve(*field.given, AstrometrySettings(search_arcsec=200.0))
    assert solution.accepted
    assert solution.offset_arcsec == pytest.approx(150.0, abs=15.0)


def test_a_mirrored_header_is_not_accepted():
    field = make_field(3, 900)
    mirrored = replace(field.nominal, cd=field.nominal.cd @ np.diag([-1.0, 1.0]))
    assert not solve(*field.given[:5], mirrored, field.shape).accepted


def test_a_wrong_scale_is_not_accepted():
    field = make_field(4, 900, 5.0)
    stretched = replace(field.nominal, cd=1.03 * field.nominal.cd)
    assert not solve(*field.given[:5], stretched, field.shape).accepted


def test_bad_rows_are_left_out_and_indices_are_those_of_the_arrays_given():
    field = make_field(6, 900)
    clean = solve(*field.given)
    bad = {"x": (0, np.nan), "y": (1, np.inf), "flux": (2, -5.0), "sigma": (3, np.nan)}
    columns = []
    for name, (row, value) in bad.items():
        column = np.insert(getattr(field, name), [0] * 4, 100.0)
        column[row] = value
        columns.append(column)
    solution = solve(*columns, *field.given[4:])
    assert np.array_equal(np.sort(solution.source), np.sort(clean.source) + 4)
    assert np.array_equal(np.sort(solution.reference), np.sort(clean.reference))


def test_saturated_stars_missing_from_the_list_do_no_harm():
    field = make_field(7, 900)
    kept = np.argsort(-field.flux)[100:]
    solution = solve(*(column[kept] for column in field.given[:4]), *field.given[4:])
    assert solution.accepted
    assert grid_error_mas(solution.wcs, field.truth, SHAPE) < tolerance_mas(
        replace(field, source_star=field.source_star[kept], sigma=field.sigma[kept]), solution
    )


def sources_of(field: Field, trail: int) -> Sources:
    """The field's sources, and a saturated column of `trail` more, 20 pixels apart."""
    columns = [
        np.append(field.x, np.full(trail, 700.0)),
        np.append(field.y, 300.0 + 20.0 * np.arange(trail)),
        np.append(field.flux, np.full(trail, 1e6 * field.flux.max()))[:, None],
        np.append(field.sigma, np.full(trail, 0.01)),
        np.append(np.zeros(field.x.size, int), np.full(trail, int(SourceFlag.SATURATED))),
    ]
    x, y, flux, sigma, flags = columns
    rest = dict.fromkeys(("xx", "yy", "xy", "half_light_radius", "peak", "snr"), np.ones(x.size))
    return Sources(
        x,
        y,
        flux,
        flux,
        position_sigma=sigma,
        flags=flags,
        radii_px=np.ones(1),
        main_aperture=0,
        **rest,
    )


def attempt(field: Field, sources: Sources):
    shape = SimpleNamespace(trimmed_shape=SHAPE)
    return _attempt(sources, field.reference, field.nominal, shape, AstrometrySettings())


@pytest.mark.parametrize("stars", [60, 900])
def test_a_bleed_trail_does_not_speak_against_a_solution(stars):
    field = make_field(12, stars)
    solution = attempt(field, sources_of(field, 100))
    assert solution.flags == ()
    assert grid_error_mas(solution.wcs, field.truth, SHAPE) < tolerance_mas(field, solution)


def test_where_all_but_a_few_stars_are_saturated_these_are_used():
    sources = sources_of(field := make_field(13, 300, faint_per_star=0.0), 0)
    sources.flags[10:] = SourceFlag.SATURATED
    assert attempt(field, sources).accepted


def test_a_real_frame_is_solved_from_a_header_30_arcsec_off(shared_data):
    import sep

    with fits.open(shared_data / "sdss/fpC-004192-r4-0300.fit.gz") as hdus:
        image = hdus[0].data.astype(np.float32) - 1000.0
        header = Tpv.from_header(hdus[0].header)
    background = sep.Background(image)
    found = sep.extract(image - background, 5.0, err=background.globalrms, minarea=5)
    found = found[found["flag"] == 0]
    catalogue = load_reference(shared_data / "refcats/sdss_stripe82_stars.fits", band="r")
    ra, dec = (float(v) for v in header.pixel_to_sky(1023.5, 744.0))
    # Seeing of 1.2 arcsec: sigma / (S/N) for each, at least 0.02 px.
    sigma = np.maximum(1.3 / (found["flux"] / (background.globalrms * 6.0)), 0.02)
    solution = solve(
        found["x"],
        found["y"],
        found["flux"],
        sigma,
        catalogue.near(ra, dec, 0.3),
        header.repointed(24 / 3600, -18 / 3600, 0.1),
        image.shape,
    )
    assert solution.accepted
    assert solution.matches > 60
    # The catalogue's own error is 45 mas a coordinate; a pixel is 396.
    assert solution.rms_mas < 60.0
    assert solution.offset_arcsec == pytest.approx(30.0, abs=0.2)
    # The survey's own astrometry is good to 45 mas too.
    assert grid_error_mas(solution.wcs, header, image.shape) < 100.0


def test_the_default_header_is_the_one_of_a_ccd_far_from_the_tangent_point():
    x, y = nominal().sky_to_pixel(*nominal().crval)
    assert math.hypot(x, y) > 7000
