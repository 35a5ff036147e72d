"""A TPV in the words of the SIP convention, for tools that know no other distortion.

SIP adds polynomials to the pixels before the linear step: ``(u, v) = CD (p + A(p, q),
q + B(p, q))``, with ``(p, q)`` counted from CRPIX; AP and BP lead back. It has neither constant
nor linear terms, so that CRPIX and CD alone are a good WCS already. Here CRPIX is the middle of
the CCD and CRVAL its place on the sky: what was measured on one CCD need not hold as far away as
the telescope's axis, and tools that look no further than CRPIX and CD go least astray.

Source: Shupe et al. 2005, ADASS XIV, 491.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.sky.tpv import Tpv, gnomonic
from prepipe.calibrate.sky.wcs_cards import SIP_ORDER
from prepipe.errors import HeaderError

__all__ = ["LARGEST_DEVIATION_MAS", "Sip", "sip_of"]

Array = NDArray[np.float64]

LARGEST_DEVIATION_MAS = 1.0
"""Between SIP and TPV anywhere on the CCD; a hundredth of what an astrometric solution leaves."""

MARGIN = 0.05
"""How far beyond the CCD it holds, in units of its sides: stars are looked for there too."""

GRID = (15, 25)
"""Columns and rows of the places where both are compared."""

MAS_PER_DEG = 3.6e6


@dataclass(frozen=True, eq=False)
class Sip:
    """A TAN-SIP world coordinate system.

    Parameters
    ----------
    crval : ndarray, shape (2,)
        RA and Dec of the tangent point, deg.
    crpix : ndarray, shape (2,)
        Its pixel, one-based as in FITS: column, row.
    cd : ndarray, shape (2, 2)
        deg/pixel.
    forward, inverse : dict
        Powers of the two coordinates to the coefficients of A and B, and of AP and BP, pixels.
    deviation_mas : float
        Largest distance on the CCD between what this and the TPV say, either way, milli-arcsec.
    """

    crval: Array
    crpix: Array
    cd: Array
    forward: dict[tuple[int, int], Array]
    inverse: dict[tuple[int, int], Array]
    deviation_mas: float

    def to_cards(self) -> dict[str, float | int | str]:
        """FITS cards, keyword to value."""
        cards: dict[str, float | int | str] = {
            **{"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"},
            **{"CUNIT1": "deg", "CUNIT2": "deg"},
        }
        for i in (0, 1):
            cards[f"CRVAL{i + 1}"] = float(self.crval[i])
            cards[f"CRPIX{i + 1}"] = float(self.crpix[i])
        for (i, j), value in np.ndenumerate(self.cd):
            cards[f"CD{i + 1}_{j + 1}"] = float(value)
        for names, terms in ((("A", "B"), self.forward), (("AP", "BP"), self.inverse)):
            for axis, name in enumerate(names):
                cards[f"{name}_ORDER"] = max(i + j for i, j in terms)
                for (i, j), values in terms.items():
                    cards[f"{name}_{i}_{j}"] = float(values[axis])
        return cards


def sip_of(wcs: Tpv, shape: tuple[int, int]) -> Sip:
    """Find the SIP of lowest order that says what a TPV says, all over a CCD.

    Least squares over a grid of the CCD and a margin, of the tangent plane at its middle.

    Parameters
    ----------
    wcs : Tpv
    shape : tuple of int
        Rows and columns of the CCD.

    Raises
    ------
    HeaderError
        If no order up to 9 comes within `LARGEST_DEVIATION_MAS`.
    """
    ny, nx = shape
    middle = np.array([(nx - 1) / 2, (ny - 1) / 2])
    x, y = (
        axis.ravel()
        for axis in np.meshgrid(
            *(
                m + n * (0.5 + MARGIN) * np.linspace(-1.0, 1.0, count)
                for m, n, count in zip(middle, (nx, ny), GRID, strict=True)
            )
        )
    )
    crval = np.ravel(wcs.pixel_to_sky(*middle))
    plane = np.stack(gnomonic(*wcs.pixel_to_sky(x, y), crval))
    pixels = np.stack([x, y]) - middle[:, None]
    forward, deviation = _polynomial_of(pixels, plane, 1, np.eye(2))
    # The linear terms are CD, the higher ones in pixels A and B.
    cd = np.stack([forward.pop((1, 0)), forward.pop((0, 1))], axis=1)
    to_pixels = np.linalg.inv(cd)
    linear = to_pixels @ plane
    inverse, back = _polynomial_of(linear, pixels - linear, 0, cd)
    return Sip(
        crval=crval,
        crpix=middle + 1.0,
        cd=cd,
        forward={powers: to_pixels @ values for powers, values in forward.items()},
        inverse=inverse,
        deviation_mas=max(deviation, back),
    )


def _polynomial_of(
    places: Array, values: Array, lowest: int, to_plane: Array
) -> tuple[dict[tuple[int, int], Array], float]:
    """The polynomial of lowest order that is near enough to `values`.

    Parameters
    ----------
    places, values : ndarray, shape (2, n)
    lowest : int
        Order of the first terms.
    to_plane : ndarray, shape (2, 2)
        From `values` to deg.

    Returns
    -------
    terms : dict
        Powers of the two coordinates to the coefficients of both values.
    deviation : float
        The largest one, milli-arcsec.
    """
    if not (np.isfinite(places).all() and np.isfinite(values).all()):
        raise _beyond_sip()
    scale = float(np.abs(places).max())
    p, q = places / scale
    for order in range(2, SIP_ORDER + 1):
        powers = [(k - j, j) for k in range(lowest, order + 1) for j in range(k + 1)]
        basis = np.stack([p**i * q**j for i, j in powers], axis=1)
        found = np.linalg.lstsq(basis, values.T, rcond=None)[0]
        missed = to_plane @ (basis @ found - values.T).T
        deviation = MAS_PER_DEG * float(np.hypot(*missed).max())
        if deviation < LARGEST_DEVIATION_MAS:
            terms = zip(powers, found, strict=True)
            return {(i, j): pair / scale ** (i + j) for (i, j), pair in terms}, deviation
    raise _beyond_sip()


def _beyond_sip() -> HeaderError:
    return HeaderError(
        f"no SIP up to order {SIP_ORDER} is within {LARGEST_DEVIATION_MAS:g} mas of this WCS:"
        " keep the TPV"
    )
