"""The truth beside a simulated exposure: what a calibration should find."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from prepipe.errors import InputError
from prepipe.files import atomic_write
from prepipe.simulate.observation import Observation

__all__ = ["CCD_DTYPE", "STAR_DTYPE", "Truth", "read_truth", "truth_path", "write_truth"]

CCD_DTYPE = np.dtype(
    [
        ("ccd", "i2"),
        ("name", "U4"),
        ("dead", "?"),
        ("seeing_arcsec", "f4"),
        ("ellipticity", "f4"),
        ("sky_e", "f4"),
        ("zero_point", "f4"),
        ("response", "f4"),
        ("gain_a", "f4"),
        ("gain_b", "f4"),
        ("read_noise_a", "f4"),
        ("read_noise_b", "f4"),
        ("bias_a", "f4"),
        ("bias_b", "f4"),
        ("saturated_pixels", "i4"),
        ("cosmic_rays", "i4"),
    ]
)
"""One row a CCD: FWHM and ellipticity at its centre; sky and zero point (mag of 1 e-/s) before
the response; `response` is what its median pixel makes of them; bias in ADU, the mean of the
overscan."""

STAR_DTYPE = np.dtype(
    [
        ("ccd", "i2"),
        ("id", "i8"),
        ("ra", "f8"),
        ("dec", "f8"),
        ("x", "f8"),
        ("y", "f8"),
        ("flux_e", "f8"),
        ("mag", "f4"),
        ("size_arcsec", "f4"),
        ("listed", "?"),
    ]
)
"""One row a source whose centre lies on a CCD: position at the exposure's date (degrees),
zero-based pixels of the trimmed CCD, electrons before the response, AB magnitude, own size, and
whether the reference catalogue has it."""


@dataclass(frozen=True)
class Truth:
    """What was put into an exposure.

    Parameters
    ----------
    meta : dict
        EXPNUM, OBSTYPE, RA, DEC (pointing in the header), TRUERA, TRUEDEC (in
        fact; degrees), OFFEAST, OFFNORTH (arcsec, true minus header), ROTATION
        (degrees), SEEING (arcsec), ELLIP, ZEROPT (mag of 1 e-/s), SKYMAG,
        SKY_E, AIRMASS, EXPTIME, MJD-OBS, BAND.
    ccds : NDArray[Any]
        Of `CCD_DTYPE`.
    stars : NDArray[Any]
        Of `STAR_DTYPE`; empty for zeros and flats.
    """

    meta: dict[str, Any]
    ccds: NDArray[Any]
    stars: NDArray[Any]

    def stars_on(self, ccd: int) -> NDArray[Any]:
        """The rows of `stars` on one CCD."""
        rows: NDArray[Any] = self.stars[self.stars["ccd"] == ccd]
        return rows

    def ccd(self, number: int) -> Any:
        """The row of `ccds` of one CCD.

        Raises
        ------
        KeyError
            If the exposure has no such CCD.
        """
        rows = self.ccds[self.ccds["ccd"] == number]
        if not len(rows):
            raise KeyError(number)
        return rows[0]


def truth_path(exposure: Path) -> Path:
    """``DECam_00941421.truth.fits`` beside ``DECam_00941421.fits.fz``."""
    return exposure.with_name(f"{exposure.name.partition('.')[0]}.truth.fits")


def write_truth(
    path: Path, observation: Observation, ccds: NDArray[Any], stars: NDArray[Any]
) -> None:
    """Write the truth of an exposure as a FITS file with tables CCDS and STARS.

    Raises
    ------
    StorageError
    """
    header = fits.Header(list(_meta(observation).items()))
    hdus = fits.HDUList(
        [
            fits.PrimaryHDU(header=header),
            fits.BinTableHDU(ccds, name="CCDS"),
            fits.BinTableHDU(stars, name="STARS"),
        ]
    )
    with atomic_write(path) as stream:
        hdus.writeto(stream)


def read_truth(path: Path) -> Truth:
    """Read what `write_truth` wrote.

    Parameters
    ----------
    path : Path
        The truth file, or the exposure beside it.

    Raises
    ------
    InputError
        If there is no truth.
    """
    path = path if path.name.endswith(".truth.fits") else truth_path(path)
    try:
        with fits.open(path, memmap=False) as hdus:
            ccds = _as_array(hdus["CCDS"].data, CCD_DTYPE)
            stars = _as_array(hdus["STARS"].data, STAR_DTYPE)
            return Truth(dict(hdus[0].header), ccds, stars)
    except (OSError, KeyError) as error:
        raise InputError(
            f"{path}: no truth of a simulated exposure ({error}); simulate it again."
        ) from error


def _as_array(table: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    rows = np.empty(len(table), dtype=dtype)
    for name in dtype.names or ():
        rows[name] = table[name]
    return rows


def _meta(observation: Observation) -> dict[str, object]:
    east = (observation.true_ra - observation.ra) * np.cos(np.radians(observation.dec))
    return {
        "EXPNUM": observation.number,
        "OBSTYPE": observation.kind.value,
        "BAND": observation.band,
        "EXPTIME": observation.exposure_s,
        "MJD-OBS": observation.mjd,
        "AIRMASS": observation.airmass,
        "RA": observation.ra,
        "DEC": observation.dec,
        "TRUERA": observation.true_ra,
        "TRUEDEC": observation.true_dec,
        "OFFEAST": float(east * 3600.0),
        "OFFNORTH": (observation.true_dec - observation.dec) * 3600.0,
        "ROTATION": observation.rotation_deg,
        "SEEING": observation.seeing_arcsec,
        "ELLIP": observation.ellipticity,
        "ZEROPT": observation.zero_point,
        "SKYMAG": observation.sky_mag,
        "SKY_E": observation.sky_e,
    }
