"""HSC as its raw headers describe it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from prepipe.cameras import load_camera
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import write_packet
from prepipe.codec.unpack import unpack
from prepipe.errors import HeaderError
from prepipe.model import Box, Ccd, Kind

HSC = load_camera("hsc")
WHOLE = np.zeros((4241, 2144), np.uint16)


@pytest.fixture
def raw(shared_data: Path) -> Path:
    return shared_data / "hsc_raw" / "cutout_HSCA21787010.fits"


@pytest.fixture
def header(raw: Path) -> fits.Header:
    return fits.getheader(raw)


def test_a_real_header_tells_visit_and_detector(header: fits.Header) -> None:
    exposure = HSC.exposure(header)

    assert (exposure.number, exposure.kind, exposure.field) == (217870, Kind.OBJECT, "FMa01")
    assert (exposure.band, exposure.exposure_s) == ("HSC-r2", 40.0)
    assert exposure.start == datetime(2020, 5, 28, 14, 32, 17, 921000, tzinfo=UTC)
    assert HSC.ccd(header) == Ccd(55, "0_10")


def test_a_night_in_hawaii_is_one_night(header: fits.Header) -> None:
    assert str(HSC.exposure(header).night) == "2020-05-27"
    header["UT-STR"] = "04:40:00"  # at dusk

    assert str(HSC.exposure(header).night) == "2020-05-27"


@pytest.mark.parametrize(
    ("exposure", "frame", "visit"),
    [
        ("HSCE00217870", "HSCA21787010", 217870),
        ("HSCA90402400", "HSCA90402512", 904024),
        ("HSCB01230000", "HSCB01230116", 1012300),
        ("HSCA00000000", "HSCA00123305", 1232),
    ],
)
def test_both_halves_of_a_shot_are_one_visit(
    header: fits.Header, exposure: str, frame: str, visit: int
) -> None:
    header["EXP-ID"], header["FRAMEID"] = exposure, frame

    assert HSC.exposure(header).number == visit


def test_a_frame_that_tells_no_visit_is_refused(header: fits.Header) -> None:
    header["EXP-ID"] = header["FRAMEID"] = "NODATA"

    with pytest.raises(HeaderError, match="tell no visit"):
        HSC.exposure(header)


def test_focus_chips_are_no_science_ccds(header: fits.Header) -> None:
    header["DET-ID"] = 104

    assert HSC.ccd(header) is None


def test_four_channels_lie_side_by_side(header: fits.Header) -> None:
    layout = HSC.layout(header, WHOLE)

    assert layout.trimmed_shape == (4176, 2048)
    assert layout.origin == (8, 49)
    assert [amplifier.gain for amplifier in layout.amplifiers] == [3.21, 3.04, 3.15, 3.19]
    third = layout.amplifiers[2]
    assert third.data == Box(1080, 1592, 49, 4225)
    assert third.overscan == Box(1592, 1608, 49, 4225)
    assert third.trimmed == Box(1024, 1536, 0, 4176)


def test_a_cut_out_has_no_layout(header: fits.Header) -> None:
    with pytest.raises(HeaderError, match="2144 x 4241 pixels, this one 400 x 300"):
        HSC.layout(header, np.zeros((300, 400), np.uint16))


@pytest.mark.parametrize("codec", ["none", "rice", "wavelet"])
def test_a_raw_ccd_goes_through_a_packet(
    raw: Path, header: fits.Header, codec: str, tmp_path: Path
) -> None:
    ccd = HSC.ccd(header)
    assert ccd is not None

    packet = write_packet(tmp_path, pack_ccd(raw, 0, HSC.exposure(header), ccd, codec))
    with fits.open(unpack(packet, tmp_path / "out")) as hdus:
        image = hdus[-1]
        told, pixels = image.header, image.data

    assert packet.name == "hsc_00217870_55.packet"
    assert (told["DET-ID"], told["FRAMEID"]) == (55, "HSCA21787010")
    worst = np.abs(pixels.astype(float) - fits.getdata(raw)).max()
    assert worst == 0 if codec != "wavelet" else worst < 3 * np.sqrt(2000)
