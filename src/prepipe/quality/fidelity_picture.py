"""A picture of what codecs cost: rate against loss, and bias against magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prepipe.files import atomic_path
from prepipe.quality.fidelity_figures import Fidelity

__all__ = ["Judged", "draw_fidelity"]

WIDTH_IN, HEIGHT_IN, DOTS_PER_INCH = 15.0, 5.2, 110
MARKERS = "osD^vP*X<>hp"
TOLD_SCATTER = 0.2
"""A loss that costs 2 % of the depth in time."""


@dataclass(frozen=True)
class Judged:
    """What a codec did.

    Parameters
    ----------
    label : str
    ratio : float
    fidelity : Fidelity
    """

    label: str
    ratio: float
    fidelity: Fidelity


def draw_fidelity(path: Path, judged: Sequence[Judged], title: str) -> None:
    """Draw the picture.

    Parameters
    ----------
    path : Path
        PNG to write.
    judged : sequence of Judged
    title : str

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    with mpl.rc_context({"font.size": 9.0, "axes.titlesize": 10.0}):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        figure.suptitle(title, fontsize=11)
        scatter, found, bias = figure.subplots(1, 3)
        _draw_scatter(scatter, judged)
        _draw_found(found, judged)
        _draw_bias(bias, judged)
        handles, labels = scatter.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=DOTS_PER_INCH)


def _draw_scatter(axes: Axes, judged: Sequence[Judged]) -> None:
    for place, each in enumerate(judged):
        axes.plot(each.ratio, each.fidelity.scatter, **_mark(place), label=each.label)
    axes.axhline(TOLD_SCATTER, color="#d0d0d0", lw=0.8, zorder=0)
    axes.set_ylim(bottom=-0.01)
    axes.set_title("noise added to fluxes")
    axes.set_ylabel("scatter / photon and read noise")
    _against_ratio(axes)


def _draw_found(axes: Axes, judged: Sequence[Judged]) -> None:
    for place, each in enumerate(judged):
        axes.plot(each.ratio, each.fidelity.found, **_mark(place))
    before = [each.fidelity.found_original for each in judged]
    if np.isfinite(before).any():
        axes.axhline(float(np.nanmean(before)), color="black", ls="--", lw=1.0, label="original")
        axes.legend(loc="lower left", frameon=False)
    axes.set_title("transients of 5 to 10 sigma found")
    axes.set_ylabel("part")
    _against_ratio(axes)


def _draw_bias(axes: Axes, judged: Sequence[Judged]) -> None:
    for place, each in enumerate(judged):
        told = [one for one in each.fidelity.by_brightness if np.isfinite(one.bias_mmag)]
        magnitudes = [one.magnitude for one in told]
        axes.plot(magnitudes, [one.bias_mmag for one in told], **(_mark(place) | {"ls": "-"}))
    axes.axhline(0.0, color="#d0d0d0", lw=0.8, zorder=0)
    axes.set_title("bias against magnitude")
    axes.set_xlabel("-2.5 log (flux / electron)")
    axes.set_ylabel("decoded - original, mmag")


def _against_ratio(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("compression ratio")


def _mark(place: int) -> dict[str, Any]:
    """Told by colour and by shape."""
    return {
        "marker": MARKERS[place % len(MARKERS)],
        "color": f"C{place % 10}",
        "ls": "",
        "ms": 6,
        "lw": 1.0,
    }
