"""Partial files of a landing directory, shared by all processes that receive into it.

::

    .NAME.CHECKSUM16.part         the data, each chunk at its offset
    .NAME.CHECKSUM16.marks.part   for each chunk: 1 once it is there, and its xxh3-64
    NAME                          the whole file: verified, synced, renamed

Who writes a chunk or commits holds a lock on the marks: shared for a chunk, alone to commit. So
nothing is ever written to a file that was verified. A process may die at any point; the next one
that is offered the file finds what is there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import xxhash

from prepipe.errors import StorageError
from prepipe.files import PARTIAL_SUFFIX, content_checksum, storage_errors
from prepipe.link.base import DONE
from prepipe.link.protocol import (
    CHUNK_BYTES,
    Acknowledged,
    Chunk,
    Committed,
    Has,
    Message,
    Offer,
    Refused,
    bitmap,
    chunk_count,
)

__all__ = ["Landing", "Partial", "check_landing"]

_MARK = struct.Struct(">BQ")
_THERE = 1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_A_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EEXIST, errno.ENOTEMPTY)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM)
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_PLAINLY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""Neither a symbolic link nor a pipe that was planted under one of our names."""


class _ObstacleError(OSError):
    """Something that is not ours stands under one of our names."""


class Partial:
    """The two files of one partial file, open; `Landing.open` makes it.

    Parameters
    ----------
    offer : Offer
    directory : int
        Descriptor of the directory they lie in; closed with them.
    create : bool
        Whether they are made if missing.

    Raises
    ------
    FileNotFoundError
        If they are missing and not to be made.
    OSError
    """

    def __init__(self, offer: Offer, directory: int, create: bool) -> None:
        self._offer = offer
        self._count = chunk_count(offer.size)
        self._directory = directory
        self._name, self._marks_name = _partial_names(offer.name, offer.checksum)
        with ExitStack() as undo:
            undo.callback(os.close, directory)
            self._marks = _open_plain(self._marks_name, directory, create)
            undo.callback(os.close, self._marks)
            self._data = _open_plain(self._name, directory, create)
            undo.callback(os.close, self._data)
            self.is_new = self._lay_out_marks()
            self._opened = undo.pop_all()

    def _lay_out_marks(self) -> bool:
        """Give a new file of marks its length; True if it is new."""
        found, wanted = os.fstat(self._marks).st_size, self._count * _MARK.size
        if found == wanted:
            return False
        if found != 0:
            raise _ObstacleError(f"{self._marks_name} is of a file of another size; remove it")
        os.ftruncate(self._marks, wanted)
        return True

    def close(self) -> None:
        """Close the files; what is there stays."""
        self._opened.close()

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_linked(self) -> bool:
        """Whether the open files are still those of that name: neither committed nor removed."""
        try:
            return all(
                os.path.samestat(os.fstat(descriptor), self._lstat(name))
                for descriptor, name in ((self._marks, self._marks_name), (self._data, self._name))
            )
        except FileNotFoundError:
            return False

    def _lstat(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self._directory, follow_symlinks=False)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep everybody else from writing and committing; waits for its turn."""
        _lock(self._marks, fcntl.LOCK_EX)
        try:
            yield
        finally:
            _lock(self._marks, fcntl.LOCK_UN)

    def write_at_once(self, chunk: Chunk) -> bool:
        """Write a chunk if that can be done without waiting.

        Returns
        -------
        bool
            False, and nothing was written, if somebody commits the file or has done so.
        """
        if not _lock(self._marks, fcntl.LOCK_SH | fcntl.LOCK_NB):
            return False
        try:
            if not self.is_linked():
                return False
            self.write(chunk)
            return True
        finally:
            _lock(self._marks, fcntl.LOCK_UN)

    def write(self, chunk: Chunk) -> None:
        """Write a chunk, then its mark; the caller holds a lock."""
        _pwrite(self._data, chunk.data, chunk.index * CHUNK_BYTES)
        _pwrite(self._marks, _MARK.pack(_THERE, chunk.checksum), chunk.index * _MARK.size)

    def marks(self) -> list[tuple[int, int]]:
        """For each chunk: 1 if it is there, and its checksum."""
        size = self._count * _MARK.size
        return list(_MARK.iter_unpack(os.pread(self._marks, size, 0).ljust(size, b"\0")))

    def bits(self) -> bytes:
        """Which chunks are there, as `Has` tells it."""
        present = {index for index, (there, _) in enumerate(self.marks()) if there == _THERE}
        return bitmap(present, self._count)

    def is_complete(self) -> bool:
        """Whether all marks are set."""
        told = os.pread(self._marks, self._count * _MARK.size, 0)
        return told[:: _MARK.size] == bytes([_THERE]) * self._count

    def finish(self) -> Message | None:
        """Commit a complete file if it is what was offered; the caller holds the lock alone.

        Returns
        -------
        Message or None
            `Committed`; `Has` if chunks were damaged on disk, and are missing now; `Refused` if
            the chunks are as they came, but the offered checksum is another; None if somebody
            took the file away, which can be where the file system knows no locks.
        """
        checksum, damaged = self._verify()
        if checksum == self._offer.checksum and os.fstat(self._data).st_size == self._offer.size:
            return Committed(self._offer.id) if self._commit() else None
        if damaged:
            for index in damaged:
                _pwrite(self._marks, bytes(_MARK.size), index * _MARK.size)
            return Has(self._offer.id, self.bits())
        self.remove()
        text = (
            f"{self._offer.name}: every chunk arrived as it was sent, but the whole has another "
            "checksum than was offered; the file changed while it was sent: offer it anew"
        )
        return Refused("checksum", text, self._offer.id)

    def _verify(self) -> tuple[str, list[int]]:
        """Checksum of all data, and the chunks that are not what their marks say."""
        whole = xxhash.xxh3_128()
        damaged = []
        for index, (_, expected) in enumerate(self.marks()):
            start = index * CHUNK_BYTES
            data = _pread(self._data, min(CHUNK_BYTES, self._offer.size - start), start)
            whole.update(data)
            if xxhash.xxh3_64_intdigest(data) != expected:
                damaged.append(index)
        return whole.hexdigest(), damaged

    def _commit(self) -> bool:
        directory = self._directory
        os.fsync(self._data)
        try:
            os.rename(self._name, self._offer.name, src_dir_fd=directory, dst_dir_fd=directory)
        except FileNotFoundError:
            return False
        os.fsync(directory)
        _unlink(self._marks_name, directory)
        return True

    def remove(self) -> None:
        """Remove both files; the caller holds the lock alone."""
        _unlink(self._name, self._directory)
        _unlink(self._marks_name, self._directory)


class Landing:
    """The landing directory, as the far end of a link uses it.

    Parameters
    ----------
    directory : Path
        It must be there: one that is made where its disk is not mounted fills another disk.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def free_bytes(self) -> int:
        """Bytes that this user may still write; 0 if that is not known."""
        try:
            disk = os.statvfs(self.directory)
        except OSError:
            return 0
        return disk.f_bavail * disk.f_frsize

    def open(self, offer: Offer, *, create: bool) -> Partial:
        """Open the partial file of an offer; see `Partial`."""
        return Partial(offer, self._enter(offer.place, create), create)

    def may_have(self, offer: Offer) -> bool:
        """Whether a file of that name and size is there; its content is not looked at."""
        return any(True for _ in self._candidates(offer))

    def settle(self, offer: Offer, chunk: Chunk | None = None) -> list[Message]:
        """Bring an offered file as far as it goes now, however long that takes.

        Parameters
        ----------
        offer : Offer
        chunk : Chunk, optional
            One that could not be written at once.

        Returns
        -------
        list of Message
            `Acknowledged` for the chunk; then `Committed` or `Refused` if that was the end of
            it, or what the far end `Has` if that is asked for or may be less than was told.
        """
        try:
            answers = self._settle_once(offer, chunk)
            while answers is None:
                answers = self._settle_once(offer, chunk)
        except OSError as error:
            return [self.refusal(offer, error)]
        return answers

    def _settle_once(self, offer: Offer, chunk: Chunk | None) -> list[Message] | None:
        """As `settle`; None if somebody else committed or removed the file meanwhile."""
        if self._has(offer):
            self.discard(offer.name, offer.checksum, offer.place)
            return [Committed(offer.id, already=True)]
        with self.open(offer, create=True) as partial, partial.locked():
            if not partial.is_linked():
                return None
            if partial.is_new and self._has(offer):
                partial.remove()
                return [Committed(offer.id, already=True)]
            answers: list[Message] = []
            if chunk is not None:
                partial.write(chunk)
                answers.append(Acknowledged(offer.id, chunk.index))
            if partial.is_complete():
                end = partial.finish()
                return None if end is None else [*answers, end]
            if chunk is None or partial.is_new:
                answers.append(Has(offer.id, partial.bits()))
            return answers

    def refusal(self, offer: Offer, error: OSError) -> Refused:
        """What the sender is told of an error of this disk."""
        reason = "file" if self._is_about(offer, error) else "storage"
        if error.errno in _FULL:
            reason = "full"
        return Refused(reason, f"{offer.name} cannot be taken: {self._told(error)}", offer.id)

    def _is_about(self, offer: Offer, error: OSError) -> bool:
        """Whether an error is that of what stands under a name of this file, and of no other."""
        if isinstance(error, _ObstacleError):
            return True
        if error.filename not in (offer.name, *_partial_names(offer.name, offer.checksum)):
            return False
        if error.errno not in _NOT_ALLOWED:
            return error.errno in _OF_A_FILE
        home = self.directory / offer.place
        stands = any(os.path.lexists(home / name) for name in (error.filename, offer.name))
        return stands and os.access(home, os.W_OK | os.X_OK, effective_ids=True)

    def _told(self, error: OSError) -> str:
        if isinstance(error, _ObstacleError):
            return f"{self.directory}: {error}"
        name = os.fsdecode(error.filename) if error.filename else ""
        try:
            with storage_errors(self.directory / name):
                raise error
        except StorageError as told:
            return str(told)

    def _enter(self, place: str, create: bool) -> int:
        """Descriptor of the landing directory, or of a place below it that is no link elsewhere."""
        landing = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if not place:
            return landing
        try:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(place, dir_fd=landing)
            return os.open(
                place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=landing
            )
        finally:
            os.close(landing)

    def _candidates(self, offer: Offer) -> Iterator[Path]:
        """Plain files of that name and size, where they land first: they only move downwards."""
        for directory in self._homes(offer.place):
            path = directory / offer.name
            with suppress(FileNotFoundError, NotADirectoryError):
                found = path.lstat()
                if stat.S_ISREG(found.st_mode) and found.st_size == offer.size:
                    yield path

    def _homes(self, place: str) -> Iterator[Path]:
        yield self.directory / place
        if not place:
            with suppress(FileNotFoundError), os.scandir(self.directory / DONE) as nights:
                yield from [Path(night.path) for night in nights if night.is_dir()]

    def _has(self, offer: Offer) -> bool:
        """Whether the very file is there already, whole."""
        for path in self._candidates(offer):
            # moved on meanwhile, or not to be read: then it comes again
            with suppress(StorageError):
                if content_checksum(path) == offer.checksum:
                    return True
        return False

    def discard(self, name: str, checksum: str, place: str = "") -> None:
        """Remove what is left of the partial file, if anything, of one that is there whole."""
        with suppress(OSError):
            directory = self._enter(place, create=False)
            try:
                for each in _partial_names(name, checksum):
                    _unlink(each, directory)
            finally:
                os.close(directory)


def check_landing(directory: Path) -> str:
    """Whether packets can land in a directory, tried out.

    Returns
    -------
    str
        A sentence that says so.

    Raises
    ------
    StorageError
        If they cannot.
    """
    trial = directory / f".trial.{os.getpid()}{PARTIAL_SUFFIX}"
    with storage_errors(directory):
        try:
            with trial.open("xb", buffering=0) as stream:
                stream.write(b"trial")
                os.fsync(stream.fileno())
        finally:
            with suppress(FileNotFoundError, NotADirectoryError):
                trial.unlink()
    free = Landing(directory).free_bytes() / 1e9
    return f"packets can land in {directory}: {free:,.1f} GB are free there"


def _partial_names(name: str, checksum: str) -> tuple[str, str]:
    """Names of the data and of the marks."""
    start = f".{name}.{checksum[:16]}"
    return f"{start}{PARTIAL_SUFFIX}", f"{start}.marks{PARTIAL_SUFFIX}"


def _unlink(name: str, directory: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _open_plain(name: str, directory: int, create: bool) -> int:
    flags = os.O_RDWR | _PLAINLY | (os.O_CREAT if create else 0)
    descriptor = os.open(name, flags, 0o666, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _ObstacleError(f"{name} is no plain file; remove it")
    return descriptor


def _lock(descriptor: int, how: int) -> bool:
    """False if another holds it; a file system without locks does without: all is verified."""
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _pwrite(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    """As much as there is; less only at the end of the file."""
    parts = []
    while size and (part := os.pread(descriptor, size, offset)):
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return b"".join(parts)
