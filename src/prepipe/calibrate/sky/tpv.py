"""The world coordinate system of one CCD: tangent plane with a cubic TPV distortion.

A pixel goes to the sky in three steps:

1. linear: ``(u, v) = CD (pixel - CRPIX)``, in degrees;
2. distortion: ``xi = PV1(u, v)``, ``eta = PV2(v, u)``, polynomials of order 3;
3. gnomonic: ``(xi, eta)`` is the plane that touches the sky at CRVAL.

Sources: the TPV convention (https://fits.gsfc.nasa.gov/registry/tpvwcs.html) and
Calabretta & Greisen 2002, A&A 395, 1077, section 5.1.3 (TAN).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from prepipe.calibrate.sky.wcs_cards import (
    IDENTITY,
    POWERS,
    PV1_PLACE,
    PV2_PLACE,
    Header,
    check_conventions,
    finite_number,
    linear_matrix,
    projection,
    read_distortion,
)
from prepipe.errors import HeaderError

__all__ = ["POWERS", "Header", "Tpv", "gnomonic"]

Array = NDArray[np.float64]

# PV of one axis, written with the coordinates of the other.
SWAPPED = np.array([0, 2, 1, 3, 6, 5, 4, 10, 9, 8, 7])


_PREFIXES = ("CTYPE", "CUNIT", "CRVAL", "CRPIX", "CD", "CROTA", "PC", "PV", "LONPOLE", "A_", "B_")


@dataclass(frozen=True, eq=False)
class Tpv:
    """A TPV (or, with default `pv1` and `pv2`, TAN) world coordinate system.

    Parameters
    ----------
    crval : ndarray, shape (2,)
        RA and Dec of the tangent point, deg.
    crpix : ndarray, shape (2,)
        Its pixel, one-based as in FITS: column, row.
    cd : ndarray, shape (2, 2)
        deg/pixel.
    pv1, pv2 : ndarray, shape (11,)
        PV1_0 to PV1_10 and PV2_0 to PV2_10.
    """

    crval: Array
    crpix: Array
    cd: Array
    pv1: Array = field(default_factory=IDENTITY.copy)
    pv2: Array = field(default_factory=IDENTITY.copy)

    @property
    def pixel_scale(self) -> float:
        """Side of a pixel, arcsec (geometric mean, without the distortion)."""
        return 3600.0 * math.sqrt(abs(float(np.linalg.det(self.cd))))

    @property
    def distorted(self) -> bool:
        """Whether it is more than a plain TAN."""
        return not (np.array_equal(self.pv1, IDENTITY) and np.array_equal(self.pv2, IDENTITY))

    def pixel_to_plane(self, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        """Undistorted plane coordinates ``(u, v)`` (deg) of zero-based pixels."""
        dx = np.asarray(x, np.float64) + (1.0 - self.crpix[0])
        dy = np.asarray(y, np.float64) + (1.0 - self.crpix[1])
        cd = self.cd
        return cd[0, 0] * dx + cd[0, 1] * dy, cd[1, 0] * dx + cd[1, 1] * dy

    def distort(self, u: Array, v: Array) -> tuple[Array, Array]:
        """Apply the PV polynomials: plane to tangent-plane coordinates, deg."""
        return _polynomial(self.pv1, u, v), _polynomial(self.pv2, v, u)

    def pixel_to_sky(self, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        """RA and Dec of pixels.

        Parameters
        ----------
        x, y : array_like, same shape
            Zero-based column and row.

        Returns
        -------
        ra, dec : ndarray of float64, shape of `x`
            deg; RA in [0, 360).
        """
        x = np.asarray(x, np.float64)
        y = np.asarray(y, np.float64)
        ra, dec = _forward(
            x.ravel(), y.ravel(), self.crval, self.crpix, self.cd, self.pv1, self.pv2
        )
        return ra.reshape(x.shape), dec.reshape(x.shape)

    def sky_to_pixel(self, ra: ArrayLike, dec: ArrayLike) -> tuple[Array, Array]:
        """Zero-based column and row of sky positions.

        Parameters
        ----------
        ra, dec : array_like, same shape
            deg.

        Returns
        -------
        x, y : ndarray of float64, shape of `ra`
            NaN on the far hemisphere, where the polynomial folds over, and where
            Newton's iteration does not converge.
        """
        ra = np.asarray(ra, np.float64)
        dec = np.asarray(dec, np.float64)
        xi, eta = gnomonic(ra.ravel(), dec.ravel(), self.crval)
        inverse = np.linalg.inv(self.cd)
        x, y = _inverse(xi, eta, self.crpix, inverse, self.pv1, self.pv2)
        return x.reshape(ra.shape), y.reshape(ra.shape)

    def shifted(self, dx: float, dy: float) -> Tpv:
        """The same sky for a frame whose content moved by `dx` columns and `dy` rows.

        Cutting a box out of a frame at ``(x0, y0)`` is ``shifted(-x0, -y0)``.
        """
        return replace(self, crpix=self.crpix + np.array([dx, dy]))

    def repointed(self, d_ra: float, d_dec: float, rotation: float) -> Tpv:
        """The same camera, pointed elsewhere.

        Parameters
        ----------
        d_ra, d_dec : float
            Added to CRVAL, deg (differences of coordinates, without cos Dec).
        rotation : float
            Turn of the focal plane about the tangent point, deg, counter-clockwise
            with xi to the right and eta up.

        Notes
        -----
        The distortion belongs to the optics and turns with them, so that the turn
        comes after the polynomials; for a plain TAN it can go into CD as well.
        """
        cosine, sine = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
        crval = np.array([(self.crval[0] + d_ra) % 360.0, self.crval[1] + d_dec])
        if not self.distorted:
            turn = np.array([[cosine, -sine], [sine, cosine]])
            return replace(self, crval=crval, cd=turn @ self.cd)
        pv1 = cosine * self.pv1 - sine * self.pv2[SWAPPED]
        pv2 = sine * self.pv1[SWAPPED] + cosine * self.pv2
        return replace(self, crval=crval, pv1=pv1, pv2=pv2)

    def corrected(
        self, d_xi: Array, d_eta: Array, centre: tuple[float, float], scale: float
    ) -> Tpv:
        """Add a polynomial to the tangent-plane coordinates; exact, nothing is refitted.

        Parameters
        ----------
        d_xi, d_eta : ndarray, shape (3,), (6,) or (10,)
            Coefficients (deg) in the order of `POWERS`, of the local coordinates
            ``(u - centre[0]) / scale`` and ``(v - centre[1]) / scale``.
        centre : tuple of float
            deg.
        scale : float
            deg.

        Notes
        -----
        A linear correction of a plain TAN goes into CD and CRPIX, so that it stays
        one; all others go into PV.
        """
        first = _expanded(d_xi, centre, scale)
        second = _expanded(d_eta, centre, scale)
        if len(d_xi) == 3 and not self.distorted:
            linear = np.eye(2) + np.array([first[1:3], second[1:3]])
            cd = linear @ self.cd
            offset = np.linalg.solve(cd, np.array([first[0], second[0]]))
            return replace(self, cd=cd, crpix=self.crpix - offset)
        pv1, pv2 = self.pv1.copy(), self.pv2.copy()
        pv1[PV1_PLACE] += first
        pv2[PV2_PLACE] += second
        return replace(self, pv1=pv1, pv2=pv2)

    def to_cards(self) -> dict[str, float | str]:
        """FITS cards, keyword to value; no PV cards for a plain TAN."""
        kind = "TPV" if self.distorted else "TAN"
        cards: dict[str, float | str] = {
            "CTYPE1": f"RA---{kind}",
            "CTYPE2": f"DEC--{kind}",
            "CUNIT1": "deg",
            "CUNIT2": "deg",
        }
        for i in (0, 1):
            cards[f"CRVAL{i + 1}"] = float(self.crval[i])
            cards[f"CRPIX{i + 1}"] = float(self.crpix[i])
        for i, j in product((0, 1), repeat=2):
            cards[f"CD{i + 1}_{j + 1}"] = float(self.cd[i, j])
        if self.distorted:
            for axis, values in ((1, self.pv1), (2, self.pv2)):
                cards.update({f"PV{axis}_{m}": float(value) for m, value in enumerate(values)})
        return cards

    @classmethod
    def from_header(cls, header: Header | Mapping[str, object]) -> Tpv:
        """Read a TPV or TAN header, or one with a cubic SIP, which is a TPV as well.

        CD is taken as it is, or from CDELT with PC or CROTA2. A TAN with PV cards of
        the second axis is the old spelling of TPV by SCAMP and read as such.

        Parameters
        ----------
        header : Mapping or astropy.io.fits.Header

        Raises
        ------
        HeaderError
            If a card is missing, not a finite number, or asks for another projection
            or for terms beyond order 3, or if CD is singular.
        """
        # An astropy Header takes its time to say that it lacks a card, and most PV are lacking.
        header = {key: header.get(key) for key in header if key.startswith(_PREFIXES)}
        kind = projection(header)
        check_conventions(header)
        cd = linear_matrix(header)
        if not abs(np.linalg.det(cd)) > 1e-8 * float(np.abs(cd).max()) ** 2:
            raise HeaderError(f"the WCS matrix CD {cd.tolist()} is singular: give the true one")
        pv1, pv2 = read_distortion(header, kind, cd)
        return cls(
            crval=np.array([finite_number(header, f"CRVAL{i}") for i in (1, 2)]),
            crpix=np.array([finite_number(header, f"CRPIX{i}") for i in (1, 2)]),
            cd=cd,
            pv1=pv1,
            pv2=pv2,
        )


def gnomonic(ra: Array, dec: Array, centre: Array) -> tuple[Array, Array]:
    """Project sky positions onto the plane touching at `centre`.

    Parameters
    ----------
    ra, dec : ndarray, shape (n,)
        deg.
    centre : ndarray, shape (2,)
        RA and Dec, deg.

    Returns
    -------
    xi, eta : ndarray, shape (n,)
        deg, east and north; NaN on the far hemisphere.
    """
    xi, eta = _gnomonic(
        np.ascontiguousarray(ra, np.float64), np.ascontiguousarray(dec, np.float64), centre
    )
    return xi, eta


def _expanded(coefficients: Array, centre: tuple[float, float], scale: float) -> Array:
    """Coefficients of the local polynomial in ``(u, v)`` themselves, shape (10,)."""
    expanded: Array = _expansion(centre, scale)[:, : len(coefficients)] @ coefficients
    return expanded


@lru_cache(maxsize=8)
def _expansion(centre: tuple[float, float], scale: float) -> Array:
    """What each local term contributes to each of `POWERS`, shape (10, 10)."""
    matrix = np.zeros((len(POWERS), len(POWERS)))
    for term, (i, j) in enumerate(POWERS):
        for p, q in product(range(i + 1), range(j + 1)):
            binomial = math.comb(i, p) * math.comb(j, q)
            shift = (-centre[0]) ** (i - p) * (-centre[1]) ** (j - q)
            matrix[POWERS.index((p, q)), term] += binomial * shift / scale ** (i + j)
    return matrix


def _polynomial(p: Array, x: Array, y: Array) -> Array:
    """One PV polynomial on arrays."""
    value: Array = (
        p[0]
        + x * (p[1] + x * (p[4] + x * p[7] + y * p[8]) + y * (p[5] + y * p[9]))
        + y * (p[2] + y * (p[6] + y * p[10]))
        + p[3] * np.hypot(x, y)
    )
    return value


@njit(cache=True)
def _value(p: Array, x: float, y: float) -> float:
    """One PV polynomial at one point."""
    value: float = p[0] + x * (p[1] + x * (p[4] + x * p[7] + y * p[8]) + y * (p[5] + y * p[9]))
    value += y * (p[2] + y * (p[6] + y * p[10]))
    if p[3] != 0.0:
        value += p[3] * math.sqrt(x * x + y * y)
    return value


@njit(cache=True)
def _slopes(p: Array, x: float, y: float) -> tuple[float, float]:
    """Its derivatives by the first and the second coordinate."""
    by_x = p[1] + 2 * x * p[4] + y * p[5] + 3 * x * x * p[7] + 2 * x * y * p[8] + y * y * p[9]
    by_y = p[2] + x * p[5] + 2 * y * p[6] + x * x * p[8] + 2 * x * y * p[9] + 3 * y * y * p[10]
    if p[3] != 0.0 and (x != 0.0 or y != 0.0):
        radius = math.sqrt(x * x + y * y)
        by_x += p[3] * x / radius
        by_y += p[3] * y / radius
    return by_x, by_y


@njit(cache=True)
def _forward(
    x: Array, y: Array, crval: Array, crpix: Array, cd: Array, pv1: Array, pv2: Array
) -> tuple[Array, Array]:
    """Zero-based pixels to RA, Dec (deg)."""
    ra, dec = np.empty(x.size), np.empty(x.size)
    degree = math.pi / 180.0
    sine, cosine = math.sin(crval[1] * degree), math.cos(crval[1] * degree)
    for i in range(x.size):
        dx, dy = x[i] + 1.0 - crpix[0], y[i] + 1.0 - crpix[1]
        u, v = cd[0, 0] * dx + cd[0, 1] * dy, cd[1, 0] * dx + cd[1, 1] * dy
        xi, eta = _value(pv1, u, v) * degree, _value(pv2, v, u) * degree
        depth = cosine - eta * sine
        ra[i] = (crval[0] + math.atan2(xi, depth) / degree) % 360.0
        dec[i] = math.atan2(sine + eta * cosine, math.hypot(depth, xi)) / degree
    return ra, dec


@njit(cache=True)
def _gnomonic(ra: Array, dec: Array, centre: Array) -> tuple[Array, Array]:
    """RA, Dec to the tangent plane, all in deg; NaN on the far hemisphere."""
    xi, eta = np.empty(ra.size), np.empty(ra.size)
    degree = math.pi / 180.0
    sine, cosine = math.sin(centre[1] * degree), math.cos(centre[1] * degree)
    for i in range(ra.size):
        along = (ra[i] - centre[0]) * degree
        high, flat = math.sin(dec[i] * degree), math.cos(dec[i] * degree)
        depth = high * sine + flat * cosine * math.cos(along)
        if depth > 0.0:
            xi[i] = flat * math.sin(along) / depth / degree
            eta[i] = (high * cosine - flat * sine * math.cos(along)) / depth / degree
        else:
            xi[i] = eta[i] = np.nan
    return xi, eta


@njit(cache=True)
def _inverse(
    xi: Array, eta: Array, crpix: Array, cd_inverse: Array, pv1: Array, pv2: Array
) -> tuple[Array, Array]:
    """Tangent plane (deg) to zero-based pixels by Newton's method on the PV polynomials."""
    x, y = np.full(xi.size, np.nan), np.full(xi.size, np.nan)
    handedness = pv1[1] * pv2[1] - pv1[2] * pv2[2]
    shift_u, shift_v = 0.0, 0.0
    for i in range(xi.size):
        # the distortion of the last one is a good guess in a field of a few degrees
        u, v = xi[i] + shift_u, eta[i] + shift_v
        step, area = 1.0, 1.0
        for _ in range(15):
            f, g = _value(pv1, u, v) - xi[i], _value(pv2, v, u) - eta[i]
            f_u, f_v = _slopes(pv1, u, v)
            g_v, g_u = _slopes(pv2, v, u)
            area = f_u * g_v - f_v * g_u
            if area == 0.0:
                break
            du, dv = (g_v * f - f_v * g) / area, (f_u * g - g_u * f) / area
            u -= du
            v -= dv
            step = abs(du) + abs(dv)
            # The next step would be the square of this one times the curvature of the
            # distortion, which is far below 1 per degree: 1e-12 deg are 1e-8 px.
            if not step > 1e-6:
                break
        if step <= 1e-6 and area * handedness > 0.0:
            shift_u, shift_v = u - xi[i], v - eta[i]
            x[i] = cd_inverse[0, 0] * u + cd_inverse[0, 1] * v + crpix[0] - 1.0
            y[i] = cd_inverse[1, 0] * u + cd_inverse[1, 1] * v + crpix[1] - 1.0
    return x, y
