"""A CCD that came with a loss against the same CCD bit for bit, and against the truth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import fitsio
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from simulated_night import Night

from prepipe.calibrate.flags import Mask
from prepipe.cameras import load_camera
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import write_packet
from prepipe.config import Calibration
from prepipe.engines.base import Order
from prepipe.engines.builtin.reduce import carry_out
from prepipe.engines.raw import list_ccds, read_exposure
from prepipe.model import Packet, Reduction
from prepipe.simulate import Settings, StarField, Truth, read_truth, simulate_exposure

CCD = 28
CAMERA = load_camera("decam")
ORIGINAL = ("none", ())
LOSSY = [
    *(("wavelet", (("preset", preset), ("fill", fill)))
      for preset in ("precise", "fast", "faint-link") for fill in (False, True)),
    ("jpeg2000", (("ratio", 10.0),)),
]  # fmt: skip
Codec = tuple[str, tuple[tuple[str, object], ...]]
lossy = pytest.mark.parametrize("codec", LOSSY, ids=str)

SNR_BLANK = 4.0
"""Low, so that noise alone gives more than a hundred detections a CCD to count."""

WEAK = 0.5
MAGS = (18.0, 20.5, 21.0, 21.5, 22.0)


@dataclass(frozen=True)
class Calibrated:
    """A calibrated CCD as it lies on disk, and the packet that brought it."""

    reduction: Reduction
    table: NDArray[np.void]
    packet: Packet

    def plane(self, name: str) -> NDArray[np.generic]:
        return fitsio.read(self.reduction.product, ext=name)

    @property
    def header(self) -> fitsio.FITSHDR:
        return fitsio.read_header(self.reduction.product, ext="IMAGE")


class Frames:
    """A blank frame and one of stars on a grid, by whatever codec they are asked for."""

    def __init__(self, root: Path, masters: Path) -> None:
        self._root, self._masters = root, masters
        stars = grid_of_stars()
        stars.write_reference(root / "grid.fits")
        nothing = stars.chosen(np.zeros(len(stars), np.bool_))
        blank = Settings(seed=11, ccds=(CCD,), stars=nothing, cosmic_rays_per_minute=0.0)
        self._blank = [simulate_exposure(blank, index, root / "blank") for index in (0, 1)]
        starry = Settings(seed=12, ccds=(CCD,), stars=stars, cosmic_rays_per_minute=90.0)
        self._stars = simulate_exposure(starry, 0, root / "stars")
        self.truth: Truth = read_truth(self._stars)
        self.blank = cache(self._calibrate_blank)
        self.stars = cache(self._calibrate_stars)

    def _calibrate_blank(self, codec: Codec) -> list[Calibrated]:
        settings = Calibration(detection_snr=SNR_BLANK)
        return [self._calibrate(raw, codec, settings) for raw in self._blank]

    def _calibrate_stars(self, codec: Codec, photometry: str = "aperture") -> Calibrated:
        reference = self._root / "grid.fits"
        settings = Calibration.model_validate({"reference": reference, "photometry": photometry})
        return self._calibrate(self._stars, codec, settings)

    def _calibrate(self, raw: Path, codec: Codec, settings: Calibration) -> Calibrated:
        ((hdu, ccd),) = list_ccds(raw, CAMERA)
        packed = pack_ccd(raw, hdu, read_exposure(raw, CAMERA), ccd, codec[0], dict(codec[1]))
        name = "-".join([codec[0], *(str(value) for _, value in codec[1])])
        root = self._root / raw.parent.name / settings.photometry / name
        root.mkdir(parents=True, exist_ok=True)
        order = Order(
            source=write_packet(root, packed),
            hdu=None,
            camera="decam",
            calibration=settings,
            products=root,
            calibrations=self._masters,
        )
        reduction = carry_out(order).reduction
        return Calibrated(reduction, fitsio.read(reduction.catalogue), packed.packet)


def grid_of_stars() -> StarField:
    """Stars 60 pixels apart, most of them faint, all of one colour."""
    rng = np.random.default_rng(3)
    step = 16.0 / 3600
    east, north = (axis.ravel() for axis in np.meshgrid(*[np.arange(-0.3, 0.3, step)] * 2))
    count = east.size
    east = east + rng.uniform(-0.05, 0.05, count) * step
    g_mag = rng.choice(MAGS, count)
    zeros = np.zeros(count)
    return StarField(
        number=np.arange(1, count + 1),
        ra=150.10 + east / np.cos(np.radians(2.2)),
        dec=2.20 + north,
        pmra=zeros,
        pmdec=zeros,
        g_mag=g_mag,
        bp_mag=g_mag + 0.5,
        rp_mag=g_mag - 0.5,
        size_arcsec=zeros,
        listed=np.ones(count, np.bool_),
    )


@pytest.fixture(scope="module")
def frames(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Frames:
    return Frames(tmp_path_factory.mktemp("packed"), night.masters)


@pytest.fixture(scope="module")
def weak_pixels(night: Night) -> cKDTree:
    """Where the response is low: there the noise is not that of the surroundings."""
    (flat,) = night.masters.rglob(f"domeflat.*_{CCD}.fits.fz")
    rows, columns = np.nonzero(fitsio.read(str(flat), ext=1) < WEAK)
    return cKDTree(np.column_stack([columns, rows]))


def false_detections(blank: list[Calibrated], weak_pixels: cKDTree) -> int:
    found = 0
    for each in blank:
        places = np.column_stack([each.table["X"] - 1, each.table["Y"] - 1])
        found += int(np.count_nonzero(weak_pixels.query(places)[0] > 6.0))
    return found


@lossy
def test_noise_is_detected_as_often_as_without_packing(
    frames: Frames, weak_pixels: cKDTree, codec: Codec
) -> None:
    expected = false_detections(frames.blank(ORIGINAL), weak_pixels)
    found = false_detections(frames.blank(codec), weak_pixels)
    assert expected > 100
    assert abs(found - expected) < 4.0 * np.sqrt(found + expected)


@lossy
def test_what_responds_too_little_for_a_codec_is_bad_and_not_full_of_sources(
    frames: Frames, weak_pixels: cKDTree, codec: Codec
) -> None:
    for each in frames.blank(codec):
        mask = each.plane("MASK")
        columns, rows = weak_pixels.data.astype(int).T
        assert np.all(mask[rows, columns] & np.uint8(Mask.BAD))
        places = np.column_stack([each.table["X"] - 1, each.table["Y"] - 1])
        assert np.count_nonzero(weak_pixels.query(places)[0] < 1.5) < 5


def pull(frames: Frames, codec: Codec, column: str = "FLUX", photometry: str = "aperture") -> float:
    """Rms of what fluxes of faint stars are off, in units of their errors."""
    table, stars = frames.stars(codec, photometry).table, frames.truth.stars_on(CCD)
    true = stars["flux_e"] * frames.truth.ccd(CCD)["response"]
    tree = cKDTree(np.column_stack([table["X"] - 1, table["Y"] - 1]))
    distance, nearest = tree.query(np.column_stack([stars["x"], stars["y"]]))
    good = (distance < 1.5) & (table["FLAGS"][nearest] == 0)
    flux, error = (table[name][nearest].astype(float) for name in (column, f"{column}ERR"))
    bright = good & (true > 0.9 * true.max())
    scale = np.median(flux[bright] / true[bright])
    faint = good & (true < 0.1 * true.max()) & (true > 1.2 * true.min())
    assert np.count_nonzero(faint) > 1000
    off = (flux / scale - true)[faint] / error[faint]
    return float(np.sqrt(np.mean(off**2)))


@pytest.mark.parametrize("codec", [ORIGINAL, *LOSSY], ids=str)
def test_the_errors_of_fluxes_are_what_fluxes_are_off_the_truth(
    frames: Frames, codec: Codec
) -> None:
    # of a thousand stars it is known to 0.022; an aperture's rim makes a few per cent
    assert pull(frames, codec) == pytest.approx(1.0, abs=0.07)


@pytest.mark.parametrize("codec", [ORIGINAL, LOSSY[2], LOSSY[3], LOSSY[-1]], ids=str)
def test_so_are_those_of_fitted_profiles(frames: Frames, codec: Codec) -> None:
    expected = pull(frames, ORIGINAL, "PSFFLUX", "psf")
    assert pull(frames, codec, "PSFFLUX", "psf") == pytest.approx(expected, abs=0.08)


@lossy
def test_the_variance_is_that_of_the_original_and_of_what_packing_added(
    frames: Frames, codec: Codec
) -> None:
    original, found = frames.blank(ORIGINAL)[0], frames.blank(codec)[0]
    added_adu = found.header["PPADDED"] * found.header["PPNOISE"]
    added = (added_adu * found.header["RAWGAIN"]) ** 2
    variance = [1.0 / float(np.median(each.plane("WEIGHT"))) for each in (original, found)]
    assert variance[1] == pytest.approx(variance[0] + added, rel=0.01)
    assert 0.0 < added < 0.1 * variance[0]


@lossy
def test_the_product_tells_what_was_done(frames: Frames, codec: Codec) -> None:
    each = frames.blank(codec)[0]
    header, told = each.header, each.packet.parameters
    assert header["PPCODEC"] == codec[0]
    assert header["PPRATIO"] == pytest.approx(told["ratio"])
    assert header["PPRMSSIG"] == pytest.approx(told["rms_error_sigma"])
    assert header["PPNOISE"] == pytest.approx(told["noise_adu"])
    for keyword, name in (("PPPRESET", "preset"), ("PPFILL", "fill")):
        assert header.get(keyword) == dict(codec[1]).get(name)


def test_the_product_of_an_original_tells_that_nothing_was_lost(frames: Frames) -> None:
    header = frames.blank(ORIGINAL)[0].header
    assert (header["PPCODEC"], header["PPRMSSIG"]) == ("none", 0.0)
    assert "PPADDED" not in header


@lossy
def test_bright_cosmic_rays_are_found_all_the_same(frames: Frames, codec: Codec) -> None:
    rays = np.uint8(Mask.COSMIC_RAY)
    before = (frames.stars(ORIGINAL).plane("MASK") & rays) != 0
    after = (frames.stars(codec).plane("MASK") & rays) != 0
    assert np.count_nonzero(before) > 100
    assert np.count_nonzero(before & after) > 0.9 * np.count_nonzero(before)
    assert np.count_nonzero(after) < 1.5 * np.count_nonzero(before)
