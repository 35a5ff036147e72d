"""Codec ``none``: the CCD's own bytes, cut out of its file and sent as they are."""

from __future__ import annotations

from collections.abc import Mapping

from prepipe.codec.base import Encoded, Pixels, Unit
from prepipe.codec.tiles import decode_unit
from prepipe.errors import ConfigError, FitsError, PacketError
from prepipe.model import Packet

__all__ = ["NoneCodec"]


class NoneCodec:
    """The data unit of the HDU, compressed or not as the telescope wrote it.

    Bit-exact and next to no work. The payload is the data unit with its padding; its
    meaning stands in the image's own header, which the packet carries.
    """

    name = "none"
    lossless = True

    def encode(
        self, pixels: Pixels, parameters: Mapping[str, object], unit: Unit | None = None
    ) -> Encoded:
        """Take the data unit of `unit`; `pixels` are not looked at.

        Raises
        ------
        ConfigError
            If a parameter or no `unit` is given.
        """
        if parameters:
            raise ConfigError(f"codec none takes no parameters, not {sorted(parameters)}")
        if unit is None:
            raise ConfigError("codec none sends a file's own bytes: give it the HDU's unit")
        return Encoded(unit.data, {})

    def decode(self, payload: bytes, packet: Packet, header: bytes = b"") -> Pixels:
        """Read the pixels as `header` says.

        Raises
        ------
        PacketError
            If the data unit cannot be decoded.
        """
        try:
            return decode_unit(Unit(header, payload))
        except FitsError as error:
            raise PacketError(f"{packet.file_name}: {error}") from error
