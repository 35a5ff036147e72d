"""Votes and nearest neighbours, against scipy and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.stats import poisson

from prepipe.calibrate.sky.matching import log10_chance, nearest_pairs, vote_for_offset


@given(count=st.integers(1, 400), expected=st.floats(1e-3, 100.0))
def test_the_chance_of_a_count_is_never_understated_and_close_above_the_mean(count, expected):
    exact = poisson.logsf(count - 1, expected) / np.log(10)
    ours = log10_chance(count, expected)
    if np.isfinite(exact):
        assert ours >= exact - 1e-9
        # The geometric bound is within a factor of 2 from two standard deviations on.
        if count > expected + 2.0 * np.sqrt(expected) + 2.0:
            assert ours - exact < np.log10(2.0)


def test_a_count_where_nothing_is_expected_cannot_be_chance():
    assert log10_chance(1, 0.0) == -np.inf
    assert log10_chance(0, 0.0) == 0.0


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    detections=st.integers(0, 60),
    references=st.integers(0, 60),
    radius=st.floats(0.5, 200.0),
)
def test_pairs_are_those_of_a_tree_with_each_star_given_to_its_nearest(
    seed, detections, references, radius
):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-20, 320, (2, detections))
    u, v = rng.uniform(0, 300, (2, references))
    expected = {}
    if detections and references:
        distance, star = cKDTree(np.c_[u, v]).query(np.c_[x, y])
        for k in np.argsort(-distance):
            if distance[k] <= radius:
                expected[star[k]] = k
    found = nearest_pairs((x, y), (u, v), radius)
    assert dict(zip(found[1], found[0], strict=True)) == expected


def test_all_stars_at_one_place_are_one_pair():
    one = np.full(5, 7.0)
    detection, reference = nearest_pairs((one, one), (one, one), 1.0)
    assert detection.size == reference.size == 1


@pytest.mark.parametrize("angle", [-0.02, 0.0, 0.02])
def test_the_vote_finds_offset_and_rotation_within_a_bin(angle):
    rng = np.random.default_rng(3)
    x, y = rng.uniform(0, 2000, (2, 60))
    u, v = x - 1000, y - 1000
    reference = (
        1000 + np.cos(angle) * u - np.sin(angle) * v + 83,
        1000 + np.sin(angle) * u + (np.cos(angle) * v - 41),
    )
    rotations = np.array([-0.02, 0.0, 0.02])
    vote = vote_for_offset((x, y), reference, (1000, 1000), rotations, 200.0, 8.0)
    assert vote.rotation == angle
    assert abs(vote.dx - 83) <= 8.0
    assert abs(vote.dy + 41) <= 8.0
    assert vote.votes == 60
    assert vote.log10_chance < -50


def test_a_vote_among_strangers_is_no_better_than_chance():
    rng = np.random.default_rng(4)
    lists = [tuple(rng.uniform(0, 2000, (2, 150))) for _ in range(2)]
    vote = vote_for_offset(*lists, (1000, 1000), np.zeros(1), 200.0, 8.0)
    assert vote.log10_chance > -2.0


def test_a_list_held_against_itself_shows_its_doubling():
    rng = np.random.default_rng(5)
    x, y = rng.uniform(0, 2000, (2, 50))
    both = np.r_[x, x + 30], np.r_[y, y - 12]
    vote = vote_for_offset(both, both, (1000, 1000), np.zeros(1), 200.0, 4.0, avoid=4.0)
    assert vote.votes >= 50
    assert {abs(abs(vote.dx) - 30) <= 4, abs(abs(vote.dy) - 12) <= 4} == {True}
