"""Width and shape of the stars come out as they were put in, wherever on the CCD."""

from __future__ import annotations

import numpy as np
import pytest
from star_image import SIGMA_TO_FWHM, Field, Profile

from prepipe.calibrate.stars.psf import Psf, find_sources
from prepipe.calibrate.stars.psf_map import PsfMap, fit_psf_map, window_response

SHAPE = (900, 700)
FWHM = 4.0
SKY = 100.0
BOX = 64
PLACES = np.array([0.0, 699.0, 0.0, 699.0, 350.0]), np.array([0.0, 0.0, 899.0, 899.0, 450.0])
TILT = PsfMap(
    SHAPE, np.array([FWHM, 0.3, -0.2]), np.array([0.03, 0.05, 0.0]), np.array([-0.02, 0.0, 0.06])
)
BOWL = PsfMap(
    SHAPE,
    np.array([FWHM, 0.1, 0.0, 0.3, 0.0, 0.2]),
    np.array([0.0, 0.02, 0.0, 0.03, 0.0, 0.0]),
    np.array([0.0, 0.0, 0.02, 0.0, 0.03, 0.0]),
)


def elliptical_moffat(fwhm: float, e1: float, e2: float, beta: float = 3.0) -> Profile:
    core = fwhm / 2 / np.sqrt(2 ** (1 / beta) - 1)

    def profile(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        squared = ((1 - e1) * dx**2 + (1 + e1) * dy**2 - 2 * e2 * dx * dy) / np.sqrt(
            1 - e1**2 - e2**2
        )
        return (beta - 1) / (np.pi * core**2) * (1 + squared / core**2) ** -beta

    return profile


def sky_of(truth: PsfMap, snr: float, spacing: int = 45, seed: int = 3) -> Field:
    """Stars on a grid over the frame, each as wide and as long as the truth says there."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[spacing // 2 : SHAPE[0] : spacing, spacing // 2 : SHAPE[1] : spacing]
    x, y = (a.ravel() + rng.uniform(-0.5, 0.5, a.size) for a in (x, y))
    flux = np.full(x.size, snr * np.sqrt(4 * np.pi * (FWHM / SIGMA_TO_FWHM) ** 2 * SKY))
    light = np.zeros(SHAPE)
    for x0, y0, f, *shape in zip(x, y, flux, *truth.at(x, y), strict=True):
        rows = slice(max(0, int(y0) - 22), int(y0) + 23)
        columns = slice(max(0, int(x0) - 22), int(x0) + 23)
        dy, dx = np.mgrid[rows, columns][:, : SHAPE[0] - rows.start, : SHAPE[1] - columns.start]
        light[rows, columns] += f * elliptical_moffat(*shape)(dx - x0, dy - y0)
    image = rng.normal(light, np.sqrt(light + SKY)).astype(np.float32)
    return Field(image, x, y, flux, SKY)


def measured(field: Field) -> Psf:
    rms = np.full([-(-side // BOX) for side in SHAPE], np.sqrt(SKY), np.float32)
    return find_sources(field.image, field.mask, rms, BOX, FWHM, SKY)[1]


@pytest.mark.parametrize("truth", [TILT, BOWL], ids=["tilt", "bowl"])
def test_width_and_ellipticity_are_recovered_everywhere(truth: PsfMap) -> None:
    snr = 150.0
    psf = measured(sky_of(truth, snr))
    assert psf.map.degree in (truth.degree, 2)
    width, e1, e2 = psf.map.at(*PLACES)
    true_width, true_e1, true_e2 = truth.at(*PLACES)
    np.testing.assert_allclose(width, true_width, rtol=0.02)
    # 2 / snr a star, times sqrt(2) for its own photons; a corner has a quarter of all stars'
    # weight or less: sqrt(6 terms x 4 / stars) of it.
    noise = np.sqrt(2) * 2 / snr * np.sqrt(24 / psf.n_stars)
    np.testing.assert_allclose(e1, true_e1, atol=3.5 * noise)
    np.testing.assert_allclose(e2, true_e2, atol=3.5 * noise)


def test_stars_that_become_a_third_wider_across_the_frame_are_all_found() -> None:
    truth = PsfMap(SHAPE, np.array([FWHM, 0.6, 0.0]), np.zeros(3), np.zeros(3))
    field = sky_of(truth, 100.0)
    psf = measured(field)
    assert psf.n_stars > 0.9 * field.x.size
    smallest, largest = psf.map.fwhm_range_px
    assert (smallest, largest) == pytest.approx((FWHM - 0.6, FWHM + 0.6), rel=0.03)


def stars(n: int, scatter: float, seed: int = 7) -> tuple[tuple, np.ndarray, tuple]:
    rng = np.random.default_rng(seed)
    place = rng.uniform(0, SHAPE[1], n), rng.uniform(0, SHAPE[0], n)
    width, *shapes = rng.normal([[1.0], [0.0], [0.0]], scatter, (3, n))
    return place, width, tuple(shapes)


@pytest.mark.parametrize(("n", "degree"), [(5, 0), (100, 1), (1000, 2)])
def test_more_stars_allow_more_terms(n: int, degree: int) -> None:
    place, width, shapes = stars(n, 0.03)
    assert fit_psf_map(SHAPE, place, width, shapes, FWHM).degree == degree


def test_stars_in_one_corner_are_not_extrapolated() -> None:
    place, width, shapes = stars(300, 0.03)
    crowded = place[0] / 8, place[1] / 8
    fitted = fit_psf_map(SHAPE, crowded, width, shapes, FWHM)
    assert fitted.degree == 0
    assert fitted.at(*PLACES)[0] == pytest.approx(np.full(5, FWHM), rel=0.01)


def test_outliers_do_not_bend_the_map() -> None:
    place, width, shapes = stars(400, 0.02)
    clean = fit_psf_map(SHAPE, place, width, shapes, FWHM)
    spoilt = width.copy()
    spoilt[:40] *= 1.5
    bent = fit_psf_map(SHAPE, place, spoilt, shapes, FWHM)
    # A tenth of the stars lost: the fit moves by less than its formal error at a corner.
    error = FWHM * 0.02 * np.sqrt(24 / 400)
    np.testing.assert_allclose(bent.at(*PLACES)[0], clean.at(*PLACES)[0], atol=error)


def test_without_stars_nothing_is_told() -> None:
    nothing = np.empty(0)
    fitted = fit_psf_map(SHAPE, (nothing, nothing), nothing, (nothing, nothing), FWHM)
    assert np.isnan(fitted.at(*PLACES)).all()
    assert np.isnan(fitted.fwhm_range_px).all()


def test_a_window_sees_all_of_a_gaussian_and_less_of_wings() -> None:
    assert window_response(float("inf")) == (1.0, 1.0)
    steep, shallow = window_response(10.0), window_response(2.5)
    assert shallow < steep < (1.0, 1.0)
    assert min(shallow) > 0.7
