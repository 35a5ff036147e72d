"""A residual: what packing with a loss left out, so that both packets give back the original.

A residual belongs to the packet that was sent first, its base. It holds the difference between
the pixels of the raw file and those that the base decodes to without noise filled in, and what
the packet of codec ``none`` says of itself. That one comes back whole, byte for byte. Only a
base whose decoding is pinned, the same on every machine, will do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from prepipe.codec.base import RESIDUAL, Pixels
from prepipe.codec.cards import padding_to_block
from prepipe.codec.fits_bytes import HduSpan
from prepipe.codec.packet import OpenPacket, PackedCcd, build_packet, opened
from prepipe.codec.pixels import as_samples, from_samples, native, pixel_checksum, to_stored
from prepipe.codec.residual_coder import decode_difference, encode_difference
from prepipe.codec.residual_payload import coded_from_bytes, coded_to_bytes
from prepipe.codec.tiles import rice_table
from prepipe.codec.wavelet import WaveletCodec
from prepipe.errors import PacketError
from prepipe.model import Packet

__all__ = ["PINNED", "BaseOf", "base_of", "residual_of", "restored"]

_WAVELET = WaveletCodec()
PINNED = (_WAVELET.name,)
"""Codecs whose decoding gives the same pixels on every machine."""

_ORIGINAL_CODEC = "none"
_DTYPES = ("uint16", "int16")
_Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class _Told(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Base(_Told):
    codec: str
    payload_checksum: _Checksum
    pixel_checksum: _Checksum


class _Original(_Told):
    payload_checksum: _Checksum
    parameters: dict[str, JsonValue]


class _Parameters(BaseModel):
    """What a residual's parameters say besides what all packets say."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
    base: _Base
    original: _Original


@dataclass(frozen=True)
class BaseOf:
    """Which packet a residual belongs to.

    Parameters
    ----------
    file_name : str
        The residual's own; its base bore the same.
    codec : str
    payload_checksum : str
    """

    file_name: str
    codec: str
    payload_checksum: str

    def is_of(self, packet: Packet) -> bool:
        """Whether a packet is that base."""
        told = self.file_name, self.codec, self.payload_checksum
        return told == (packet.file_name, packet.codec, packet.payload_checksum)


def base_of(packet: Packet) -> BaseOf:
    """Tell which packet a residual belongs to.

    Raises
    ------
    PacketError
        If it is none, or does not say.
    """
    base = _parameters(packet).base
    return BaseOf(packet.file_name, base.codec, base.payload_checksum)


def residual_of(original: PackedCcd, base: PackedCcd) -> PackedCcd | None:
    """Make the residual of a CCD.

    Parameters
    ----------
    original : PackedCcd
        By codec ``none``.
    base : PackedCcd
        The same CCD with a loss.

    Returns
    -------
    PackedCcd or None
        A packet of the same name. None where the original has to go as it is: the base's codec
        is not pinned, the bytes of the raw file are others than its pixels packed anew would
        have, or nothing would be saved.

    Raises
    ------
    PacketError
        If one of the two is damaged.
    """
    whole, first = opened(original), opened(base)
    if first.packet.codec not in PINNED or whole.packet.dtype not in _DTYPES:
        return None
    pixels = whole.pixels()
    if _data_unit(pixels, whole.image_header) != whole.payload:
        return None
    ground = _unfilled(first)
    payload = coded_to_bytes(encode_difference(*map(_samples, (pixels, ground))))
    packet = replace(
        whole.packet,
        codec=RESIDUAL,
        payload_checksum=xxhash.xxh3_128_hexdigest(payload),
        parameters={
            **whole.packet.parameters,
            "ratio": round(pixels.nbytes / len(payload), 4),
            "base": {
                "codec": first.packet.codec,
                "payload_checksum": first.packet.payload_checksum,
                "pixel_checksum": pixel_checksum(ground),
            },
            "original": {
                "payload_checksum": whole.packet.payload_checksum,
                "parameters": whole.packet.parameters,
            },
        },
    )
    made = build_packet(packet, whole.hdu, whole.primary_header, whole.image_header, payload)
    if len(made.content) >= len(original.content):
        return None
    return made if _gives_back(made, first, original) else None


def restored(residual: OpenPacket, base: OpenPacket) -> PackedCcd:
    """Put the original together: the packet that codec ``none`` would have made.

    Raises
    ------
    PacketError
        If the base is another one, or one of the two is damaged.
    """
    packet = residual.packet
    told = _parameters(packet)
    if not base_of(packet).is_of(base.packet):
        raise PacketError(
            f"{packet.file_name}: this residual was made for another packet than the one given "
            f"(payload {told.base.payload_checksum}, not {base.packet.payload_checksum})"
        )
    if base.packet.shape != packet.shape or base.packet.dtype != packet.dtype:
        raise PacketError(f"{packet.file_name}: its base has other pixels; send it again")
    ground = _unfilled(base)
    if pixel_checksum(ground) != told.base.pixel_checksum:
        raise PacketError(
            f"{packet.file_name}: its base does not decode to the pixels that the residual was "
            "made for; report this, and send the original whole (pack.archive)"
        )
    pixels = _sum(residual, ground)
    payload = _data_unit(pixels, residual.image_header)
    if xxhash.xxh3_128_hexdigest(payload) != told.original.payload_checksum:
        raise PacketError(
            f"{packet.file_name}: packed anew, its pixels are not the bytes of the raw file; "
            "report this, and send the original whole (pack.archive)"
        )
    original = replace(
        packet,
        codec=_ORIGINAL_CODEC,
        payload_checksum=told.original.payload_checksum,
        parameters=dict(told.original.parameters),
    )
    headers = residual.primary_header, residual.image_header
    return build_packet(original, residual.hdu, *headers, payload)


def _gives_back(made: PackedCcd, base: OpenPacket, original: PackedCcd) -> bool:
    """Whether a residual does what it is for; the raw file may be gone when it is needed."""
    try:
        return restored(opened(made), base).content == original.content
    except PacketError:
        return False


def _sum(residual: OpenPacket, ground: Pixels) -> Pixels:
    """Pixels of the original, compared with their checksum."""
    packet = residual.packet
    try:
        coded = coded_from_bytes(residual.payload, ground.size)
    except PacketError as error:
        raise PacketError(f"{packet.file_name}: {error}") from error
    samples = decode_difference(coded, _samples(ground))
    if samples is None:
        raise PacketError(f"{packet.file_name}: the residual is damaged; send it again")
    pixels = from_samples(samples, packet.dtype)
    if pixel_checksum(pixels) != packet.pixel_checksum:
        raise PacketError(
            f"{packet.file_name}: with its base it does not give the pixels of the raw file; "
            "send it again"
        )
    return pixels


def _parameters(packet: Packet) -> _Parameters:
    if packet.codec != RESIDUAL:
        raise PacketError(f"{packet.file_name}: is no residual but a packet of {packet.codec}")
    if packet.dtype not in _DTYPES:
        raise PacketError(f"{packet.file_name}: a residual of {packet.dtype} makes no sense")
    try:
        return _Parameters.model_validate(packet.parameters)
    except ValidationError as error:
        raise PacketError(
            f"{packet.file_name}: does not say which packet it was made for; send it again"
        ) from error


def _samples(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(as_samples(native(pixels)))


def _unfilled(base: OpenPacket) -> Pixels:
    if base.packet.codec not in PINNED:
        raise PacketError(
            f"{base.packet.file_name}: codec {base.packet.codec} is no base of a residual"
        )
    return _WAVELET.decode_unfilled(base.payload, base.packet)


def _data_unit(pixels: Pixels, header: bytes) -> bytes:
    """The data unit of an image in the form that its header tells, as cfitsio writes it."""
    if HduSpan(0, 0, header, 0).compressed:
        return rice_table(pixels).unit
    stored = to_stored(pixels)
    content = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
    return content + bytes(padding_to_block(len(content)))
