"""What a worker is told and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prepipe.config import Calibration, Engines, Limits
from prepipe.model import Ccd, Exposure, Grade, PointingHint, Reduction

__all__ = ["ChosenMasters", "Engine", "Finding", "Order", "Outcome", "Work"]


@dataclass(frozen=True)
class ChosenMasters:
    """Masters that one CCD may take, best first; the next one stands in for one that is damaged.

    Parameters
    ----------
    bias, flat : tuple of Path
        Empty if there is none: the CCD goes on without.
    """

    bias: tuple[Path, ...] = ()
    flat: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Order:
    """All that a worker needs to reduce one CCD, wherever it runs.

    Parameters
    ----------
    source : Path
        A packet, or a raw FITS file.
    camera : str
        Name, or TOML file, of the camera.
    calibration : Calibration
    products : Path
        Where the calibrated CCD goes.
    calibrations : ChosenMasters, Path or None
        The masters chosen for this CCD; None leaves bias and flat alone. A directory stands for
        the nearest in it by their names, as if no mark or limit of theirs were known.
    limits : mapping
        Limits of the grades, see `prepipe.quality.limits_for`.
    hdu : int or None
        Which HDU of a raw FITS file; None for a packet.
    hints : tuple of PointingHint
        Tried in turn if the header alone does not lead to a WCS.
    settings : Engines
        What external pipelines are told, so that a worker opens no file of settings.
    scratch : Path or None
        A directory of this order alone on the node's own disk, made and removed by the caller;
        None lets the engine make a temporary one.
    seeing_arcsec : float or None
        FWHM of exposures of the same band calibrated shortly before, for engines that want a
        guess; None: the site's own guess holds.
    """

    source: Path
    camera: str
    calibration: Calibration
    products: Path
    calibrations: ChosenMasters | Path | None = None
    limits: Mapping[str, Limits] = field(default_factory=dict)
    hdu: int | None = None
    hints: tuple[PointingHint, ...] = ()
    settings: Engines = field(default_factory=Engines)
    scratch: Path | None = None
    seeing_arcsec: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A reduced and graded CCD."""

    exposure: Exposure
    ccd: Ccd
    reduction: Reduction
    grade: Grade


Work = Callable[[Order], Outcome]
"""What a worker runs for one CCD: a top-level function, or a `functools.partial` of one."""


@dataclass(frozen=True)
class Finding:
    """What an engine finds when it is asked whether it can work here.

    Parameters
    ----------
    what : str
        What was looked at.
    found : str
    remedy : str
        What to do about it; empty if all is well.
    """

    what: str
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Engine:
    """Something that can reduce a CCD.

    Parameters
    ----------
    name : str
    work : callable
    warm_up : callable, optional
        A top-level function that each worker calls before its first order.
    wants_calibrations : bool
        Whether zeros and dome flats go to it as orders, too, instead of being kept for the masters.
    wants_seeing : bool
        Whether an order shall tell the seeing of shortly before.
    check : callable, optional
        Looks whether it can work on this machine, for `prepipe doctor`.
    """

    name: str
    work: Work
    warm_up: Callable[[], object] | None = None
    wants_calibrations: bool = False
    wants_seeing: bool = False
    check: Callable[[], tuple[Finding, ...]] | None = None
