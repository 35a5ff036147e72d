"""A page to look at: one calibrated CCD, its sources, and how well they fit the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from prepipe.calibrate.flags import SourceFlag
from prepipe.files import atomic_path

__all__ = ["CalibratedCcd", "draw_ccd"]

MAS_PER_DEG = 3.6e6
MAP_CELLS = (8, 4)
UNFIT = SourceFlag.SATURATED | SourceFlag.EDGE | SourceFlag.BAD_PIXEL | SourceFlag.NO_CENTROID


@dataclass(frozen=True)
class CalibratedCcd:
    """What a product and its source table hold.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
        e-.
    sources : structured ndarray
        With X, Y, RA, DEC, MAG, XX, YY, FLAGS, MATCHED, REFRA, REFDEC, REFMAG.
    header : mapping
        Quality cards of the product.
    pixel_scale : float
        arcsec / pixel.
    """

    image: NDArray[np.float32]
    sources: NDArray[Any]
    header: Mapping[str, Any]
    pixel_scale: float


def draw_ccd(path: Path, title: str, ccd: CalibratedCcd) -> None:
    """Draw the image with its sources, residuals, seeing and zero point on one page.

    Parameters
    ----------
    path : Path
        PNG to write.
    title : str
    ccd : CalibratedCcd

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    figure = Figure(figsize=(13.0, 8.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    places = figure.subplot_mosaic("isr;isz", width_ratios=(1.0, 1.0, 1.15))
    _draw_image(places["i"], ccd)
    _draw_seeing(figure, places["s"], ccd)
    _draw_residuals(places["r"], ccd)
    _draw_zero_point(places["z"], ccd)
    with atomic_path(path) as partial, mpl.rc_context({"savefig.dpi": 110}):
        figure.savefig(partial, format="png")


def _draw_image(axes: Axes, ccd: CalibratedCcd) -> None:
    ny, nx = ccd.image.shape
    step = max(1, ny // 1024)
    sample = ccd.image[::step, ::step]
    low, sky, high = np.nanpercentile(sample, (1.0, 50.0, 99.3))
    axes.imshow(
        sample, origin="lower", cmap="gray", vmin=low, vmax=max(high, sky + 1.0),
        extent=(0.5, nx + 0.5, 0.5, ny + 0.5), interpolation="antialiased",
    )  # fmt: skip
    found, matched = ccd.sources, ccd.sources["MATCHED"]
    for sources, size, colour, label in (
        (found, 10, "#4aa3ff", "detected"),
        (found[matched], 26, "#2e9e5b", "in the catalogue"),
    ):
        axes.scatter(
            sources["X"], sources["Y"], s=size, facecolors="none", edgecolors=colour,
            linewidths=0.5, label=label,
        )  # fmt: skip
    axes.set_title(
        f"{len(found)} sources, {np.count_nonzero(matched)} in the catalogue", fontsize=9
    )
    axes.legend(loc="upper right", fontsize=7)
    axes.set_xlim(0, nx)
    axes.set_ylim(0, ny)


def _draw_residuals(axes: Axes, ccd: CalibratedCcd) -> None:
    """Arrows from where the catalogue has a star to where it was found."""
    stars = ccd.sources[ccd.sources["MATCHED"]]
    rms = ccd.header.get("WCSRMS")
    axes.set_title("no WCS" if rms is None else f"WCS residuals, rms {rms:.0f} mas", fontsize=9)
    if len(stars) == 0:
        axes.set_axis_off()
        return
    east = (stars["RA"] - stars["REFRA"]) * np.cos(np.deg2rad(stars["DEC"])) * MAS_PER_DEG
    north = (stars["DEC"] - stars["REFDEC"]) * MAS_PER_DEG
    arrows = axes.quiver(
        stars["X"], stars["Y"], east, north, angles="uv", color="#30507a", width=0.003,
        scale=25 * max(float(np.median(np.hypot(east, north))), 1.0),
    )  # fmt: skip
    axes.quiverkey(arrows, 0.9, -0.12, 50.0, "50 mas", fontproperties={"size": 7})
    axes.set_xlabel("X, pixel", fontsize=8)
    axes.set_ylabel("Y, pixel", fontsize=8)


def _draw_seeing(figure: Figure, axes: Axes, ccd: CalibratedCcd) -> None:
    """Median width of the catalogue's stars in cells of the CCD."""
    stars = ccd.sources[ccd.sources["MATCHED"] & ((ccd.sources["FLAGS"] & int(UNFIT)) == 0)]
    fwhm = 2.3548 * np.sqrt(0.5 * (stars["XX"] + stars["YY"])) * ccd.pixel_scale
    ny, nx = ccd.image.shape
    cells = np.full(MAP_CELLS, np.nan)
    row = np.clip((stars["Y"] * MAP_CELLS[0] / ny).astype(int), 0, MAP_CELLS[0] - 1)
    column = np.clip((stars["X"] * MAP_CELLS[1] / nx).astype(int), 0, MAP_CELLS[1] - 1)
    for cell in np.ndindex(*MAP_CELLS):
        inside = fwhm[(row == cell[0]) & (column == cell[1]) & np.isfinite(fwhm)]
        if inside.size >= 3:
            cells[cell] = np.median(inside)
    axes.set_title("width of the stars, arcsec (moments)", fontsize=9)
    shown = axes.imshow(
        cells, origin="lower", cmap="viridis", extent=(0.5, nx + 0.5, 0.5, ny + 0.5)
    )
    if np.isfinite(cells).any():
        figure.colorbar(shown, ax=axes, shrink=0.6)


def _draw_zero_point(axes: Axes, ccd: CalibratedCcd) -> None:
    stars = ccd.sources[ccd.sources["MATCHED"]]
    known = np.isfinite(stars["MAG"]) & np.isfinite(stars["REFMAG"])
    scatter = ccd.header.get("ZEROSCAT")
    told = "no zero point" if scatter is None else f"zero point, scatter {1e3 * scatter:.0f} mmag"
    axes.set_title(told, fontsize=9)
    if not known.any():
        axes.set_axis_off()
        return
    difference = stars["MAG"][known] - stars["REFMAG"][known]
    axes.plot(stars["REFMAG"][known], difference, ".", ms=3, color="#30507a")
    axes.axhline(0.0, color="#c0c0c0", lw=0.8)
    axes.set_ylim(-0.5, 0.5)
    axes.set_xlabel("magnitude in the catalogue", fontsize=8)
    axes.set_ylabel("found - catalogue, mag", fontsize=8)
