"""From a CCD in a raw file to its packet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import xxhash

from prepipe.codec.base import Codec, Pixels, Unit, get_codec
from prepipe.codec.fits_bytes import FitsFile, HduSpan
from prepipe.codec.packet import PackedCcd, build_packet
from prepipe.codec.pixels import fidelity, pixel_checksum
from prepipe.codec.tiles import decode_unit
from prepipe.errors import FitsError, PixelError
from prepipe.model import Ccd, Exposure, Packet

__all__ = ["pack_ccd"]

_NO_LOSS: dict[str, object] = {"rms_error_adu": 0.0, "max_error_adu": 0.0, "rms_error_sigma": 0.0}


def pack_ccd(
    path: Path,
    hdu: int | HduSpan,
    exposure: Exposure,
    ccd: Ccd,
    codec: str,
    parameters: Mapping[str, object] | None = None,
    notes: Mapping[str, object] | None = None,
) -> PackedCcd:
    """Pack one CCD.

    Parameters
    ----------
    path : Path
        Raw FITS file: plain, tile-compressed or gzip-compressed.
    hdu : int or HduSpan
        Which HDU holds the CCD. A span, as `scan_fits` gave it, saves another scan.
    exposure : Exposure
    ccd : Ccd
    codec : str
        Name of a codec.
    parameters : mapping, optional
        What the codec is told.
    notes : mapping, optional
        What else the packet's parameters shall say, e.g. when the raw file was found.

    Returns
    -------
    PackedCcd
        The parameters of its packet are ``asked`` (what was given here), what the codec
        chose, ``ratio`` (bytes of the pixels over bytes of the payload), and what was
        lost: ``rms_error_adu``, ``max_error_adu``, ``rms_error_sigma`` (in units of the
        frame's own noise; None where that is zero).

    Raises
    ------
    ConfigError
        If the codec or a parameter is unknown.
    FitsError
        If the file is broken, or changed since it was scanned.
    PixelError
        If the codec cannot pack such pixels.
    StorageError
        If the file vanished or may not be read.
    """
    chosen = get_codec(codec)
    asked = dict(parameters or {})
    primary, span, unit = _read(path, hdu)
    try:
        pixels = decode_unit(unit)
    except FitsError as error:
        raise FitsError(f"{path}: HDU {span.index}: {error}") from error
    encoded = chosen.encode(pixels, asked, unit)
    packet = Packet(
        exposure=exposure,
        ccd=ccd,
        codec=codec,
        parameters={},
        shape=(pixels.shape[0], pixels.shape[1]),
        dtype=pixels.dtype.name,
        payload_bytes=len(encoded.payload),
        payload_checksum=xxhash.xxh3_128_hexdigest(encoded.payload),
        pixel_checksum="",
    )
    # a payload that is the file's own bytes was decoded above
    same = encoded.payload is unit.data
    decoded = pixels if same else chosen.decode(encoded.payload, packet, unit.header)
    packet = replace(
        packet,
        pixel_checksum=pixel_checksum(decoded),
        parameters={
            **(notes or {}),
            "asked": asked,
            **encoded.parameters,
            "ratio": round(pixels.nbytes / len(encoded.payload), 4),
            **_loss(chosen, pixels, decoded, path),
        },
    )
    return build_packet(packet, span.index, primary, span.header, encoded.payload)


def _read(path: Path, hdu: int | HduSpan) -> tuple[bytes, HduSpan, Unit]:
    """Primary header unit (empty if the CCD is there), the HDU, and its bytes."""
    with FitsFile(path) as file:
        if isinstance(hdu, HduSpan):
            span = hdu
            if file.read(span.header_offset, len(span.header)) != span.header:
                raise FitsError(f"{path}: was rewritten while it was read; wait for its writer")
        elif 0 <= hdu < len(file.spans):
            span = file.spans[hdu]
        else:
            raise FitsError(f"{path}: has no HDU {hdu}, only {len(file.spans)}")
        primary = file.span_at(0, 0).header if span.index else b""
        return primary, span, Unit(span.header, file.data_unit(span))


def _loss(codec: Codec, original: Pixels, decoded: Pixels, path: Path) -> dict[str, object]:
    """What the codec lost; a lossless one must have lost nothing."""
    if not codec.lossless:
        return fidelity(original, decoded)
    if decoded is not original and pixel_checksum(decoded) != pixel_checksum(original):
        raise PixelError(f"{path}: codec {codec.name} does not give these pixels back; use none")
    return _NO_LOSS
