"""What is known of the sources of one CCD."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sources"]


@dataclass(frozen=True, eq=False)
class Sources:
    """Measured sources: arrays of equal length, one element a source.

    Parameters
    ----------
    x, y : (n,) float64 ndarray
        Windowed centroid, pixels; the centre of the first pixel is at 0.
    aperture_flux, aperture_flux_error : (n, m) float64 ndarray
        Flux inside each circular aperture and its standard error from sky and
        photon noise, e-.
    xx, yy, xy : (n,) float64 ndarray
        Second moments with the effect of the window removed, pixels^2; NaN where
        noise or a neighbour made them meaningless.
    half_light_radius : (n,) float64 ndarray
        Radius that holds half of the flux of the largest aperture, pixels; NaN
        where that flux is not positive.
    peak : (n,) float64 ndarray
        Highest pixel of the core, e- above the sky.
    snr : (n,) float64 ndarray
        Signal to noise in the Gaussian window: close to the best that can be
        had for a point source.
    position_sigma : (n,) float64 ndarray
        Standard error of `x` (and of `y`) from sky and photon noise, pixels.
    flags : (n,) int32 ndarray
        `SourceFlag` bits.
    radii_px : (m,) float64 ndarray
        Radii of the apertures, ascending, pixels.
    main_aperture : int
        Index of the aperture in which `flux` is taken.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    aperture_flux: NDArray[np.float64]
    aperture_flux_error: NDArray[np.float64]
    xx: NDArray[np.float64]
    yy: NDArray[np.float64]
    xy: NDArray[np.float64]
    half_light_radius: NDArray[np.float64]
    peak: NDArray[np.float64]
    snr: NDArray[np.float64]
    position_sigma: NDArray[np.float64]
    flags: NDArray[np.int32]
    radii_px: NDArray[np.float64]
    main_aperture: int

    def __len__(self) -> int:
        return self.x.size

    @property
    def flux(self) -> NDArray[np.float64]:
        """Flux in the main aperture, e-."""
        return self.aperture_flux[:, self.main_aperture]

    @property
    def flux_error(self) -> NDArray[np.float64]:
        """Standard error of `flux`, e-."""
        return self.aperture_flux_error[:, self.main_aperture]

    @property
    def size(self) -> NDArray[np.float64]:
        """Standard deviation of the profile along one axis, pixels; NaN without moments."""
        mean = 0.5 * (self.xx + self.yy)
        return np.sqrt(np.where(mean > 0.0, mean, np.nan))

    def take(
        self, index: NDArray[np.intp] | NDArray[np.bool_] | NDArray[np.int64] | slice
    ) -> Sources:
        """Some of the sources, by index, boolean mask or slice."""
        kept = {
            field.name: getattr(self, field.name)[index]
            for field in fields(self)
            if field.name not in ("radii_px", "main_aperture")
        }
        return Sources(radii_px=self.radii_px, main_aperture=self.main_aperture, **kept)
