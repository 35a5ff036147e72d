"""A SIP in the words of the TPV convention, for tools that know no SIP (SWarp, SCAMP).

A cubic SIP is a cubic TPV to the last digit (`Tpv.from_header`). One of higher order, as the
LSST stack writes, is fitted over the CCD by the TPV of lowest order that says the same there.

Sources: the TPV convention (https://fits.gsfc.nasa.gov/registry/tpvwcs.html); Shupe et al.
2005, ADASS XIV, 491 (SIP).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.sky.sip import GRID, LARGEST_DEVIATION_MAS, MARGIN, MAS_PER_DEG
from prepipe.calibrate.sky.tpv import Tpv
from prepipe.calibrate.sky.wcs_cards import (
    SIP_ORDER,
    Header,
    check_conventions,
    finite_number,
    linear_matrix,
    projection,
)
from prepipe.errors import HeaderError

__all__ = ["tpv_cards"]

Array = NDArray[np.float64]

FIRST_OF_ORDER = (0, 1, 4, 7, 12, 17, 24, 31)
"""m of PVi_m for the first term of each order: x^n, then x^(n-1) y and so on."""

CUBIC = 3


def tpv_cards(
    header: Header | Mapping[str, object], shape: tuple[int, int]
) -> dict[str, float | str]:
    """Cards of the TPV (or, without distortion, TAN) that says what a header's WCS says.

    Parameters
    ----------
    header : Mapping or astropy.io.fits.Header
        With a TAN, TPV or TAN-SIP.
    shape : tuple of int
        Rows and columns of the CCD, on which both agree within `LARGEST_DEVIATION_MAS`.

    Returns
    -------
    dict
        Keyword to value.

    Raises
    ------
    HeaderError
        If there is no such WCS, or no TPV up to order 7 is near enough.
    """
    header = {key: header.get(key) for key in header}
    terms = _sip_terms(header) if projection(header) == "TAN-SIP" else {}
    if not any(i + j > CUBIC for i, j in terms):
        return Tpv.from_header(header).to_cards()
    check_conventions(header)
    cd = linear_matrix(header)
    pixels = _grid(shape) - np.array(
        [[finite_number(header, "CRPIX1")], [finite_number(header, "CRPIX2")]]
    )
    distortion = sum(
        pair[:, None] * pixels[0] ** i * pixels[1] ** j for (i, j), pair in terms.items()
    )
    found = _fitted(cd @ pixels, cd @ (pixels + distortion))
    told: dict[str, float | str] = {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV"}
    told |= {"CUNIT1": "deg", "CUNIT2": "deg"}
    told |= {key: finite_number(header, key) for key in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2")}
    told |= {f"CD{i + 1}_{j + 1}": float(value) for (i, j), value in np.ndenumerate(cd)}
    return told | found


def _sip_terms(header: Mapping[str, object]) -> dict[tuple[int, int], Array]:
    """Powers of the two pixel coordinates to the coefficients of A and B, where they are not 0."""
    orders = {axis: int(finite_number(header, f"{axis}_ORDER", 0.0)) for axis in "AB"}
    terms = {}
    for total in range(SIP_ORDER + 1):
        for j in range(total + 1):
            i = total - j
            pair = [
                finite_number(header, f"{axis}_{i}_{j}", 0.0) if total <= orders[axis] else 0.0
                for axis in "AB"
            ]
            if any(pair):
                terms[i, j] = np.array(pair)
    return terms


def _grid(shape: tuple[int, int]) -> Array:
    """One-based columns and rows all over the CCD and a margin, shape (2, n)."""
    ny, nx = shape
    axes = [
        (n + 1) / 2 + n * (0.5 + MARGIN) * np.linspace(-1.0, 1.0, count)
        for n, count in zip((nx, ny), GRID, strict=True)
    ]
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes)])


def _fitted(linear: Array, plane: Array) -> dict[str, float | str]:
    """PV cards of the lowest order that leads from the linear to the tangent plane, both deg."""
    scale = float(np.abs(linear).max())
    for order in range(CUBIC, len(FIRST_OF_ORDER)):
        powers = [(n - k, k) for n in range(order + 1) for k in range(n + 1)]
        cards: dict[str, float | str] = {}
        missed = []
        # PV2 is written with the two coordinates changing places.
        for axis, (x, y) in ((1, linear / scale), (2, linear[::-1] / scale)):
            basis = np.stack([x**i * y**j for i, j in powers], axis=1)
            found = np.linalg.lstsq(basis, plane[axis - 1], rcond=None)[0]
            missed.append(basis @ found - plane[axis - 1])
            for (i, j), value in zip(powers, found, strict=True):
                cards[f"PV{axis}_{FIRST_OF_ORDER[i + j] + j}"] = float(value / scale ** (i + j))
        if MAS_PER_DEG * float(np.hypot(*missed).max()) < LARGEST_DEVIATION_MAS:
            return cards
    raise HeaderError(
        f"no TPV up to order 7 is within {LARGEST_DEVIATION_MAS:g} mas of this SIP: keep the SIP"
    )
