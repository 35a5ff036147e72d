"""A camera described in TOML."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from prepipe.cameras import load_camera
from prepipe.errors import ConfigError, HeaderError
from prepipe.model import Box, Kind, Location

PLAIN = 'name = "plain"\npixel_scale = 0.5\n'


def described(tmp_path: Path, text: str = PLAIN) -> str:
    path = tmp_path / "camera.toml"
    path.write_text(text)
    return str(path)


def header(**cards: object) -> fits.Header:
    told = {"EXPNUM": 7, "DATE-OBS": "2003-10-19T04:43:34", "EXPTIME": 54.0, "FILTER": "r", **cards}
    return fits.Header(list(told.items()))


def test_the_sdss_camera_comes_along(shared_data: Path) -> None:
    camera = load_camera("sdss")
    with fits.open(shared_data / "sdss/fpC-004192-r4-0300.fit.gz") as hdus:
        exposure = camera.exposure(hdus[0].header)
        ccd = camera.ccd(hdus[0].header)
        layout = camera.layout(hdus[0].header, hdus[0].data)
    assert (exposure.number, exposure.band, exposure.kind) == (300, "r", Kind.OBJECT)
    assert exposure.start == datetime(2003, 10, 19, 4, 43, 34, 680000, tzinfo=UTC)
    assert ccd is not None and ccd.number == 4
    assert (layout.trimmed_shape, layout.bias_level) == ((1489, 2048), 1000.0)
    assert not camera.needs_masters


def test_the_telescopes_place_is_that_of_the_description_or_not_known(tmp_path: Path) -> None:
    assert load_camera(described(tmp_path)).location is None
    text = PLAIN + "[site]\nlatitude = -30.2\nlongitude = -70.8\n"
    assert load_camera(described(tmp_path, text)).location == Location(-30.2, -70.8)


@pytest.mark.parametrize("site", ["latitude = 10", "latitude = 95\nlongitude = 5"])
def test_half_a_place_or_none_on_earth_is_wrong(tmp_path: Path, site: str) -> None:
    with pytest.raises(ConfigError, match="site"):
        load_camera(described(tmp_path, f"{PLAIN}[site]\n{site}\n"))


def test_sections_named_in_the_description_are_cut(tmp_path: Path) -> None:
    text = PLAIN + '[cards]\ndata_section = "DATASEC"\noverscan_section = "BIASSEC"\n'
    camera = load_camera(described(tmp_path, text))
    cards = header(DATASEC="[11:110,1:50]", BIASSEC="[1:10,1:50]")
    (amplifier,) = camera.layout(cards, np.zeros((50, 110), np.uint16)).amplifiers
    assert amplifier.data == Box(10, 110, 0, 50)
    assert amplifier.overscan == Box(0, 10, 0, 50)


def test_a_missing_section_card_is_named(tmp_path: Path) -> None:
    camera = load_camera(described(tmp_path, PLAIN + '[cards]\noverscan_section = "BIASSEC"\n'))
    with pytest.raises(HeaderError, match="BIASSEC"):
        camera.layout(header(), np.zeros((50, 110), np.uint16))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name = ", "not valid TOML"),
        ('name = "plain"\n', "pixel_scale"),
        (PLAIN + "colour = 3\n", "colour"),
        ('name = "../x"\npixel_scale = 1\n', "name"),
    ],
)
def test_a_wrong_description_is_explained(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_camera(described(tmp_path, text))


def test_a_missing_description_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_camera(str(tmp_path / "nowhere.toml"))


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ("Light Frame", Kind.OBJECT),
        ("bias", Kind.ZERO),
        ("Flat Field", Kind.DOME_FLAT),
        ("dark", Kind.OTHER),
        ("focus", Kind.OTHER),
        ("sky flat", Kind.OTHER),
    ],
)
def test_what_a_frame_is_called_tells_its_kind(tmp_path: Path, told: str, kind: Kind) -> None:
    camera = load_camera(described(tmp_path, PLAIN + '[cards]\nkind = "IMAGETYP"\n'))
    assert camera.exposure(header(IMAGETYP=told)).kind is kind
    assert camera.exposure(header()).kind is Kind.OBJECT
