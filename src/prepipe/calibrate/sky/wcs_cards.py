"""The WCS cards of a header, read into arrays; what would be read wrongly is refused.

Sources: Calabretta & Greisen 2002, A&A 395, 1077 (linear part); the TPV convention
(https://fits.gsfc.nasa.gov/registry/tpvwcs.html); Shupe et al. 2005, ADASS XIV, 491 (SIP).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prepipe.errors import HeaderError

__all__ = [
    "IDENTITY",
    "POWERS",
    "PV1_PLACE",
    "PV2_PLACE",
    "Header",
    "check_conventions",
    "finite_number",
    "linear_matrix",
    "projection",
    "read_distortion",
]

Array = NDArray[np.float64]

POWERS = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3))
"""Powers of the first and second coordinate in a cubic, by rising order: 1, 3, 6, 10 terms."""

IDENTITY = np.array([0.0, 1.0, *[0.0] * 9])
"""PVi_0 to PVi_10 that change nothing."""

PV1_PLACE = np.array([0, 1, 2, 4, 5, 6, 7, 8, 9, 10])
"""Where each of `POWERS` stands among PV1_0 to PV1_10 (PV1_3 is the radius and stands apart)."""

PV2_PLACE = np.array([0, 2, 1, 6, 5, 4, 10, 9, 8, 7])
"""The same in PV2, where the two coordinates change places."""

SIP_ORDER = 9
"""Highest order that the SIP convention knows."""


class Header(Protocol):
    """What is needed of a header: a dict will do, or an astropy Header."""

    def get(self, key: str, default: object = None, /) -> object:
        """Value of the card `key`."""

    def __iter__(self) -> Iterator[str]: ...


def projection(header: Header | Mapping[str, object]) -> str:
    """``"TAN"``, ``"TPV"`` or ``"TAN-SIP"``.

    Raises
    ------
    HeaderError
        If CTYPE1 and CTYPE2 say anything else.
    """
    first, second = (str(header.get(f"CTYPE{i}", "")).strip().upper() for i in (1, 2))
    for kind in ("TAN", "TPV", "TAN-SIP"):
        if (first, second) == (f"RA---{kind}", f"DEC--{kind}"):
            return kind
    raise HeaderError(
        f"CTYPE1, CTYPE2 = {first!r}, {second!r} is no projection known here:"
        " RA---TPV, DEC--TPV or RA---TAN, DEC--TAN is needed, or these with -SIP"
    )


def finite_number(
    header: Header | Mapping[str, object], key: str, default: float | None = None
) -> float:
    """Finite float of a card.

    Raises
    ------
    HeaderError
        If it is missing without a `default`, is no number, or is not finite.
    """
    value = header.get(key)
    if value is None and default is not None:
        return default
    if value is None:
        raise HeaderError(f"the WCS card {key} is missing: the frame cannot be placed on the sky")
    if isinstance(value, bool | str) or not isinstance(value, int | float | np.number):
        raise HeaderError(f"the WCS card {key} = {value!r} is not a number")
    if not math.isfinite(value):
        raise HeaderError(f"the WCS card {key} = {value!r} is not finite")
    return float(value)


def check_conventions(header: Header | Mapping[str, object]) -> None:
    """Refuse units and native poles that would be read wrongly without notice.

    Raises
    ------
    HeaderError
    """
    for key in ("CUNIT1", "CUNIT2"):
        unit = str(header.get(key) or "deg").strip().lower()
        if unit not in {"deg", "degree", "degrees"}:
            raise HeaderError(f"the WCS card {key} = {unit!r} is not in degrees")
    if finite_number(header, "LONPOLE", 180.0) != 180.0:
        raise HeaderError(f"the WCS card LONPOLE = {header.get('LONPOLE')!r} is not 180 degrees")
    if not -90.0 <= finite_number(header, "CRVAL2") <= 90.0:
        raise HeaderError(f"the WCS card CRVAL2 = {header.get('CRVAL2')!r} is no declination")


def linear_matrix(header: Header | Mapping[str, object]) -> Array:
    """CD, or what CDELT with PC or CROTA2 say instead (Calabretta & Greisen 2002, 6.1)."""
    places = [(1, 1), (1, 2), (2, 1), (2, 2)]
    if any(header.get(f"CD{i}_{j}") is not None for i, j in places):
        # An absent CDi_j is zero once another is given (FITS standard 4.0, 8.1.2).
        values = [finite_number(header, f"CD{i}_{j}", 0.0) for i, j in places]
        return np.array(values).reshape(2, 2)
    if header.get("CDELT1") is None:
        raise HeaderError("the WCS cards CD1_1 to CD2_2 are missing: the pixel scale is not known")
    delta = np.array([finite_number(header, "CDELT1"), finite_number(header, "CDELT2")])
    if any(header.get(f"PC{i}_{j}") is not None for i, j in places):
        values = [finite_number(header, f"PC{i}_{j}", float(i == j)) for i, j in places]
        from_pc: Array = delta[:, None] * np.array(values).reshape(2, 2)
        return from_pc
    angle = math.radians(finite_number(header, "CROTA2", 0.0))
    cosine, sine = math.cos(angle), math.sin(angle)
    from_crota: Array = np.array([[cosine, -sine], [sine, cosine]]) * delta
    return from_crota


def read_distortion(
    header: Header | Mapping[str, object], kind: str, cd: Array
) -> tuple[Array, Array]:
    """Distortion as PV1_0 to PV1_10 and PV2_0 to PV2_10.

    Parameters
    ----------
    header : Mapping or astropy.io.fits.Header
    kind : str
        As `projection` tells. A TAN with PV cards of the second axis is the old spelling of
        TPV by SCAMP and read as such.
    cd : ndarray, shape (2, 2)
        deg/pixel.

    Returns
    -------
    pv1, pv2 : ndarray, shape (11,)

    Raises
    ------
    HeaderError
        If it goes beyond order 3.
    """
    if kind == "TAN-SIP":
        return _sip_as_pv(header, cd)
    if kind == "TPV" or any(header.get(f"PV2_{m}") is not None for m in range(11)):
        return _pv(header, 1), _pv(header, 2)
    return IDENTITY.copy(), IDENTITY.copy()


def _pv(header: Header | Mapping[str, object], axis: int) -> Array:
    """PV cards of one axis, shape (11,)."""
    for m in range(11, 40):
        if finite_number(header, f"PV{axis}_{m}", 0.0) != 0.0:
            raise HeaderError(f"the WCS card PV{axis}_{m} is beyond order 3, which is not read")
    return np.array([finite_number(header, f"PV{axis}_{m}", float(m == 1)) for m in range(11)])


def _sip_as_pv(header: Header | Mapping[str, object], cd: Array) -> tuple[Array, Array]:
    """A cubic SIP as PV; exact, for a polynomial of pixels is one of the plane as well.

    SIP says ``(xi, eta) = CD (p + A(p), q + B(p, q))`` of pixels ``(p, q)`` from CRPIX; here
    ``(p, q)`` becomes ``CD^-1 (u, v)``.
    """
    pixels = _sip(header, "A"), _sip(header, "B")
    inverse = np.linalg.inv(cd)
    plane = np.zeros((2, len(POWERS)))
    for term, (i, j) in enumerate(POWERS):
        plane += np.outer(cd @ [axis[term] for axis in pixels], _substituted(i, j, inverse))
    pv1, pv2 = IDENTITY.copy(), IDENTITY.copy()
    pv1[PV1_PLACE] += plane[0]
    pv2[PV2_PLACE] += plane[1]
    return pv1, pv2


def _sip(header: Header | Mapping[str, object], axis: str) -> Array:
    """A or B of a SIP in the order of `POWERS`, pixels; shape (10,)."""
    order = finite_number(header, f"{axis}_ORDER")
    for i, j in product(range(SIP_ORDER + 1), repeat=2):
        key = f"{axis}_{i}_{j}"
        if 3 < i + j <= min(order, SIP_ORDER) and finite_number(header, key, 0.0) != 0.0:
            raise HeaderError(f"the WCS card {key} is beyond order 3, which is not read")
    return np.array(
        [
            finite_number(header, f"{axis}_{i}_{j}", 0.0) if i + j <= order else 0.0
            for i, j in POWERS
        ]
    )


def _substituted(i: int, j: int, matrix: NDArray[np.floating[Any]]) -> Array:
    """``p^i q^j`` with ``(p, q) = matrix (u, v)`` as a polynomial of u and v, shape (10,)."""
    factors = [matrix[0]] * i + [matrix[1]] * j
    result = np.zeros((4, 4))
    result[0, 0] = 1.0
    for by_u, by_v in factors:
        raised = np.zeros((4, 4))
        raised[1:] += by_u * result[:-1]
        raised[:, 1:] += by_v * result[:, :-1]
        result = raised
    return np.array([result[powers] for powers in POWERS])
