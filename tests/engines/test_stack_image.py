"""What the LSST stack and hscPipe write is read for what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from prepipe.engines.stack.image import read_stack_image, write_stack_image
from prepipe.errors import EngineError, StorageError

PLANES = ("IMAGE", "MASK", "VARIANCE")
STATS = b"""astromOffsetMean: 0.02
astromOffsetStd: 0.01
psfSigma: 1.75
raCorners: [1.0, 2.0]
skyNoise: 2.6e+01
version: 0
zeroPoint: .nan
"""


def planes(names: tuple[str, ...] = PLANES, shape: tuple[int, int] = (20, 10)) -> fits.HDUList:
    hdus = [fits.PrimaryHDU()]
    for number, name in enumerate(names):
        hdu = fits.ImageHDU(np.full(shape, number, np.int32 if name == "MASK" else np.float32))
        hdu.header["EXTTYPE"] = name
        hdus.append(hdu)
    return fits.HDUList(hdus)


def summary(text: bytes = STATS) -> fits.BinTableHDU:
    column = fits.Column("bytes", f"{len(text)}B", array=np.frombuffer(text, np.uint8)[None])
    hdu = fits.BinTableHDU.from_columns([column])
    hdu.header["EXTTYPE"], hdu.header["AR_NAME"] = "ARCHIVE_DATA", "ExposureSummaryStats"
    return hdu


def test_planes_are_known_by_their_type_not_their_place(tmp_path: Path) -> None:
    planes(("VARIANCE", "IMAGE", "MASK")).writeto(tmp_path / "calexp.fits")

    made = read_stack_image(tmp_path / "calexp.fits")

    assert [made.pixels[name][0, 0] for name in PLANES] == [1, 2, 0]


def test_planes_without_a_type_are_the_first_three(tmp_path: Path) -> None:
    hdus = planes()
    for hdu in hdus[1:]:
        del hdu.header["EXTTYPE"]
    hdus.writeto(tmp_path / "CORR.fits")

    made = read_stack_image(tmp_path / "CORR.fits")

    assert [made.pixels[name][0, 0] for name in PLANES] == [0, 1, 2]


def test_summary_statistics_are_read(tmp_path: Path) -> None:
    fits.HDUList([*planes(), summary()]).writeto(tmp_path / "calexp.fits")

    told = read_stack_image(tmp_path / "calexp.fits").summary

    assert (told["psfSigma"], told["skyNoise"], told["version"]) == (1.75, 26.0, 0.0)
    assert "zeroPoint" not in told
    assert "raCorners" not in told


@pytest.mark.parametrize(
    "hdus",
    [
        planes(("IMAGE", "MASK")),
        planes(()),
        fits.HDUList([*planes()[:3], fits.ImageHDU(np.zeros((3, 3)))]),
    ],
)
def test_what_lacks_a_plane_is_refused(tmp_path: Path, hdus: fits.HDUList) -> None:
    path = tmp_path / "calexp.fits"
    hdus.writeto(path)

    with pytest.raises(EngineError, match=r"calexp.fits: is no calibrated CCD"):
        read_stack_image(path)


@pytest.mark.parametrize("content", [b"", b"no FITS", b"SIMPLE  = " * 300])
def test_what_is_no_fits_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "calexp.fits"
    path.write_bytes(content)

    with pytest.raises(EngineError, match="is no calibrated CCD"):
        read_stack_image(path)


def test_a_file_that_vanished_may_come_back(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        read_stack_image(tmp_path / "calexp.fits")


def test_a_product_tells_nothing_of_tables_that_did_not_come_along(tmp_path: Path) -> None:
    hdus = planes()
    hdus[0].header["AR_HDU"], hdus[0].header["PSF_ID"], hdus[0].header["MAGZERO"] = 5, 6, 27.0
    hdus[0].header["HIERARCH ARCHIVE_ID_PSF"] = 6
    hdus.writeto(tmp_path / "calexp.fits")

    made = read_stack_image(tmp_path / "calexp.fits")
    write_stack_image(tmp_path / "out.fits", made, {}, [("ENGINE", "lsst", "pipeline")])

    header = fits.getheader(tmp_path / "out.fits")
    assert (header["MAGZERO"], header["ENGINE"]) == (27.0, "lsst")
    assert not {"AR_HDU", "PSF_ID", "ARCHIVE_ID_PSF"} & set(header)
