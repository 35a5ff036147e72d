"""Our steps and the field's own libraries, on the same pixels.

Simulated truth says how good a step is; these say that it means what everyone else means by it.
"""

from __future__ import annotations

import astroscrappy
import ccdproc
import numpy as np
import pytest
from astropy import units as u
from astropy.nddata import CCDData
from numpy.typing import NDArray
from photutils.psf import fit_fwhm
from raw_frames import READ_NOISE, read_out, two_amplifiers
from star_image import gaussian, grid_of_stars
from test_cosmic_rays import NOISE, SHAPE, SKY, expose, search, star_field, tracks

from prepipe.calibrate.detector.detrend import detrend
from prepipe.calibrate.detector.masters import combine
from prepipe.calibrate.flags import Mask
from prepipe.calibrate.stars.psf import find_sources
from prepipe.model import Amplifier

LAYOUT = two_amplifiers(300, 96)


def with_ccdproc(
    raw: NDArray[np.uint16],
    amplifier: Amplifier,
    bias: NDArray[np.float32],
    flat: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One amplifier in electrons and its error, row by row by the median of its overscan."""
    assert amplifier.overscan is not None
    rows = slice(amplifier.data.y0, amplifier.data.y1)
    ccd = CCDData(raw[rows].astype(float), unit=u.adu)
    ccd = ccdproc.subtract_overscan(
        ccd, overscan=ccd[:, amplifier.overscan.x0 : amplifier.overscan.x1], median=True
    )
    ccd = ccdproc.trim_image(ccd[:, amplifier.data.x0 : amplifier.data.x1])
    ccd = ccdproc.subtract_bias(ccd, CCDData(bias[amplifier.trimmed.slices], unit=u.adu))
    ccd = ccdproc.gain_correct(ccd, amplifier.gain * u.electron / u.adu)
    rounded = np.hypot(amplifier.read_noise, amplifier.gain / np.sqrt(12.0))
    ccd = ccdproc.create_deviation(ccd, readnoise=rounded * u.electron)
    response = CCDData(flat[amplifier.trimmed.slices], unit=u.dimensionless_unscaled)
    ccd = ccdproc.flat_correct(ccd, response, norm_value=1.0)
    return ccd.data, ccd.uncertainty.array


def test_detrending_agrees_with_ccdproc() -> None:
    rng = np.random.default_rng(31)
    shape = LAYOUT.trimmed_shape
    bias = rng.normal(0.0, 1.0, shape).astype(np.float32)
    flat = rng.normal(1.0, 0.02, shape).astype(np.float32)
    raw = read_out(rng.poisson(900.0 * flat).astype(float), LAYOUT, rng, bias)
    ours = detrend(raw, LAYOUT, bias=bias, flat=flat)
    for amplifier in LAYOUT.amplifiers:
        theirs, error = with_ccdproc(raw, amplifier, bias, flat)
        part = amplifier.trimmed.slices
        difference = ours.image[part] - theirs
        # They take each row's own median of 50 overscan pixels, of 1.25 times the error of a mean;
        # ours is smoothed over rows and adds less.
        row_error = 1.25 * READ_NOISE / np.sqrt(50.0)
        assert abs(difference.mean()) < 4.0 * row_error / np.sqrt(difference.shape[0])
        assert difference.std() < 1.3 * row_error
        # The same law for the noise, which differs by half of what the level differs.
        np.testing.assert_allclose(np.sqrt(ours.variance[part]), error, rtol=0.5 * 5.5 / 700.0)


def test_a_clipped_mean_is_that_of_ccdproc() -> None:
    rng = np.random.default_rng(32)
    frames = [rng.normal(100.0, 2.0, (60, 80)).astype(np.float32) for _ in range(9)]
    for frame in frames:
        hit = tuple(rng.integers(0, side, 5) for side in frame.shape)
        frame[hit] += 500.0
    ours = combine(frames)
    combiner = ccdproc.Combiner([CCDData(frame, unit=u.adu) for frame in frames])
    combiner.sigma_clipping(
        low_thresh=5.0, high_thresh=5.0, func=np.ma.median, dev_func=lambda *_, **__: 2.0
    )
    theirs = combiner.average_combine().data
    # Both drop the hits; where noise alone lies near the threshold they may differ by a frame.
    same = np.isclose(ours.image, theirs, atol=1e-3)
    assert same.mean() > 0.998
    assert np.abs(ours.image - 100.0).max() < 6.0 * 2.0 / np.sqrt(8.0)


def test_cosmic_rays_are_found_as_well_as_by_astroscrappy_and_stars_are_hit_less() -> None:
    rng = np.random.default_rng(33)
    sky, places = star_field(rng, 4.0)
    charge, _ = tracks(rng)
    image = expose(rng, sky + charge)
    hit = charge > 5.0 * NOISE
    theirs, _ = astroscrappy.detect_cosmics(
        image.copy(), gain=1.0, readnoise=7.0, satlevel=np.inf, psffwhm=4.0
    )
    _, mask = search(image.copy(), 4.0)
    ours = (mask & np.uint8(Mask.COSMIC_RAY)) != 0
    clear = hit & (sky < 1.2 * SKY)
    error = np.sqrt(0.1 * 0.9 / np.count_nonzero(clear))
    assert ours[clear].mean() > theirs[clear].mean() - 3.0 * error
    false = charge == 0.0
    assert np.count_nonzero(ours & false) <= np.count_nonzero(theirs & false)
    cores = np.zeros(SHAPE, np.bool_)
    cores[tuple(np.rint(places).astype(int).T[::-1])] = True
    assert not np.any(ours & cores & false)


@pytest.mark.parametrize("fwhm", [3.0, 4.2])
def test_the_seeing_is_that_of_photutils(fwhm: float) -> None:
    field = grid_of_stars(8, 60, 60_000.0, gaussian(fwhm), sky=200.0, seed=34)
    rms = np.full((8, 8), np.sqrt(200.0), np.float32)
    _, psf = find_sources(field.image, field.mask, rms, 60, fwhm, 200.0)
    theirs = fit_fwhm(field.image, xypos=np.transpose([field.x, field.y]), fit_shape=15)
    # Theirs is the width before the pixels, ours after them: a pixel adds its own 1/12 of variance.
    with_pixels = np.hypot(np.median(theirs), np.sqrt(8.0 * np.log(2.0) / 12.0))
    # Sixty-four stars of 60 000 e- tell it to 0.1 %; rings on pixels are 1 % short at 3 pixels.
    assert psf.fwhm_px == pytest.approx(with_pixels, rel=0.012)
