"""What can go wrong, as one tree.

::

    PrepipeError
     ├─ ConfigError            wrong use or configuration: exit code 2
     ├─ InputError             this input can never work: quarantine it
     │   ├─ FitsError          not FITS, truncated, or its structure is broken
     │   ├─ HeaderError        a card is missing or makes no sense
     │   ├─ PixelError         the pixels have a wrong type or shape
     │   ├─ PacketError        a packet is damaged or lies about itself
     │   └─ DuplicateError     another file already bears this exposure number
     └─ TransientError         try again later
         ├─ EngineError        an external pipeline failed over a CCD
         ├─ LinkError          the far side cannot be reached
         ├─ PlaceLostError     a node, job or broker is gone, with the work it had
         └─ StorageError       disk full, directory unreadable, file vanished

The message of each is one sentence for a tired reader: what, where, what to do.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DuplicateError",
    "EngineError",
    "FitsError",
    "HeaderError",
    "InputError",
    "LinkError",
    "PacketError",
    "PixelError",
    "PlaceLostError",
    "PrepipeError",
    "StorageError",
    "TransientError",
]


class PrepipeError(Exception):
    """Root of everything prepipe raises on purpose."""


class ConfigError(PrepipeError):
    """A setting or an argument is wrong; nothing was started."""


class InputError(PrepipeError):
    """This input can never work, however often it is tried."""


class FitsError(InputError):
    """The file is no FITS file, or ends too early, or contradicts itself."""


class HeaderError(InputError):
    """A header card that is needed is missing or makes no sense."""


class PixelError(InputError):
    """The pixels have another type or shape than the header promises."""


class PacketError(InputError):
    """The packet is damaged, of an unknown version, or lies about itself."""


class DuplicateError(InputError):
    """Another file with other content already bears this exposure number."""


class TransientError(PrepipeError):
    """The world is not ready; the same call may work later."""


class EngineError(TransientError):
    """An external pipeline failed, hung or left no product; its log's end is in the message."""


class LinkError(TransientError):
    """The far side of the link cannot be reached or does not answer."""


class PlaceLostError(TransientError):
    """A node, a job or the broker is gone with the work it had: no fault of the work."""


class StorageError(TransientError):
    """Disk full, directory unreadable, or a file vanished while in use."""
