"""Day and night at a telescope: where the Sun stands, to a hundredth of a degree."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from prepipe.model import Location

__all__ = ["is_day", "next_sunrise", "sun_altitude"]

_J2000 = datetime(2000, 1, 1, 12, tzinfo=UTC)
_STEP = timedelta(minutes=10)
_LONGEST_NIGHT = timedelta(days=366)


def sun_altitude(moment: datetime, location: Location) -> float:
    """Altitude of the Sun's centre above the horizon, without refraction.

    Good to 0.01 degree from 1950 to 2050: low-precision formulae of the Astronomical Almanac,
    page C5; sidereal time of Meeus, Astronomical Algorithms (1998), equation 12.4.

    Parameters
    ----------
    moment : datetime
        With its time zone.
    location : Location

    Returns
    -------
    float
        degrees
    """
    days = (moment - _J2000) / timedelta(days=1)
    mean_longitude = 280.460 + 0.9856474 * days
    anomaly = math.radians(357.528 + 0.9856003 * days)
    longitude = math.radians(
        mean_longitude + 1.915 * math.sin(anomaly) + 0.020 * math.sin(2 * anomaly)
    )
    obliquity = math.radians(23.439 - 0.0000004 * days)
    right_ascension = math.atan2(math.cos(obliquity) * math.sin(longitude), math.cos(longitude))
    sin_declination = math.sin(obliquity) * math.sin(longitude)
    sidereal_time = math.radians(280.46061837 + 360.98564736629 * days + location.longitude)
    latitude = math.radians(location.latitude)
    sin_altitude = math.sin(latitude) * sin_declination + math.cos(latitude) * math.sqrt(
        1 - sin_declination**2
    ) * math.cos(sidereal_time - right_ascension)
    return math.degrees(math.asin(max(-1.0, min(1.0, sin_altitude))))


def is_day(moment: datetime, location: Location) -> bool:
    """Whether the Sun's centre is above the horizon."""
    return sun_altitude(moment, location) > 0.0


def next_sunrise(moment: datetime, location: Location) -> datetime | None:
    """When a night ends, to the second.

    Parameters
    ----------
    moment : datetime
        In the night; by day it is given back.
    location : Location

    Returns
    -------
    datetime or None
        None if the Sun does not rise within a year.
    """
    night, day = moment, moment
    while not is_day(day, location):
        if day - moment > _LONGEST_NIGHT:
            return None
        night, day = day, day + _STEP
    while day - night > timedelta(seconds=1):
        middle = night + (day - night) / 2
        night, day = (night, middle) if is_day(middle, location) else (middle, day)
    return day
