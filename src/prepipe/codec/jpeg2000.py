"""Codec ``jpeg2000``: lossy wavelet compression, as the legacy system shipped it.

A raw JPEG 2000 codestream (ISO/IEC 15444-1) by OpenJPEG: one tile, one layer, the
irreversible 9/7 wavelet over five levels. OpenJPEG behind imagecodecs obeys one target,
the rms error of the frame (given as a PSNR), so every way to ask is turned into that.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import erf, exp, log10, pi, sqrt
from typing import Any

import imagecodecs
import numpy as np

from prepipe.codec.base import Encoded, Pixels, Unit
from prepipe.codec.codestream import is_frame
from prepipe.codec.pixels import as_samples, from_samples, require_image, sky_noise
from prepipe.codec.target import one_target
from prepipe.errors import PacketError
from prepipe.model import Packet

__all__ = ["Jpeg2000Codec", "rms_of_quantiser_step"]

DEFAULT_RMS_SIGMA = 0.3
"""About 7:1; adds 0.2 to 0.25 of the photometric noise of a faint star."""

_KINDS = "uint16 int16"
_TARGETS = ("ratio", "qstep", "rms_sigma")
_FULL_SCALE = 65535.0
_STEP_SCALE = 65536.0
_SMALLEST_RMS = 0.3
_RESOLUTIONS = 6
_RATIO_TOLERANCE = 0.02
_RATIO_TRIES = 8
_STRIP_ROWS = 512
_STRIPS = 4


class Jpeg2000Codec:
    """JPEG 2000 with one of three targets.

    ``ratio``: bytes of the pixels over bytes of the payload, reached within 5 % on
    ordinary frames. ``qstep``: the legacy system's quantiser step as a fraction of 65536
    ADU, see `rms_of_quantiser_step`. ``rms_sigma``: rms error in units of the frame's
    own noise (`sky_noise`), the default, 0.3.
    """

    name = "jpeg2000"
    lossless = False

    def encode(
        self, pixels: Pixels, parameters: Mapping[str, object], unit: Unit | None = None
    ) -> Encoded:
        """Compress 16-bit `pixels`.

        Raises
        ------
        ConfigError
            If more than one target is given, or an unknown or senseless one.
        PixelError
            If the pixels are no 16-bit integers.
        """
        default = ("rms_sigma", DEFAULT_RMS_SIGMA)
        target, value = one_target(self.name, parameters, _TARGETS, default)
        samples = as_samples(require_image(pixels, _KINDS, self.name))
        rms = _rms_for(target, value, samples)
        payload = _encode(samples, rms)
        if target == "ratio":
            rms, payload = _corrected(samples, rms, payload, value)
        library = f"{imagecodecs.jpeg2k_version()}, imagecodecs {imagecodecs.__version__}"
        return Encoded(payload, {"target_rms_adu": round(rms, 4), "by": library})

    def decode(self, payload: bytes, packet: Packet, header: bytes = b"") -> Pixels:
        """Decompress; `header` is not needed.

        Raises
        ------
        PacketError
            If the payload is no codestream of this shape.
        """
        if not is_frame(payload, packet.shape):
            raise PacketError(f"{packet.file_name}: holds no JPEG 2000 frame of its shape")
        try:
            samples = imagecodecs.jpeg2k_decode(payload, numthreads=1)
        except (imagecodecs.Jpeg2kError, ValueError) as error:
            raise PacketError(f"{packet.file_name}: no JPEG 2000 codestream ({error})") from error
        return from_samples(samples.reshape(packet.shape), packet.dtype)


def rms_of_quantiser_step(step: float, noise: float) -> float:
    """Rms error that a dead-zone quantiser leaves on white Gaussian noise, ADU.

    JPEG 2000 sets coefficients below one step to zero and places the others in the
    middle of theirs. With t = step / noise the squared error is
    ``noise^2 (erf(t/sqrt2) - sqrt(2/pi) t exp(-t^2/2))`` inside the dead zone and
    ``step^2 / 12`` outside. It tells what rms error Kakadu's ``Qstep`` (normalised to
    unit gain of the subbands) leaves on sky: 1.63 ADU for 5.5e-5 at a noise of 5.25 ADU,
    where an encoder with that very step gave 1.62.

    Parameters
    ----------
    step, noise : float
        ADU.
    """
    uniform = step * step / 12
    if noise <= 0:
        return sqrt(uniform)
    t = step / noise
    kept_out = erf(t / sqrt(2))
    dead = noise * noise * (kept_out - sqrt(2 / pi) * t * exp(-t * t / 2))
    return sqrt(dead + (1 - kept_out) * uniform)


def _rms_for(target: str, value: float, samples: Pixels) -> float:
    """Rms error to ask OpenJPEG for, ADU."""
    noise = sky_noise(samples)
    if target == "rms_sigma":
        return max(_SMALLEST_RMS, value * noise)
    if target == "qstep":
        return max(_SMALLEST_RMS, rms_of_quantiser_step(value * _STEP_SCALE, noise))
    return _rms_of_ratio(_sample_of(samples), value, max(noise, 1.0))


def _rms_of_ratio(samples: Pixels, ratio: float, noise: float) -> float:
    """Rms error at which `samples` shrink by `ratio`, by bisection in its logarithm."""
    low, high = _SMALLEST_RMS, 30 * noise
    rms = 0.5 * noise
    for _ in range(_RATIO_TRIES):
        rms = min(max(rms, low), high)
        reached = samples.nbytes / len(_encode(samples, rms))
        if abs(reached / ratio - 1) < _RATIO_TOLERANCE:
            break
        low, high = (rms, high) if reached < ratio else (low, rms)
        rms = sqrt(low * high)
    return rms


def _corrected(samples: Pixels, rms: float, payload: bytes, ratio: float) -> tuple[float, bytes]:
    """One more try if the strips that were tuned on were not like the whole frame."""
    reached = samples.nbytes / len(payload)
    if abs(reached / ratio - 1) < 2 * _RATIO_TOLERANCE:
        return rms, payload
    better = max(_SMALLEST_RMS, rms * (ratio / reached))
    second = _encode(samples, better)
    improved = abs(samples.nbytes / len(second) - ratio) < abs(reached - ratio)
    return (better, second) if improved else (rms, payload)


def _sample_of(samples: Pixels) -> Pixels:
    """Four strips of a big frame, spread over it; a small frame whole."""
    rows = samples.shape[0]
    if rows <= 2 * _STRIP_ROWS:
        return samples
    height = _STRIP_ROWS // _STRIPS
    starts = [(2 * strip + 1) * rows // (2 * _STRIPS) - height // 2 for strip in range(_STRIPS)]
    return np.concatenate([samples[start : start + height] for start in starts])


def _encode(samples: Pixels, rms: float) -> bytes:
    levels = int(np.log2(min(samples.shape))) + 1
    # the library's own hint says int, but it takes and uses fractions of a decibel
    psnr: Any = 20 * log10(_FULL_SCALE / rms)
    return bytes(
        imagecodecs.jpeg2k_encode(
            samples,
            level=psnr,
            codecformat="J2K",
            reversible=False,
            resolutions=min(_RESOLUTIONS, levels),
            numthreads=1,
        )
    )
