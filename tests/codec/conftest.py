"""Frames, exposures and packets for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from codec_frames import Frame, simulated_frame
from numpy.typing import NDArray

from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import PackedCcd
from prepipe.model import Ccd, Exposure, Kind, Night


@pytest.fixture(scope="session")
def frame() -> Frame:
    return simulated_frame(256, 300)


@pytest.fixture(scope="session")
def exposure() -> Exposure:
    start = datetime(2020, 3, 6, 0, 4, 15, 125000, tzinfo=UTC)
    return Exposure(
        camera="decam",
        number=941420,
        kind=Kind.OBJECT,
        field="COSMOS 1 'deep'",
        band="g",
        start=start,
        exposure_s=120.0,
        night=Night.of(start),
    )


@pytest.fixture(scope="session")
def write_raw(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a raw file of one plain CCD: in an extension behind an empty primary HDU."""

    def write(pixels: NDArray[np.generic], *, primary: bool = False) -> Path:
        path = tmp_path_factory.mktemp("raw") / "raw.fits"
        header = fits.Header()
        header["EXPNUM"] = (941420, "exposure number")
        header["HIERARCH ESO DET CHIP NAME"] = "long"
        header["LSKYPOW"] = "NaN"
        header.add_history("as written at the telescope")
        image = fits.PrimaryHDU if primary else fits.ImageHDU
        hdus = fits.HDUList([] if primary else [fits.PrimaryHDU(header=header)])
        hdus.append(image(pixels, header=header))
        hdus.writeto(path, checksum=True)
        return path

    return write


@pytest.fixture(scope="session")
def packed(
    write_raw: Callable[..., Path], frame: Frame, exposure: Exposure
) -> Callable[[str], PackedCcd]:
    """The simulated frame as a packet of CCD 25, by the codec of this name."""
    path = write_raw(frame)

    def pack(codec: str) -> PackedCcd:
        return pack_ccd(path, 1, exposure, Ccd(25, "S1"), codec)

    return pack
