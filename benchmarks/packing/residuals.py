"""Lossless later: a packet of the night and its residual, held against lossless codecs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import imagecodecs
import numpy as np

from packing.codecs import PRESETS, Pixels, Speed, Way, fpack, measure, of_prepipe
from packing.frames import Truth
from prepipe.codec.residual_coder import decode_difference, encode_difference
from prepipe.codec.residual_payload import coded_from_bytes, coded_to_bytes
from prepipe.codec.wavelet import WaveletCodec
from prepipe.model import Packet


@dataclass(frozen=True)
class Total:
    """Base and residual of one preset.

    Parameters
    ----------
    preset : str
    ratio : float
        Bytes of the pixels over those of both payloads.
    over_best_lossless, under_fpack : float
        Bytes of both against the smallest and the usual lossless file, per cent.
    speed : Speed
        Of the residual alone, its base given.
    """

    preset: str
    ratio: float
    over_best_lossless: float
    under_fpack: float
    speed: Speed


def totals(truth: Truth, repeats: int, presets: Sequence[str] = PRESETS) -> Iterator[Total]:
    """One a preset; the residual is decoded, too, and has to give the frame back."""
    best = len(lossless_jpeg2000(truth.raw))
    usual = len(fpack().encode(truth.raw)) if shutil.which("fpack") else np.nan
    for preset in presets:
        first = of_prepipe(preset, "wavelet", {"preset": preset, "fill": True}, truth)
        payload = first.encode(truth.raw)
        packet = Packet(None, None, "wavelet", {}, truth.layout.shape, "uint16", 0, "", "")
        ground = np.asarray(WaveletCodec().decode_unfilled(payload, packet))
        speed = measure(_way(preset, ground), truth.raw, repeats)
        np.testing.assert_array_equal(speed.decoded, truth.raw)
        both = len(payload) + truth.raw.nbytes / speed.ratio
        against = 100 * (both / best - 1), 100 * (1 - both / usual)
        yield Total(preset, truth.raw.nbytes / both, *against, speed)


def lossless_jpeg2000(raw: Pixels) -> bytes:
    """The smallest of the standard lossless files: JPEG 2000, reversible 5/3."""
    options = {"codecformat": "J2K", "reversible": True, "resolutions": 6, "numthreads": 1}
    return bytes(imagecodecs.jpeg2k_encode(raw, level=0, **options))


def _way(name: str, ground: Pixels) -> Way:
    def decode(payload: bytes) -> Pixels:
        samples = decode_difference(coded_from_bytes(payload, ground.size), ground)
        assert samples is not None
        return samples

    return Way(name, lambda raw: coded_to_bytes(encode_difference(raw, ground)), decode)
