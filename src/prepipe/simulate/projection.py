"""From the sky to the pixels of a CCD, through the TPV distortion of its own header."""

from __future__ import annotations

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from prepipe.simulate.focal_plane import HALF_WIDTH, Detector
from prepipe.simulate.headers import distortion
from prepipe.simulate.observation import Observation
from prepipe.simulate.pointing import apparent_positions, unit_vectors
from prepipe.simulate.settings import PIXEL_SCALE_ARCSEC
from prepipe.simulate.stars import StarField

__all__ = ["VisibleSky", "header_wcs"]

Floats = NDArray[np.float64]

MARGIN_PX = 250.0
"""Stars as far outside a CCD still throw light into it."""


def header_wcs(detector: Detector, ra: float, dec: float) -> WCS:
    """The WCS of a science CCD's header, for zero-based pixels of the trimmed CCD."""
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TPV", "DEC--TPV"
    header["CUNIT1"], header["CUNIT2"] = "deg", "deg"
    header["CRVAL1"], header["CRVAL2"] = ra, dec
    header["CRPIX1"] = detector.crpix[0] - detector.data.x0
    header["CRPIX2"] = detector.crpix[1] - detector.data.y0
    for keyword, value in distortion(detector).items():
        header[keyword] = value
    return WCS(header, fix=False)


class VisibleSky:
    """The star field as the (wrong) WCS of the headers would see it during one exposure.

    Parameters
    ----------
    field : StarField
    observation : Observation
    """

    def __init__(self, field: StarField, observation: Observation) -> None:
        self._observation = observation
        self.field = field
        self.ra, self.dec = field.positions(observation.year)
        self._apparent = apparent_positions(
            self.ra,
            self.dec,
            (observation.ra, observation.dec),
            (observation.true_ra, observation.true_dec),
            observation.rotation_deg,
        )
        self._vectors = unit_vectors(*self._apparent)

    def on_detector(self, detector: Detector) -> tuple[NDArray[np.int64], Floats, Floats]:
        """Sources on a CCD or a little outside.

        Parameters
        ----------
        detector : Detector
            A science CCD.

        Returns
        -------
        index : NDArray[np.int64]
            Their places in the field.
        x, y : NDArray[np.float64]
            Zero-based pixels of the trimmed CCD.
        """
        wcs = header_wcs(detector, self._observation.ra, self._observation.dec)
        middle_x, middle_y = HALF_WIDTH, detector.data_rows / 2
        centre = np.array(wcs.wcs_pix2world([[middle_x, middle_y]], 0))
        radius = (np.hypot(middle_x, middle_y) + MARGIN_PX) * PIXEL_SCALE_ARCSEC / 3600.0
        cosine = self._vectors @ unit_vectors(centre[:, 0], centre[:, 1])[0]
        near = np.flatnonzero(cosine > np.cos(np.radians(radius)))
        if not len(near):
            return near, np.empty(0), np.empty(0)
        ra, dec = (angle[near] for angle in self._apparent)
        x, y = wcs.wcs_world2pix(ra, dec, 0)
        inside = (np.abs(x - middle_x) < middle_x + MARGIN_PX) & (
            np.abs(y - middle_y) < middle_y + MARGIN_PX
        )
        return near[inside], x[inside], y[inside]
