"""What the stand-ins share: they tell what they were called with, and make stack-like images."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from astropy.io import fits

SEARCH_ARCSEC = 30.0
"""Pointing error within which the astrometry finds its match."""


def fault() -> str:
    """What shall go wrong."""
    return os.environ.get("STANDIN_FAULT", "")


def note_call(program: str) -> None:
    """Append the call to the file that the tests read."""
    calls = os.environ.get("STANDIN_CALLS")
    if calls:
        told = {"program": program, "words": sys.argv[1:], "home": os.environ["XDG_CONFIG_HOME"]}
        with Path(calls).open("a") as stream:
            stream.write(json.dumps(told) + "\n")


@contextmanager
def only_writer(root: Path):
    """Whether nobody else writes just now; it takes a while, so that two would meet."""
    marker = root / ".somebody-writes"
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        yield False
        return
    try:
        time.sleep(float(os.environ.get("STANDIN_WRITE_S", "0.1")))
        yield True
    finally:
        marker.unlink(missing_ok=True)


def solved(header: fits.Header) -> tuple[float, float] | None:
    """The true CRVAL, if the header's is near enough to find it."""
    ra, dec = header["CRVAL1"], header["CRVAL2"]
    truth = os.environ.get("STANDIN_TRUTH")
    if not truth:
        return ra, dec
    true_ra, true_dec = (float(word) for word in truth.split(","))
    east = (true_ra - ra) * math.cos(math.radians(dec))
    off = 3600.0 * math.hypot(east, true_dec - dec)
    return (true_ra, true_dec) if off < SEARCH_ARCSEC else None


def write_exposure(path: Path, raw: fits.Header, pixels: np.ndarray, crval, **metadata) -> None:
    """Image, mask and variance with a TAN-SIP, mirrored as the stack has HSC."""
    # slow to load, and most stand-ins do without
    import numpy as np
    from astropy.io import fits

    image = pixels[:, ::-1].astype(np.float32)
    columns = image.shape[1]
    wcs = fits.Header()
    wcs["CTYPE1"], wcs["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    wcs["CRVAL1"], wcs["CRVAL2"] = crval
    wcs["CRPIX1"], wcs["CRPIX2"] = columns + 1 - raw["CRPIX1"], raw["CRPIX2"]
    for i in (1, 2):
        wcs[f"CD{i}_1"], wcs[f"CD{i}_2"] = -raw[f"CD{i}_1"], raw[f"CD{i}_2"]
    wcs["A_ORDER"] = wcs["B_ORDER"] = 4
    wcs["A_2_0"], wcs["B_1_1"], wcs["A_1_2"], wcs["B_0_4"] = 2e-9, -3e-9, 4e-14, 1e-18
    primary = fits.Header({key: raw[key] for key in ("OBJECT", "EXPTIME", "DATE-OBS")})
    for key, value in metadata.items():
        primary[key if len(key) <= 8 else f"HIERARCH {key}"] = value
    planes = {
        "IMAGE": image,
        "MASK": (image > 6000).astype(np.int32),
        "VARIANCE": np.maximum(image, 1.0) / 3.0,
    }
    hdus = [fits.PrimaryHDU(header=primary)]
    if fault() == "no fits wcs":
        wcs = fits.Header()
    for name, plane in planes.items():
        hdu = fits.ImageHDU(plane, wcs.copy())
        hdu.header["EXTTYPE"] = name
        if name == "MASK":
            hdu.header["MP_BAD"], hdu.header["MP_SAT"] = 0, 1
        hdus.append(hdu)
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList(hdus).writeto(path, overwrite=True)
    if fault() == "truncated":
        os.truncate(path, path.stat().st_size // 3)
