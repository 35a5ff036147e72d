"""Master biases and dome flats: made from raw frames, compared with the last, kept in a library."""

from __future__ import annotations

import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.detector.detrend import overscan_subtract_trim
from prepipe.calibrate.detector.master_change import Difference
from prepipe.calibrate.detector.masters import Master, combine_bias, combine_flat, typical_light
from prepipe.calibrate.detector.odd_frames import Frame as Pixels
from prepipe.calibrate.detector.odd_frames import odd_flats, odd_zeros
from prepipe.cameras import Camera
from prepipe.codec.packet import read_header
from prepipe.config import Calibration
from prepipe.engines.detector.acceptance import judge
from prepipe.engines.detector.corrections import flat_corrections
from prepipe.engines.detector.library import MasterLibrary, first_sound
from prepipe.engines.names import MasterName, master_path, safe_band
from prepipe.engines.products import Card
from prepipe.engines.raw import RawCcd, list_ccds, read_ccd, read_exposure
from prepipe.errors import InputError, PixelError
from prepipe.model import Exposure, Kind, Layout, Mark, Night

__all__ = ["Frame", "FrameGroup", "MadeMaster", "gather", "make_master"]

FRAMES_IN_MEMORY = 8
"""Frames of one CCD held in memory (34 MB each); the others wait in a temporary file."""

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
        Name of the good master that it was compared with; empty if there is none that fits.
    changed : Difference or None
        From that master to this one.
    mark : Mark
        HELD if it differs too much: it is not used until a person accepts it.
    why : str
        Reason of the mark.
    """

    group: FrameGroup
    path: Path
    used: int
    noise: float
    left_out: tuple[str, ...]
    previous: str = ""
    changed: Difference | None = None
    mark: Mark = Mark.GOOD
    why: str = ""


@dataclass(frozen=True)
class _Read:
    """A frame ready to be combined."""

    frame: Frame
    pixels: Pixels
    layout: Layout


@dataclass(frozen=True)
class _Combined:
    """A master before it is written."""

    master: Master
    layout: Layout
    first: Exposure
    noise: float
    bias_name: str


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


def make_master(
    group: FrameGroup, out: Path, camera: Camera, settings: Calibration | None = None
) -> MadeMaster:
    """Combine one group's frames, compare the master with the last good one, and write it.

    Parameters
    ----------
    group : FrameGroup
    out : Path
        Root of the library; a dome flat takes its bias from there.
    camera : Camera
    settings : Calibration, optional
        How far away other masters may be, and what a new one may differ from the last; which
        tables correct flats.

    Raises
    ------
    InputError
        If no frame can be used.
    ConfigError
        If a table of crosstalk or linearity that the settings name is missing or wrong.
    StorageError
        If the master cannot be written.
    """
    settings = settings or Calibration()
    library = MasterLibrary(out)
    left_out: list[str] = []
    made = _combine(group, library, camera, settings, left_out)
    image = np.nan_to_num(made.master.image, copy=False)
    path = master_path(out, group.frames[0].exposure, group.ccd)
    name = _name(group, path)
    verdict, changed = judge(library, name, image, made.noise, settings)
    row = library.add(name, image, made.noise, _cards(group, made), verdict)
    return MadeMaster(
        group=group,
        path=path,
        used=made.master.n,
        noise=made.noise,
        left_out=tuple(left_out),
        previous=Path(row.previous).name,
        changed=changed,
        mark=row.mark,
        why=row.why,
    )


def _combine(
    group: FrameGroup,
    library: MasterLibrary,
    camera: Camera,
    settings: Calibration,
    left_out: list[str],
) -> _Combined:
    """The master of a group; its frames are let go of."""
    with _read_frames(group, camera, settings, left_out) as read:
        bias, bias_name = _bias_for(group, library, read, settings)
        frames = _without_odd(group, read, bias, left_out)
        if not frames:
            raise InputError(f"CCD {group.ccd}: no usable frame; {'; '.join(left_out)}")
        layout = frames[0].layout
        pixels = [frame.pixels for frame in frames]
        if group.kind is Kind.ZERO:
            master = combine_bias(pixels)
        else:
            master = combine_flat(pixels, bias=bias, layout=layout)
        noise = master.typical_noise
        if master.n == 1:
            noise = _single_noise(group, layout, typical_light(pixels[0], bias))
        return _Combined(master, layout, frames[0].frame.exposure, noise, bias_name)


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
def _read_frames(
    group: FrameGroup, camera: Camera, settings: Calibration, left_out: list[str]
) -> Iterator[list[_Read]]:
    """Read the frames of a group; those beyond a number wait on disk."""
    frames: list[_Read] = []
    with tempfile.TemporaryDirectory(prefix="prepipe-") as spill:
        for frame in group.frames:
            try:
                raw = read_ccd(frame.source, frame.hdu, camera)
                layout = camera.layout(raw.header, raw.pixels)
                pixels = _above_zero(group, raw, layout, settings)
            except InputError as error:
                left_out.append(_told(frame, str(error)))
                continue
            kept: Pixels = pixels
            if len(frames) >= FRAMES_IN_MEMORY:
                kept = _Spilled(pixels, Path(spill) / f"{len(frames)}.npy")
            frames.append(_Read(frame, kept, layout))
        yield _alike(frames, left_out)


def _above_zero(
    group: FrameGroup, raw: RawCcd, layout: Layout, settings: Calibration
) -> NDArray[np.float32]:
    """Pixels above the overscan, those of a flat corrected as the images are that it serves."""
    if group.kind is Kind.ZERO:
        return overscan_subtract_trim(raw.pixels, layout)
    _refuse_saturated(raw, layout)
    known = flat_corrections(raw.ccd, layout, settings.crosstalk, settings.linearity)
    return overscan_subtract_trim(
        raw.pixels, layout, crosstalk=known.crosstalk, linearity=known.linearity
    )


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


class _Spilled:
    """A frame that waits in a file; only the part that is asked for comes into memory."""

    def __init__(self, pixels: NDArray[np.float32], path: Path) -> None:
        np.save(path, pixels)
        self._path = path
        self.shape: tuple[int, ...] = pixels.shape

    def __getitem__(self, where: Any) -> NDArray[np.float32]:
        # The map is closed at once: its pages would count as this process's own.
        return np.array(np.load(self._path, mmap_mode="r")[where])


def _name(group: FrameGroup, path: Path) -> MasterName:
    band = "" if group.kind is Kind.ZERO else safe_band(group.band)
    number = group.frames[0].exposure.number
    return MasterName(path, group.kind, band, group.night, group.ccd, number)


def _bias_for(
    group: FrameGroup, library: MasterLibrary, frames: Sequence[_Read], settings: Calibration
) -> tuple[NDArray[np.float32] | None, str]:
    """Master bias for a flat, of the same night if there is one, and its name."""
    if group.kind is Kind.ZERO or not frames:
        return None, ""
    shape = frames[0].layout.trimmed_shape
    good = library.good(Kind.ZERO, group.ccd, "", group.night, settings.master_days)
    found = first_sound(good, shape)
    return (None, "") if found is None else (found[1], found[0].path.name)


def _single_noise(group: FrameGroup, layout: Layout, light: float) -> float:
    """Noise of a frame alone, which does not tell its scatter: that of read-out and photons."""
    amplifier = layout.amplifiers[0]
    if group.kind is Kind.ZERO:
        return amplifier.read_noise / amplifier.gain
    electrons = light * amplifier.gain
    return math.hypot(amplifier.read_noise, math.sqrt(electrons)) / electrons


def _cards(group: FrameGroup, made: _Combined) -> list[Card]:
    master = made.master
    cards: list[Card] = [
        ("OBSTYPE", "zero" if group.kind is Kind.ZERO else "dome flat", "kind of master"),
        ("CCDNUM", group.ccd, "CCD number"),
        ("FILTER", group.band, "band"),
        ("NIGHT", str(group.night), "local date on which the night began"),
        ("EXPNUM", made.first.number, "first of the frames combined"),
        ("NCOMBINE", master.n, "frames combined"),
        ("NOISE", made.noise, "typical standard error of a pixel"),
        ("REJECTED", master.rejected, "fraction of the values clipped"),
        ("BUNIT", "adu" if group.kind is Kind.ZERO else "relative", "unit of the pixels"),
    ]
    if group.kind is Kind.DOME_FLAT:
        cards.append(("BIASFILE", made.bias_name or "none", "bias subtracted"))
    return cards
