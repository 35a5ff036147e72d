"""A simulated exposure looks like one of the telescope's to every reader."""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.io.fits import Header

from prepipe.cameras import Decam
from prepipe.model import Kind, Night
from prepipe.simulate import Settings
from prepipe.simulate.focal_plane import chosen_detectors, detectors
from prepipe.simulate.headers import extension_cards, primary_header
from prepipe.simulate.observation import plan

REAL = "decam_raw/cutout_c4d_200306_000415_ori.fits.fz"
PEOPLE = {"PROGRAM", "OBSERVER", "PROPOSER", "DTPI", "PROPID", "DTPROPID"}
STRUCTURE = ("SIMPLE", "XTENSION", "BITPIX", "NAXIS", "PCOUNT", "GCOUNT", "BSCALE", "BZERO")
SUMS = ("CHECKSUM", "DATASUM", "ZHECKSUM", "ZDATASUM")


@pytest.fixture(scope="module")
def real(shared_data: Path) -> list[Header]:
    with fits.open(shared_data / REAL, disable_image_compression=True) as hdus:
        return [hdu.header.copy() for hdu in hdus]


@pytest.fixture(scope="module")
def observation():
    return plan(Settings(), 0)


def own_cards(header: Header) -> list[str]:
    names = [name for name in header if not name.startswith(("Z", *STRUCTURE))]
    return [name for name in names if name not in ("TFIELDS", "TTYPE1", "TFORM1", *SUMS)]


def test_the_primary_header_has_the_real_cards_in_the_real_order(real, observation):
    simulated = Header.fromstring(primary_header(observation, 70).decode())
    assert list(simulated.keys()) == list(real[0].keys())


def test_every_extension_has_the_real_cards_in_the_real_order(real, observation):
    for detector, header in zip(detectors(), real[1:], strict=True):
        simulated = Header.fromstring("".join(extension_cards(detector, observation)))
        assert own_cards(simulated) == own_cards(header), detector.name


def test_every_extension_has_the_real_sections_gains_and_distortion(real, observation):
    for detector, header in zip(detectors(), real[1:], strict=True):
        simulated = Header.fromstring("".join(extension_cards(detector, observation)))
        for name in own_cards(simulated):
            if not name.startswith(("CRVAL", "CRPIX")):
                tolerance = {"rel": 1e-13} if isinstance(header[name], float) else {}
                assert simulated[name] == pytest.approx(header[name], **tolerance), name


def test_crpix_are_those_of_the_uncropped_frame(shared_data, observation):
    """Exposure 229388's header as quoted in public sources has S1 at (2151.2, 14826.0)."""
    first = Header.fromstring("".join(extension_cards(detectors()[0], observation)))
    assert (first["CRPIX1"], first["CRPIX2"]) == (2151.2, 14826.0)


def test_no_person_of_the_real_exposure_is_named(real, observation):
    text = primary_header(observation, 1).decode()
    for name in PEOPLE:
        assert str(real[0][name]) not in text


def test_header_traps_of_the_real_files_are_there(observation):
    text = primary_header(observation, 1).decode()
    assert "LSKYVAR = 'NaN     '" in text
    assert "HIERARCH time_recorded = '2020-03-06T" in text
    header = Header.fromstring(text)
    assert " " in header["OBJECT"]
    assert "EXPNUM" not in "".join(extension_cards(detectors()[0], observation))


def test_dates_names_and_numbers_agree_with_each_other(observation):
    header = Header.fromstring(primary_header(observation, 1).decode())
    assert header["DATE-OBS"].split("T") == ["2020-03-06", header["TIME-OBS"]]
    assert header["OBSID"] == "ct4m20200306t033000"
    assert header["DTCALDAT"] == "2020-03-05"
    assert header["FILENAME"] == f"DECam_{header['EXPNUM']:08d}.fits"
    assert header["MJD-OBS"] == pytest.approx(58914.0 + 3.5 / 24, abs=1e-8)


def test_only_chosen_ccds_are_written_and_in_the_scrambled_order(sky):
    with fits.open(sky.path) as hdus:
        assert [hdu.header["CCDNUM"] for hdu in hdus[1:]] == [35, 28, 61]
        assert hdus[0].header["NEXTEND"] == 3


def test_focus_chips_come_along_when_asked():
    chosen = chosen_detectors((28,), focus_chips=True)
    assert [d.number for d in chosen] == [28, 72, 71, 64, 63, 73, 74, 70, 69]
    assert chosen[1].shape == (2098, 2160)


def test_fitsio_and_astropy_read_identical_unsigned_pixels(sky):
    with fits.open(sky.path) as hdus:
        for name in ("S4", "N4"):
            by_astropy, by_cfitsio = hdus[name].data, sky.pixels(name)
            assert by_astropy.dtype == by_cfitsio.dtype == np.uint16
            assert by_astropy.shape == (4146, 2160)
            assert np.array_equal(by_astropy, by_cfitsio)


def test_the_images_are_rice_tiles_of_one_row(sky):
    with fits.open(sky.path, disable_image_compression=True) as hdus:
        header = hdus[1].header
        assert (header["ZTILE1"], header["ZTILE2"]) == (2160, 1)
        assert header["ZCMPTYPE"] == "RICE_1"
        assert (header["ZVAL1"], header["ZVAL2"]) == (32, 2)


def test_checksums_of_the_stored_file_are_valid(sky):
    with warnings.catch_warnings():
        warnings.simplefilter("error", fits.verify.VerifyWarning)
        warnings.filterwarnings("error", message="Checksum|Datasum")
        with fits.open(sky.path, checksum=True, disable_image_compression=True) as hdus:
            assert all("CHECKSUM" in hdu.header and hdu.data is not False for hdu in hdus)


def test_funpack_restores_images_whose_checksums_are_valid(sky, tmp_path, funpack_program):
    unpacked = tmp_path / "unpacked.fits"
    subprocess.run([funpack_program, "-O", str(unpacked), str(sky.path)], check=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Checksum|Datasum")
        with fits.open(unpacked, checksum=True) as hdus:
            assert np.array_equal(hdus["S4"].data, sky.pixels("S4"))


def test_the_camera_understands_the_headers(sky):
    with fits.open(sky.path) as hdus:
        header = hdus[0].header.copy()
        header.update(hdus["N4"].header)
        layout = Decam().layout(header, hdus["N4"].data)
    exposure = Decam().exposure(header)
    assert (exposure.kind, exposure.band, exposure.exposure_s) == (Kind.OBJECT, "g", 20.0)
    assert exposure.night == Night.parse("2020-03-05")
    assert layout.trimmed_shape == (4096, 2048)
    assert layout.origin == (56, 0)
