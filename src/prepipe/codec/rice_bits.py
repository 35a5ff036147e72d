"""What the Rice kernels need below numba's own language: bits of a stream of bytes.

The constants are those of RICE_1, FITS Standard 4.0, section 10.4.1, and of cfitsio's
``ricecomp.c``. A tile begins with its first pixel in full. Each block of pixels then
begins with a selector: 0 if all differences are zero, one more than the number of low
bits that are split off, or one above the largest of those if the differences are stored
in full. Everything that counts bits is a uint64: mixed with a signed number, numba would
go over to floating point.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = [
    "FULL_SPLIT",
    "SELECTOR_BITS",
    "Bytes",
    "leading_zeros",
    "load_word",
    "ones_complement_sum",
    "store_word",
]

Bytes = NDArray[np.uint8]

SELECTOR_BITS = {1: np.uint64(3), 2: np.uint64(4), 4: np.uint64(5)}
"""Length of a block's selector, by bytes a pixel."""

FULL_SPLIT = {1: np.uint64(6), 2: np.uint64(14), 4: np.uint64(25)}
"""Number of split bits that stands for differences stored in full, by bytes a pixel."""

_LOW_HALF = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


@intrinsic
def leading_zeros(_typing: Any, _word: Any) -> Any:
    """Zero bits above the highest one of a uint64 that is not zero."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@intrinsic
def load_word(_typing: Any, stream: Any, _offset: Any) -> Any:
    """Eight bytes of a uint8 array as one big-endian number; the caller checks the bounds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bswap(
            builder.load(_word_at(context, builder, signature, arguments), align=1)
        )

    return types.uint64(stream, types.uint64), generate


@intrinsic
def store_word(_typing: Any, stream: Any, _offset: Any, _word: Any) -> Any:
    """Write a uint64 as eight big-endian bytes; the caller checks the bounds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _word_at(context, builder, signature, arguments)
        builder.store(builder.bswap(arguments[2]), place, align=1)
        return context.get_dummy_value()

    return types.void(stream, types.uint64, types.uint64), generate


def _word_at(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Pointer to the 64-bit word that begins at a byte of an array."""
    array = cgutils.create_struct_proxy(signature.args[0])(context, builder, value=arguments[0])
    place = builder.gep(array.data, [arguments[1]])
    return builder.bitcast(place, ir.IntType(64).as_pointer())


@njit(cache=True)
def ones_complement_sum(stream: Bytes, start: np.uint64) -> np.uint64:
    """Sum of big-endian 32-bit words as DATASUM takes it; bytes that miss count as zero.

    Parameters
    ----------
    stream : ndarray of uint8
    start : uint64
        Sum of what came before.

    Returns
    -------
    uint64
        Below 2**32 (FITS Standard 4.0, section 4.4.2.7).
    """
    whole = len(stream) // 8
    total = np.uint64(start)
    high = np.uint64(0)
    for index in range(whole):
        word = load_word(stream, np.uint64(8 * index))
        total += word & _LOW_HALF
        high += word >> _HALF
    total += high
    for index in range(8 * whole, len(stream)):
        total += np.uint64(stream[index]) << np.uint64(24 - 8 * (index & 3))
    while total >> _HALF:
        total = (total & _LOW_HALF) + (total >> _HALF)
    return total
