"""DECam's headers, sections and nominal astrometry, on real archive files."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from prepipe.cameras import load_camera
from prepipe.cameras.decam import decam_ccds
from prepipe.engines.raw import merged
from prepipe.errors import ConfigError, HeaderError
from prepipe.model import Box, Kind

CROP = "decam_raw/history_reduced_c4d_200306_000415_ori.fits.fz"
SCRAMBLED = "decam_raw/cutout_c4d_200306_000415_ori.fits.fz"

decam = load_camera("decam")


def full_header(shared_data: Path, name: str) -> fits.Header:
    text = (shared_data / f"headers/decam_raw_c4d_200306_000415_{name}.hdr").read_text()
    return fits.Header.fromstring(text, sep="" if "\n" not in text else "\n")


def test_an_exposure_is_read_from_real_cards(shared_data: Path) -> None:
    exposure = decam.exposure(full_header(shared_data, "primary"))
    assert (exposure.number, exposure.kind, exposure.band) == (941420, Kind.OBJECT, "g")
    assert exposure.field == "Starlink 1102"
    assert exposure.safe_field == "Starlink1102"
    assert exposure.night.date == date(2020, 3, 5)
    assert exposure.night.ut_name == "ut200306"


def test_focus_chips_are_no_science_ccds(shared_data: Path) -> None:
    with fits.open(shared_data / SCRAMBLED) as hdus:
        found = [decam.ccd(hdu.header) for hdu in hdus[1:]]
    numbers = [ccd.number for ccd in found if ccd is not None]
    assert len(found) == 70
    assert sorted(numbers) == list(range(1, 63))
    assert numbers != sorted(numbers)


@pytest.mark.parametrize("name", ["N4", "S1", "S12"])
def test_both_orientations_are_cut_by_their_own_sections(shared_data: Path, name: str) -> None:
    header = full_header(shared_data, name)
    layout = decam.layout(header, np.zeros((4146, 2160), np.uint16))
    assert layout.trimmed_shape == (4096, 2048)
    left, right = sorted(layout.amplifiers, key=lambda amplifier: amplifier.data.x0)
    assert (left.data.x0, right.data.x1) == (56, 2104)
    assert (left.name, right.name) == (("A", "B") if name == "N4" else ("B", "A"))
    assert left.overscan is not None and left.overscan.x0 == 6
    assert right.overscan is not None and right.overscan.x0 == 2104
    assert left.trimmed.x1 == right.trimmed.x0 == 1024


def test_a_cut_out_finds_its_overscan_though_its_cards_are_those_of_the_whole(
    shared_data: Path,
) -> None:
    with fits.open(shared_data / CROP) as hdus:
        header, pixels = merged(hdus[0].header, hdus["S1"].header), hdus["S1"].data
    layout = decam.layout(header, pixels)
    (amplifier,) = layout.amplifiers
    assert layout.window == (1873, 880)
    assert amplifier.data == Box(0, 231, 0, 400)
    assert amplifier.overscan == Box(231, 281, 0, 400)
    wcs = decam.wcs_header(header, layout)
    assert wcs["CRPIX1"] == pytest.approx(header["CRPIX1"] - 993)
    assert wcs["CRPIX2"] == pytest.approx(header["CRPIX2"] + 993)


def test_every_ccd_of_the_smaller_cut_out_is_found(shared_data: Path) -> None:
    with fits.open(shared_data / SCRAMBLED) as hdus:
        for hdu in hdus[1:]:
            header = merged(hdus[0].header, hdu.header)
            if decam.ccd(header) is not None:
                layout = decam.layout(header, hdu.data)
                assert layout.window == (2023, 1030)
                assert layout.trimmed_shape == (100, 81)


@pytest.mark.parametrize("window", [(500, 900), (1900, 700), (700, 1900), (1950, 3500), (30, 60)])
def test_a_cut_out_whose_cards_are_right_is_found_where_they_say(
    shared_data: Path, window: tuple[int, int]
) -> None:
    header = full_header(shared_data, "S1")
    frame = np.random.default_rng(3).normal(2000.0, 15.0, (4146, 2160))
    overscan = np.random.default_rng(4).normal(1500.0, 1.5, frame.shape)
    for columns in (slice(6, 56), slice(2104, 2154)):
        frame[:, columns] = overscan[:, columns]
    x0, y0 = window
    nominal = decam_ccds()[header["CCDNUM"]].crpix
    header["CRPIX1"] = nominal[0] - x0
    header["CRPIX2"] = nominal[1] - y0
    layout = decam.layout(header, frame[y0 : y0 + 300, x0 : x0 + 200].astype(np.uint16))
    assert layout.window == window


def test_a_frame_of_unknown_size_and_place_is_refused(shared_data: Path) -> None:
    header = full_header(shared_data, "S1")
    header["CRPIX1"] = 0.5
    with pytest.raises(HeaderError, match="where it was cut out"):
        decam.layout(header, np.zeros((100, 100), np.uint16))


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("BIASSECA", None), ("DATASECB", "[1:2"), ("GAINA", "NaN"), ("SATURATB", None)],
)
def test_broken_cards_of_an_amplifier_are_named(
    shared_data: Path, keyword: str, value: object
) -> None:
    header = full_header(shared_data, "S1")
    if value is None:
        del header[keyword]
    else:
        header[keyword] = value
    with pytest.raises(HeaderError, match=keyword):
        decam.layout(header, np.zeros((4146, 2160), np.uint16))


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("EXPNUM", None),
        ("EXPNUM", -3),
        ("EXPNUM", "x"),
        ("DATE-OBS", "yesterday"),
        ("EXPTIME", "NaN"),
    ],
)
def test_an_exposure_that_does_not_say_what_it_is_is_refused(
    shared_data: Path, keyword: str, value: object
) -> None:
    header = full_header(shared_data, "primary")
    if value is None:
        del header[keyword]
    else:
        header[keyword] = value
    with pytest.raises(HeaderError):
        decam.exposure(header)


def test_dead_chips_are_dead_only_in_their_time() -> None:
    assert decam.dead_amplifiers(61, datetime(2020, 3, 6, tzinfo=UTC)) == ("A", "B")
    assert decam.dead_amplifiers(61, datetime(2012, 10, 1, tzinfo=UTC)) == ()
    assert decam.dead_amplifiers(2, datetime(2015, 1, 1, tzinfo=UTC)) == ("A", "B")
    assert decam.dead_amplifiers(2, datetime(2017, 1, 1, tzinfo=UTC)) == ()


def test_the_focal_plane_has_room_for_each_science_ccd() -> None:
    places = decam.focal_plane()
    assert sorted(places) == list(range(1, 63))
    assert len({(left, bottom) for left, bottom, _, _ in places.values()}) == 62
    assert len(decam_ccds()) == 70


def test_an_unknown_camera_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="decam, hsc, decam-cp, sdss"):
        load_camera("palomar")


def test_the_read_order_of_north_and_south_is_that_of_the_cards(shared_data: Path) -> None:
    orders = {
        name: {
            a.name: (a.read_order, a.read_before)
            for a in load_camera("decam")
            .layout(full_header(shared_data, name), np.zeros((4146, 2160), np.uint16))
            .amplifiers
        }
        for name in ("N4", "S1")
    }
    whole = (0, 0)
    assert orders["N4"] == {"A": ((1, 1), whole), "B": ((-1, 1), whole)}
    assert orders["S1"] == {"A": ((-1, -1), whole), "B": ((1, -1), whole)}


def test_a_cut_out_knows_what_was_read_before_it(shared_data: Path) -> None:
    path = shared_data / "decam_raw/history_reduced_c4d_200306_000415_ori.fits.fz"
    with fits.open(path) as hdus:
        header, pixels = hdus["S1"].header, hdus["S1"].data
    layout = load_camera("decam").layout(header, pixels)
    (amplifier,) = layout.amplifiers
    # Cut at (1873, 880): the last 231 columns of amplifier A, which is read from the right, and
    # of its rows, read from the top, those above the cut-out's 400 came before.
    assert amplifier.read_before == (0, 4146 - 880 - pixels.shape[0])
    assert layout.trimmed_window == (1873 - 56, 880 - 50)
    assert layout.whole_shape == (4146, 2160)
