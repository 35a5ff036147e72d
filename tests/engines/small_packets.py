"""Packets of small CCDs with the cards of DECam, for engines that do not look at the pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits

from prepipe.cameras import load_camera
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import write_packet
from prepipe.engines.raw import read_exposure
from prepipe.model import Ccd

CARDS = {
    "DATE-OBS": "2020-03-06T03:30:00",
    "OBSTYPE": "object",
    "OBJECT": "COSMOS",
    "FILTER": "g DECam SDSS c0001 4720.0 1520.0",
    "EXPTIME": 20.0,
}


def raw_file(directory: Path, number: int, ccds: tuple[int, ...], seed: int = 0, **cards) -> Path:
    """A raw exposure; its HDUs are in the order of `ccds`."""
    primary = fits.PrimaryHDU()
    primary.header.update(CARDS | {"EXPNUM": number} | cards)
    hdus = fits.HDUList([primary])
    for ccd in ccds:
        noise = np.random.default_rng([number, ccd, seed]).normal(1500, 10, (48, 64))
        image = fits.ImageHDU(noise.astype(np.uint16), name=f"C{ccd}")
        image.header["CCDNUM"] = ccd
        hdus.append(image)
    path = directory / f"raw_{number}_{seed}.fits"
    directory.mkdir(parents=True, exist_ok=True)
    hdus.writeto(path, overwrite=True)
    return path


def packets(
    directory: Path, number: int, ccds: tuple[int, ...], seed: int = 0, **cards
) -> list[Path]:
    """A packet of each CCD of an exposure, below `directory`."""
    raw = raw_file(directory.parent / "raw", number, ccds, seed, **cards)
    exposure = read_exposure(raw, load_camera("decam"))
    return [
        write_packet(directory, pack_ccd(raw, hdu, exposure, Ccd(ccd, f"C{ccd}"), "none"))
        for hdu, ccd in enumerate(ccds, start=1)
    ]
