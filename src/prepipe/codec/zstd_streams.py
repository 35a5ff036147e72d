"""Streams inside payloads, each a zstd frame, unpacked only if no larger than it may be."""

from __future__ import annotations

import numpy as np
import zstandard
from numpy.typing import NDArray

from prepipe.errors import PacketError

__all__ = ["inflate"]


def inflate(packed: bytes, most: int, what: str) -> NDArray[np.uint8]:
    """Unpack a stream, which may be anything; nothing stands for an empty one.

    Parameters
    ----------
    packed : bytes
    most : int
        Bytes that it may have.
    what : str
        Whose stream it is, for the message.

    Raises
    ------
    PacketError
        If it is no such frame.
    """
    if not packed:
        return np.empty(0, np.uint8)
    try:
        # the decompressor believes the size that is stated, so it is looked at first
        if not 0 <= zstandard.frame_content_size(packed) <= most:
            raise PacketError(f"{what} is damaged; send it again")
        plain = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PacketError(f"{what} is damaged ({error}); send it again") from error
    return np.frombuffer(plain, np.uint8)
