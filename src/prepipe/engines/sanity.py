"""What a frame's headers and figures say that cannot be: before and after it is reduced."""

from __future__ import annotations

import math

from prepipe.cameras import Camera
from prepipe.engines.builtin.sky import Photometry
from prepipe.errors import HeaderError
from prepipe.model import Exposure, Kind, Layout

__all__ = ["exposure_flags", "light_flags", "require_sane"]

MORE_LIGHT_MAG = 0.3
"""No sky is clearer than clear: single CCDs and old mirrors differ, but by less than this."""


def require_sane(layout: Layout) -> Layout:
    """The same layout, if its electronics can exist.

    Raises
    ------
    HeaderError
        If a gain is not positive, or a read noise negative.
    """
    for amplifier in layout.amplifiers:
        if not (math.isfinite(amplifier.gain) and amplifier.gain > 0.0):
            raise HeaderError(
                f"amplifier {amplifier.name} has a gain of {amplifier.gain:g} e-/ADU by its "
                "header: mend the card, or the description of the camera"
            )
        if not (math.isfinite(amplifier.read_noise) and amplifier.read_noise >= 0.0):
            raise HeaderError(
                f"amplifier {amplifier.name} has a read noise of {amplifier.read_noise:g} e- by "
                "its header: mend the card, or the description of the camera"
            )
    return layout


def exposure_flags(exposure: Exposure) -> tuple[str, ...]:
    """What is odd about an exposure, by its header alone."""
    flags = []
    if exposure.kind is Kind.OTHER:
        flags.append("OTHER_KIND")
    if exposure.exposure_s == 0.0:
        flags.append("NO_EXPOSURE_TIME")
    return tuple(flags)


def light_flags(photometry: Photometry, camera: Camera, band: str) -> tuple[str, ...]:
    """Whether more light came than a clear sky lets through, as the zero point tells it."""
    clear, zero = camera.clear_sky_zero_point(band), photometry.zero_point
    if clear is None or zero is None or "OTHER_BAND" in photometry.flags:
        return ()
    return ("TOO_MUCH_LIGHT",) if zero.value > clear + MORE_LIGHT_MAG else ()
