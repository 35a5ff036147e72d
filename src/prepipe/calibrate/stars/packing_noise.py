"""What lossy packing does to the noise of a CCD, so that nothing is judged by smoothed pixels.

A codec rounds away what is finer than a star, and the pixels look less noisy than they were; one
that fills noise in makes them noisier by a little. At the scale of a star the noise is still
there, and that of the rounding on top of it: it is this that detection and photometry see.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from prepipe.calibrate.stars.background import Background

__all__ = ["WEAK_RESPONSE", "PackingNoise"]

WEAK_RESPONSE = 0.5
"""A pixel of less response is not to be believed after packing: the flat multiplies its error."""

_OF_RMS_ERROR = 0.55
"""Noise added at a star's scale by codecs that tell all scales alike, over the rms error."""

_UNFILLED = 0.8
"""What is left of the scatter that a wavelet's preset expects where rounding also took noise."""

_FILLED = 1.03
"""Noise of pixels whose noise was filled in over what it had been; the same for all presets."""


@dataclass(frozen=True)
class PackingNoise:
    """Noise of a CCD that came with a loss.

    Parameters
    ----------
    original_adu : float
        Noise of an empty pixel before packing, ADU.
    added : float
        Noise that the flux of a faint star has got by packing, in units of what it had.
    filled : bool
        Whether it was decoded with noise in the place of what was rounded away.
    """

    original_adu: float
    added: float
    filled: bool = False

    @classmethod
    def told_by(cls, parameters: Mapping[str, object]) -> PackingNoise | None:
        """Noise as a packet's parameters tell it; None if nothing was lost, or it is not told."""
        lost, noise = _number(parameters, "rms_error_sigma"), _number(parameters, "noise_adu")
        if not (lost > 0.0 and noise > 0.0):
            return None
        asked = parameters.get("asked")
        filled = isinstance(asked, Mapping) and asked.get("fill") is True
        expected = _number(parameters, "expected_scatter")
        added = expected * (1.0 if filled else _UNFILLED) or _OF_RMS_ERROR * lost
        return cls(noise, added, filled)

    @property
    def added_adu(self) -> float:
        """What packing added to the noise of a pixel, as a star sees it, ADU."""
        return self.added * self.original_adu

    def least(self, gain: float, masters_adu: float = 0.0) -> float:
        """Noise of an empty calibrated pixel as a star sees it, e-.

        Parameters
        ----------
        gain : float
            e-/ADU.
        masters_adu : float
            Noise that the masters brought in, ADU.
        """
        return gain * math.hypot(self.original_adu, self.added_adu, masters_adu)

    def corrected(
        self, background: Background, gain: float, masters_adu: float = 0.0
    ) -> Background:
        """The background with the noise that pixels have at the scale of a star.

        Where the decoded pixels are noisier than the original was, faint sources and the sky's own
        structure are in it: that is not taken away.

        Parameters
        ----------
        background : Background
            As measured on the decoded pixels, e-.
        gain, masters_adu : float
            As in `least`.
        """
        seen = background.median_rms
        if not (math.isfinite(seen) and seen > 0.0):
            return background
        usual = math.hypot(1.0, self.added) / (_FILLED if self.filled else 1.0)
        factor = max(usual, self.least(gain, masters_adu) / seen)
        rms, raw_rms = background.rms * factor, background.raw_rms * factor
        return replace(background, rms=rms.astype("f4"), raw_rms=raw_rms.astype("f4"))


def _number(parameters: Mapping[str, object], name: str) -> float:
    """A finite number; 0 if there is none of that name."""
    value = parameters.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    return float(value)
