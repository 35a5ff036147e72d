"""A linear fit of two coordinates: against numpy, with outliers, with a prior, undetermined."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prepipe.calibrate.sky.least_squares import clipped_fit, joint_normal, largest_error, leverage


def basis_of(x: np.ndarray, y: np.ndarray, terms: int) -> np.ndarray:
    columns = [x**0, x, y, x * x, x * y, y * y, x**3, x * x * y, x * y * y, y**3]
    return np.stack(columns[:terms], axis=-1)


def stars(seed: int, count: int, terms: int, sigma: float = 1e-3):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-1, 1, (2, count))
    basis = basis_of(x, y, terms)
    truth = rng.normal(size=(terms, 2))
    scale = sigma * rng.uniform(0.5, 2.0, count)
    target = basis @ truth + scale[:, None] * rng.normal(size=(count, 2))
    return basis, target, scale**2, truth


def nothing_known(terms: int) -> np.ndarray:
    return np.zeros((2 * terms, 2 * terms))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([3, 6, 10]), st.integers(30, 300))
def test_without_outliers_it_is_numpys_weighted_least_squares(seed, terms, count):
    basis, target, variance, _ = stars(seed, count, terms)
    determined, found, kept, squared = clipped_fit(basis, target, variance, nothing_known(terms))
    root = 1.0 / np.sqrt(variance[kept])[:, None]
    theirs = np.linalg.lstsq(root * basis[kept], root * target[kept], rcond=None)[0]
    assert determined
    np.testing.assert_allclose(found, theirs, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(squared, np.square(target - basis @ found).sum(axis=1), atol=1e-12)


def test_of_normal_errors_hardly_any_is_clipped():
    # Beyond chi^2 = 18 in two dimensions lie exp(-9) = 1.2e-4 of them.
    kept = [
        clipped_fit(*stars(seed, 1000, 3)[:3], nothing_known(3))[2].mean() for seed in range(10)
    ]
    assert np.mean(kept) > 1.0 - 10 * math.exp(-9)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_outliers_are_clipped_and_do_not_matter(share):
    basis, target, variance, truth = stars(3, 500, 6)
    far = np.random.default_rng(4).random(500) < share
    target[far] += np.random.default_rng(5).normal(scale=1.0, size=(500, 2))[far]
    _, found, kept, _ = clipped_fit(basis, target, variance, nothing_known(6))
    assert not kept[far & (np.square(target - basis @ truth).sum(axis=1) > 1e-2)].any()
    # A coefficient's error is some sigma / sqrt(350) times 3.
    assert np.abs(found - truth).max() < 6 * 3 * 1e-3 / math.sqrt(350)


def test_errors_given_far_too_small_clip_nobody():
    basis, target, variance, _ = stars(6, 300, 3)
    assert clipped_fit(basis, target, variance / 1e4, nothing_known(3))[2].mean() > 0.99


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_stars_determine_nothing(count):
    assert not clipped_fit(*stars(7, count, 3)[:3], nothing_known(3))[0]


def test_stars_on_a_line_determine_no_plane():
    x = np.linspace(-1, 1, 50)
    basis = basis_of(x, 0.3 * x, 3)
    assert not clipped_fit(basis, np.zeros((50, 2)), np.ones(50), nothing_known(3))[0]


def test_a_prior_decides_where_the_stars_do_not():
    x = np.linspace(-1, 1, 50)
    basis = basis_of(x, 0.3 * x, 3)
    target = np.stack([x, 0.0 * x], axis=-1)
    determined, found, _, _ = clipped_fit(basis, target, np.full(50, 1e-6), np.eye(6))
    assert determined
    # Of all slopes that fit, the prior takes the shortest: along the line.
    np.testing.assert_allclose(found[1:, 0], np.array([1.0, 0.3]) / 1.09, atol=1e-4)


def test_a_prior_ties_the_coordinates_to_each_other():
    basis, target, variance, _ = stars(8, 40, 3)
    # A rotation only: the slope of one coordinate is minus that of the other.
    tie = np.zeros((6, 6))
    direction = np.array([0.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    tie += 1e12 * np.outer(direction, direction)
    found = clipped_fit(basis, target, variance, tie)[1]
    assert found[2, 0] == pytest.approx(-found[1, 1], abs=1e-5)


def test_the_formal_error_is_the_scatter_of_many_fits():
    places = basis_of(np.array([1.0, -1.0]), np.array([1.0, 1.0]), 3)
    basis, _, variance, truth = stars(9, 60, 3)
    rng = np.random.default_rng(10)
    off = []
    for _ in range(600):
        target = basis @ truth + np.sqrt(variance)[:, None] * rng.normal(size=(60, 2))
        off.append(places @ (clipped_fit(basis, target, variance, nothing_known(3))[1] - truth))
    scatter = np.sqrt(np.square(off).mean(axis=(0, 2))).max()
    formal = largest_error(places, joint_normal(basis, 1.0 / variance, nothing_known(3)))
    # 1200 draws tell a standard deviation to 2 %.
    assert formal == pytest.approx(scatter, rel=0.08)


def test_leverage_is_the_variance_of_the_fit_in_units_of_a_stars():
    basis = basis_of(*np.random.default_rng(11).uniform(-1, 1, (2, 80)), 3)
    places = basis_of(np.array([1.0, 0.0]), np.array([1.0, 0.0]), 3)
    normal = joint_normal(basis, np.full(80, 1.0 / 0.25), nothing_known(3))
    assert leverage(places, basis) == pytest.approx((largest_error(places, normal) / 0.5) ** 2)


def test_what_is_not_determined_has_an_infinite_error():
    x = np.linspace(-1, 1, 50)
    basis = basis_of(x, 0.3 * x, 3)
    assert leverage(basis, basis) == math.inf
    assert largest_error(basis, joint_normal(basis, np.ones(50), nothing_known(3))) == math.inf
