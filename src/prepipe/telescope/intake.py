"""From a complete raw file to an exposure and its CCDs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from astropy.io.fits import Header
from astropy.io.fits.verify import VerifyError

from prepipe.cameras import Camera
from prepipe.codec.cards import header_from_cards
from prepipe.codec.fits_bytes import HduSpan, scan_fits
from prepipe.errors import FitsError, HeaderError, StorageError
from prepipe.files import content_checksum, storage_errors
from prepipe.model import Ccd, Exposure, Kind
from prepipe.store import CcdKey, Journal
from prepipe.telescope.watch import Arrival

__all__ = ["RawExposure", "ccd_spans", "read_exposure", "register"]


@dataclass(frozen=True)
class RawExposure:
    """What a raw file holds.

    Parameters
    ----------
    exposure : Exposure or None
        None if there is nothing to calibrate in the file: no image, or a kind of exposure
        without science CCDs.
    ccds : tuple of Ccd
        In the order of the file, focus and guide chips left out.
    """

    exposure: Exposure | None
    ccds: tuple[Ccd, ...]


def read_exposure(path: Path, camera: Camera) -> RawExposure:
    """Read the headers of a raw file; its pixels are not looked at.

    Raises
    ------
    FitsError
        If its structure is broken, it holds no science CCD, or one of them twice.
    HeaderError
        If a card that is needed is missing or makes no sense.
    StorageError
        If it vanished or may not be read.
    """
    spans = scan_fits(path)
    images = [span for span in spans if len(span.image_shape) == 2]
    if not images:
        return RawExposure(None, ())
    with _header_errors(path, images[0]):
        exposure = camera.exposure(_merged(spans[0], images[0]))
    ccds = tuple(ccd for ccd, _ in _ccds(path, camera, spans).values())
    if ccds:
        return RawExposure(exposure, ccds)
    if exposure.kind is Kind.OTHER:
        return RawExposure(None, ())
    raise FitsError(f"{path}: holds no science CCD of {camera.name}; leave it out")


def ccd_spans(path: Path, camera: Camera) -> dict[int, HduSpan]:
    """Where each science CCD lies in a raw file, by its number.

    Raises
    ------
    FitsError, HeaderError, StorageError
        As `read_exposure`.
    """
    found = _ccds(path, camera, scan_fits(path))
    return {number: span for number, (_, span) in found.items()}


def register(
    arrival: Arrival, camera: Camera, journal: Journal
) -> tuple[RawExposure, list[CcdKey]]:
    """Write a complete raw file's exposure and CCDs into the journal.

    Returns
    -------
    RawExposure
    list of CcdKey
        The CCDs that wait now and did not before.

    Raises
    ------
    FitsError, HeaderError
        As `read_exposure`.
    DuplicateError
        If another file with other content bears the same exposure number.
    StorageError
        If the file vanished or changed, or the journal cannot be written.
    """
    raw = read_exposure(arrival.path, camera)
    fresh = []
    if raw.exposure is not None:
        checksum = content_checksum(arrival.path)
        _still_the_same(arrival)
        fresh = journal.add_exposure(
            raw.exposure, raw.ccds, path=arrival.path, size=arrival.size, checksum=checksum
        )
    journal.remember_file(arrival.path, arrival.size, arrival.mtime_ns)
    return raw, fresh


def _still_the_same(arrival: Arrival) -> None:
    with storage_errors(arrival.path):
        status = arrival.path.stat()
    if (status.st_size, status.st_mtime_ns) != (arrival.size, arrival.mtime_ns):
        raise StorageError(
            f"{arrival.path}: was rewritten while it was read; it is taken anew when it is at rest"
        )


def _ccds(path: Path, camera: Camera, spans: tuple[HduSpan, ...]) -> dict[int, tuple[Ccd, HduSpan]]:
    found: dict[int, tuple[Ccd, HduSpan]] = {}
    for span in spans:
        if len(span.image_shape) != 2:
            continue
        with _header_errors(path, span):
            ccd = camera.ccd(_merged(spans[0], span))
        if ccd is None:
            continue
        if ccd.number in found:
            raise FitsError(
                f"{path}: CCD {ccd.number} is in it twice, HDUs {found[ccd.number][1].index} and "
                f"{span.index}; which one is right can only be told where it was written"
            )
        found[ccd.number] = ccd, span
    return found


def _merged(primary: HduSpan, image: HduSpan) -> Header:
    """Cards of the image before those of the exposure: the first of two equal ones counts."""
    return header_from_cards(image.cards if image is primary else image.cards + primary.cards)


@contextmanager
def _header_errors(path: Path, span: HduSpan) -> Iterator[None]:
    """Say in which file and HDU a card is wrong."""
    try:
        yield
    except HeaderError as error:
        raise HeaderError(f"{path}: HDU {span.index}: {error}") from error
    except (VerifyError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise HeaderError(
            f"{path}: HDU {span.index}: its header cannot be read ({error}); it is damaged"
        ) from error
