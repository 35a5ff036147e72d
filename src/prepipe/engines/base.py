"""What a worker is told and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prepipe.config import Calibration, Limits
from prepipe.model import Grade, Reduction

__all__ = ["Order", "Outcome"]


@dataclass(frozen=True)
class Order:
    """All that a worker needs to reduce one CCD, wherever it runs.

    Parameters
    ----------
    packet : Path
        The packet with the CCD's pixels and headers.
    camera : str
        Name, or TOML file, of the camera.
    calibration : Calibration
    limits : mapping
        Limits of the grades by band, with ``"default"``.
    products : Path
        Where the calibrated CCD goes.
    calibrations : Path or None
        Where the masters are; None leaves bias and flat alone.
    """

    packet: Path
    camera: str
    calibration: Calibration
    products: Path
    calibrations: Path | None = None
    limits: Mapping[str, Limits] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A reduced and graded CCD."""

    reduction: Reduction
    grade: Grade
