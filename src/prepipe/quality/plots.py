"""Plots of a CCD's sources and pixels, each drawn into the axes it is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from numpy.typing import NDArray

from prepipe.quality.maps import BLUE, BRIGHT_SNR, GREY, ORANGE, VERMILION, residuals, say

__all__ = [
    "draw_counts",
    "draw_levels",
    "draw_residual_scatter",
    "draw_sizes",
    "draw_zero_point",
    "running",
]

Array = NDArray[np.float64]
Sources = NDArray[Any]
Cards = Mapping[str, Any]

INSTRUMENTAL = "-2.5 log (flux / electron)"


def draw_residual_scatter(axes: Axes, sources: Sources, cards: Cards) -> None:
    """Residuals east against north, and their rms as a circle."""
    stars = sources[sources["MATCHED"]]
    east, north = residuals(stars)
    bright = stars["SNR"] > BRIGHT_SNR
    axes.scatter(east[~bright], north[~bright], s=9, marker="s", c="#c4c4c4", label="faint")
    axes.scatter(east[bright], north[bright], s=9, c=BLUE, label="S/N > 30")
    rms = float(cards.get("WCSRMS", math.nan))
    limit = 1.15 * max(float(np.percentile(np.abs([east, north]), 99)), 10.0)
    if math.isfinite(rms):
        axes.add_patch(Circle((0, 0), rms, fill=False, ec=VERMILION, lw=1.5, label="rms"))
        limit = max(limit, 1.3 * rms)
    axes.axhline(0.0, color="#d0d0d0", lw=0.8, zorder=0)
    axes.axvline(0.0, color="#d0d0d0", lw=0.8, zorder=0)
    axes.set_xlim(limit, -limit)
    axes.set_ylim(-limit, limit)
    axes.set_aspect("equal")
    axes.set_xlabel("east, mas")
    axes.set_ylabel("north, mas")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8, frameon=False)
    axes.set_title(f"WCS residuals of {len(stars)} stars")


def draw_zero_point(axes: Axes, sources: Sources, cards: Cards) -> None:
    """Found minus catalogue by magnitude; running scatter and formal errors about it."""
    stars = sources[sources["MATCHED"] & np.isfinite(sources["MAG"] - sources["REFMAG"])]
    difference = stars["MAG"] - stars["REFMAG"]
    clear = stars["FLAGS"] == 0
    axes.errorbar(
        stars["REFMAG"][clear], difference[clear], stars["MAGERR"][clear], fmt="o", ms=2.5,
        color=BLUE, elinewidth=0.4, label="star",
    )  # fmt: skip
    axes.plot(
        stars["REFMAG"][~clear], difference[~clear], "s", ms=3.5, mfc="none", color=GREY, mew=0.7,
        label="with flags",
    )  # fmt: skip
    mag, middle, scatter, formal = running(stars["REFMAG"], difference, stars["MAGERR"])
    if len(mag):
        axes.fill_between(
            mag, middle - scatter, middle + scatter, color=ORANGE, alpha=0.35, lw=0, zorder=0,
            label="running scatter",
        )  # fmt: skip
        axes.plot(mag, formal, "k--", lw=1.0, label="formal error")
        axes.plot(mag, -formal, "k--", lw=1.0)
    axes.axhline(0.0, color=VERMILION, lw=0.8)
    limit = float(np.clip(1.2 * np.percentile(np.abs(difference), 97), 0.05, 1.0))
    axes.set_ylim(-limit, limit)
    axes.set_xlabel("magnitude in the catalogue")
    axes.set_ylabel("found - catalogue, mag")
    axes.legend(loc="upper left", fontsize=7, ncols=2, frameon=False)
    axes.set_title(f"zero point of {cards.get('ZERONUM', 0)} stars")


def draw_counts(axes: Axes, sources: Sources, cards: Cards) -> None:
    """How many sources of which magnitude; instrumental ones without a zero point."""
    mag, name = sources["MAG"], "magnitude"
    if not np.isfinite(mag).any():
        mag, name = _instrumental(sources), INSTRUMENTAL
    known = np.isfinite(mag)
    axes.set_title("sources by magnitude")
    axes.set_xlabel(name)
    axes.set_ylabel("sources in 0.5 mag")
    if not known.any():
        say(axes, "no sources")
        return
    first, last = np.floor(mag[known].min()), np.ceil(mag[known].max())
    bins = np.arange(first, last + 0.5, 0.5).tolist()
    axes.hist(mag[known], bins, color="#c4c4c4", label="all")
    matched = sources["MATCHED"]
    if matched.any():
        axes.hist(mag[known & matched], bins, histtype="step", color=BLUE, lw=1.5, label="matched")
    if "MAGLIM" in cards:
        axes.axvline(float(cards["MAGLIM"]), color=VERMILION, ls="--", label="5 sigma depth")
    axes.set_yscale("log")
    axes.set_ylim(0.5, None)
    axes.legend(loc="upper left", fontsize=8, frameon=False)


def draw_sizes(axes: Axes, sources: Sources) -> None:
    """Size by brightness: stars lie on a line, cosmic rays below it, galaxies above."""
    mag, size = _instrumental(sources), sources["HLR"]
    clear = sources["FLAGS"] == 0
    axes.plot(mag[clear], size[clear], "o", ms=2.5, color=BLUE, label="clear")
    axes.plot(mag[~clear], size[~clear], "s", ms=3.5, mfc="none", color=GREY, label="with flags")
    axes.set_title("size by magnitude")
    axes.set_xlabel(INSTRUMENTAL)
    axes.set_ylabel("half-light radius, pixel")
    known = np.isfinite(mag) & np.isfinite(size)
    if not known.any():
        say(axes, "no sources")
        return
    axes.set_ylim(0.0, max(1.5 * float(np.percentile(size[known], 95)), 1.0))
    axes.legend(loc="upper left", fontsize=8, frameon=False)


def draw_levels(axes: Axes, image: NDArray[np.float32], mask: NDArray[np.uint8]) -> None:
    """How many unmasked pixels have which value."""
    step = max(1, image.shape[0] // 1024)
    values = image[::step][mask[::step] == 0]
    values = values[np.isfinite(values)]
    axes.set_title("unmasked pixels")
    axes.set_xlabel("electrons")
    axes.set_ylabel("pixels")
    if not values.size:
        say(axes, "every pixel is masked")
        return
    low, middle, high = np.percentile(values, (0.1, 50.0, 99.0))
    reach = max(float(high - middle), float(middle - low), 1.0)
    bins = np.linspace(middle - reach, middle + 2.0 * reach, 101)
    # Steps of the pixels are spread out, lest they make a comb.
    noise = float(np.percentile(values, 84.0) - middle)
    values = values + np.random.default_rng(0).uniform(-noise / 16, noise / 16, values.size)
    axes.hist(values, bins.tolist(), color=BLUE, histtype="step")
    axes.set_yscale("log")


def running(mag: Array, difference: Array, error: Array) -> tuple[Array, Array, Array, Array]:
    """Median, robust scatter and median formal error of neighbours in magnitude."""
    order = np.argsort(mag)
    count = max(8, len(order) // 12)
    rows = []
    for begin in range(0, len(order) - count + 1, max(1, count // 2)):
        near = order[begin : begin + count]
        middle = np.median(difference[near])
        scatter = 1.4826 * np.median(np.abs(difference[near] - middle))
        rows.append([np.median(mag[near]), middle, scatter, np.median(error[near])])
    columns = np.array(rows).T if rows else np.empty((4, 0))
    return columns[0], columns[1], columns[2], columns[3]


def _instrumental(sources: Sources) -> Array:
    flux = np.where(sources["FLUX"] > 0.0, sources["FLUX"], np.nan).astype(np.float64)
    return np.asarray(-2.5 * np.log10(flux), np.float64)
