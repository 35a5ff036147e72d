"""The profile of a frame's own stars, cut out around any place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.stars.psf import Psf
from prepipe.calibrate.stars.psf_map import PsfMap

__all__ = ["Stamps", "StarProfile"]

Floats = NDArray[np.float64]

HALF_FWHM = 2.0
"""Half side of a cut-out: beyond, a star in sky noise adds next to nothing to what is known."""

SUPPOSED_BETA = 3.0
_LEAST_BETA = 1.5


@dataclass(frozen=True, eq=False)
class Stamps:
    """Profiles around n places, cut out of a frame's pixels.

    Parameters
    ----------
    rows, columns : (n, size, size) int64 ndarray, to be broadcast
        Pixels of each cut-out.
    light : (n, size, size) float64 ndarray
        Share of the star's light in each pixel.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    light: Floats

    def of(self, image: NDArray[np.float32]) -> Floats:
        """Pixels of an image under the stamps."""
        return np.asarray(image[self.rows, self.columns], np.float64)


@dataclass(frozen=True, eq=False)
class StarProfile:
    """A Moffat profile (Moffat 1969, A&A 3, 455) that varies over the frame as `map` says.

    Parameters
    ----------
    map : PsfMap
    beta : float
    fwhm_px : float
        Typical FWHM, pixels.
    measured : bool
        Whether stars told it; else it is what was supposed.
    """

    map: PsfMap
    beta: float
    fwhm_px: float
    measured: bool

    @classmethod
    def of(cls, psf: Psf, supposed_fwhm_px: float) -> StarProfile:
        """Profile of the stars measured, or a round one as wide as supposed."""
        if psf.known:
            return cls(psf.map, max(psf.beta, _LEAST_BETA), psf.fwhm_px, measured=True)
        width, none = np.array([supposed_fwhm_px]), np.zeros(1)
        supposed = PsfMap(psf.map.shape, width, none, none)
        return cls(supposed, SUPPOSED_BETA, supposed_fwhm_px, measured=False)

    @property
    def half(self) -> int:
        """Pixels from the middle of a cut-out to its side."""
        return int(np.ceil(HALF_FWHM * self.fwhm_px))

    def stamps(self, x: Floats, y: Floats) -> Stamps:
        """Stars of unit flux at places whose cut-outs lie in the frame.

        As in the rest of the house the FWHM is that of what the pixels show: the profile is
        taken at their centres.

        Parameters
        ----------
        x, y : (n,) float64 ndarray
            Pixels of the trimmed CCD.
        """
        column, row = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
        steps = np.arange(-self.half, self.half + 1)
        rows = row[:, None, None] + steps[None, :, None]
        columns = column[:, None, None] + steps[None, None, :]
        light = self._light(columns - x[:, None, None], rows - y[:, None, None], x, y)
        return Stamps(rows, columns, light)

    def centred(self) -> Floats:
        """A star of unit flux in the middle of a pixel, in the middle of the frame."""
        ny, nx = self.map.shape
        middle = np.array([nx // 2], np.float64), np.array([ny // 2], np.float64)
        steps = np.arange(-self.half, self.half + 1, dtype=np.float64)
        light = self._light(steps[None, None, :], steps[None, :, None], *middle)
        return np.asarray(light[0], np.float64)

    def _light(self, dx: Floats, dy: Floats, x: Floats, y: Floats) -> Floats:
        fwhm, e1, e2 = (part[:, None, None] for part in self.map.at(x, y))
        too_long = np.maximum(np.hypot(e1, e2) / 0.9, 1.0)
        e1, e2 = e1 / too_long, e2 / too_long
        core = 0.5 * fwhm / np.sqrt(2.0 ** (1.0 / self.beta) - 1.0)
        area = np.sqrt(1.0 - e1**2 - e2**2)
        squared = ((1.0 - e1) * dx**2 + (1.0 + e1) * dy**2 - 2.0 * e2 * dx * dy) / area
        height = (self.beta - 1.0) / (np.pi * core**2)
        return np.asarray(height * (1.0 + squared / core**2) ** -self.beta, np.float64)
