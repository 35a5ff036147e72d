"""A packet's file on the sending side: looked at, summed, and read chunk by chunk."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import xxhash

from prepipe.errors import PacketError, StorageError
from prepipe.files import storage_errors
from prepipe.link.protocol import CHUNK_BYTES, MAX_FILE_BYTES
from prepipe.names import parse_name

__all__ = ["Noise", "Outgoing"]

_READ_BYTES = 1 << 22


class Outgoing:
    """An open file; whoever renames or removes it meanwhile does no harm.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    size : int
        bytes
    checksum : str
        xxh3-128, hexadecimal.
    changed_at : float
        When it was last written, s since 1970.

    Raises
    ------
    PacketError
        If it has no packet's name, or cannot be a packet.
    StorageError
        If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        parse_name(path.name)
        self._lock = threading.Lock()
        with storage_errors(path):
            # a pipe under that name would be waited for
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(self._descriptor)
            self.size = status.st_size
            self.changed_at = status.st_mtime
            self._require_sound(status)
            self.checksum = self._sum()
        except BaseException:
            self.close()
            raise

    def _require_sound(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise PacketError(f"{self.path} is no plain file; see what it is")
        if not 0 < status.st_size <= MAX_FILE_BYTES:
            raise PacketError(
                f"{self.path} has {status.st_size:,} bytes, which no packet has; pack it again"
            )

    def _sum(self) -> str:
        digest = xxhash.xxh3_128()
        with storage_errors(self.path):
            for begin in range(0, self.size, _READ_BYTES):
                digest.update(os.pread(self._descriptor, _READ_BYTES, begin))
        return digest.hexdigest()

    def chunk(self, index: int) -> bytes:
        """The bytes of a chunk.

        Raises
        ------
        StorageError
            If they cannot be read any more.
        """
        begin = index * CHUNK_BYTES
        with self._lock, storage_errors(self.path):
            data = b""
            if self._descriptor >= 0:
                data = os.pread(self._descriptor, CHUNK_BYTES, begin)
        if len(data) != min(CHUNK_BYTES, self.size - begin):
            raise StorageError(f"{self.path} was changed while it was sent; it is sent anew")
        return data

    def close(self) -> None:
        """Read no more of it."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1


class Noise:
    """Stands for a file of which only the number of bytes counts."""

    def __init__(self) -> None:
        self._bytes = os.urandom(CHUNK_BYTES)

    def chunk(self, _: int) -> bytes:
        """Bytes that no compression makes fewer."""
        return self._bytes
