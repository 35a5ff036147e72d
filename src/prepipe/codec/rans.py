"""An entropy coder for symbols whose frequencies depend on a class: range ANS.

One state of 62 bits goes through the symbols from the last to the first; what it cannot hold
goes out in words of 32 bits, and comes in again in the opposite order. After J. Duda, "Asymmetric
numeral systems" (2013), and F. Giesen, "Interleaved entropy coders" (2014).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = [
    "FREQUENCY_BITS",
    "LEAST_STATE",
    "MOST_STATE",
    "SYMBOLS",
    "frequencies_of",
    "pull_bits",
    "pull_symbol",
    "push_bits",
    "push_symbol",
    "slots_of",
    "starts_of",
]

SYMBOLS = 256
FREQUENCY_BITS = 14
_TOTAL = 1 << FREQUENCY_BITS
_SLOT = _TOTAL - 1

LEAST_STATE = 1 << 30
MOST_STATE = 1 << 62
_WORD = 0xFFFFFFFF

Table = NDArray[np.uint16]
"""Frequencies, shape (classes, SYMBOLS): a class adds up to 2^14, or to 0 if it has none."""


def frequencies_of(counts: NDArray[np.int64]) -> Table:
    """Frequencies of symbols that occur so often, shape (classes, SYMBOLS)."""
    table = np.zeros(counts.shape, np.int64)
    for row, found in zip(table, counts, strict=True):
        total = int(found.sum())
        if not total:
            continue
        row[:] = np.where(found > 0, np.maximum(1, found * _TOTAL // total), 0)
        while (excess := int(row.sum()) - _TOTAL) > 0:
            # rare symbols were lifted to one: the frequent ones make room
            row[np.argmax(row)] -= min(excess, int(row.max()) // 2)
        row[np.argmax(row)] -= excess
    return table.astype(np.uint16)


def starts_of(table: Table) -> NDArray[np.int64]:
    """Where the slots of each symbol begin."""
    frequencies = table.astype(np.int64)
    return np.cumsum(frequencies, axis=1) - frequencies


def slots_of(table: Table) -> NDArray[np.uint8] | None:
    """The symbol of each of 2^14 slots, class by class; None if a class does not add up."""
    sums = table.sum(axis=1, dtype=np.int64)
    if not np.isin(sums, (0, _TOTAL)).all():
        return None
    slots = np.zeros((len(table), _TOTAL), np.uint8)
    for row, frequencies in zip(slots, table, strict=True):
        filled = np.repeat(np.arange(SYMBOLS, dtype=np.uint8), frequencies)
        row[: filled.size] = filled
    return slots


@njit(cache=True, nogil=True)
def push_symbol(state: Any, start: Any, frequency: Any, words: Any, place: Any) -> tuple[Any, Any]:
    """The state with a symbol on top; words go before `place`, which moves to the front."""
    if state >= frequency << 48:
        place -= 1
        words[place] = state & _WORD
        state >>= 32
    return ((state // frequency) << FREQUENCY_BITS) + state % frequency + start, place


@njit(cache=True, nogil=True)
def push_bits(state: Any, bits: Any, count: Any, words: Any, place: Any) -> tuple[Any, Any]:
    """The same of a few bits that are worth no table."""
    if state >= 1 << (62 - count):
        place -= 1
        words[place] = state & _WORD
        state >>= 32
    return (state << count) | bits, place


@njit(cache=True, nogil=True)
def pull_symbol(state: Any, start: Any, frequency: Any, words: Any, place: Any) -> Any:
    """Inverse of `push_symbol`; the place is -1 if words are missing."""
    state = frequency * (state >> FREQUENCY_BITS) + (state & _SLOT) - start
    return _filled(state, words, place)


@njit(cache=True, nogil=True)
def pull_bits(state: Any, count: Any, words: Any, place: Any) -> tuple[Any, Any, Any]:
    """Inverse of `push_bits`: the bits, the state, the place."""
    bits = state & ((1 << count) - 1)
    state, place = _filled(state >> count, words, place)
    return bits, state, place


@njit(cache=True, nogil=True)
def _filled(state: Any, words: Any, place: Any) -> Any:
    if state < LEAST_STATE:
        if place >= words.size:
            return state, -1
        state = (state << 32) | np.int64(words[place])
        place += 1
    return state, place
