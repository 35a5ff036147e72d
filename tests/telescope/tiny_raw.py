"""Tiny raw DECam exposures: the real cards that count, a few pixels, Rice-compressed."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from astropy.io import fits

from prepipe.config import Site

EVENING = datetime(2020, 3, 6, 0, 4, 15, tzinfo=UTC)
FOCUS_CCD = 63


def raw_bytes(
    number: int,
    ccds: Sequence[int] = (25, 1, 44),
    *,
    obstype: str = "object",
    cards: Mapping[str, object] | None = None,
    ccd_cards: Mapping[str, object] | None = None,
    seed: int = 0,
    compressed: bool = True,
    shape: tuple[int, int] = (32, 48),
) -> bytes:
    """A raw file; exposures follow each other by a minute a number."""
    primary = fits.PrimaryHDU()
    start = EVENING + timedelta(minutes=number % 100_000)
    told: dict[str, object] = {
        "EXPNUM": number,
        "OBSTYPE": obstype,
        "OBJECT": "Prime, field 1",
        "FILTER": "g DECam SDSS c0001 4720.0 1520.0",
        "DATE-OBS": start.isoformat().removesuffix("+00:00"),
        "EXPTIME": 20.0,
    }
    primary.header.update(told | dict(cards or {}))
    form = compressed, shape
    hdus = [primary, *(_ccd(ccd, number, seed, ccd_cards or {}, *form) for ccd in ccds)]
    content = io.BytesIO()
    fits.HDUList(hdus).writeto(content)
    return content.getvalue()


def _ccd(
    ccd: int,
    number: int,
    seed: int,
    cards: Mapping[str, object],
    compressed: bool,
    shape: tuple[int, int],
) -> fits.ImageHDU | fits.CompImageHDU:
    rng = np.random.default_rng((number, ccd, seed))
    pixels = rng.normal(1500.0, 20.0, shape).astype(np.uint16)
    kind = fits.CompImageHDU if compressed else fits.ImageHDU
    hdu = kind(pixels, name=f"X{ccd}")
    hdu.header.update({"CCDNUM": ccd} | dict(cards))
    return hdu


def write_raw(directory: Path, number: int, *args: object, **options: object) -> Path:
    """Put a raw file into a directory as an instrument that renames would."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"DECam_{number:08d}.fits.fz"
    partial = path.with_name(f".{path.name}")
    partial.write_bytes(raw_bytes(number, *args, **options))
    partial.rename(path)
    return path


def quick_site(root: Path, **sections: Mapping[str, object]) -> Site:
    """A site below `root` that polls fast and sends the original bytes."""
    settings: dict[str, dict[str, object]] = {
        "telescope": {"poll_s": 0.02, "give_up_s": 0.3, "pattern": "*.fits*"},
        "pack": {"codec": "none"},
        "link": {"landing": "landing"},
        "push": {"tries": 3},
    }
    for name, values in sections.items():
        settings.setdefault(name, {}).update(values)
    return Site.model_validate(settings).anchored(root)


def packet_names(numbers: Iterable[int], ccds: Iterable[int] = (25, 1, 44)) -> set[str]:
    chosen = list(ccds)
    return {f"decam_{number:08d}_{ccd:02d}.packet" for number in numbers for ccd in chosen}
