"""Reading a product back, for people who look at it."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import fitsio
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from prepipe.calibrate.sky.tpv import Tpv
from prepipe.engines.builtin.catalogue import read_catalogue
from prepipe.engines.names import IMAGE, NO_PRODUCT
from prepipe.engines.references.source import load_reference
from prepipe.errors import FitsError, HeaderError
from prepipe.files import storage_errors
from prepipe.quality.look import CalibratedCcd

__all__ = ["read_calibrated"]

SAME_PX = 3.0
"""A source as near as this to a reference star is that star."""

MOST_STARS = 300
"""Reference stars shown, the brightest ones, where nothing tells how deep the image is."""


def read_calibrated(product: Path, reference: Path | None = None) -> CalibratedCcd:
    """Read a product and its source table.

    Parameters
    ----------
    product : Path
    reference : Path, optional
        Star catalogue, of which the stars that were not found are to be shown.

    Raises
    ------
    FitsError
        If it is no calibrated CCD, or its table cannot be read.
    StorageError
        If it cannot be opened.
    ConfigError
        If the catalogue cannot be read.
    """
    with storage_errors(product), product.open("rb"):
        pass
    if not product.name.endswith(IMAGE):
        raise FitsError(f"{product}: {NO_PRODUCT}")
    try:
        with fitsio.FITS(str(product)) as stream:
            image, mask = stream["IMAGE"].read(), stream["MASK"].read()
            header = stream["IMAGE"].read_header()
    except OSError as error:
        raise FitsError(f"{product}: {NO_PRODUCT}") from error
    sources, cards = read_catalogue(product)
    wcs = _wcs({key: header[key] for key in list(header.keys()) if key})
    missing = np.empty((2, 0))
    if reference is not None and wcs is not None:
        missing = _not_found(reference, wcs, image.shape, sources, cards)
    return CalibratedCcd(image, mask, sources, cards, None if wcs is None else wcs.cd, missing)


def _wcs(header: dict[str, Any]) -> Tpv | None:
    try:
        return Tpv.from_header(header)
    except HeaderError:
        return None


def _not_found(
    reference: Path,
    wcs: Tpv,
    shape: tuple[int, int],
    sources: NDArray[Any],
    cards: dict[str, Any],
) -> NDArray[np.float64]:
    """Where stars should be seen and are not: column and row, shape (2, n).

    Without a solution, where the telescope's WCS has the bright stars: all of them.
    """
    stars = load_reference(reference, str(cards.get("FILTER", "")).strip() or None)
    ny, nx = shape
    ra, dec = wcs.pixel_to_sky((nx - 1) / 2, (ny - 1) / 2)
    radius_deg = 0.5 * math.hypot(nx, ny) * wcs.pixel_scale / 3600.0
    near = stars.near(float(ra), float(dec), radius_deg)
    try:
        moment = datetime.fromisoformat(str(cards.get("DATE-OBS", "")).strip())
        near = near.at_epoch(moment.year + (moment.timetuple().tm_yday - 0.5) / 365.25)
    except ValueError:
        pass  # as the catalogue has them
    x, y = wcs.sky_to_pixel(near.ra, near.dec)
    inside = (x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5)
    faintest = cards.get("MAGLIM", math.inf)
    order = np.argsort(near.mag)
    seen = order[inside[order] & (near.mag[order] < faintest)]
    if "MAGLIM" not in cards:
        seen = seen[:MOST_STARS]
    places = np.stack([x, y])[:, seen]
    if cards.get("WCSOK") and len(sources):
        tree = cKDTree(np.stack([sources["X"], sources["Y"]], axis=1) - 1.0)
        places = places[:, tree.query(places.T)[0] > SAME_PX]
    return places
