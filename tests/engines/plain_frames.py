"""Raw zeros and dome flats of one small CCD of a plain camera, and masters made of them."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
from astropy.io import fits

from prepipe.cameras import Camera, load_camera
from prepipe.config import Calibration
from prepipe.engines.detector.masters import MadeMaster, gather, make_master

SHAPE = (120, 100)
NIGHT = date(2020, 3, 5)
LAMP = 20000.0
READ_NOISE = 5.0
SATURATION = 50000.0
CAMERA = f"""
name = "plain"
pixel_scale = 0.5
[cards]
kind = "OBSTYPE"
ccd = "CCDNUM"
[detector]
bias_level = 1000.0
gain = 1.0
read_noise = {READ_NOISE}
saturation = {SATURATION}
"""


def plain_camera(folder: Path) -> Camera:
    path = folder / "plain.toml"
    path.write_text(CAMERA)
    return load_camera(str(path))


def response() -> np.ndarray:
    """Truth of the flat: vignetting of 20 %, median 1."""
    y = np.mgrid[: SHAPE[0], : SHAPE[1]][0]
    flat = 1.0 - 0.2 * ((y - 60) / 60) ** 2
    return flat / np.median(flat)


def write(
    folder: Path,
    number: int,
    electrons: np.ndarray,
    *,
    kind: str = "flat",
    band: str = "r",
    night: date = NIGHT,
    noise: float = READ_NOISE,
) -> Path:
    """One raw frame of a CCD that collected `electrons`, at one ADU an electron."""
    rng = np.random.default_rng(number)
    pixels = 1000 + rng.poisson(electrons) + rng.normal(0, noise, electrons.shape)
    header = fits.Header()
    header["EXPNUM"] = number
    header["OBSTYPE"] = kind
    header["CCDNUM"] = 3
    header["FILTER"] = band
    header["DATE-OBS"] = f"{night.isoformat()}T21:00:{number % 60:02d}"
    header["EXPTIME"] = 5.0
    folder.mkdir(exist_ok=True)
    path = folder / f"{kind}_{night.isoformat()}_{number}.fits"
    whole = np.clip(np.rint(pixels), 0, SATURATION).astype(np.uint16)
    fits.PrimaryHDU(whole, header).writeto(path)
    return path


def zero(folder: Path, number: int, level: float = 0.0, **changes: object) -> Path:
    return write(folder, number, np.full(SHAPE, level), kind="zero", **changes)


def flat(folder: Path, number: int, lamp: float = LAMP, **changes: object) -> Path:
    return write(folder, number, lamp * response(), **changes)


def make(
    sources: list[Path], out: Path, camera: Camera, settings: Calibration | None = None
) -> MadeMaster:
    groups, failed = gather(sources, camera)
    assert not failed
    (group,) = groups
    return make_master(group, out, camera, settings)
