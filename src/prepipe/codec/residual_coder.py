"""The difference between two images of the same pixels to bytes, and back.

What packing with a loss left over is nearly white noise, but not quite: where the loss was
small, at the scales of a star, nothing is left, so that a pixel's difference follows from those
around it. It is predicted by 24 of them that came before, with weights found for each frame;
what is then left is told by a range coder with the frequencies of its class, which the size of
six neighbours tells: amplifiers, overscan and stars each find their own. No stream of bytes can
make a kernel read or write outside its arrays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.codec.numbers import LONGEST_NUMBER, read_number, write_number
from prepipe.codec.rans import (
    FREQUENCY_BITS,
    LEAST_STATE,
    MOST_STATE,
    SYMBOLS,
    Table,
    frequencies_of,
    pull_bits,
    pull_symbol,
    push_bits,
    push_symbol,
    slots_of,
    starts_of,
)
from prepipe.codec.saturated import HIGHEST, Samples

__all__ = [
    "CLASSES",
    "LARGEST_LIMIT",
    "NEIGHBOURS",
    "PERIOD",
    "Coded",
    "decode_difference",
    "encode_difference",
]

_NEAR = (
    *((0, column) for column in (-4, -3, -2, -1)),
    *((-1, column) for column in range(-3, 4)),
    *((-2, column) for column in range(-3, 4)),
    *((row, column) for row in (-3, -4) for column in (-1, 0, 1)),
)
"""Pixels that predict: rows and columns from the one predicted."""
NEIGHBOURS = len(_NEAR)
_ABOVE, _ASIDE = 4, 4
PERIOD = 4
"""Pixels whose rows and columns differ by so many share weights: the wavelet has phases, too."""
_NEAR_ROWS = np.array([_ABOVE + row for row, _ in _NEAR])
_NEAR_COLUMNS = np.array([_ASIDE + column for _, column in _NEAR])

_WEIGHT_BITS = 12
_HALF_WEIGHT = 1 << (_WEIGHT_BITS - 1)
_LARGEST_WEIGHT = (1 << 15) - 1
_LIMIT_MEDIANS = 10
LARGEST_LIMIT = (1 << 15) - 1
_FITTED_PIXELS = 1 << 20
_FEWEST_PIXELS = 1 << 16

_LARGEST_SIZE = 4095
_SIZES = 9 * _LARGEST_SIZE + 1
CLASSES = 32
_PLAIN_CLASSES = 14
"""Of wider classes the lowest bits are told as they are."""
_SYMBOL_LIMIT = 127
_ESCAPE = 255

Weights = NDArray[np.int16]


def _classes() -> NDArray[np.uint8]:
    """The class of each sum of sizes: two to each power of two."""
    sums = np.arange(1, _SIZES + 1)
    bits = np.floor(np.log2(sums)).astype(np.int64)
    halves = (sums >> np.maximum(bits - 1, 0)) & 1
    return (2 * bits + np.where(bits > 0, halves, 0)).astype(np.uint8)


_CLASS_OF = _classes()


class Coded(NamedTuple):
    """A difference as it is sent.

    Parameters
    ----------
    weights : ndarray of int16, shape (1 or PERIOD**2, NEIGHBOURS)
        In units of 2^-12, phase after phase.
    limit : int
        Differences count for predictions up to this size, ADU.
    table : ndarray of uint16, shape (CLASSES, SYMBOLS)
        Frequencies.
    numbers : ndarray of uint8
        What fits no symbol.
    words : ndarray of uint32
        The state of the range coder and what came out of it.
    """

    weights: Weights
    limit: int
    table: Table
    numbers: NDArray[np.uint8]
    words: NDArray[np.uint32]


def encode_difference(samples: Samples, base: Samples) -> Coded:
    """Tell `samples` to one who has `base`.

    Parameters
    ----------
    samples, base : ndarray of uint16, shape (rows, columns)
        Contiguous.
    """
    weights, limit = _fitted(samples, base)
    errors = np.empty(samples.shape, np.int32)
    classes = np.empty(samples.shape, np.uint8)
    counts = np.zeros((CLASSES, SYMBOLS), np.int64)
    _model(samples, base, weights, limit, _CLASS_OF, errors, classes, counts)
    numbers = np.empty(LONGEST_NUMBER * int(counts[:, _ESCAPE].sum()), np.uint8)
    table = frequencies_of(counts)
    words = np.empty(samples.size + 2, np.uint32)
    told = table.astype(np.int64), starts_of(table)
    first, used = _write(errors.reshape(-1), classes.reshape(-1), *told, words, numbers)
    return Coded(weights, limit, table, numbers[:used], words[first:])


def decode_difference(coded: Coded, base: Samples) -> Samples | None:
    """Inverse of `encode_difference`; None if the streams are damaged.

    Parameters
    ----------
    coded : Coded
        Or anything of these shapes and types.
    base : ndarray of uint16, shape (rows, columns)
    """
    slots = slots_of(coded.table)
    if slots is None or coded.words.size < 2:
        return None
    samples = np.empty(base.shape, np.uint16)
    tables = coded.table.astype(np.int64), starts_of(coded.table), slots
    streams = coded.words, coded.numbers
    sound = _read(samples, base, coded.weights, coded.limit, _CLASS_OF, *tables, *streams)
    return samples if sound else None


def _fitted(samples: Samples, base: Samples) -> tuple[Weights, int]:
    """Weights of least squares for each phase, and how large a difference may count."""
    period = PERIOD if samples.size >= _FEWEST_PIXELS else 1
    step = max(1, samples.size // _FITTED_PIXELS)
    differences = np.abs(samples[::step].astype(np.int32) - base[::step])
    limit = min(LARGEST_LIMIT, _LIMIT_MEDIANS * (1 + int(np.median(differences))))
    products = np.zeros((period * period, NEIGHBOURS + 1, NEIGHBOURS + 1), np.int64)
    _add_products(samples, base, limit, period, step, products)
    return np.stack([_least_squares(each.astype(np.float64)) for each in products]), limit


def _least_squares(products: NDArray[np.float64]) -> Weights:
    """Weights of all but the last that give the last one best, by their products."""
    full = np.triu(products) + np.triu(products, 1).T
    full[np.diag_indices(NEIGHBOURS)] += 1.0 + 1e-6 * full[-1, -1]
    weights = np.linalg.solve(full[:-1, :-1], full[:-1, -1])
    scaled = np.clip(np.rint(weights * (1 << _WEIGHT_BITS)), -_LARGEST_WEIGHT, _LARGEST_WEIGHT)
    whole: Weights = scaled.astype(np.int16)
    return whole


@njit(cache=True, nogil=True)
def _add_products(
    samples: Any, base: Any, limit: Any, period: Any, step: Any, products: Any
) -> None:
    """Sums of the products of neighbours and pixel, phase by phase: whole numbers, so exact."""
    rows, columns = samples.shape
    known = np.zeros(NEIGHBOURS + 1, np.int64)
    for y in range(_ABOVE, rows):
        if y // period % step:
            continue
        for x in range(_ASIDE, columns - _ASIDE):
            for place in range(NEIGHBOURS + 1):
                row, column = y, x
                if place < NEIGHBOURS:
                    row += _NEAR_ROWS[place] - _ABOVE
                    column += _NEAR_COLUMNS[place] - _ASIDE
                difference = np.int64(samples[row, column]) - np.int64(base[row, column])
                known[place] = min(max(difference, -limit), limit)
            sums = products[y % period * period + x % period]
            for place in range(NEIGHBOURS + 1):
                for other in range(place, NEIGHBOURS + 1):
                    sums[place, other] += known[place] * known[other]


@njit(cache=True, nogil=True)
def _prediction(near: Any, phase: Any, x: Any, weights: Any) -> Any:
    total = np.int64(_HALF_WEIGHT)
    for place in range(NEIGHBOURS):
        total += np.int64(weights[phase, place]) * near[_NEAR_ROWS[place], x + _NEAR_COLUMNS[place]]
    return total >> _WEIGHT_BITS


@njit(cache=True, nogil=True)
def _class(sizes: Any, x: Any, class_of: Any) -> Any:
    beside = 2 * sizes[2, x + 3] + sizes[2, x + 2]
    above = 2 * sizes[1, x + 4] + sizes[1, x + 3] + sizes[1, x + 5] + sizes[0, x + 4]
    return class_of[beside + above]


@njit(cache=True, nogil=True)
def _shift(kind: Any) -> Any:
    return max(0, (np.int64(kind) - _PLAIN_CLASSES + 2) >> 1)


@njit(cache=True, nogil=True)
def _symbol(error: Any, shift: Any) -> Any:
    whole = error >> shift
    return whole + _SYMBOL_LIMIT if abs(whole) <= _SYMBOL_LIMIT else np.int64(_ESCAPE)


@njit(cache=True, nogil=True)
def _remember(near: Any, sizes: Any, x: Any, difference: Any, error: Any, limit: Any) -> None:
    near[_ABOVE, x + _ASIDE] = min(max(difference, -limit), limit)
    sizes[2, x + _ASIDE] = min(abs(error), _LARGEST_SIZE)


@njit(cache=True, nogil=True)
def _next_row(near: Any, sizes: Any) -> None:
    for memory in (near, sizes):
        for row in range(memory.shape[0] - 1):
            memory[row] = memory[row + 1]


@njit(cache=True, nogil=True)
def _model(
    samples: Any,
    base: Any,
    weights: Any,
    limit: Any,
    class_of: Any,
    errors: Any,
    classes: Any,
    counts: Any,
) -> None:
    """Errors of the prediction, their classes, and how often each symbol occurs."""
    rows, columns = samples.shape
    period = PERIOD if len(weights) > 1 else 1
    near = np.zeros((_ABOVE + 1, columns + 2 * _ASIDE), np.int64)
    sizes = np.zeros((3, columns + 2 * _ASIDE), np.int64)
    for y in range(rows):
        first = y % period * period
        for x in range(columns):
            difference = np.int64(samples[y, x]) - np.int64(base[y, x])
            error = difference - _prediction(near, first + x % period, x, weights)
            kind = _class(sizes, x, class_of)
            errors[y, x], classes[y, x] = error, kind
            counts[kind, _symbol(error, _shift(kind))] += 1
            _remember(near, sizes, x, difference, error, limit)
        _next_row(near, sizes)


@njit(cache=True, nogil=True)
def _write(
    errors: Any, classes: Any, table: Any, starts: Any, words: Any, numbers: Any
) -> tuple[Any, Any]:
    """Fill words from the end and numbers from the front; where they begin, and end."""
    used = 0
    for index in range(errors.size):
        error = np.int64(errors[index])
        if _symbol(error, _shift(classes[index])) == _ESCAPE:
            used = write_number(error, numbers, used)
    state, place = np.int64(LEAST_STATE), words.size
    for index in range(errors.size - 1, -1, -1):
        error, kind = np.int64(errors[index]), classes[index]
        shift = _shift(kind)
        symbol = _symbol(error, shift)
        if shift and symbol != _ESCAPE:
            state, place = push_bits(state, error & ((1 << shift) - 1), shift, words, place)
        state, place = push_symbol(state, starts[kind, symbol], table[kind, symbol], words, place)
    words[place - 1], words[place - 2] = state >> 32, state & 0xFFFFFFFF
    return place - 2, used


@njit(cache=True, nogil=True)
def _read(
    samples: Any,
    base: Any,
    weights: Any,
    limit: Any,
    class_of: Any,
    table: Any,
    starts: Any,
    slots: Any,
    words: Any,
    numbers: Any,
) -> Any:
    rows, columns = samples.shape
    period = PERIOD if len(weights) > 1 else 1
    near = np.zeros((_ABOVE + 1, columns + 2 * _ASIDE), np.int64)
    sizes = np.zeros((3, columns + 2 * _ASIDE), np.int64)
    state = np.int64(words[0]) | (np.int64(words[1]) << 32)
    if not LEAST_STATE <= state < MOST_STATE:
        return False
    place, number = 2, 0
    for y in range(rows):
        first = y % period * period
        for x in range(columns):
            kind = _class(sizes, x, class_of)
            symbol = np.int64(slots[kind, state & ((1 << FREQUENCY_BITS) - 1)])
            frequency = table[kind, symbol]
            if frequency == 0:
                return False
            state, place = pull_symbol(state, starts[kind, symbol], frequency, words, place)
            if symbol == _ESCAPE:
                error, number = read_number(numbers, number)
            else:
                shift = _shift(kind)
                error = (symbol - _SYMBOL_LIMIT) << shift
                if shift and place >= 0:
                    bits, state, place = pull_bits(state, shift, words, place)
                    error += bits
            if place < 0 or number < 0:
                return False
            difference = _prediction(near, first + x % period, x, weights) + error
            pixel = np.int64(base[y, x]) + difference
            if not 0 <= pixel <= HIGHEST:
                return False
            samples[y, x] = pixel
            _remember(near, sizes, x, difference, error, limit)
        _next_row(near, sizes)
    return state == LEAST_STATE and place == words.size and number == numbers.size
