"""A page to look at: one calibrated CCD, its grade, its sources, and how they fit the catalogue."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from prepipe.files import atomic_path
from prepipe.model import Colour
from prepipe.quality import maps, plots
from prepipe.quality.picture import COLOURS

__all__ = ["CalibratedCcd", "draw_ccd", "page_of"]

FIGURES = (
    ("SEEING", "seeing", "{:.2f}″"),
    ("ELLIPTIC", "ellipticity", "{:.3f}"),
    ("SKYADU", "sky", "{:.1f} adu"),
    ("NSOURCES", "sources", "{:d}"),
    ("WCSRMS", "WCS rms", "{:.0f} mas"),
    ("WCSNUM", "WCS stars", "{:d}"),
    ("WCSOFF", "pointing off", "{:.1f}″"),
    ("ZEROPNT", "zero point", "{:.3f}"),
    ("ZEROSCAT", "its scatter", "{:.3f} mag"),
    ("MAGLIM", "5 sigma depth", "{:.2f} mag"),
)
"""Card, what it is, and how it is written in the strip."""

WIDTH_IN, HEIGHT_IN, DOTS_PER_INCH = 17.0, 10.0, 110
REASONS_WIDTH = 150


@dataclass(frozen=True)
class CalibratedCcd:
    """What a product and its source table hold.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
        e-.
    mask : ndarray of uint8, shape (ny, nx)
    sources : structured ndarray
        The source table.
    cards : mapping
        Its cards, which tell of exposure and quality.
    cd : ndarray, shape (2, 2), or None
        Linear part of the WCS, deg/pixel; None if there is none.
    missing : ndarray, shape (2, n)
        Zero-based column and row of reference stars that were not found; without a solution,
        of bright ones where the telescope's WCS has them.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    sources: NDArray[Any]
    cards: Mapping[str, Any]
    cd: NDArray[np.float64] | None
    missing: NDArray[np.float64] = field(default_factory=lambda: np.empty((2, 0)))

    @property
    def solved(self) -> bool:
        """Whether the WCS was solved."""
        return bool(self.cards.get("WCSOK")) and self.cd is not None


def draw_ccd(path: Path, ccd: CalibratedCcd) -> None:
    """Draw the page of a CCD.

    Parameters
    ----------
    path : Path
        PNG to write.
    ccd : CalibratedCcd

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    with atomic_path(path) as partial:
        page_of(ccd).savefig(partial, format="png", dpi=DOTS_PER_INCH)


def page_of(ccd: CalibratedCcd) -> Figure:
    """Lay out the page; what a CCD without WCS cannot show makes room for its mask and pixels.

    Parameters
    ----------
    ccd : CalibratedCcd
    """
    with mpl.rc_context({"font.size": 9.0, "axes.titlesize": 10.0}):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        rows = figure.add_gridspec(2, 1, height_ratios=(1.0, 9.0))
        _draw_strip(figure.add_subfigure(rows[0]).add_subplot(), ccd)
        high = ccd.image.shape[0] > ccd.image.shape[1]
        places = figure.add_subfigure(rows[1]).subplot_mosaic(
            "imsa;imsb;imsc" if high else "iia;iib;msc",
            width_ratios=(1.0, 1.0, 1.0, 1.25) if high else (1.0, 1.0, 1.0),
        )
        _draw_maps(places, ccd)
        _draw_plots(places, ccd)
    return figure


def _draw_maps(places: Mapping[str, Axes], ccd: CalibratedCcd) -> None:
    shape, cd = ccd.image.shape, ccd.cd
    expected = "stars not found" if ccd.solved else "catalogue stars, by the header"
    maps.draw_image(places["i"], ccd.image, ccd.sources, {expected: ccd.missing}, cd)
    maps.draw_widths(places["s"], shape, ccd.sources, ccd.cards, cd)
    if ccd.solved and cd is not None:
        maps.draw_residuals(places["m"], shape, ccd.sources, cd)
    else:
        maps.draw_mask(places["m"], ccd.mask)


def _draw_plots(places: Mapping[str, Axes], ccd: CalibratedCcd) -> None:
    if ccd.solved:
        plots.draw_residual_scatter(places["a"], ccd.sources, ccd.cards)
    else:
        plots.draw_levels(places["a"], ccd.image, ccd.mask)
    if np.isfinite(ccd.sources["MAG"] - ccd.sources["REFMAG"]).any():
        plots.draw_zero_point(places["b"], ccd.sources, ccd.cards)
    else:
        plots.draw_sizes(places["b"], ccd.sources)
    plots.draw_counts(places["c"], ccd.sources, ccd.cards)


def _draw_strip(axes: Axes, ccd: CalibratedCcd) -> None:
    """Grade, what was observed, the key figures, and the reasons of the grade."""
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, 1.0)
    axes.set_axis_off()
    cards = ccd.cards
    grade = str(cards.get("GRADE", "")).strip()
    known = grade in list(Colour)
    paint = COLOURS[Colour(grade)] if known else "#808080"
    axes.add_patch(Rectangle((0.0, 0.1), 0.085, 0.85, color=paint, lw=0))
    axes.text(
        0.0425, 0.53, grade.upper() or "NO GRADE", color="white", fontsize=17, weight="bold",
        ha="center", va="center",
    )  # fmt: skip
    axes.text(0.1, 0.93, _observed(cards), fontsize=14, weight="bold", va="top")
    shown = [(name, form.format(cards[key])) for key, name, form in FIGURES if key in cards]
    for place, (name, figure) in enumerate(shown):
        x = 0.1 + 0.09 * place
        axes.text(x, 0.56, figure, fontsize=13, va="top")
        axes.text(x, 0.31, name, fontsize=8.5, va="top", color="#505050")
    reasons = [str(cards[key]) for n in range(1, 10) if (key := f"WHY{n}") in cards]
    told = textwrap.shorten("; ".join(reasons), REASONS_WIDTH, placeholder=" ...")
    axes.text(0.1, 0.11, told, fontsize=11, va="top", color="#a00020" if known else "black")


def _observed(cards: Mapping[str, Any]) -> str:
    """Field, band, exposure time, exposure, CCD and night on one line."""
    words = [
        f"{str(cards.get('OBJECT', '')).strip() or 'unnamed field'}  {cards.get('FILTER', '')}",
        f"{float(cards.get('EXPTIME', 0.0)):g} s",
        f"exposure {cards.get('EXPNUM', '?')}  CCD {cards.get('CCDNUM', '?')}",
        f"night {cards.get('NIGHT', '?')}",
        f"{str(cards.get('DATE-OBS', ''))[:19].replace('T', ' ')} UTC",
    ]
    return "   ·   ".join(words)
