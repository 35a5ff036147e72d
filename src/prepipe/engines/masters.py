"""Master biases and dome flats: made from raw frames, and chosen for an exposure."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.detrend import overscan_subtract_trim
from prepipe.calibrate.masters import Master, combine_bias, combine_flat
from prepipe.cameras import Camera
from prepipe.codec.packet import read_header
from prepipe.engines.names import MasterName, find_masters, master_path
from prepipe.engines.products import Card, read_master, write_master
from prepipe.engines.raw import list_ccds, read_ccd, read_exposure
from prepipe.errors import InputError
from prepipe.model import Exposure, Kind, Layout, Night

__all__ = ["Frame", "FrameGroup", "MadeMaster", "gather", "make_master", "nearest_master"]

FRAMES_IN_MEMORY = 12
"""Frames of one CCD held in memory (34 MB each); the others wait in a temporary file."""


@dataclass(frozen=True)
class Frame:
    """One CCD of a raw zero or dome flat, not yet read."""

    exposure: Exposure
    source: Path
    hdu: int | None


@dataclass(frozen=True)
class FrameGroup:
    """The frames that make one master."""

    kind: Kind
    ccd: int
    band: str
    night: Night
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class MadeMaster:
    """A master that was written.

    Parameters
    ----------
    group : FrameGroup
    path : Path
    used : int
        Frames that could be used.
    noise : float
        Typical standard error of a pixel: ADU for a bias, relative for a flat.
    left_out : tuple of str
        Frames that could not be used, with the reason.
    """

    group: FrameGroup
    path: Path
    used: int
    noise: float
    left_out: tuple[str, ...]


def gather(sources: Iterable[Path], camera: Camera) -> tuple[list[FrameGroup], dict[Path, str]]:
    """Sort raw files and packets into the masters that can be made of them.

    Parameters
    ----------
    sources : iterable of Path
        Packets (``.packet``) and raw FITS files.
    camera : Camera

    Returns
    -------
    groups : list of FrameGroup
        Biases before dome flats, since these need them.
    failed : dict
        Files that are neither zero nor dome flat, or cannot be read, with the reason.
    """
    sorted_frames: dict[tuple[Kind, int, str, Night], list[Frame]] = defaultdict(list)
    failed = {}
    for source in sources:
        try:
            for ccd, frame in _frames(source, camera):
                exposure = frame.exposure
                key = exposure.kind, ccd, exposure.band, exposure.night
                sorted_frames[key].append(frame)
        except InputError as error:
            failed[source] = str(error)
    groups = [
        FrameGroup(*key, tuple(sorted(frames, key=lambda frame: frame.exposure.number)))
        for key, frames in sorted_frames.items()
    ]
    return sorted(groups, key=lambda g: (g.kind is not Kind.ZERO, g.night, g.ccd, g.band)), failed


def make_master(group: FrameGroup, out: Path, camera: Camera) -> MadeMaster:
    """Combine one group's frames and write the master.

    Parameters
    ----------
    group : FrameGroup
    out : Path
        Root of the calibrations; a dome flat takes its bias from there.
    camera : Camera

    Raises
    ------
    InputError
        If no frame can be used.
    StorageError
        If the master cannot be written.
    """
    left_out: list[str] = []
    with _stack(group, camera, left_out) as (frames, layout):
        if not frames or layout is None:
            raise InputError(f"CCD {group.ccd}: no usable frame; {'; '.join(left_out)}")
        master, bias = _combine(group, out, frames, layout)
    noise = float(np.nanmedian(master.noise)) if master.n > 1 else _single_noise(group, layout)
    path = master_path(out, group.frames[0].exposure, group.ccd)
    write_master(path, np.nan_to_num(master.image), noise, _cards(group, master, noise, bias))
    return MadeMaster(group, path, master.n, noise, tuple(left_out))


def nearest_master(
    root: Path, kind: Kind, ccd: int, band: str, night: Night, days: int
) -> MasterName | None:
    """Master of a CCD (and band, for a flat) nearest in time; the earlier of two as near.

    Parameters
    ----------
    root : Path
    kind : Kind
    ccd : int
    band : str
        Ignored for a bias.
    night : Night
        Of the exposure.
    days : int
        Masters further away are not taken.
    """
    wanted = "" if kind is Kind.ZERO else "".join(c for c in band if c.isalnum())
    found = [m for m in find_masters(root, ccd) if m.kind is kind and m.band == wanted]

    def distance(master: MasterName) -> int:
        return abs((master.night.date - night.date).days)

    near = [master for master in found if distance(master) <= days]
    return min(near, key=distance, default=None)


def _frames(source: Path, camera: Camera) -> Iterator[tuple[int, Frame]]:
    if source.suffix == ".packet":
        packet = read_header(source)
        ccds: list[tuple[int | None, int]] = [(None, packet.ccd.number)]
        exposure = packet.exposure
    else:
        ccds = [(hdu, ccd.number) for hdu, ccd in list_ccds(source, camera)]
        exposure = read_exposure(source, camera)
    if exposure.kind not in (Kind.ZERO, Kind.DOME_FLAT):
        raise InputError(f"{source}: this is an exposure of kind {exposure.kind}, no zero or flat")
    for hdu, ccd in ccds:
        yield ccd, Frame(exposure, source, hdu)


@contextmanager
def _stack(
    group: FrameGroup, camera: Camera, left_out: list[str]
) -> Iterator[tuple[list[NDArray[np.float32]], Layout | None]]:
    """Read the frames of a group; those beyond a number wait on disk."""
    frames: list[NDArray[np.float32]] = []
    layout = None
    with tempfile.TemporaryDirectory(prefix="prepipe-") as spill:
        for frame in group.frames:
            try:
                raw = read_ccd(frame.source, frame.hdu, camera)
                layout = camera.layout(raw.header, raw.pixels)
                pixels = overscan_subtract_trim(raw.pixels, layout)
                if frames and pixels.shape != frames[0].shape:
                    raise InputError(f"{frame.source}: {pixels.shape} pixels, not as the first")
                if len(frames) >= FRAMES_IN_MEMORY:
                    pixels = _spilled(pixels, Path(spill) / f"{len(frames)}.npy")
                frames.append(pixels)
            except InputError as error:
                left_out.append(str(error))
        yield frames, layout


def _spilled(pixels: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    np.save(path, pixels)
    mapped: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return mapped


def _combine(
    group: FrameGroup, out: Path, frames: Sequence[NDArray[np.float32]], layout: Layout
) -> tuple[Master, str]:
    if group.kind is Kind.ZERO:
        return combine_bias(frames), ""
    found = nearest_master(out, Kind.ZERO, group.ccd, "", group.night, days=30)
    bias = None if found is None else read_master(found.path)[0]
    if bias is not None and bias.shape != frames[0].shape:
        bias, found = None, None
    name = "" if found is None else found.path.name
    return combine_flat(frames, bias=bias, layout=layout), name


def _single_noise(group: FrameGroup, layout: Layout) -> float:
    """A frame alone does not tell its scatter: the read noise does, for a step of the file."""
    amplifier = layout.amplifiers[0]
    return amplifier.read_noise / amplifier.gain if group.kind is Kind.ZERO else 0.01


def _cards(group: FrameGroup, master: Master, noise: float, bias: str) -> list[Card]:
    first = group.frames[0].exposure
    cards: list[Card] = [
        ("OBSTYPE", "zero" if group.kind is Kind.ZERO else "dome flat", "kind of master"),
        ("CCDNUM", group.ccd, "CCD number"),
        ("FILTER", group.band, "band"),
        ("NIGHT", str(group.night), "local date on which the night began"),
        ("EXPNUM", first.number, "first of the frames combined"),
        ("NCOMBINE", master.n, "frames combined"),
        ("NOISE", noise, "typical standard error of a pixel"),
        ("REJECTED", master.rejected, "fraction of the values clipped"),
        ("BUNIT", "adu" if group.kind is Kind.ZERO else "relative", "unit of the pixels"),
    ]
    if group.kind is Kind.DOME_FLAT:
        cards.append(("BIASFILE", bias or "none", "bias subtracted"))
    return cards
