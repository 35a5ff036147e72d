"""Whether a new master may be believed: it is compared with the last good one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.detector.master_change import (
    ChangeLimits,
    Difference,
    Exceeded,
    compare_masters,
    too_much,
)
from prepipe.config import Calibration
from prepipe.engines.detector.library import LibraryMaster, MasterLibrary, first_sound
from prepipe.engines.names import MasterName, nights_apart
from prepipe.model import Kind, Mark
from prepipe.store.masters import MasterRow

__all__ = ["judge"]


def judge(
    library: MasterLibrary,
    name: MasterName,
    image: NDArray[np.float32],
    noise: float,
    settings: Calibration,
) -> tuple[MasterRow, Difference | None]:
    """Compare a new master with the last good one.

    Parameters
    ----------
    library : MasterLibrary
    name : MasterName
        That the new one will bear.
    image : ndarray of float32, shape (ny, nx)
    noise : float
        Typical standard error of a pixel.
    settings : Calibration
        How far away the last one may be, and what the new one may differ from it.

    Returns
    -------
    row : MasterRow
        HELD if it differs too much. Path and fingerprint are not known yet.
    changed : Difference or None
        None where there is nothing to compare it with: the first one is believed.
    """
    row = MasterRow("", "", name.kind, name.ccd, name.band, name.night)
    found = _last(library, name, image.shape, settings.days)
    if found is None:
        return row, None
    old, pixels = found
    changed = compare_masters(image, pixels, math.hypot(noise, old.noise or 0.0))
    row = replace(
        row,
        previous=old.row.path,
        shift=_known(changed.shift),
        rms=_known(changed.rms),
        noise=_known(changed.noise),
        deviating=_known(changed.deviating),
    )
    beyond = too_much(changed, _limits(name.kind, settings))
    if beyond:
        told = "; ".join(_sentence(name.kind, each) for each in beyond)
        row = replace(row, mark=Mark.HELD, why=f"differs from {old.path.name}: {told}")
    return row, changed


def _last(
    library: MasterLibrary, name: MasterName, shape: tuple[int, ...], days: int
) -> tuple[LibraryMaster, NDArray[np.float32]] | None:
    """The nearest good master of those taken before; of those after, where there is none."""
    good = library.good(name.kind, name.ccd, name.band, name.night, days)
    others = [master for master in good if master.path != name.path]

    def order(master: LibraryMaster) -> tuple[bool, int]:
        later = (master.name.night, master.name.number) > (name.night, name.number)
        return later, nights_apart(master.name.night, name.night)

    return first_sound(sorted(others, key=order), shape)


def _limits(kind: Kind, settings: Calibration) -> ChangeLimits:
    if kind is Kind.ZERO:
        bias = settings.bias_change
        return ChangeLimits(bias.shift_adu, bias.rms_adu, bias.deviating)
    flat = settings.flat_change
    return ChangeLimits(flat.shift, flat.rms, flat.deviating)


_FIGURES = {
    "shift": "shifted by {}",
    "rms": "rms beyond the noise {}",
    "deviating": "{} of its pixels deviate",
}


def _sentence(kind: Kind, beyond: Exceeded) -> str:
    adu = kind is Kind.ZERO and beyond.figure != "deviating"

    def told(value: float) -> str:
        return f"{value:.3g} ADU" if adu else f"{100 * value:.3g} %"

    return f"{_FIGURES[beyond.figure].format(told(beyond.value))} (limit {told(beyond.limit)})"


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
