"""Master biases and dome flats: made from raw frames, and chosen for an exposure."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.detrend import overscan_subtract_trim
from prepipe.calibrate.masters import (
    Difference,
    Master,
    combine_bias,
    combine_flat,
    compare_masters,
    typical_light,
)
from prepipe.calibrate.odd_frames import odd_flats, odd_zeros
from prepipe.cameras import Camera
from prepipe.codec.fits_bytes import FitsFile
from prepipe.codec.packet import read_header
from prepipe.engines.names import MasterName, find_masters, master_path, safe_band
from prepipe.engines.products import Card, read_master, write_master
from prepipe.engines.raw import RawCcd, list_ccds, read_ccd, read_exposure
from prepipe.errors import InputError, PixelError, StorageError
from prepipe.model import Exposure, Kind, Layout, Night

__all__ = ["Frame", "FrameGroup", "MadeMaster", "fitting_masters", "gather", "make_master"]

FRAMES_IN_MEMORY = 12
"""Frames of one CCD held in memory (34 MB each); the others wait in a temporary file."""

MASTER_DAYS = 30
"""A flat's bias, or the master a new one is compared with, is no further away in time.

The default of ``calibration.days``, an engineering choice; the nearest is taken, so that
distance matters only where the night's own zeros are missing.
"""

MAX_SATURATED = 0.01
"""A dome flat with a larger fraction of its pixels saturated tells no response."""


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
    previous : str
        Name of the nearest master of an earlier night; empty if there is none that fits.
    changed : Difference or None
        From that master to this one.
    """

    group: FrameGroup
    path: Path
    used: int
    noise: float
    left_out: tuple[str, ...]
    previous: str = ""
    changed: Difference | None = None


@dataclass(frozen=True)
class _Read:
    """A frame ready to be combined."""

    frame: Frame
    pixels: NDArray[np.float32]
    layout: Layout


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
    with _read_frames(group, camera, left_out) as read:
        bias, bias_name = _bias_for(group, out, read)
        frames = _without_odd(group, read, bias, left_out)
        if not frames:
            raise InputError(f"CCD {group.ccd}: no usable frame; {'; '.join(left_out)}")
        layout = frames[0].layout
        pixels = [frame.pixels for frame in frames]
        if group.kind is Kind.ZERO:
            master = combine_bias(pixels)
        else:
            master = combine_flat(pixels, bias=bias, layout=layout)
    image = np.nan_to_num(master.image)
    noise = float(np.nanmedian(master.noise)) if master.n > 1 else _single_noise(group, layout)
    previous, changed = _compare(group, out, image)
    path = master_path(out, group.frames[0].exposure, group.ccd)
    first = frames[0].frame.exposure
    write_master(path, image, noise, _cards(group, first, master, noise, bias_name))
    return MadeMaster(group, path, master.n, noise, tuple(left_out), previous, changed)


def fitting_masters(
    root: Path,
    kind: Kind,
    ccd: int,
    band: str,
    night: Night,
    days: int,
    shape: tuple[int, int],
) -> Iterator[MasterName]:
    """Masters of a CCD (and band, for a flat), nearest in time first.

    The earlier of two as near comes first. Those whose header cannot be read, or tells of
    another shape, are passed over; the pixels may still be damaged.

    Parameters
    ----------
    root : Path
    kind : Kind
    ccd : int
    band : str
        As observed; ignored for a bias.
    night : Night
        Of the exposure.
    days : int
        Masters further away are not taken.
    shape : tuple of int
        Of the trimmed CCD, (rows, columns).

    Yields
    ------
    MasterName
    """
    wanted = "" if kind is Kind.ZERO else safe_band(band)

    def distance(master: MasterName) -> int:
        return abs((master.night.date - night.date).days)

    found = [m for m in find_masters(root, ccd) if m.kind is kind and m.band == wanted]
    near = [master for master in found if distance(master) <= days]
    for master in sorted(near, key=lambda m: (distance(m), m.night)):
        if _shape(master.path) == shape:
            yield master


def _shape(path: Path) -> tuple[int, ...]:
    """Shape of a master by its header; empty if that cannot be read."""
    try:
        with FitsFile(path) as file:
            return file.span_at(1, file.span_at(0, 0).end).image_shape
    except (InputError, StorageError, OSError):
        return ()


def _first_sound(
    masters: Iterable[MasterName],
) -> tuple[MasterName, NDArray[np.float32]] | None:
    """The first master whose pixels can be read."""
    for master in masters:
        try:
            return master, read_master(master.path)[0]
        except (InputError, StorageError, OSError):
            continue
    return None


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
def _read_frames(group: FrameGroup, camera: Camera, left_out: list[str]) -> Iterator[list[_Read]]:
    """Read the frames of a group; those beyond a number wait on disk."""
    frames: list[_Read] = []
    with tempfile.TemporaryDirectory(prefix="prepipe-") as spill:
        for frame in group.frames:
            try:
                raw = read_ccd(frame.source, frame.hdu, camera)
                layout = camera.layout(raw.header, raw.pixels)
                if group.kind is Kind.DOME_FLAT:
                    _refuse_saturated(raw, layout)
                pixels = overscan_subtract_trim(raw.pixels, layout)
            except InputError as error:
                left_out.append(_told(frame, str(error)))
                continue
            if len(frames) >= FRAMES_IN_MEMORY:
                pixels = _spilled(pixels, Path(spill) / f"{len(frames)}.npy")
            frames.append(_Read(frame, pixels, layout))
        yield _alike(frames, left_out)


def _refuse_saturated(raw: RawCcd, layout: Layout) -> None:
    saturated = sum(
        int(np.count_nonzero(raw.pixels[amplifier.data.slices] >= amplifier.saturation))
        for amplifier in layout.amplifiers
    )
    fraction = saturated / (layout.trimmed_shape[0] * layout.trimmed_shape[1])
    if fraction > MAX_SATURATED:
        raise PixelError(f"{100 * fraction:.3g} % of its pixels are saturated")


def _alike(frames: Sequence[_Read], left_out: list[str]) -> list[_Read]:
    """The frames that show the part of the CCD that most of them show."""
    parts = Counter(_part(frame) for frame in frames)
    if not parts:
        return []
    # Of as many, the larger: a whole CCD rather than a cut-out.
    usual = max(parts, key=lambda part: (parts[part], part[0][0] * part[0][1]))
    for frame in frames:
        if _part(frame) != usual:
            ny, nx = frame.layout.trimmed_shape
            reason = f"it shows {nx} x {ny} pixels, most show {usual[0][1]} x {usual[0][0]}"
            left_out.append(_told(frame.frame, f"{reason} (or another part of the CCD)"))
    return [frame for frame in frames if _part(frame) == usual]


def _part(frame: _Read) -> tuple[tuple[int, int], tuple[int, int]]:
    layout = frame.layout
    origin = layout.origin[0] + layout.window[0], layout.origin[1] + layout.window[1]
    return layout.trimmed_shape, origin


def _without_odd(
    group: FrameGroup,
    frames: Sequence[_Read],
    bias: NDArray[np.float32] | None,
    left_out: list[str],
) -> list[_Read]:
    """The frames that agree with most of the others."""
    pixels = [frame.pixels for frame in frames]
    if group.kind is Kind.ZERO:
        odd = odd_zeros(pixels)
    else:
        odd = odd_flats(pixels, [typical_light(frame, bias) for frame in pixels], bias)
    left_out.extend(_told(frames[k].frame, reason) for k, reason in sorted(odd.items()))
    return [frame for k, frame in enumerate(frames) if k not in odd]


def _told(frame: Frame, reason: str) -> str:
    """The reason with the name of the frame, once."""
    source = str(frame.source)
    return reason if reason.startswith(source) else f"{source}: {reason}"


def _spilled(pixels: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    np.save(path, pixels)
    mapped: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return mapped


def _bias_for(
    group: FrameGroup, out: Path, frames: Sequence[_Read]
) -> tuple[NDArray[np.float32] | None, str]:
    """Master bias for a flat, of the same night if there is one, and its name."""
    if group.kind is Kind.ZERO or not frames:
        return None, ""
    shape = frames[0].layout.trimmed_shape
    found = _first_sound(
        fitting_masters(out, Kind.ZERO, group.ccd, "", group.night, MASTER_DAYS, shape)
    )
    return (None, "") if found is None else (found[1], found[0].path.name)


def _compare(
    group: FrameGroup, out: Path, image: NDArray[np.float32]
) -> tuple[str, Difference | None]:
    """How far a new master is from that of the night before it."""
    shape = image.shape[0], image.shape[1]
    near = fitting_masters(out, group.kind, group.ccd, group.band, group.night, MASTER_DAYS, shape)
    found = _first_sound(master for master in near if master.night < group.night)
    if found is None:
        return "", None
    return found[0].path.name, compare_masters(image, found[1])


def _single_noise(group: FrameGroup, layout: Layout) -> float:
    """A frame alone does not tell its scatter: the read noise does, for a step of the file."""
    amplifier = layout.amplifiers[0]
    return amplifier.read_noise / amplifier.gain if group.kind is Kind.ZERO else 0.01


def _cards(
    group: FrameGroup, first: Exposure, master: Master, noise: float, bias: str
) -> list[Card]:
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
