"""The engine on real archive frames."""

from __future__ import annotations

from pathlib import Path

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from prepipe.calibrate.detrend import overscan_subtract_trim
from prepipe.calibrate.overscan import overscan_levels
from prepipe.cameras import load_camera
from prepipe.config import Calibration
from prepipe.engines.base import Order
from prepipe.engines.builtin import carry_out
from prepipe.engines.raw import list_ccds, read_ccd
from prepipe.model import Colour

CROP = "decam_raw/history_reduced_c4d_200306_000415_ori.fits.fz"
SCRAMBLED = "decam_raw/cutout_c4d_200306_000415_ori.fits.fz"
CALEXP = "decam_raw/cutout_calexp-0941420_23.fits"

decam = load_camera("decam")


@pytest.mark.parametrize(("ccd", "level"), [(25, 2040.4), (26, 2319.0), (27, 2217.9)])
def test_real_overscan_levels_are_found(shared_data: Path, ccd: int, level: float) -> None:
    hdu = {found.number: hdu for hdu, found in list_ccds(shared_data / CROP, decam)}[ccd]
    raw = read_ccd(shared_data / CROP, hdu, decam)
    layout = decam.layout(raw.header, raw.pixels)
    (found,) = overscan_levels(raw.pixels, layout)
    # 400 rows of 50 pixels of 1.5 ADU noise: 0.01 ADU; rows drift by a few tenths.
    assert np.mean(found) == pytest.approx(level, abs=0.5)


def test_overscan_subtracted_pixels_agree_with_an_independent_reduction(shared_data: Path) -> None:
    hdu = {found.number: hdu for hdu, found in list_ccds(shared_data / SCRAMBLED, decam)}[23]
    raw = read_ccd(shared_data / SCRAMBLED, hdu, decam)
    layout = decam.layout(raw.header, raw.pixels)
    ours = overscan_subtract_trim(raw.pixels, layout)
    with fits.open(shared_data / CALEXP) as hdus:
        theirs = next(hdu.data for hdu in hdus if hdu.data is not None and hdu.data.ndim == 2)
    ny, nx = ours.shape
    same = theirs[133 : 133 + ny, 136 : 136 + nx]
    assert same.shape == ours.shape
    # That reduction was flat-fielded: the columns that glow at the CCD's edge differ.
    inner = slice(0, nx - decam.edge_columns)
    correlation = np.corrcoef(ours[:, inner].ravel(), same[:, inner].ravel())[0, 1]
    assert correlation > 0.7


@pytest.mark.parametrize(("name", "count"), [(CROP, 9), (SCRAMBLED, 62)])
def test_every_ccd_of_a_real_file_becomes_a_product(
    shared_data: Path, tmp_path: Path, name: str, count: int
) -> None:
    path = shared_data / name
    outcomes = [
        carry_out(Order(path, "decam", Calibration(), tmp_path, hdu=hdu))
        for hdu, _ in list_ccds(path, decam)
    ]
    assert len(outcomes) == count
    for outcome in outcomes:
        found = outcome.reduction
        assert Path(found.product).is_file()
        assert "NO_OVERSCAN" not in found.flags
        assert outcome.grade.colour is not Colour.GREEN
        assert (outcome.ccd.number == 61) == ("DEAD" in found.flags)


@pytest.mark.filterwarnings("ignore::astropy.wcs.FITSFixedWarning")
@pytest.mark.parametrize("band", "ugriz")
def test_a_shifted_sdss_frame_is_solved(shared_data: Path, tmp_path: Path, band: str) -> None:
    raw = tmp_path / f"fpC-{band}.fit"
    with fits.open(shared_data / f"sdss/fpC-004192-{band}4-0300.fit.gz") as hdus:
        true = WCS(hdus[0].header)
        hdus[0].header["CRVAL1"] += 18.0 / 3600
        hdus[0].header["CRVAL2"] -= 24.0 / 3600
        hdus.writeto(raw)
    settings = Calibration(reference=shared_data / "refcats/sdss_stripe82_stars.fits")
    outcome = carry_out(Order(raw, "sdss", settings, tmp_path / "out", hdu=0))
    found = outcome.reduction
    assert found.offset_arcsec == pytest.approx(30.0, abs=0.3)
    assert found.zero_point_scatter is not None and found.zero_point_scatter < 0.1
    header = fits.Header(dict(fitsio.read_header(found.product, ext="IMAGE")))
    x, y = np.array([200.0, 1024.0, 1900.0]), np.array([200.0, 700.0, 1400.0])
    ours = WCS(header, fix=False).all_pix2world(x, y, 0)
    theirs = true.all_pix2world(x, y, 0)
    # The survey's own frames are good to 0.1 arcsec or so; its linear header to a bit less.
    assert np.hypot(ours[0] - theirs[0], ours[1] - theirs[1]).max() * 3600 < 0.4
