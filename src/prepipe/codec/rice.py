"""Codec ``rice``: lossless, readable by every FITS library."""

from __future__ import annotations

from collections.abc import Mapping

from prepipe.codec.base import Encoded, Pixels, Unit
from prepipe.codec.pixels import require_image
from prepipe.codec.tiles import RICE_BLOCK, RiceTable, rice_pixels, rice_table
from prepipe.errors import ConfigError, FitsError, PacketError
from prepipe.model import Packet

__all__ = ["RiceCodec"]

_KINDS = "uint8 int8 int16 uint16 int32 uint32"


class RiceCodec:
    """RICE_1 of the FITS Standard 4.0 (section 10.4.1), one tile a row, blocks of 32.

    The payload is the data unit of the compressed table, without padding. If it equals
    that of the file it came from, as with DECam, ``as_in_file`` says so.
    """

    name = "rice"
    lossless = True

    def encode(
        self, pixels: Pixels, parameters: Mapping[str, object], unit: Unit | None = None
    ) -> Encoded:
        """Compress integer `pixels`.

        Raises
        ------
        ConfigError
            If a parameter is given.
        PixelError
            If the pixels are no integers of 8, 16 or 32 bits.
        """
        if parameters:
            raise ConfigError(f"codec rice takes no parameters, not {sorted(parameters)}")
        table = rice_table(require_image(pixels, _KINDS, self.name))
        same = unit is not None and unit.data == table.unit
        return Encoded(table.content, {"block": RICE_BLOCK, "as_in_file": same})

    def decode(self, payload: bytes, packet: Packet, header: bytes = b"") -> Pixels:
        """Decompress; `header` is not needed.

        Raises
        ------
        PacketError
            If a tile is broken, or the type is no integer.
        """
        rows = packet.shape[0]
        if len(payload) < 8 * rows or packet.dtype not in _KINDS.split():
            raise PacketError(f"{packet.file_name}: the payload is no table of Rice tiles")
        try:
            return rice_pixels(RiceTable(payload, rows), packet.shape, packet.dtype)
        except FitsError as error:
            raise PacketError(f"{packet.file_name}: {error}") from error
