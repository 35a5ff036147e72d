"""Linear least squares in two coordinates at once, outliers clipped.

Each star gives two data with the same variance and the same basis; the coefficients of the
two coordinates may be tied to each other by a prior. Parameters are ordered as
``(first coordinate, second coordinate)``, each with one coefficient a term.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["clipped_fit", "joint_normal", "largest_error", "leverage"]

Array = NDArray[np.float64]

CLIP = 18.0
"""Squared distance in units of its variance: three standard deviations in each coordinate."""

ROUNDS = 12

SINGULAR = 1e-10
"""A pivot so much smaller than its diagonal element was lost to the others."""

MEDIAN_OF_SQUARES = 2.0 * math.log(2.0)
"""Median of a squared distance in two dimensions, in units of the variance of one."""


@njit(cache=True)
def clipped_fit(
    basis: Array, target: Array, variance: Array, precision: Array
) -> tuple[bool, Array, NDArray[np.bool_], Array]:
    """Fit, clip what is far off, and fit again until the set settles.

    Stars beyond three standard deviations in each coordinate are clipped, the standard
    deviation being scaled by the median residual.

    Parameters
    ----------
    basis : ndarray of float64, shape (n, terms)
    target : ndarray of float64, shape (n, 2)
    variance : ndarray of float64, shape (n,)
        Of each coordinate.
    precision : ndarray of float64, shape (2 terms, 2 terms)
        Inverse covariance of the coefficients about zero, known beforehand; zeros if nothing is.

    Returns
    -------
    determined : bool
        Whether the stars determine the fit; if not, the rest means nothing.
    coefficients : ndarray of float64, shape (terms, 2)
    kept : ndarray of bool, shape (n,)
        The stars that were fitted.
    squared : ndarray of float64, shape (n,)
        Squared residuals, both coordinates together.
    """
    n, terms = basis.shape
    kept = np.ones(n, np.bool_)
    squared = np.empty(n)
    relative = np.empty(n)
    coefficients = np.zeros((terms, 2))
    for attempt in range(ROUNDS):
        if not _solve(basis, target, variance, kept, precision, coefficients):
            return False, coefficients, kept, squared
        for i in range(n):
            first, second = target[i, 0], target[i, 1]
            for k in range(terms):
                first -= basis[i, k] * coefficients[k, 0]
                second -= basis[i, k] * coefficients[k, 1]
            squared[i] = first * first + second * second
            relative[i] = squared[i] / variance[i]
        spread = np.median(relative) / MEDIAN_OF_SQUARES
        limit = CLIP * max(spread, 1e-9)
        inside = relative <= limit
        # Should the set never settle, those kept are the ones that were fitted.
        if np.array_equal(inside, kept) or attempt == ROUNDS - 1:
            break
        kept = inside
    return kept.sum() > terms, coefficients, kept, squared


@njit(cache=True)
def _solve(
    basis: Array,
    target: Array,
    variance: Array,
    kept: NDArray[np.bool_],
    precision: Array,
    coefficients: Array,
) -> bool:
    """Fill in the coefficients of the stars kept; False if these do not determine them."""
    n, terms = basis.shape
    normal = np.zeros((terms, terms))
    moments = np.zeros((terms, 2))
    for i in range(n):
        if kept[i]:
            weight = 1.0 / variance[i]
            for k in range(terms):
                weighted = weight * basis[i, k]
                moments[k, 0] += weighted * target[i, 0]
                moments[k, 1] += weighted * target[i, 1]
                for j in range(k + 1):
                    normal[k, j] += weighted * basis[i, j]
    factor = precision.copy()
    for k in range(terms):
        for j in range(k + 1):
            factor[k, j] += normal[k, j]
            factor[terms + k, terms + j] += normal[k, j]
    if not _cholesky(factor):
        return False
    solution = np.concatenate((moments[:, 0], moments[:, 1]))
    size = solution.size
    for k in range(size):
        for j in range(k):
            solution[k] -= factor[k, j] * solution[j]
        solution[k] /= factor[k, k]
    for k in range(size - 1, -1, -1):
        for j in range(k + 1, size):
            solution[k] -= factor[j, k] * solution[j]
        solution[k] /= factor[k, k]
    coefficients[:, 0] = solution[:terms]
    coefficients[:, 1] = solution[terms:]
    return True


@njit(cache=True)
def _cholesky(matrix: Array) -> bool:
    """Factorise the lower triangle in place; False if the matrix is singular."""
    size = matrix.shape[0]
    for k in range(size):
        before = matrix[k, k]
        pivot = before
        for j in range(k):
            pivot -= matrix[k, j] ** 2
        if not pivot > SINGULAR * before:
            return False
        root = math.sqrt(pivot)
        matrix[k, k] = root
        for i in range(k + 1, size):
            value = matrix[i, k]
            for j in range(k):
                value -= matrix[i, j] * matrix[k, j]
            matrix[i, k] = value / root
    return True


def joint_normal(basis: Array, weight: Array, precision: Array) -> Array:
    """Inverse covariance of the coefficients of both coordinates.

    Parameters
    ----------
    basis : ndarray of float64, shape (n, terms)
    weight : ndarray of float64, shape (n,)
        Inverse variances; zero for what does not count.
    precision : ndarray of float64, shape (2 terms, 2 terms)
        As in `clipped_fit`.

    Returns
    -------
    ndarray of float64, shape (2 terms, 2 terms)
    """
    normal: Array = np.kron(np.eye(2), basis.T @ (weight[:, None] * basis)) + precision
    return normal


def largest_error(places: Array, normal: Array) -> float:
    """Largest one-dimensional formal error of a fit at some places.

    Parameters
    ----------
    places : ndarray of float64, shape (m, terms)
        The basis there.
    normal : ndarray of float64, shape (2 terms, 2 terms)
        From `joint_normal`.

    Returns
    -------
    float
        In the unit of the data; infinite if the fit is not determined.
    """
    if not _well_conditioned(normal):
        return math.inf
    covariance = np.linalg.inv(normal)
    terms = places.shape[1]
    mean = 0.5 * (covariance[:terms, :terms] + covariance[terms:, terms:])
    return math.sqrt(float(((places @ mean) * places).sum(axis=1).max()))


def leverage(places: Array, basis: Array) -> float:
    """Largest variance of a fit at some places, all stars weighing the same.

    Parameters
    ----------
    places : ndarray of float64, shape (m, terms)
        The basis there.
    basis : ndarray of float64, shape (n, terms)

    Returns
    -------
    float
        In units of one star's variance; infinite if the fit is not determined.
    """
    normal = basis.T @ basis
    if not _well_conditioned(normal):
        return math.inf
    return float((places * np.linalg.solve(normal, places.T).T).sum(axis=1).max())


def _well_conditioned(matrix: Array) -> bool:
    """Whether a symmetric matrix can be inverted without losing all digits."""
    values = np.linalg.eigvalsh(matrix)
    return bool(values[0] > 1e-12 * values[-1])
