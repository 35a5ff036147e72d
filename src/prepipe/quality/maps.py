"""Maps of a CCD: its image, mask, residuals and star shapes, each drawn into given axes.

Colours are those of Okabe & Ito (2008, Color Universal Design), which the colour-blind tell
apart; what is told by colour is told by shape as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import Patch
from numpy.typing import NDArray

from prepipe.calibrate.flags import Mask, SourceFlag
from prepipe.quality.picture import thumbnail

__all__ = [
    "BLUE",
    "BRIGHT_SNR",
    "GREY",
    "ORANGE",
    "VERMILION",
    "draw_image",
    "draw_mask",
    "draw_residuals",
    "draw_widths",
    "residuals",
    "say",
]

Array = NDArray[np.float64]
Sources = NDArray[Any]
Cards = Mapping[str, Any]

BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
VERMILION, PURPLE, SKY, GREY = "#D55E00", "#CC79A7", "#56B4E9", "#8a8a8a"

MAS_PER_DEG = 3.6e6
SIGMA_TO_FWHM = 2.3548
UNFIT = int(SourceFlag.SATURATED | SourceFlag.EDGE | SourceFlag.BAD_PIXEL | SourceFlag.NO_CENTROID)
BELOW: dict[str, Any] = {
    **{"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 2.5},
    **{"fontsize": 8, "frameon": False},
}
"""A legend below the axes and their numbers."""

BRIGHT_SNR = 30.0
"""Stars whose own noise does not hide what the optics and the WCS do."""

CELLS, FEW_CELLS, MANY = 8, 4, 150
"""Cells along the longer side of the CCD; few of them below so many stars."""

FEWEST = 3
"""Stars that make a cell's median."""

MASKED = (
    ("dead", Mask.DEAD | Mask.CORRUPT, "#000000"),
    ("saturated", Mask.SATURATED, VERMILION),
    ("bad, no flat, edge", Mask.BAD | Mask.NO_FLAT | Mask.EDGE, SKY),
    ("cosmic ray", Mask.COSMIC_RAY, GREEN),
)
"""What a pixel of the picture of the mask stands for; what comes first wins."""


def draw_image(
    axes: Axes,
    image: NDArray[np.float32],
    sources: Sources,
    expected: Mapping[str, Array],
    cd: Array | None,
) -> None:
    """The image, dark on white, with its sources and with stars expected, by what they are."""
    ny, nx = image.shape
    factor = max(1, max(ny, nx) // 1024)
    axes.imshow(
        thumbnail(image, factor), origin="lower", cmap="gray_r", vmin=0, vmax=1,
        extent=(0.5, nx + 0.5, 0.5, ny + 0.5), interpolation="nearest",
    )  # fmt: skip
    for matched, marker, colour, label in (
        (sources["MATCHED"], "o", BLUE, "stars of the WCS"),
        (~sources["MATCHED"], "s", VERMILION, "other sources"),
    ):
        axes.scatter(
            sources["X"][matched], sources["Y"][matched], s=24, marker=marker, linewidths=0.8,
            facecolors="none", edgecolors=colour, label=f"{np.count_nonzero(matched)} {label}",
        )  # fmt: skip
    for label, (x, y) in expected.items():
        if len(x):
            axes.scatter(
                x + 1, y + 1, s=26, marker="x", linewidths=1.0, color=PURPLE,
                label=f"{len(x)} {label}",
            )  # fmt: skip
    if cd is not None:
        _compass(axes, image.shape, cd)
    axes.set_title(f"{len(sources)} sources")
    axes.legend(**BELOW)
    _frame_ccd(axes, image.shape)


def draw_residuals(axes: Axes, shape: tuple[int, ...], sources: Sources, cd: Array) -> None:
    """Arrows from where the catalogue has a star to where it was found, in pixels' directions."""
    stars = sources[sources["MATCHED"]]
    plane = np.stack(residuals(stars))
    dx, dy = _along_pixels(plane, cd)
    bright = stars["SNR"] > BRIGHT_SNR
    length = float(np.percentile(np.hypot(*plane[:, bright]), 90)) if bright.any() else 0.0
    key_mas = _round_number(max(length, 10.0))
    told = {"angles": "xy", "scale_units": "width", "scale": 8.0 * key_mas}
    axes.quiver(
        stars["X"][~bright], stars["Y"][~bright], dx[~bright], dy[~bright],
        color="#c4c4c4", width=0.003, **told,
    )  # fmt: skip
    arrows = axes.quiver(
        stars["X"][bright], stars["Y"][bright], dx[bright], dy[bright],
        color=BLUE, width=0.005, **told,
    )  # fmt: skip
    x, y, (mean_x, mean_y) = _cell_medians(shape, stars[bright], (dx[bright], dy[bright]))
    axes.quiver(x, y, mean_x, mean_y, color=VERMILION, width=0.011, **told)
    axes.quiverkey(
        arrows, 0.72, 1.02, key_mas, f"{key_mas:g} mas", labelpos="E", fontproperties={"size": 9}
    )
    axes.set_title("found minus catalogue", loc="left")
    axes.set_xlabel("blue: S/N > 30   red: medians of cells")
    _frame_ccd(axes, shape)


def draw_widths(
    axes: Axes, shape: tuple[int, ...], sources: Sources, cards: Cards, cd: Array | None
) -> None:
    """Width of the stars as colours and their ellipticity as whiskers, cell by cell."""
    stars = _stars(sources)
    scale, unit = _pixel_scale(cd)
    width = SIGMA_TO_FWHM * np.sqrt(0.5 * (stars["XX"] + stars["YY"])) * scale
    if len(stars) and "SEEING" in cards and cd is not None:
        # Moments see the wings otherwise than a fitted profile does: their pattern counts.
        width *= float(cards["SEEING"]) / float(np.median(width))
    total = stars["XX"] + stars["YY"]
    e1, e2 = (stars["XX"] - stars["YY"]) / total, 2.0 * stars["XY"] / total
    x, y, (fwhm, e1, e2) = _cell_medians(shape, stars, (width, e1, e2))
    _frame_ccd(axes, shape)
    if not len(x):
        axes.set_title("width of the stars")
        say(axes, "too few stars")
        return
    side = _cell_side(shape, stars)
    middle = float(np.median(fwhm))
    spread = max(float(np.abs(fwhm - middle).max()), 0.05 * middle)
    # Cells are drawn as they lie on the CCD, from the lower left corner.
    grid = np.full((math.ceil(shape[0] / side), math.ceil(shape[1] / side)), np.nan)
    grid[(y / side).astype(int), (x / side).astype(int)] = fwhm
    shown = axes.pcolormesh(
        np.minimum(np.arange(grid.shape[1] + 1) * side, shape[1]) + 0.5,
        np.minimum(np.arange(grid.shape[0] + 1) * side, shape[0]) + 0.5,
        grid, cmap="cividis", vmin=middle - spread, vmax=middle + spread,
    )  # fmt: skip
    axes.figure.colorbar(
        shown, ax=axes, location="bottom", shrink=0.9, pad=0.02, aspect=30, label=f"FWHM, {unit}"
    )
    _draw_whiskers(axes, x, y, e1, e2, side)
    axes.set_title(f"FWHM {middle:.2f} {unit} and ellipticity, {len(stars)} stars")


def draw_mask(axes: Axes, mask: NDArray[np.uint8]) -> None:
    """Which pixels are not to be trusted; each of the picture is the worst of its block."""
    ny, nx = mask.shape
    factor = max(1, max(ny, nx) // 512)
    blocks = mask[: ny // factor * factor, : nx // factor * factor]
    bits = np.bitwise_or.reduce(
        np.bitwise_or.reduce(blocks.reshape(ny // factor, factor, nx // factor, factor), axis=3),
        axis=1,
    )
    kinds = np.zeros(bits.shape, np.uint8)
    for number, (_, wanted, _) in reversed(list(enumerate(MASKED, start=1))):
        kinds[(bits & np.uint8(wanted)) != 0] = number
    colours = ["white", *(colour for *_, colour in MASKED)]
    axes.imshow(
        kinds, origin="lower", cmap=ListedColormap(colours),
        norm=BoundaryNorm(np.arange(len(colours) + 1) - 0.5, len(colours)),
        extent=(0.5, nx + 0.5, 0.5, ny + 0.5), interpolation="nearest",
    )  # fmt: skip
    handles = [Patch(color=colour, label=name) for name, _, colour in MASKED]
    axes.legend(handles=handles, ncols=2, **BELOW)
    axes.set_title(f"mask: {100 * np.count_nonzero(mask) / mask.size:.1f} % of the pixels")
    _frame_ccd(axes, mask.shape)


def residuals(stars: Sources) -> tuple[Array, Array]:
    """Found minus catalogue, east and north, mas."""
    along = (stars["RA"] - stars["REFRA"] + 180.0) % 360.0 - 180.0
    east = along * np.cos(np.deg2rad(stars["DEC"]))
    north = stars["DEC"] - stars["REFDEC"]
    return MAS_PER_DEG * np.asarray(east, np.float64), MAS_PER_DEG * np.asarray(north, np.float64)


def _along_pixels(plane: Array, cd: Array) -> Array:
    """Vectors on the sky as they lie on the CCD, of the same length."""
    turned: Array = np.linalg.inv(cd / math.sqrt(abs(float(np.linalg.det(cd))))) @ plane
    return turned


def _stars(sources: Sources) -> Sources:
    """Bright undisturbed sources of about the usual size."""
    width = np.sqrt(0.5 * (sources["XX"] + sources["YY"]))
    fit = (sources["FLAGS"] & UNFIT == 0) & (sources["SNR"] > BRIGHT_SNR) & np.isfinite(width)
    if fit.any():
        fit &= np.abs(width / np.median(width[fit]) - 1.0) < 0.3
    usual: Sources = sources[fit]
    return usual


def _cell_side(shape: tuple[int, ...], stars: Sources) -> float:
    return max(shape) / (CELLS if len(stars) >= MANY else FEW_CELLS)


def _cell_medians(
    shape: tuple[int, ...], stars: Sources, values: tuple[Array, ...]
) -> tuple[Array, Array, list[Array]]:
    """Middle of each cell with stars enough, and the medians of their values."""
    side = _cell_side(shape, stars)
    # A centroid may lie half a pixel beyond the last one.
    cell = np.stack(
        [
            np.clip((stars[axis] - 1.0) // side, 0, math.ceil(length / side) - 1)
            for axis, length in (("X", shape[1]), ("Y", shape[0]))
        ]
    )
    found = []
    for column, row in np.unique(cell, axis=1).T:
        inside = (cell[0] == column) & (cell[1] == row)
        if np.count_nonzero(inside) >= FEWEST:
            place = (column + 0.5) * side, (row + 0.5) * side
            found.append([*place, *(float(np.median(value[inside])) for value in values)])
    x, y, *medians = np.array(found).T if found else np.empty((2 + len(values), 0))
    return x, y, medians


def _draw_whiskers(axes: Axes, x: Array, y: Array, e1: Array, e2: Array, side: float) -> None:
    """Lines along the longer axis of the stars; a whisker of 0.1 is a cell long."""
    angle, size = 0.5 * np.arctan2(e2, e1), np.hypot(e1, e2)
    told = {
        **{"headwidth": 0, "headlength": 0, "headaxislength": 0, "pivot": "mid", "width": 0.009},
        **{"color": "white", "angles": "xy", "scale_units": "xy", "scale": 0.1 / side},
    }
    whiskers = axes.quiver(x, y, size * np.cos(angle), size * np.sin(angle), **told)
    whiskers.set_path_effects([patheffects.withStroke(linewidth=2.0, foreground="black")])
    axes.set_xlabel("a whisker as long as a cell: 0.1")


def _pixel_scale(cd: Array | None) -> tuple[float, str]:
    if cd is None:
        return 1.0, "pixel"
    return 3600.0 * math.sqrt(abs(float(np.linalg.det(cd)))), "arcsec"


def _round_number(value: float) -> float:
    """1, 2 or 5 times a power of ten, not above the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * max(step for step in (1.0, 2.0, 5.0) if step * power <= value)


def _compass(axes: Axes, shape: tuple[int, ...], cd: Array) -> None:
    """Where north and east are."""
    ny, nx = shape
    length = 0.1 * max(ny, nx)
    x, y = nx - 1.5 * length, ny - 1.5 * length
    for name, direction in (("E", (1.0, 0.0)), ("N", (0.0, 1.0))):
        dx, dy = np.linalg.solve(cd, direction)
        dx, dy = length * dx / math.hypot(dx, dy), length * dy / math.hypot(dx, dy)
        axes.annotate(
            "", (x + dx, y + dy), (x, y), arrowprops={"arrowstyle": "->", "color": "k", "lw": 1.5}
        )
        letter = axes.text(
            x + 1.2 * dx, y + 1.2 * dy, name, ha="center", va="center", weight="bold"
        )
        letter.set_path_effects([patheffects.withStroke(linewidth=3.0, foreground="white")])


def say(axes: Axes, text: str) -> None:
    """Say in the middle of the axes why there is nothing to see."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)


def _frame_ccd(axes: Axes, shape: tuple[int, ...]) -> None:
    axes.set_xlim(0.5, shape[1] + 0.5)
    axes.set_ylim(0.5, shape[0] + 0.5)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=8)
