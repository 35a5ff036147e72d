"""Day and night at a telescope."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import AltAz, EarthLocation, get_sun
from astropy.time import Time
from astropy.utils import iers

from prepipe.cameras import load_camera
from prepipe.model import Location
from prepipe.telescope.daylight import is_day, next_sunrise, sun_altitude

CERRO_TOLOLO = Location(-30.16606, -70.81489)
SITES = (
    CERRO_TOLOLO,
    Location(19.8261, -155.4747),
    Location(69.6492, 18.9553),
    Location(-75.1, 123.35),
    Location(0.0, 0.0),
)
PRECISION_DEG = 0.02
"""0.01 of the formula; the rest is UT1 - UTC, up to 0.9 s, and the Sun's parallax."""


def test_the_sun_stands_where_the_example_of_the_solar_position_algorithm_says():
    """Reda & Andreas (2004, Solar Energy 76, 577), table A5.1, elevation without refraction."""
    moment = datetime(2003, 10, 17, 19, 30, 30, tzinfo=UTC)
    altitude = sun_altitude(moment, Location(39.742476, -105.1786))
    assert altitude == pytest.approx(39.872046, abs=PRECISION_DEG)


def test_at_the_equinox_it_rises_to_the_zenith_of_the_equator():
    noon = datetime(2020, 3, 20, 12, 7, 24, tzinfo=UTC)
    assert sun_altitude(noon, Location(0.0, 0.0)) == pytest.approx(89.86, abs=0.05)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_it_stands_where_astropy_says(site: Location) -> None:
    rng = np.random.default_rng(4)
    moments = [
        datetime(1990, 1, 1, tzinfo=UTC) + timedelta(days=days)
        for days in rng.uniform(0.0, 12_000.0, 300)
    ]
    with iers.conf.set_temp("auto_download", False), iers.conf.set_temp("auto_max_age", None):
        place = EarthLocation.from_geodetic(site.longitude * units.deg, site.latitude * units.deg)
        times = Time([moment.replace(tzinfo=None) for moment in moments])
        expected = get_sun(times).transform_to(AltAz(obstime=times, location=place)).alt.deg
    told = [sun_altitude(moment, site) for moment in moments]
    np.testing.assert_allclose(told, expected, atol=PRECISION_DEG)


@pytest.mark.parametrize(
    ("hour", "day"), [(1, False), (5, False), (9, False), (12, True), (17, True), (21, True)]
)
def test_at_cerro_tololo_the_middle_of_the_day_is_at_17_utc(hour: int, day: bool) -> None:
    assert is_day(datetime(2020, 3, 6, hour, tzinfo=UTC), CERRO_TOLOLO) is day


def test_a_night_ends_when_the_sun_rises():
    moment = datetime(2020, 3, 6, 4, tzinfo=UTC)
    sunrise = next_sunrise(moment, CERRO_TOLOLO)
    assert sunrise is not None
    assert moment < sunrise < moment + timedelta(hours=8)
    assert sun_altitude(sunrise, CERRO_TOLOLO) == pytest.approx(0.0, abs=0.01)
    assert not is_day(sunrise - timedelta(seconds=5), CERRO_TOLOLO)
    assert is_day(sunrise + timedelta(seconds=5), CERRO_TOLOLO)


def test_by_day_no_sunrise_is_waited_for():
    moment = datetime(2020, 3, 6, 17, tzinfo=UTC)
    assert next_sunrise(moment, CERRO_TOLOLO) == moment


def test_a_polar_night_ends_after_months():
    sunrise = next_sunrise(datetime(2020, 5, 10, tzinfo=UTC), Location(-75.1, 123.35))
    assert sunrise is not None
    assert sunrise.month == 8


@pytest.mark.parametrize("name", ["decam", "decam-cp", "sdss"])
def test_every_camera_of_the_house_knows_where_it_stands(name: str) -> None:
    assert load_camera(name).location is not None
