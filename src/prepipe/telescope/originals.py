"""From a CCD that was sent with a loss to the packet that brings its original."""

from __future__ import annotations

import xxhash

from prepipe.codec.packet import PackedCcd
from prepipe.codec.residual import PINNED, residual_of
from prepipe.errors import ConfigError, PixelError
from prepipe.store import CcdRow
from prepipe.telescope.pack import Packer, State

__all__ = ["OriginalPacker", "may_be_residual"]

_OTHER_PACKET = "its packet of the night cannot be made again (settings or program changed)"
_NO_GAIN = "a residual would not give its bytes back, or not be smaller"


def may_be_residual(row: CcdRow) -> bool:
    """Whether the journal knows enough of what was sent to send what it lost."""
    return row.codec in PINNED and bool(row.file_checksum)


class OriginalPacker(Packer):
    """Packs bit-exact originals, as residuals where that can be and is set.

    A residual needs the very packet that was sent. It is not kept here, but packing is
    deterministic: it is made again, and is the same if its checksum is.
    """

    def _packed(self, row: CcdRow, state: State) -> tuple[PackedCcd, str]:
        whole = self._by_codec(row, state, "none", {})
        if self._settings.archive == "whole" or not may_be_residual(row):
            return whole, ""
        base = self._packed_again(row, state)
        if base is None:
            return whole, _OTHER_PACKET
        residual = residual_of(whole, base)
        return (whole, _NO_GAIN) if residual is None else (residual, "")

    def _packed_again(self, row: CcdRow, state: State) -> PackedCcd | None:
        """The packet that was sent, if the same can be made."""
        asked = self._settings.parameters if row.asked is None else row.asked
        try:
            base = self._by_codec(row, state, row.codec, asked)
        except (ConfigError, PixelError):
            return None
        same = xxhash.xxh3_128_hexdigest(base.content) == row.file_checksum
        return base if same else None
