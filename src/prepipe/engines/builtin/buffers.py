"""The memory of a worker: planes that are written over CCD after CCD.

A fresh plane costs a page fault for every piece of it, which takes about as long as to
compute what goes into it. One `Buffers` belongs to one worker and to one CCD at a time:
whatever lies in it is gone with the next CCD.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from prepipe.codec.base import Allocate

__all__ = ["Buffers"]

_PAGE = 4096
_STAGGER = 9 * 64
"""Bytes; whole cache lines, and seven of them come round a page once."""


class Buffers:
    """Named arrays, made when they are first asked for and then given again."""

    def __init__(self) -> None:
        self._memory: dict[str, NDArray[np.uint8]] = {}
        self._made = 0

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Array with any content, in the memory that `name` had before if it is large enough.

        Parameters
        ----------
        name : str
            Arrays of different names never overlap; of one name the newest is valid.
        shape : tuple of int
        dtype : dtype

        Returns
        -------
        ndarray
            C-contiguous.
        """
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        memory = self._memory.get(name)
        if memory is None or memory.size < size:
            # given back before more is asked for, lest both exist at once
            self._memory.pop(name, None)
            del memory
            memory = self._memory[name] = self._aligned(size)
        return memory[:size].view(dtype).reshape(shape)

    def _aligned(self, size: int) -> NDArray[np.uint8]:
        """Fresh memory that begins with a cache line, at another place of a page than the last.

        Of pieces at the same place of their pages a processor takes one for the other, until it
        has compared their whole addresses.
        """
        self._made += 1
        memory = np.empty(size + 2 * _PAGE, np.uint8)
        start = -memory.ctypes.data % _PAGE + self._made * _STAGGER % _PAGE
        return memory[start : start + size]

    def named(self, name: str) -> Allocate:
        """`array` of one name, for functions that know shape and type only themselves."""
        return partial(self.array, name)
