"""What the settings' tables correct in one CCD, and the ghosts that other CCDs leave in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.detector.crosstalk import (
    Coupling,
    CrosstalkTable,
    Ghosts,
    Spots,
    bright_ghosts,
    gather_ghosts,
    is_covered,
    typical_noise,
)
from prepipe.cameras import Camera
from prepipe.config import Calibration
from prepipe.engines.detector.bad_pixel_maps import find_map, read_map, read_maps
from prepipe.engines.detector.tables import LinearTables, read_crosstalk, read_linearity
from prepipe.engines.raw import RawCcd, list_ccds, read_ccd
from prepipe.errors import ConfigError, InputError, StorageError
from prepipe.model import Ccd, Layout

__all__ = ["Corrections", "check_tables", "find_corrections", "flat_corrections"]


@dataclass(frozen=True)
class Corrections:
    """What is known of one CCD's detector, for `calibrate.detrend`.

    Parameters
    ----------
    crosstalk : tuple of Coupling
        Between its own amplifiers.
    ghosts : Ghosts or None
        Of other CCDs.
    ghost_ccds : int or None
        How many CCDs were looked at for them; None if that was not asked for.
    linearity : mapping or None
        Linear ADU by amplifier.
    bad_pixels : ndarray of bool, shape (ny, nx), or None
    crosstalk_name, linearity_name, bad_pixels_name : str
        File names; empty where there is none.
    flags : tuple of str
    """

    crosstalk: tuple[Coupling, ...] = ()
    ghosts: Ghosts | None = None
    ghost_ccds: int | None = None
    linearity: LinearTables | None = None
    bad_pixels: NDArray[np.bool_] | None = None
    crosstalk_name: str = ""
    linearity_name: str = ""
    bad_pixels_name: str = ""
    flags: tuple[str, ...] = ()


def find_corrections(
    raw: RawCcd,
    layout: Layout,
    camera: Camera,
    settings: Calibration,
    source: Path,
    hdu: int | None,
) -> Corrections:
    """Read what the settings name, of this CCD.

    Nothing is waited for: what is not at hand is left out, with a flag.

    Parameters
    ----------
    raw : RawCcd
    layout : Layout
    camera : Camera
    settings : Calibration
    source : Path
        Where `raw` comes from: the other CCDs of the exposure are looked for in the same raw
        file, or in packets beside it.
    hdu : int or None
        Its HDU; None for a packet.

    Raises
    ------
    ConfigError
        If a file that the settings name is missing or wrong.
    """
    found = flat_corrections(raw.ccd, layout, settings.crosstalk, settings.linearity)
    if settings.crosstalk is not None and settings.crosstalk_between:
        found = _with_ghosts(found, raw, layout, camera, settings.crosstalk, source, hdu)
    if settings.bad_pixels is not None:
        found = _with_bad_pixels(found, raw, layout, settings.bad_pixels)
    return found


def check_tables(settings: Calibration) -> tuple[str, ...]:
    """Look whether the files that the settings name can be read.

    Returns
    -------
    tuple of str
        Their names.

    Raises
    ------
    ConfigError
        If one is missing or wrong, or the crosstalk between CCDs is wanted without a table.
    """
    if settings.crosstalk_between and settings.crosstalk is None:
        raise ConfigError("calibration.crosstalk_between needs a table: set calibration.crosstalk")
    if settings.crosstalk is not None:
        read_crosstalk(settings.crosstalk)
    if settings.linearity is not None:
        read_linearity(settings.linearity, Ccd(1, ""))
    if settings.bad_pixels is not None:
        read_maps(settings.bad_pixels)
    paths = (settings.crosstalk, settings.linearity, settings.bad_pixels)
    return tuple(path.name for path in paths if path is not None)


def flat_corrections(
    ccd: Ccd, layout: Layout, crosstalk: Path | None, linearity: Path | None
) -> Corrections:
    """Crosstalk within a CCD and its linearity: what a flat needs of them, too.

    Raises
    ------
    ConfigError
        If a file is missing or wrong, or names an amplifier that the CCD does not have.
    """
    found = Corrections()
    if crosstalk is not None:
        couplings = read_crosstalk(crosstalk).within(ccd.number)
        names = {name for c in couplings for name in (c.victim, c.source)}
        _require_known("the crosstalk table", crosstalk, ccd, layout, names)
        partial = not all(_is_whole(coupling, layout) for coupling in couplings)
        found = replace(
            found,
            crosstalk=couplings,
            crosstalk_name=crosstalk.name,
            flags=("CROSSTALK_PARTIAL",) if partial else (),
        )
    if linearity is not None:
        tables = read_linearity(linearity, ccd)
        if tables is None:
            return replace(found, flags=(*found.flags, "NO_LINEARITY"))
        _require_known("the linearity table", linearity, ccd, layout, tables)
        missing = [a.name for a in layout.amplifiers if a.name not in tables]
        if missing:
            raise ConfigError(
                f"the linearity table {linearity}: it has CCD {ccd.number} without its "
                f"amplifier {missing[0]}"
            )
        found = replace(found, linearity=tables, linearity_name=linearity.name)
    return found


def _require_known(what: str, path: Path, ccd: Ccd, layout: Layout, names: Iterable[str]) -> None:
    """Refuse names of amplifiers that a whole CCD does not have; a cut-out may lack some."""
    known = {amplifier.name for amplifier in layout.amplifiers}
    unknown = sorted(set(names) - known)
    if unknown and layout.whole_shape is None:
        raise ConfigError(
            f"{what} {path}: CCD {ccd.number} has no amplifier {unknown[0]}, only "
            f"{', '.join(sorted(known))}: is it of this camera?"
        )


def _is_whole(coupling: Coupling, layout: Layout) -> bool:
    """Whether the frame shows what leaves ghosts in it."""
    amplifiers = {amplifier.name: amplifier for amplifier in layout.amplifiers}
    victim = amplifiers.get(coupling.victim)
    return victim is None or is_covered(victim, amplifiers.get(coupling.source))


def _with_bad_pixels(found: Corrections, raw: RawCcd, layout: Layout, path: Path) -> Corrections:
    bad = find_map(path, raw.ccd, raw.exposure.start)
    if bad is None:
        return replace(found, flags=(*found.flags, "NO_BAD_PIXELS"))
    pixels = read_map(bad, raw.ccd, layout)
    return replace(found, bad_pixels=pixels, bad_pixels_name=bad.path.name)


def _with_ghosts(
    found: Corrections,
    raw: RawCcd,
    layout: Layout,
    camera: Camera,
    path: Path,
    source: Path,
    hdu: int | None,
) -> Corrections:
    """Add the ghosts of those CCDs of the exposure that are at hand."""
    table: CrosstalkTable = read_crosstalk(path)
    noise = {a.name: typical_noise(raw.pixels, a, layout.bias_level) for a in layout.amplifiers}
    parts: list[Spots] = []
    missing = False
    for number, couplings in table.between(raw.ccd.number).items():
        spots = _ghosts_of(number, couplings, raw, layout, noise, camera, source, hdu)
        missing |= spots is None
        parts += [] if spots is None else [spots]
    flags = (*found.flags, "CROSSTALK_PARTIAL") if missing else found.flags
    ghosts = gather_ghosts(parts, layout.trimmed_shape)
    return replace(found, ghosts=ghosts, ghost_ccds=len(parts), flags=tuple(dict.fromkeys(flags)))


def _ghosts_of(
    number: int,
    couplings: tuple[Coupling, ...],
    raw: RawCcd,
    layout: Layout,
    noise: dict[str, float],
    camera: Camera,
    source: Path,
    hdu: int | None,
) -> Spots | None:
    """What one other CCD left; None if it is not at hand."""
    try:
        place = _beside(number, raw, camera, source, hdu)
        if place is None:
            return None
        other = read_ccd(*place, camera)
        if (other.exposure.number, other.ccd.number) != (raw.exposure.number, number):
            return None
        of_other = camera.layout(other.header, other.pixels)
        dead = camera.dead_amplifiers(number, raw.exposure.start)
        return bright_ghosts(other.pixels, of_other, couplings, layout, noise, dead)
    except (InputError, StorageError, OSError):
        return None


def _beside(
    number: int, raw: RawCcd, camera: Camera, source: Path, hdu: int | None
) -> tuple[Path, int | None] | None:
    """Where another CCD of the exposure lies: packet, or raw file and HDU."""
    if hdu is not None:
        other = _hdus(source, source.stat().st_mtime_ns, camera).get(number)
        return None if other is None else (source, other)
    if raw.packet is None:
        return None
    packet = source.parent / replace(raw.packet, ccd=Ccd(number, "")).file_name
    return (packet, None) if packet.is_file() else None


@lru_cache(maxsize=4)
def _hdus(path: Path, _mtime_ns: int, camera: Camera) -> dict[int, int]:
    return {ccd.number: hdu for hdu, ccd in list_ccds(path, camera)}
