"""Bit-exact originals at the cluster: what came by night and what came by day, put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prepipe.codec import get_codec
from prepipe.codec.base import RESIDUAL
from prepipe.codec.checksums import verify_checksums
from prepipe.codec.fits_bytes import HduSpan
from prepipe.codec.headers import without_data
from prepipe.codec.packet import OpenPacket, open_packet, opened, read_cards, read_hdu, read_header
from prepipe.codec.residual import base_of, restored
from prepipe.codec.unpack import image_hdu, primary_hdu
from prepipe.errors import ConfigError, PacketError
from prepipe.files import atomic_path, content_checksum, storage_errors
from prepipe.link.base import ARCHIVE, DONE
from prepipe.model import Night, Packet
from prepipe.names import parse_name

__all__ = [
    "Landed",
    "RestoredFile",
    "exposures_landed",
    "original_of",
    "original_packets",
    "restore_file",
]

_MOST_HDUS = 9999
"""A header may promise anything."""


@dataclass(frozen=True)
class Landed:
    """Packets of an exposure in a landing directory.

    Parameters
    ----------
    camera : str
    number : int
        Of the exposure.
    sent : dict of int to Path
        What came first, by CCD.
    archived : dict of int to Path
        What `prepipe archive` sent, by CCD.
    """

    camera: str
    number: int
    sent: dict[int, Path]
    archived: dict[int, Path]

    @property
    def ccds(self) -> tuple[int, ...]:
        """CCDs of which something is there."""
        return tuple(sorted({*self.sent, *self.archived}))

    @property
    def night(self) -> Night:
        """The night of the exposure, as a packet of it tells."""
        packets = [*self.sent.values(), *self.archived.values()]
        return read_header(packets[0]).exposure.night


@dataclass(frozen=True)
class RestoredFile:
    """A raw file that was put together.

    Parameters
    ----------
    path : Path
    ccds : tuple of int
        In the order of the file.
    gaps : tuple of int
        Numbers of HDUs of the raw file that no packet brought as they were: up to the last one
        that its primary header tells of (NEXTEND), else up to the last one here.
    odd_sums : tuple of int
        CCDs whose DATASUM or CHECKSUM does not fit; nor did it in the raw file.
    """

    path: Path
    ccds: tuple[int, ...]
    gaps: tuple[int, ...]
    odd_sums: tuple[int, ...]


def exposures_landed(landing: Path) -> list[Landed]:
    """All exposures of which a landing directory holds packets, by number.

    Raises
    ------
    ConfigError
        If it is no directory.
    StorageError
        If it cannot be read.
    """
    if not landing.is_dir():
        raise ConfigError(f"{landing} is no directory; give the one in which packets land")
    found: dict[tuple[str, int], Landed] = {}
    with storage_errors(landing):
        sent = [*landing.glob(f"{DONE}/ut*/*.packet"), *landing.glob("*.packet")]
        archived = list(landing.glob(f"{ARCHIVE}/*.packet"))
    for paths, is_archived in ((sent, False), (archived, True)):
        for path in paths:
            try:
                name = parse_name(path.name)
            except PacketError:
                continue
            key = name.camera, name.number
            exposure = found.setdefault(key, Landed(*key, {}, {}))
            (exposure.archived if is_archived else exposure.sent)[name.ccd] = path
    return [found[key] for key in sorted(found)]


def original_packets(exposure: Landed) -> tuple[dict[int, Path], tuple[int, ...]]:
    """The packet that brings the original of each CCD, and CCDs that were sent with a loss alone.

    Raises
    ------
    PacketError
        If a packet is damaged.
    """
    there: dict[int, Path] = {}
    missing = []
    for ccd in exposure.ccds:
        sent = exposure.sent.get(ccd)
        if sent is not None and _is_original(read_header(sent)):
            there[ccd] = sent
        elif ccd in exposure.archived and _brings_original(exposure.archived[ccd], sent):
            there[ccd] = exposure.archived[ccd]
        else:
            missing.append(ccd)
    return there, tuple(missing)


def _brings_original(archived: Path, sent: Path | None) -> bool:
    """Whether an archived packet brings the original of one sent with a loss.

    Of a raw file that was rewritten since the cards are others; a residual knows its base.
    """
    packet = read_header(archived)
    if packet.codec == RESIDUAL:
        return True
    return _is_original(packet) and (sent is None or read_cards(sent) == read_cards(archived))


def original_of(path: Path, places: Sequence[Path] = ()) -> OpenPacket:
    """Open a packet; a residual is put together with its base.

    Parameters
    ----------
    path : Path
    places : sequence of Path
        Where a base may be besides near the residual: packets, directories of them, landing
        directories.

    Raises
    ------
    PacketError
        If the packet is damaged, or its base is not there or another one.
    """
    found = open_packet(path)
    if found.packet.codec != RESIDUAL:
        return found
    near = [path.parent.parent] if path.parent.name == ARCHIVE else [path.parent]
    return opened(restored(found, _base(found.packet, [*places, *near])))


def restore_file(packets: Iterable[Path], places: Sequence[Path], out_dir: Path) -> RestoredFile:
    """Put the raw file of an exposure together.

    Every HDU that a packet brought is byte for byte that of the raw file, in its order. A file
    that is there already is left alone.

    Parameters
    ----------
    packets : iterable of Path
        Of one exposure, each the original of a CCD, or its residual.
    places : sequence of Path
        As `original_of` takes them.
    out_dir : Path
        Made if needed.

    Returns
    -------
    RestoredFile
        ``<exposure>.fits.fz``, or ``.fits`` if the images are not compressed.

    Raises
    ------
    ConfigError
        If a file of that name is there and holds something else.
    PacketError
        If a packet is damaged, a base is not there, or the packets are not of one raw file.
    StorageError
        If the disk is full, or a directory cannot be read or written.
    """
    ordered = sorted((read_hdu(path), path) for path in packets)
    first = original_of(ordered[0][1], places)
    compressed = image_hdu(first)[2]
    path = out_dir / (first.packet.exposure.name + (".fits.fz" if compressed else ".fits"))
    ccds = []
    with atomic_path(path) as partial:
        with partial.open("wb") as stream:
            stream.write(primary_hdu(first, compressed))
            for original in _of_one_file([path for _, path in ordered], places, first):
                stream.writelines(image_hdu(original)[:2])
                ccds.append(original.packet.ccd.number)
        sums = verify_checksums(partial)[-len(ccds) :]
        _require_no_other(path, partial)
    odd = [ccd for ccd, found in zip(ccds, sums, strict=True) if False in (found.data, found.hdu)]
    gaps = _gaps(first, {hdu for hdu, _ in ordered})
    return RestoredFile(path, tuple(ccds), gaps, tuple(odd))


def _require_no_other(path: Path, made: Path) -> None:
    """What is there may be the raw file itself, or an exposure of which more had landed."""
    if path.exists() and content_checksum(path) != content_checksum(made):
        raise ConfigError(
            f"{path}: is there already and holds something else; remove it, or give another --out"
        )


def _gaps(first: OpenPacket, there: set[int]) -> tuple[int, ...]:
    """HDUs of the raw file that are not in a file made of these."""
    header = first.primary_header
    if header and without_data(header) == header:
        there = {0, *there}
    promised = HduSpan(0, 0, header, 0).value("NEXTEND") if header else None
    last = max(there)
    if isinstance(promised, int):
        last = max(last, min(promised, _MOST_HDUS))
    return tuple(hdu for hdu in range(last + 1) if hdu not in there)


def _of_one_file(
    paths: Sequence[Path], places: Sequence[Path], first: OpenPacket
) -> Iterator[OpenPacket]:
    """The originals, one after the other, if they are of one raw file."""
    hdus = set()
    for path in paths:
        original = first if path == paths[0] else original_of(path, places)
        if not _is_original(original.packet):
            raise PacketError(f"{path}: was packed with a loss; give what `prepipe archive` sent")
        if original.primary_header != first.primary_header or original.hdu in hdus:
            raise PacketError(
                f"{path}: comes from another state of the raw file than {paths[0].name}; have "
                "both sent again"
            )
        hdus.add(original.hdu)
        yield original


def _is_original(packet: Packet) -> bool:
    return packet.codec != RESIDUAL and get_codec(packet.codec).lossless


def _base(residual: Packet, places: Sequence[Path]) -> OpenPacket:
    """The packet that a residual belongs to."""
    wanted = base_of(residual)
    others = []
    for path in _candidates(residual, places):
        found = read_header(path)
        if wanted.is_of(found):
            return open_packet(path)
        if found.codec != RESIDUAL:
            others.append(path)
    number, ccd = residual.exposure.number, residual.ccd.number
    remedy = (
        f"give its place with --base, or have it sent again by `prepipe retry {number} --ccd {ccd} "
        "--stage found` at the telescope"
    )
    if others:
        raise PacketError(
            f"{residual.file_name}: the residual belongs to another packet than {others[0]}; "
            + remedy
        )
    looked = ", ".join(dict.fromkeys(map(str, places)))
    raise PacketError(
        f"{residual.file_name}: the packet that the residual belongs to is not in {looked}; "
        + remedy
    )


def _candidates(residual: Packet, places: Iterable[Path]) -> Iterator[Path]:
    name = residual.file_name
    for place in places:
        for path in (place, place / name, *sorted(place.glob(f"{DONE}/ut*/{name}"))):
            if path.name == name and path.is_file():
                yield path
