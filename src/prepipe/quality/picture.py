"""A picture of the focal plane: what was calibrated, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from prepipe.files import atomic_path
from prepipe.model import Colour

__all__ = ["Tile", "draw_focal_planes", "thumbnail"]

COLOURS = {
    Colour.GREEN: "#2e9e5b",
    Colour.YELLOW: "#e3b505",
    Colour.ORANGE: "#e07b00",
    Colour.RED: "#c8102e",
}


Place = tuple[float, float, float, float]
Places = Mapping[int, Place]


@dataclass(frozen=True)
class Tile:
    """One calibrated CCD in the picture.

    Parameters
    ----------
    ccd : int
    colour : Colour
    label : str
        A line or two of figures.
    pixels : ndarray of float32, shape (ny, nx)
        A `thumbnail`.
    """

    ccd: int
    colour: Colour
    label: str
    pixels: NDArray[np.float32]


def thumbnail(image: NDArray[np.float32], factor: int = 16) -> NDArray[np.float32]:
    """Mean over blocks of `factor` x `factor` pixels, stretched by asinh to 0..1.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
    factor : int
        Smaller where the image is not large enough.

    Returns
    -------
    ndarray of float32, shape (ny // factor, nx // factor)
        The sky lies near 0.1, three sigma of the thumbnail's own noise below it at 0.
    """
    factor = max(1, min(factor, min(image.shape) // 16))
    ny, nx = image.shape[0] // factor, image.shape[1] // factor
    blocks = image[: ny * factor, : nx * factor].reshape(ny, factor, nx, factor)
    small = np.nan_to_num(blocks.mean(axis=(1, 3)))
    low, sky = np.percentile(small, (16, 50))
    sigma = max(float(sky - low), 1e-6)
    stretched = np.arcsinh((small - (sky - 3 * sigma)) / (3 * sigma)) / np.arcsinh(60.0)
    clipped: NDArray[np.float32] = np.clip(stretched, 0.0, 1.0).astype(np.float32)
    return clipped


def draw_focal_planes(
    path: Path,
    exposures: Sequence[tuple[str, Sequence[Tile]]],
    places: Places,
) -> None:
    """Draw each exposure's CCDs where they lie in the focal plane, framed by their grade.

    Parameters
    ----------
    path : Path
        PNG to write.
    exposures : sequence of (title, tiles)
    places : mapping
        Left, bottom, width and height of each CCD, pixels; CCDs without a place
        are laid out in a row.

    Raises
    ------
    StorageError
        If the picture cannot be written.
    """
    count = max(1, len(exposures))
    figure = Figure(figsize=(5.4 * min(count, 3), 5.6 * -(-count // 3)), layout="constrained")
    for index, (title, tiles) in enumerate(exposures):
        axes = figure.add_subplot(-(-count // 3), min(count, 3), index + 1)
        _draw(axes, title, tiles, places)
    with atomic_path(path) as partial, mpl.rc_context({"savefig.dpi": 130}):
        figure.savefig(partial, format="png")


def _draw(axes: Axes, title: str, tiles: Sequence[Tile], places: Places) -> None:
    axes.set_title(title, fontsize=10)
    for left, bottom, width, height in places.values():
        axes.add_patch(Rectangle((left, bottom), width, height, fill=False, ec="#c8c8c8", lw=0.6))
    boxes = []
    for order, tile in enumerate(tiles):
        ny, nx = tile.pixels.shape
        box = places.get(tile.ccd, (order * nx * 1.05, 0.0, float(nx), float(ny)))
        boxes.append(box)
        _draw_tile(axes, tile, box)
    _frame(axes, boxes or list(places.values()))
    axes.set_aspect("equal")
    axes.set_axis_off()


def _draw_tile(axes: Axes, tile: Tile, box: Place) -> None:
    left, bottom, width, height = box
    extent = (left, left + width, bottom, bottom + height)
    axes.imshow(tile.pixels, origin="lower", extent=extent, cmap="gray", vmin=0, vmax=1)
    colour = COLOURS[tile.colour]
    axes.add_patch(Rectangle((left, bottom), width, height, fill=False, ec=colour, lw=2.5))
    axes.annotate(
        f"CCD {tile.ccd}\n{tile.label}",
        (left + width / 2, bottom + height * 0.03),
        color="white",
        fontsize=6,
        ha="center",
        va="bottom",
        bbox={"fc": "#000000b0", "ec": "none", "pad": 2},
    )


def _frame(axes: Axes, boxes: Sequence[Place]) -> None:
    """Show what there is to see, with a margin of a third of a CCD."""
    margin = max(width for _, _, width, _ in boxes) / 3 if boxes else 1.0
    axes.set_xlim(
        min((box[0] for box in boxes), default=0.0) - margin,
        max((box[0] + box[2] for box in boxes), default=1.0) + margin,
    )
    axes.set_ylim(
        min((box[1] for box in boxes), default=0.0) - margin,
        max((box[1] + box[3] for box in boxes), default=1.0) + margin,
    )
