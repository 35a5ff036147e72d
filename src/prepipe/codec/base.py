"""What every codec is: pixels to bytes and back, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import DTypeLike, NDArray

from prepipe.errors import ConfigError
from prepipe.model import Packet

__all__ = [
    "RESIDUAL",
    "Allocate",
    "Codec",
    "Encoded",
    "Pixels",
    "Unit",
    "codec_names",
    "get_codec",
    "register",
]

RESIDUAL = "residual"
"""What a packet names as its codec that holds what another one lost; see `residual`."""

Pixels = NDArray[Any]
"""Two-dimensional, ``[row, column]``, native byte order: integers or floats in ADU."""

Allocate = Callable[[tuple[int, ...], DTypeLike], NDArray[Any]]
"""Gives an array of a shape and type, with any content; `numpy.empty` is one."""


@dataclass(frozen=True)
class Unit:
    """An image HDU as it lies in its file, for codecs that send that instead of pixels.

    Parameters
    ----------
    header : bytes
        Header unit, END and padding included.
    data : bytes
        Data unit with its padding.
    """

    header: bytes = field(repr=False)
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Encoded:
    """What a codec made of a frame.

    Parameters
    ----------
    payload : bytes
    parameters : dict
        What the codec was told and what it chose; JSON values, numbers finite.
    """

    payload: bytes = field(repr=False)
    parameters: dict[str, object]


class Codec(Protocol):
    """A way to turn the pixels of one CCD into bytes.

    Both methods must be deterministic: the checksum of the decoded pixels is taken when
    packing and compared wherever the packet is opened.
    """

    @property
    def name(self) -> str:
        """Name in the configuration and in the packet."""

    @property
    def lossless(self) -> bool:
        """Whether the decoded pixels equal the original ones."""

    def encode(
        self, pixels: Pixels, parameters: Mapping[str, object], unit: Unit | None = None
    ) -> Encoded:
        """Pack `pixels`.

        Parameters
        ----------
        pixels : ndarray, shape (rows, columns)
            In the byte order of this machine or any other.
        parameters : mapping
            As set by the site.
        unit : Unit, optional
            The HDU the pixels come from.

        Raises
        ------
        ConfigError
            If a parameter is unknown or makes no sense.
        PixelError
            If the codec cannot pack pixels of this type or shape.
        """

    def decode(self, payload: bytes, packet: Packet, header: bytes = b"") -> Pixels:
        """Give the pixels back, with the shape and type that `packet` states.

        Parameters
        ----------
        payload : bytes
        packet : Packet
        header : bytes, optional
            The image's own header unit, which `none` needs.

        Raises
        ------
        PacketError
            If `payload` is no such thing.
        """


_CODECS: dict[str, Codec] = {}


def register(codec: Codec) -> None:
    """Make a codec known by its name."""
    _CODECS[codec.name] = codec


def codec_names() -> tuple[str, ...]:
    """Names of all codecs, in alphabetical order."""
    return tuple(sorted(_CODECS))


def get_codec(name: str) -> Codec:
    """Find a codec by its name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    try:
        return _CODECS[name]
    except KeyError:
        known = ", ".join(codec_names())
        raise ConfigError(f"there is no codec {name!r}; choose one of {known}") from None
