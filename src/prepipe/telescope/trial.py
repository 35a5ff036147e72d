"""A codec on trial: a CCD of a raw file is packed, unpacked, and held against itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from prepipe.cameras import Camera
from prepipe.codec import Unit, get_codec
from prepipe.codec.base import Codec, Pixels
from prepipe.codec.fits_bytes import HduSpan
from prepipe.codec.pack import pack_ccd
from prepipe.codec.pixels import native
from prepipe.engines.raw import RawCcd, read_ccd
from prepipe.errors import ConfigError, PixelError
from prepipe.model import Kind, Layout, Packet
from prepipe.quality.fidelity import (
    compare,
    pixel_errors,
    source_changes,
    transient_changes,
)
from prepipe.quality.fidelity_figures import Fidelity
from prepipe.quality.injection import Transients, inject, place_transients
from prepipe.quality.scene import Scene, flatten, see
from prepipe.store.checks import codec_label
from prepipe.telescope.intake import ccd_spans, read_exposure

__all__ = ["Setting", "Subject", "Trial", "choose_ccd", "read_subject", "try_codec"]


@dataclass(frozen=True)
class Setting:
    """A codec and what it is told.

    Parameters
    ----------
    codec : str
    parameters : mapping
    """

    codec: str
    parameters: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read ``jpeg2000:ratio=10`` or ``rice``.

        Raises
        ------
        ConfigError
            If it has another form, or there is no such codec.
        """
        name, _, rest = text.partition(":")
        get_codec(name)
        told: dict[str, object] = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = (word.strip() for word in part.partition("="))
            if not (key and equals and value):
                raise ConfigError(f"--codec {text!r}: write NAME or NAME:key=value,key=value")
            told[key] = _value(value)
        return cls(name, told)

    @property
    def label(self) -> str:
        """As `parse` reads it."""
        return codec_label(self.codec, self.parameters)


@dataclass(frozen=True)
class Trial:
    """How a codec did on a CCD.

    Parameters
    ----------
    setting : Setting
    ratio : float
        Bytes of the pixels over bytes of the payload.
    encode_mpix_s, decode_mpix_s : float
        CPU time of this process and of commands it ran, so one core's; NaN for a lossless
        codec, which has nothing to try twice.
    pixel_checksum : str
        Of the decoded pixels, as in the packet.
    fidelity : Fidelity
    """

    setting: Setting
    ratio: float
    encode_mpix_s: float
    decode_mpix_s: float
    pixel_checksum: str
    fidelity: Fidelity


@dataclass(frozen=True, eq=False)
class Subject:
    """A CCD that codecs are tried on.

    Parameters
    ----------
    path : Path
    span : HduSpan
    raw : RawCcd
    layout : Layout
    scene : Scene
    transients : Transients
    injected : ndarray
        The pixels with the transients in them.
    """

    path: Path
    span: HduSpan
    raw: RawCcd
    layout: Layout
    scene: Scene
    transients: Transients
    injected: Pixels


def choose_ccd(path: Path, camera: Camera) -> int:
    """Number of the CCD in the middle of a raw file, of those that are not known to be dead.

    Raises
    ------
    FitsError, HeaderError, PixelError, StorageError
        If the file cannot be used.
    """
    exposure = read_exposure(path, camera).exposure
    numbers = [
        number
        for number in sorted(ccd_spans(path, camera))
        if exposure is None or not camera.dead_amplifiers(number, exposure.start)
    ]
    if not numbers:
        raise PixelError(f"{path}: holds no working CCD; choose another file")
    return numbers[len(numbers) // 2]


def read_subject(path: Path, ccd: int, camera: Camera, supposed_fwhm_arcsec: float) -> Subject:
    """Read a CCD and see what is in it.

    Parameters
    ----------
    path : Path
        Raw file.
    ccd : int
    camera : Camera
    supposed_fwhm_arcsec : float
        Seeing to begin with.

    Raises
    ------
    FitsError, HeaderError, PixelError, StorageError
        If the file cannot be used.
    """
    spans = ccd_spans(path, camera)
    if ccd not in spans:
        held = ", ".join(map(str, sorted(spans)))
        raise PixelError(f"{path}: has no CCD {ccd}; it holds {held}")
    raw = read_ccd(path, spans[ccd].index, camera)
    if raw.exposure.kind is not Kind.OBJECT:
        raise PixelError(
            f"{path}: exposure {raw.exposure.number} is of kind {raw.exposure.kind.value}; "
            "fidelity is told by exposures of the sky"
        )
    layout = camera.layout(raw.header, raw.pixels)
    dead = camera.dead_amplifiers(ccd, raw.exposure.start)
    pixels = native(raw.pixels)
    scene = see(pixels, layout, supposed_fwhm_arcsec / camera.pixel_scale, dead)
    seed = (raw.exposure.number << 8) + ccd
    transients = place_transients(scene, seed)
    injected = inject(pixels, layout, transients, scene.profile, seed)
    return Subject(path, spans[ccd], raw, layout, scene, transients, injected)


def try_codec(subject: Subject, setting: Setting) -> Trial:
    """Pack and unpack a CCD as it is, and with transients in it, and see what became of both.

    Parameters
    ----------
    subject : Subject
    setting : Setting

    Raises
    ------
    ConfigError
        If the codec or a parameter is unknown.
    PixelError
        If the codec cannot pack such pixels.
    PacketError
        If it does not give back what it packed.
    """
    codec = get_codec(setting.codec)
    raw, scene, layout = subject.raw, subject.scene, subject.layout
    packed = pack_ccd(
        subject.path, subject.span, raw.exposure, raw.ccd, setting.codec, setting.parameters
    )
    packet = packed.packet
    decoded, after = raw.pixels, subject.injected
    encode_mpix_s = decode_mpix_s = float("nan")
    if not codec.lossless:
        payload = packed.content[len(packed.content) - packet.payload_bytes :]
        decoded = codec.decode(payload, packet, subject.span.header)
        after, encode_mpix_s, decode_mpix_s = _there_and_back(codec, subject, setting, packet)
    flat_before, flat_decoded, flat_after = (
        flatten(pixels, layout, scene.mask, scene.dead, scene.flat.background)
        for pixels in (subject.injected, decoded, after)
    )
    fidelity = compare(
        pixel_errors(native(raw.pixels), decoded, layout),
        source_changes(scene, flat_decoded),
        transient_changes(flat_before, flat_after, subject.transients, scene.profile),
        scene.profile,
    )
    ratio = packet.parameters["ratio"]
    return Trial(
        setting=setting,
        ratio=float(ratio) if isinstance(ratio, int | float) else float("nan"),
        encode_mpix_s=encode_mpix_s,
        decode_mpix_s=decode_mpix_s,
        pixel_checksum=packet.pixel_checksum,
        fidelity=fidelity,
    )


def _there_and_back(
    codec: Codec, subject: Subject, setting: Setting, packet: Packet
) -> tuple[Pixels, float, float]:
    """What comes back of the pixels with transients, and how fast both ways are, Mpixel/s."""
    unit = Unit(subject.span.header, b"")
    began = _core_s()
    payload = codec.encode(subject.injected, setting.parameters, unit).payload
    packed = _core_s()
    told = replace(packet, payload_bytes=len(payload))
    decoded = codec.decode(payload, told, subject.span.header)
    unpacked = _core_s()
    mpix = decoded.size / 1e6
    return (
        decoded,
        mpix / max(packed - began, 1e-6),
        mpix / max(unpacked - packed, 1e-6),
    )


def _core_s() -> float:
    """CPU time so far, that of commands which have ended included."""
    return sum(os.times()[:4])


def _value(text: str) -> object:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
