"""The engine on real archive frames."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import fitsio
import numpy as np
import pytest
import sep
from astropy.convolution import Gaussian2DKernel
from astropy.io import fits
from astropy.table import Table, vstack
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from prepipe.calibrate.detector.detrend import overscan_subtract_trim
from prepipe.calibrate.detector.overscan import overscan_levels, overscan_noise
from prepipe.calibrate.flags import Mask
from prepipe.cameras import load_camera
from prepipe.config import Calibration
from prepipe.engines.base import Order, Outcome
from prepipe.engines.builtin.reduce import carry_out
from prepipe.engines.builtin.steps import Masters, clean_pixels, measure_sources
from prepipe.engines.raw import list_ccds, read_ccd
from prepipe.model import Colour, PointingHint

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
    amplifier = layout.amplifiers[0]
    noise = overscan_noise(raw.pixels, amplifier.overscan) * amplifier.gain
    # 20 000 pixels tell it to 0.5 %; the header's is of another year.
    assert noise == pytest.approx(amplifier.read_noise, rel=0.1)


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


@dataclass(frozen=True)
class SdssFrame:
    """An SDSS frame, pointed 30 arcsec off, and what came of it."""

    band: str
    raw: Path
    outcome: Outcome
    true: WCS
    survey: dict[str, float]


@pytest.fixture(scope="module", params="ugriz")
def sdss(
    request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> SdssFrame:
    band = request.param
    work = tmp_path_factory.mktemp(f"sdss-{band}")
    raw = work / f"fpC-{band}.fit"
    with fits.open(shared_data / f"sdss/fpC-004192-{band}4-0300.fit.gz") as hdus:
        true = WCS(hdus[0].header)
        hdus[0].header["CRVAL1"] += 18.0 / 3600
        hdus[0].header["CRVAL2"] -= 24.0 / 3600
        hdus.writeto(raw)
    settings = Calibration(reference=shared_data / "refcats/sdss_stripe82_stars.fits")
    outcome = carry_out(Order(raw, "sdss", settings, work / "out", hdu=0))
    told = fits.getdata(shared_data / "sdss/tsField-004192-4-40-0300.fit", 1)[0]
    names = ("aa", "kk", "airmass", "gain", "dark_variance")
    survey = {name: float(told[name]["ugriz".index(band)]) for name in names}
    return SdssFrame(band, raw, outcome, true, survey)


def wcs_of(product: str) -> WCS:
    return WCS(fits.Header(dict(fitsio.read_header(product, ext="IMAGE"))), fix=False)


@pytest.mark.filterwarnings("ignore::astropy.wcs.FITSFixedWarning")
def test_a_shifted_sdss_frame_is_solved(sdss: SdssFrame) -> None:
    found = sdss.outcome.reduction
    assert sdss.outcome.grade.colour is Colour.GREEN
    assert found.offset_arcsec == pytest.approx(30.0, abs=0.3)
    x, y = (grid.ravel() for grid in np.meshgrid(np.linspace(0, 2047, 9), np.linspace(0, 1488, 9)))
    ours = wcs_of(found.product).all_pix2world(x, y, 0)
    theirs = sdss.true.all_pix2world(x, y, 0)
    # The survey is good to 45 mas a coordinate (Pier et al. 2003); 3 sigma, in two of them.
    assert np.hypot(ours[0] - theirs[0], ours[1] - theirs[1]).max() * 3600 < 3 * 0.045 * 2**0.5


def test_the_zero_point_is_the_surveys_own(sdss: SdssFrame) -> None:
    found = sdss.outcome.reduction
    survey = -(sdss.survey["aa"] + sdss.survey["kk"] * sdss.survey["airmass"])
    survey += 2.5 * np.log10(sdss.survey["gain"])
    # Its calibration has errors of 2 % in g, r, i and 3 % in u and z; so has the catalogue.
    error = 2**0.5 * (0.02 if sdss.band in "gri" else 0.03)
    assert found.zero_point == pytest.approx(survey, abs=2 * error)
    assert found.zero_point_scatter < 0.04


def test_the_noise_is_that_of_the_gain_and_the_dark_variance(sdss: SdssFrame) -> None:
    found = sdss.outcome.reduction
    expected = np.sqrt(found.sky_adu / sdss.survey["gain"] + sdss.survey["dark_variance"])
    assert found.sky_noise_adu == pytest.approx(expected, rel=0.1)


@pytest.mark.filterwarnings("ignore::astropy.wcs.FITSFixedWarning")
def test_all_stars_well_above_the_depth_are_found(sdss: SdssFrame, shared_data: Path) -> None:
    found = sdss.outcome.reduction
    stars = fitsio.read(shared_data / "refcats/sdss_stripe82_stars.fits")
    ra, dec = sdss.true.wcs.crval
    near = (np.abs((stars["ra"] - ra + 180) % 360 - 180) < 0.3) & (np.abs(stars["dec"] - dec) < 0.3)
    stars = stars[near & (stars[sdss.band] < found.limiting_mag - 1.0)]
    x, y = wcs_of(found.product).all_world2pix(stars["ra"], stars["dec"], 0)
    inside = (x > 10) & (x < 2038) & (y > 10) & (y < 1479)
    table = fitsio.read(found.catalogue)
    distance, _ = cKDTree(np.stack([table["X"] - 1, table["Y"] - 1], axis=1)).query(
        np.stack([x[inside], y[inside]], axis=1)
    )
    assert inside.sum() > 20
    # One star in fifty may lie on a brighter neighbour.
    assert np.mean(distance < 4.0) > 0.98


def test_what_sep_finds_at_twice_the_threshold_is_found_and_the_negative_has_nothing(
    sdss: SdssFrame,
) -> None:
    camera = load_camera("sdss")
    raw = read_ccd(sdss.raw, 0, camera)
    fwhm_px = sdss.outcome.reduction.seeing_arcsec / camera.pixel_scale
    clean = clean_pixels(raw, camera.layout(raw.header, raw.pixels), camera, Masters(), fwhm_px)
    ours = measure_sources(clean, fwhm_px, 5.0).sources
    negative = measure_sources(replace(clean, image=-clean.image), fwhm_px, 5.0).sources
    assert len(negative) <= 0.02 * len(ours) + 3
    peers = sep.extract(
        np.ascontiguousarray(clean.image, np.float32),
        10.0,
        err=clean.background.median_rms,
        mask=clean.frame.mask != 0,
        minarea=1,
        filter_kernel=Gaussian2DKernel(fwhm_px / 2.3548).array,
    )
    distance, _ = cKDTree(np.stack([ours.x, ours.y], axis=1)).query(
        np.stack([peers["x"], peers["y"]], axis=1)
    )
    assert np.mean(distance < 2 * fwhm_px) > 0.95


@pytest.fixture(scope="module")
def gaia(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    chunks = sorted((shared_data / "legacysurvey/testcase8/gaia").glob("*.fits"))
    tables = [table for table in map(Table.read, chunks) if len(table)]
    path = tmp_path_factory.mktemp("gaia") / "gaia.fits"
    vstack(tables).write(path)
    return path


def pipeline_crop(shared_data: Path, tmp_path: Path, gaia: Path, **changes: object) -> Outcome:
    """The Community Pipeline's crop, pointed 30 arcsec off."""
    root = shared_data / "legacysurvey/testcase8/images"
    with fits.open(next(root.glob("**/*_ooi_*.fits"))) as hdus:
        image = fits.ImageHDU(hdus[1].data, hdus[1].header)
        image.header["CRVAL1"] += 18.0 / 3600
        image.header["CRVAL2"] -= 24.0 / 3600
        primary = fits.PrimaryHDU(header=hdus[0].header)
        path = tmp_path / "ooi.fits"
        fits.HDUList([primary, image]).writeto(path, output_verify="silentfix")
    # A galaxy fills the crop: at the usual threshold its halo breaks into pieces.
    settings = Calibration(reference=gaia, detection_snr=10.0)
    return carry_out(Order(path, "decam-cp", settings, tmp_path / "out", hdu=1, **changes))


def test_a_crop_with_a_galaxy_and_a_few_stars_is_red(
    shared_data: Path, tmp_path: Path, gaia: Path
) -> None:
    outcome = pipeline_crop(shared_data, tmp_path, gaia)
    assert outcome.grade.colour is Colour.RED
    assert outcome.reduction.wcs_rms_mas is None


@pytest.mark.filterwarnings("ignore::astropy.wcs.FITSFixedWarning")
def test_the_same_crop_is_calibrated_where_others_tell_the_pointing(
    shared_data: Path, tmp_path: Path, gaia: Path
) -> None:
    east = -18.0 * np.cos(np.radians(5.15))
    hints = tuple(PointingHint("others", east, 24.0, relaxed) for relaxed in (False, True))
    outcome = pipeline_crop(shared_data, tmp_path, gaia, hints=hints)
    found = outcome.reduction
    root = shared_data / "legacysurvey/testcase8"
    with fits.open(next(root.glob("images/**/*_ooi_*.fits"))) as hdus:
        true = WCS(hdus[1].header)
        gain = hdus[1].header["GAINA"]
    x, y = (grid.ravel() for grid in np.meshgrid([0.0, 140.0, 279.0], [0.0, 187.0, 374.0]))
    ours, theirs = (wcs.all_pix2world(x, y, 0) for wcs in (wcs_of(found.product), true))
    apart = np.hypot(ours[0] - theirs[0], ours[1] - theirs[1]) * 3.6e6
    assert apart.max() < 4 * found.wcs_worst_mas
    survey = fits.getdata(root / "survey-ccds-1.fits.gz", 1)[0]
    error = found.zero_point_scatter / np.sqrt(found.zero_point_stars)
    expected = survey["zpt"] + 2.5 * np.log10(gain)
    assert found.zero_point == pytest.approx(expected, abs=3 * error)
    weight = fitsio.read(str(next(root.glob("images/**/*_oow_*.fits"))), ext=1)
    assert found.sky_noise_adu == pytest.approx(1 / np.sqrt(np.median(weight)), rel=0.05)


def outcomes_of_crops(shared_data: Path, tmp_path: Path, settings: Calibration) -> list[Outcome]:
    return [
        carry_out(Order(shared_data / CROP, "decam", settings, tmp_path, hdu=hdu))
        for hdu, _ in list_ccds(shared_data / CROP, decam)[:3]
    ]


def test_the_glow_of_a_real_ccds_edge_is_no_source(shared_data: Path, tmp_path: Path) -> None:
    for outcome in outcomes_of_crops(shared_data, tmp_path, Calibration()):
        table = fitsio.read(outcome.reduction.catalogue)
        mask = fitsio.read(outcome.reduction.product, ext="MASK")
        rows, columns = (np.rint(table[axis] - 1).astype(int) for axis in "YX")
        assert len(table)
        assert not np.any(mask[rows, columns] & Mask.EDGE)


def test_a_catalogue_of_another_sky_leaves_real_frames_red(
    shared_data: Path, tmp_path: Path
) -> None:
    settings = Calibration(reference=shared_data / "refcats/gaia_dr2_cosmos.fits")
    for outcome in outcomes_of_crops(shared_data, tmp_path, settings):
        assert outcome.grade.colour is Colour.RED
        assert {"NO_WCS", "TOO_FEW_REFERENCES"} <= set(outcome.reduction.flags)


def test_the_noise_beyond_a_flat_fielded_reduction_is_the_missing_flat(
    shared_data: Path, tmp_path: Path
) -> None:
    hdu = {found.number: hdu for hdu, found in list_ccds(shared_data / SCRAMBLED, decam)}[23]
    order = Order(shared_data / SCRAMBLED, "decam", Calibration(), tmp_path, hdu=hdu)
    found = carry_out(order).reduction
    image, mask = (fitsio.read(found.product, ext=ext) for ext in ("IMAGE", "MASK"))
    box = np.s_[133 : 133 + image.shape[0], 136 : 136 + image.shape[1]]
    with fits.open(shared_data / CALEXP) as hdus:
        theirs, their_mask = hdus[1].data[box], hdus[2].data[box]
    good = (mask == 0) & (their_mask == 0)
    gain = fitsio.read_header(found.product, ext="IMAGE")["RAWGAIN"]
    pattern = image[good] / gain - theirs[good]
    # Noise is common to both reductions: what differs has nothing to do with it, and is small.
    assert abs(np.corrcoef(pattern, theirs[good])[0, 1]) < 4 / np.sqrt(good.sum())
    assert pattern.std() < 0.01 * found.sky_adu
