"""Known bad pixels of a CCD, brought to the part of it that a frame shows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prepipe.errors import PixelError
from prepipe.model import Layout

__all__ = ["bad_from_boxes", "bad_from_image"]


def bad_from_boxes(boxes: NDArray[np.int64], layout: Layout) -> NDArray[np.bool_]:
    """Mark boxes of bad pixels.

    Parameters
    ----------
    boxes : ndarray of int64, shape (n, 4)
        Column and row of the first pixel, width and height, in the whole trimmed CCD;
        zero-based.
    layout : Layout
        What lies beyond the frame is cut off.

    Returns
    -------
    ndarray of bool, shape `layout.trimmed_shape`
    """
    bad = np.zeros(layout.trimmed_shape, np.bool_)
    left, bottom = layout.trimmed_window
    for x0, y0, width, height in boxes:
        rows = slice(max(y0 - bottom, 0), max(y0 - bottom + height, 0))
        bad[rows, max(x0 - left, 0) : max(x0 - left + width, 0)] = True
    return bad


def bad_from_image(image: NDArray[Any], layout: Layout) -> NDArray[np.bool_]:
    """Take the bad pixels from an image in which they are not zero.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        Of the raw or of the trimmed frame; for a cut-out also of the whole CCD, either way.
    layout : Layout

    Returns
    -------
    ndarray of bool, shape `layout.trimmed_shape`

    Raises
    ------
    PixelError
        If the image is of none of these shapes.
    """
    bad: NDArray[np.bool_] = image != 0
    if bad.shape == layout.trimmed_shape:
        return bad
    if bad.shape in (layout.shape, layout.whole_shape):
        left, bottom = (0, 0) if bad.shape == layout.shape else layout.window
        trimmed = np.zeros(layout.trimmed_shape, np.bool_)
        for amplifier in layout.amplifiers:
            box = amplifier.data.shifted(left, bottom)
            trimmed[amplifier.trimmed.slices] = bad[box.slices]
        return trimmed
    if layout.whole_shape is not None and bad.ndim == 2:
        left, bottom = layout.trimmed_window
        ny, nx = layout.trimmed_shape
        part = bad[bottom : bottom + ny, left : left + nx]
        if part.shape == (ny, nx):
            return part
    raise PixelError(
        f"an image of shape {image.shape} fits neither the raw frame {layout.shape} nor the "
        f"trimmed CCD {layout.trimmed_shape}"
    )
