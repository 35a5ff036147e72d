"""The engine's products when profiles are fitted: columns, cards and a zero point of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from scipy.spatial import cKDTree
from simulated_night import Night, order_of

from prepipe.calibrate.flags import SourceFlag
from prepipe.calibrate.stars.psf_map import PsfMap
from prepipe.config import Calibration
from prepipe.engines.builtin.reduce import carry_out
from prepipe.engines.names import catalogue_paths
from prepipe.simulate.settings import PIXEL_SCALE_ARCSEC

CCD = 28


@dataclass(frozen=True)
class Product:
    header: fits.Header
    sources: Any


@pytest.fixture(scope="module")
def product(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Product:
    settings = Calibration(reference=night.reference, photometry="psf")
    order = order_of(
        night.root, night.raw, 1, calibration=settings, products=tmp_path_factory.mktemp("psf")
    )
    path = Path(str(carry_out(order).reduction.product))
    header = fits.getheader(path, "IMAGE")
    return Product(header, fits.getdata(catalogue_paths(path, "fits")[0], "SOURCES"))


def true_mags(night: Night, product: Product) -> tuple[np.ndarray, np.ndarray]:
    """Sources that are clear stars of 16 to 19 mag, and how bright they are."""
    stars = night.truth.stars_on(product.header["CCDNUM"])
    stars = stars[(stars["mag"] > 16.5) & (stars["mag"] < 19.0) & (stars["size_arcsec"] == 0)]
    places = np.column_stack([product.sources["X"] - 1.0, product.sources["Y"] - 1.0])
    distance, index = cKDTree(places).query(np.column_stack([stars["x"], stars["y"]]))
    clear = (distance < 1.0) & (product.sources["FLAGS"][index] == 0)
    return index[clear], stars["mag"][clear]


def test_fitted_magnitudes_are_those_put_in(night: Night, product: Product) -> None:
    index, mag = true_mags(night, product)
    found, error = product.sources["PSFMAG"][index], product.sources["PSFMAGERR"][index]
    assert len(mag) > 50
    assert np.median(found - mag) == pytest.approx(0.0, abs=0.02)
    pull = (found - mag - np.median(found - mag)) / np.hypot(error, 0.005)
    assert 1.4826 * np.median(np.abs(pull)) < 1.4


def test_both_kinds_of_flux_mean_the_whole_light(night: Night, product: Product) -> None:
    index, _ = true_mags(night, product)
    ratio = product.sources["PSFFLUX"][index] / product.sources["FLUX"][index]
    assert np.median(ratio) == pytest.approx(1.0, abs=0.01)
    assert product.header["PHOTOM"] == "psf"


def test_a_saturated_star_is_fitted_only_where_most_of_it_could_be_seen(
    night: Night, product: Product
) -> None:
    saturated = product.sources[(product.sources["FLAGS"] & SourceFlag.SATURATED) != 0]
    stars = night.truth.stars_on(product.header["CCDNUM"])
    assert len(saturated) > 0
    assert np.isfinite(saturated["FLUX"]).all()
    for source in saturated[np.isfinite(saturated["PSFMAG"])]:
        near = np.hypot(stars["x"] - source["X"] + 1, stars["y"] - source["Y"] + 1) < 3.0
        assert source["PSFMAG"] == pytest.approx(stars["mag"][near].min(), abs=0.15)


def test_without_the_option_there_are_no_columns_of_it(night: Night) -> None:
    path = Path(str(night.outcomes[CCD].reduction.product))
    names = fits.getdata(catalogue_paths(path, "fits")[0], "SOURCES").names
    assert not [name for name in names if name.startswith("PSF")]
    assert fits.getheader(path, "IMAGE")["PHOTOM"] == "aperture"


def test_the_header_tells_how_the_stars_vary(night: Night) -> None:
    path = Path(str(night.outcomes[CCD].reduction.product))
    header = fits.getheader(path, "IMAGE")
    told = [
        np.array([header[f"{name}{k}"] for k in range(6) if f"{name}{k}" in header])
        for name in ("FWHM_", "ELL1_", "ELL2_")
    ]
    shape = header["NAXIS2"], header["NAXIS1"]
    middle = np.array([(shape[1] - 1) / 2]), np.array([(shape[0] - 1) / 2])
    width, e1, e2 = (float(value[0]) for value in PsfMap(shape, *told).at(*middle))
    truth = night.truth.ccd(CCD)
    assert width == pytest.approx(truth["seeing_arcsec"], rel=0.02)
    assert width == pytest.approx(header["SEEING"], rel=0.02)
    assert header["SEEMIN"] <= width <= header["SEEMAX"]
    # 200 stars, each known to 2 sqrt(2) / snr of at least 20.
    noise = 2.0 * np.sqrt(2.0) / 20.0 / np.sqrt(200.0)
    assert np.hypot(e1, e2) == pytest.approx(truth["ellipticity"], abs=3.5 * noise)
    assert np.hypot(header["ELLIP1"], header["ELLIP2"]) == pytest.approx(header["ELLIPTIC"])
    assert header["ELLIPMAX"] >= np.hypot(e1, e2)
    assert 0.5 < width / PIXEL_SCALE_ARCSEC < 20.0
