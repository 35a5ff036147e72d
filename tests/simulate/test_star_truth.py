"""Stars lie where the truth says, as bright as it says, through a WCS that is off as it says."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.wcs import WCS
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from simulated_ccds import NORTH, SOUTH

from prepipe.simulate.detector import respond
from prepipe.simulate.focal_plane import detectors
from prepipe.simulate.light import PointSources, add_sources
from prepipe.simulate.pointing import apparent_positions, degrees_text, horizontal
from prepipe.simulate.projection import header_wcs

BY_NUMBER = {d.number: d for d in detectors()}
APERTURE_PX = 12


@pytest.fixture(scope="module")
def electrons(sky, zeros) -> np.ndarray:
    """The southern CCD in e-, overscan, bias pattern and response removed, with its variance."""
    detector = BY_NUMBER[SOUTH]
    raw, zero = (exposed.pixels("S4").astype(np.float64) for exposed in (sky, zeros[0]))
    response = np.ones((4096, 2048), dtype=np.float32)
    respond(response, detector, camera_seed=2012)
    halves = []
    for half, channel in enumerate(detector.channels):
        columns = slice(half * 1024, (half + 1) * 1024)
        signal, pattern = (
            frame[detector.data.slices][:, columns]
            - frame[detector.overscan(channel).slices].mean(axis=1, keepdims=True)
            for frame in (raw, zero)
        )
        halves.append((signal - pattern.mean(axis=0)) * channel.gain / response[:, columns])
    return np.concatenate(halves, axis=1)


@pytest.fixture(scope="module")
def lonely(sky, electrons) -> np.ndarray:
    """Truth of stars that are bright, unsaturated, alone and clear of bad columns."""
    stars = sky.truth.stars_on(SOUTH)
    tree = cKDTree(np.c_[stars["x"], stars["y"]])
    response = np.ones((4096, 2048), dtype=np.float32)
    respond(response, BY_NUMBER[SOUTH], camera_seed=2012)
    kept = []
    for k, star in enumerate(stars):
        inside = 40 < star["x"] < 2008 and 40 < star["y"] < 4056
        if not inside or star["size_arcsec"] > 0 or not 2e4 < star["flux_e"] < 4e5:
            continue
        others = [n for n in tree.query_ball_point([star["x"], star["y"]], 35) if n != k]
        x, y = int(star["x"]), int(star["y"])
        clean = response[y, x - 30 : x + 31].min() > 0.6
        if clean and stars["flux_e"][others].sum() < 1e-3 * star["flux_e"]:
            kept.append(k)
    return stars[kept]


def test_enough_lonely_stars_are_there_to_measure(lonely):
    assert len(lonely) >= 15


def test_aperture_sums_are_the_true_fluxes_within_the_noise(sky, electrons, lonely):
    truth = sky.truth.ccd(SOUTH)
    core = truth["seeing_arcsec"] / 0.2637 / (2 * np.sqrt(2 ** (1 / 3) - 1))
    # Light of a Moffat profile with beta = 3 within a radius.
    share = 1 - (1 + (APERTURE_PX / core) ** 2) ** -2
    pulls = []
    for star in lonely:
        x, y = round(star["x"]), round(star["y"])
        cut = electrons[y - 30 : y + 31, x - 30 : x + 31]
        rows, columns = np.mgrid[-30:31, -30:31]
        radius = np.hypot(columns - (star["x"] - x), rows - (star["y"] - y))
        aperture, ring = radius < APERTURE_PX, radius > 24
        background = np.median(cut[ring])
        measured = (cut[aperture] - background).sum()
        sky_variance = truth["sky_e"] + truth["read_noise_b"] ** 2 + 8
        area = aperture.sum()
        variance = star["flux_e"] + sky_variance * area * (1 + 1.57 * area / ring.sum())
        # The profile's ellipticity and the seeing's run over the CCD change the share by < 0.2 %.
        error = np.hypot(np.sqrt(variance), 0.002 * star["flux_e"])
        pulls.append((measured - share * star["flux_e"]) / error)
    pulls = np.array(pulls)
    # A cosmic ray or a faint galaxy may lie in an aperture: one in twenty may miss.
    assert np.mean(np.abs(pulls) < 5) >= 0.95
    assert abs(np.median(pulls)) < 5 * 1.25 / np.sqrt(len(pulls))


def test_centroids_are_the_true_positions(electrons, lonely):
    errors = []
    for star in lonely:
        x, y = round(star["x"]), round(star["y"])
        cut = electrons[y - 8 : y + 9, x - 8 : x + 9]
        cut = cut - np.median(electrons[y - 30 : y + 31, x - 30 : x + 31])
        rows, columns = np.mgrid[-8:9, -8:9]
        dx = dy = 0.0
        for _ in range(20):
            weight = cut * np.exp(-((columns - dx) ** 2 + (rows - dy) ** 2) / 8.0)
            dx += 2 * (weight * (columns - dx)).sum() / weight.sum()
            dy += 2 * (weight * (rows - dy)).sum() / weight.sum()
        errors.append((x + dx - star["x"], y + dy - star["y"]))
    # Photon noise of the faintest, 2e4 e-: FWHM / 2.35 / S/N 110 = 0.016 px; five of them.
    assert np.median(np.abs(errors)) < 0.016
    assert np.mean(np.abs(errors) < 0.08) >= 0.95


@pytest.mark.parametrize("number", [SOUTH, NORTH])
def test_the_headers_wcs_is_off_by_the_pointing_error(sky, number):
    meta, stars = sky.truth.meta, sky.truth.stars_on(number)
    wrong = header_wcs(BY_NUMBER[number], meta["RA"], meta["DEC"])
    ra, dec = wrong.wcs_pix2world(stars["x"], stars["y"], 0)
    east = (stars["ra"] - ra) * np.cos(np.radians(dec)) * 3600
    north = (stars["dec"] - dec) * 3600
    # Rotation moves a star at 0.3 degrees from the pointing by up to its angle times that.
    turn = abs(np.radians(meta["ROTATION"])) * 0.35 * 3600 + 0.01
    assert np.median(east) == pytest.approx(meta["OFFEAST"], abs=turn)
    assert np.median(north) == pytest.approx(meta["OFFNORTH"], abs=turn)


def test_a_pointing_error_is_a_shift_of_crval(sky):
    stars = sky.truth.stars_on(SOUTH)
    believed, true = (150.1, 2.2), (150.112, 2.193)
    shifted = header_wcs(BY_NUMBER[SOUTH], *true).wcs_world2pix(stars["ra"], stars["dec"], 0)
    seen = apparent_positions(stars["ra"], stars["dec"], believed, true, 0.0)
    nominal = header_wcs(BY_NUMBER[SOUTH], *believed).wcs_world2pix(*seen, 0)
    # wcslib inverts the TPV polynomial to some 1e-6 px.
    assert np.abs(np.array(shifted) - np.array(nominal)).max() < 1e-4


@given(st.floats(0, 359.9), st.floats(-80, 80), st.floats(-0.1, 0.1))
def test_a_rotation_turns_the_field_about_the_pointing_from_north_to_east(ra, dec, rotation):
    rng = np.random.default_rng(1)
    offsets = rng.uniform(-0.5, 0.5, (50, 2))
    tangent = WCS(naxis=2)
    tangent.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    tangent.wcs.crval = [ra, dec]
    stars = tangent.wcs_pix2world(offsets, 0)
    seen = apparent_positions(stars[:, 0], stars[:, 1], (ra, dec), (ra, dec), rotation)
    turned = tangent.wcs_world2pix(np.stack(seen, axis=-1), 0)
    angle = np.radians(rotation)
    east, north = (offsets + 1).T
    expected = np.stack(
        [east * np.cos(angle) + north * np.sin(angle), north * np.cos(angle) - east * np.sin(angle)]
    )
    assert np.abs(turned.T + 1 - expected).max() < 1e-7


def test_a_star_has_all_its_light_and_the_right_width():
    image = np.zeros((301, 301), dtype=np.float32)
    one = {"x": 150.3, "y": 149.8, "flux": 1e6, "fwhm": 4.0, "e1": 0.0, "e2": 0.0}
    add_sources(image, PointSources(**{name: np.array([v]) for name, v in one.items()}))
    # Cut at 0.15 e-/px, some 42 px out, where (1 + (42 / 3.9)^2)^-2 = 7e-5 of the light is left.
    assert image.sum() == pytest.approx(1e6, rel=2e-4)
    assert np.count_nonzero(image > image.max() / 2) == pytest.approx(np.pi * 4, rel=0.15)


def test_an_elongated_star_lies_along_its_position_angle():
    image = np.zeros((101, 101), dtype=np.float32)
    one = {"x": 50.0, "y": 50.0, "flux": 1e5, "fwhm": 6.0, "e1": 0.0, "e2": 0.3}
    add_sources(image, PointSources(**{name: np.array([v]) for name, v in one.items()}))
    assert image[55, 55] > 1.5 * image[55, 45]
    assert image[50, 55] == pytest.approx(image[55, 50], rel=1e-5)


def test_sources_outside_the_image_throw_only_their_wings_into_it():
    image = np.zeros((50, 50), dtype=np.float32)
    one = {"x": -5.0, "y": 500.0, "flux": 1e4, "fwhm": 4.0, "e1": 0.0, "e2": 0.0}
    add_sources(image, PointSources(**{name: np.array([v]) for name, v in one.items()}))
    assert not image.any()
    one["y"] = 25.0
    add_sources(image, PointSources(**{name: np.array([v]) for name, v in one.items()}))
    assert image[25, 0] > image[25, 5] > 0


def test_declinations_near_zero_keep_their_sign():
    assert degrees_text(-0.5) == "-00:30:00.000"
    assert degrees_text(59.9999999) == "60:00:00.000"


def test_a_field_at_the_meridian_stands_highest():
    from datetime import UTC, datetime

    from prepipe.simulate.pointing import sidereal_deg

    when = datetime(2020, 3, 6, 0, 4, 15, tzinfo=UTC)
    hour_angle, distance, _ = horizontal(sidereal_deg(when), -30.16606, when)
    assert hour_angle == pytest.approx(0.0, abs=1e-9)
    assert distance == pytest.approx(0.0, abs=1e-5)
    # The real exposure 941420: HA 00:40:32, ZD 12.75 (header values at another moment of it).
    hour_angle, distance, _ = horizontal(84.20145, -21.20494, when)
    assert hour_angle / 15 == pytest.approx(0.6757, abs=0.03)
    assert distance == pytest.approx(12.75, abs=0.5)
