"""From a CCD in the journal to its packet on disk."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import xxhash

from prepipe import config
from prepipe.cameras import Camera
from prepipe.codec.fits_bytes import HduSpan
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import PackedCcd, write_packet
from prepipe.errors import FitsError, StorageError
from prepipe.files import storage_errors
from prepipe.model import Exposure, Kind, Packet
from prepipe.store import CcdRow
from prepipe.telescope.intake import ccd_spans
from prepipe.telescope.watch import KnownFiles

__all__ = ["LOSSLESS_KINDS", "Packer", "Written", "ratio_for", "registered_state"]

_REMEMBERED_FILES = 16
_REMEMBERED_EXPOSURES = 1024
_MILDEST_RATIO, _STRONGEST_RATIO = 2.0, 1000.0
LOSSLESS_KINDS = (Kind.ZERO, Kind.DOME_FLAT)
"""Kinds of exposure that nothing may blur: masters are made of them."""

State = tuple[int, int]
"""Size and mtime (ns) of a file."""


class Written(NamedTuple):
    """A packet on disk.

    Parameters
    ----------
    path : Path
    packet : Packet
    size : int
        bytes
    checksum : str
        xxh3-128 of the file, hexadecimal.
    raw_written_at : float
        When the raw file was last written, s since 1970.
    why : str
        Of an original that is no residual though it might be, why not.
    """

    path: Path
    packet: Packet
    size: int
    checksum: str
    raw_written_at: float
    why: str = ""


class Packer:
    """Packs CCDs of raw files; may be used by several threads at a time.

    Parameters
    ----------
    settings : config.Pack
    camera : Camera
    known : KnownFiles
        Knows in which state each raw file was registered.
    directory : Path
        Where packets go.

    Attributes
    ----------
    preset : str
        Of exposures that are begun from now on; one that was begun keeps its own.
    """

    def __init__(
        self, settings: config.Pack, camera: Camera, known: KnownFiles, directory: Path
    ) -> None:
        self._settings = settings
        self._camera = camera
        self._known = known
        self._directory = directory
        self._spans: OrderedDict[tuple[Path, State], Mapping[int, HduSpan]] = OrderedDict()
        self.preset: str = settings.preset
        self._presets: OrderedDict[Exposure, str] = OrderedDict()
        self._lock = threading.Lock()

    def pack(self, row: CcdRow) -> Written:
        """Write the packet of a CCD.

        Its parameters say, besides what the codec did, when the raw file was last written:
        ``found_at``, seconds since 1970, so that the far side can tell the latency. That is the
        same for every host that sees the file, and so are the packet's bytes, by one preset:
        whichever of them sends it, the far side knows it again.

        Raises
        ------
        ConfigError
            If the codec or one of its parameters is unknown.
        FitsError, HeaderError, PixelError
            If the raw file cannot be read, or lacks the CCD.
        StorageError
            If the raw file vanished or was rewritten since it was registered, or the disk
            is full.
        """
        state = registered_state(row.raw, self._known)
        try:
            packed, why = self._packed(row, state)
        finally:
            # whatever was read of a file that changed meanwhile, sound or not, is worth nothing
            if registered_state(row.raw, self._known) != state:
                raise _rewritten(row.raw)
        path = write_packet(self._directory, packed)
        checksum = xxhash.xxh3_128_hexdigest(packed.content)
        size = len(packed.content)
        return Written(path, packed.packet, size, checksum, _written_at(state), why)

    def _packed(self, row: CcdRow, state: State) -> tuple[PackedCcd, str]:
        """The packet of a CCD; for originals also why it is no residual."""
        codec, parameters = self._codec(row.exposure, self._spans_of(row, state))
        return self._by_codec(row, state, codec, parameters), ""

    def _by_codec(
        self, row: CcdRow, state: State, codec: str, parameters: Mapping[str, object]
    ) -> PackedCcd:
        span = self._spans_of(row, state)[row.ccd.number]
        notes = {"found_at": _written_at(state)}
        return pack_ccd(row.raw, span, row.exposure, row.ccd, codec, parameters, notes=notes)

    def _codec(
        self, exposure: Exposure, spans: Mapping[int, HduSpan]
    ) -> tuple[str, dict[str, object]]:
        if exposure.kind in LOSSLESS_KINDS:
            return self._settings.calibrations, {}
        told = self._settings.parameters
        if "preset" in told:
            told["preset"] = self._preset_of(exposure)
        takes_ratio = "ratio" in config.PACK_SETTINGS.get(self._settings.codec, ())
        if takes_ratio and self._settings.rate_mbit_s is not None:
            told["ratio"] = ratio_for(
                self._settings.rate_mbit_s, self._settings.cadence_s, spans.values()
            )
        return self._settings.codec, told

    def _preset_of(self, exposure: Exposure) -> str:
        """The preset of all of an exposure's CCDs."""
        with self._lock:
            preset = self._presets.setdefault(exposure, self.preset)
            if len(self._presets) > _REMEMBERED_EXPOSURES:
                self._presets.popitem(last=False)
        return preset

    def _spans_of(self, row: CcdRow, state: State) -> Mapping[int, HduSpan]:
        """Where CCDs lie in their file; looked up once a file, for all of its CCDs."""
        with self._lock:
            spans = self._spans.get((row.raw, state))
            if spans is None:
                spans = ccd_spans(row.raw, self._camera)
                self._spans[row.raw, state] = spans
                if len(self._spans) > _REMEMBERED_FILES:
                    self._spans.popitem(last=False)
        if row.ccd.number not in spans:
            raise FitsError(f"{row.raw}: holds no CCD {row.ccd.number} any more; it was rewritten")
        return spans


def ratio_for(rate_mbit_s: float, cadence_s: float, spans: Iterable[HduSpan]) -> float:
    """The ratio at which an exposure takes just so much of the line.

    Parameters
    ----------
    rate_mbit_s : float
        Mbit/s, 1e6 bits a second.
    cadence_s : float
        From one exposure to the next, s.
    spans : iterable of HduSpan
        Its CCDs, of 16 bits a pixel.

    Returns
    -------
    float
        From 2 to 1000, to four digits.
    """
    bits = 16 * sum(prod(span.image_shape) for span in spans)
    ratio = bits / (rate_mbit_s * 1e6 * cadence_s)
    return float(f"{min(max(ratio, _MILDEST_RATIO), _STRONGEST_RATIO):.4g}")


def registered_state(raw: Path, known: KnownFiles) -> State:
    """State of a raw file, which is the one it was registered in.

    Raises
    ------
    StorageError
        If it vanished or was rewritten since.
    """
    with storage_errors(raw):
        status = raw.stat()
    state = status.st_size, status.st_mtime_ns
    if not known.known_file(raw, *state):
        raise _rewritten(raw)
    return state


def _written_at(state: State) -> float:
    """When a raw file was last written, s since 1970."""
    return state[1] / 1e9


def _rewritten(raw: Path) -> StorageError:
    return StorageError(
        f"{raw}: was rewritten after it was found; it is taken anew when it is at rest"
    )
