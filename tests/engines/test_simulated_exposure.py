"""The engine against simulated truth: tolerances come from the noise that was put in."""

from __future__ import annotations

from pathlib import Path

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from simulated_night import CCDS, Night

from prepipe.model import Colour

pytestmark = pytest.mark.parametrize("ccd", CCDS)


def test_a_good_exposure_is_green(night: Night, ccd: int) -> None:
    grade = night.outcomes[ccd].grade
    assert (grade.colour, grade.reasons) == (Colour.GREEN, ())


def test_the_wcs_puts_true_stars_where_they_are(night: Night, ccd: int) -> None:
    found = night.outcomes[ccd].reduction
    header = fitsio.read_header(found.product, ext="IMAGE")
    stars = night.truth.stars_on(ccd)
    x, y = WCS(fits.Header(dict(header)), fix=False).all_world2pix(stars["ra"], stars["dec"], 0)
    scale_mas = 262.6
    off = np.hypot(x - stars["x"], y - stars["y"]) * scale_mas
    # The fit averages the matched stars' residuals over at most ten coefficients a coordinate.
    expected = found.wcs_rms_mas * np.sqrt(2 * 10 / found.wcs_matches)
    assert np.sqrt(np.mean(off**2)) < 3 * expected


def test_the_pointing_error_is_found(night: Night, ccd: int) -> None:
    meta = night.truth.meta
    true = np.hypot(meta["OFFEAST"], meta["OFFNORTH"])
    # The rotation moves a CCD away from the axis too: at most its angle times 1.1 degrees.
    turn = abs(np.deg2rad(meta["ROTATION"])) * 1.1 * 3600
    assert night.outcomes[ccd].reduction.offset_arcsec == pytest.approx(true, abs=turn + 0.1)


def test_the_zero_point_is_recovered(night: Night, ccd: int) -> None:
    found = night.outcomes[ccd].reduction
    truth = night.truth.ccd(ccd)
    # Dividing by the flat keeps the typical pixel's response, which the truth has apart.
    expected = truth["zero_point"] + 2.5 * np.log10(truth["response"])
    error = found.zero_point_scatter / np.sqrt(found.zero_point_stars)
    # The aperture correction is measured on at most a hundred stars: 3 mmag allowed for it.
    assert found.zero_point == pytest.approx(expected, abs=5 * error + 0.003)


def test_the_seeing_is_recovered(night: Night, ccd: int) -> None:
    true = night.truth.ccd(ccd)["seeing_arcsec"]
    assert night.outcomes[ccd].reduction.seeing_arcsec == pytest.approx(true, rel=0.03)


def test_the_sky_is_recovered(night: Night, ccd: int) -> None:
    found, truth = night.outcomes[ccd].reduction, night.truth.ccd(ccd)
    gain = 0.5 * (truth["gain_a"] + truth["gain_b"])
    sky_e = truth["sky_e"] * truth["response"]
    # Faint undetected sources raise a mode by 1 to 2 e-; the masters' bias adds below 1 e-.
    assert found.sky_adu * gain == pytest.approx(sky_e, abs=3.0)


def test_fluxes_of_matched_stars_agree_with_the_truth(night: Night, ccd: int) -> None:
    found, stars = night.outcomes[ccd].reduction, night.truth.stars_on(ccd)
    table = fitsio.read(found.catalogue)
    response = night.truth.ccd(ccd)["response"]
    bright = table[(table["SNR"] > 30) & (table["FLAGS"] == 0)]
    distance = np.hypot(
        bright["X"][:, None] - 1 - stars["x"], bright["Y"][:, None] - 1 - stars["y"]
    )
    nearest = distance.argmin(axis=1)
    near = distance[np.arange(len(bright)), nearest] < 1.0
    assert near.mean() > 0.95
    ratio = bright["FLUX"][near] / (stars["flux_e"][nearest[near]] * response)
    relative = bright["FLUXERR"][near] / bright["FLUX"][near]
    pull = (ratio - np.median(ratio)) / np.hypot(relative, 0.005)
    assert np.median(ratio) == pytest.approx(1.0, abs=0.005)
    assert 1.4826 * np.median(np.abs(pull)) < 1.3


def test_the_weight_is_the_inverse_of_the_noise_that_is_there(night: Night, ccd: int) -> None:
    product = night.outcomes[ccd].reduction.product
    image, weight = fitsio.read(product, ext="IMAGE"), fitsio.read(product, ext="WEIGHT")
    empty = (slice(2000, 2200), slice(200, 800))
    clear = fitsio.read(product, ext="MASK")[empty] == 0
    sky = image[empty][clear]
    low, middle, high = np.percentile(sky, (16, 50, 84))
    pull = 0.5 * (high - low) * np.sqrt(np.median(weight[empty][clear]))
    # Sampling error of a percentile range of n values is about 1.2/sqrt(2n); faint stars add.
    assert 0.97 < pull < 1.06
    assert middle > 0


def test_products_lie_where_photpipe_looks(night: Night, ccd: int) -> None:
    found = night.outcomes[ccd].reduction
    number = night.truth.meta["EXPNUM"]
    product = Path(found.product).relative_to(night.root / "products")
    assert product == Path(f"ut200306/{ccd}/DWFCOSMOSfield1.g.ut200306.{number}_{ccd}.fits.fz")
    assert Path(found.catalogue).is_file()


def test_the_product_keeps_the_telescopes_cards(night: Night, ccd: int) -> None:
    product = night.outcomes[ccd].reduction.product
    with fits.open(product) as hdus, fits.open(night.raw) as raw:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "IMAGE", "MASK", "WEIGHT"]
        for keyword in ("OBJECT", "EXPNUM", "FILTER", "AIRMASS", "PROPID", "LWTRTEMP"):
            assert hdus[0].header[keyword] == raw[0].header[keyword]
        assert hdus["IMAGE"].header["CCDNUM"] == ccd
        assert "DATASECA" not in hdus["IMAGE"].header


def test_the_product_tells_its_grade_and_where_it_comes_from(night: Night, ccd: int) -> None:
    header = fits.getheader(night.outcomes[ccd].reduction.product, "IMAGE")
    assert header["GRADE"] == "green"
    assert header["BIASFILE"].startswith("bias.ut200306.")
    assert header["FLATFILE"].startswith("domeflat.g.ut200306.")
    assert header["REFCAT"] == "stars.fits"
    assert header["RADESYS"] == "ICRS"
    assert header.count("RADESYS") == 1


def test_every_plane_has_the_wcs(night: Night, ccd: int) -> None:
    with fits.open(night.outcomes[ccd].reduction.product) as hdus:
        centres = [WCS(hdu.header, fix=False).all_pix2world(1000, 2000, 0) for hdu in hdus[1:]]
    assert np.allclose(centres, centres[0], rtol=0, atol=1e-12)
