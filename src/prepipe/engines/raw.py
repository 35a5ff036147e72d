"""`RawCcd`: one CCD as the telescope wrote it, from a packet or straight from a FITS file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astropy.io import fits
from astropy.io.fits import Header
from astropy.io.fits.verify import VerifyWarning
from astropy.utils.exceptions import AstropyUserWarning
from numpy.typing import NDArray

from prepipe.cameras import Camera
from prepipe.codec.packet import decode
from prepipe.errors import FitsError, HeaderError, InputError, PixelError
from prepipe.model import Ccd, Exposure

__all__ = ["RawCcd", "list_ccds", "merged", "read_ccd", "read_exposure"]

# Cards of the primary header that tell of its own structure, not of the exposure.
_STRUCTURE = ("SIMPLE", "BITPIX", "NAXIS", "EXTEND", "NEXTEND", "CHECKSUM", "DATASUM")


@dataclass(frozen=True)
class RawCcd:
    """Pixels and headers of one CCD of one exposure.

    Parameters
    ----------
    exposure : Exposure
    ccd : Ccd
    primary, extension : Header
        As the telescope wrote them.
    pixels : ndarray, shape (ny, nx)
        ADU, of the raw file's own type.
    """

    exposure: Exposure
    ccd: Ccd
    primary: Header
    extension: Header
    pixels: NDArray[Any]

    @property
    def header(self) -> Header:
        """The extension's header with what it inherits from the primary."""
        return merged(self.primary, self.extension)


def merged(primary: Header, extension: Header) -> Header:
    """The extension's cards, and the primary's where the extension has none."""
    header = extension.copy()
    known = set(header)
    for card in primary.cards:
        if card.keyword not in known and card.keyword not in _STRUCTURE:
            header.append(card, end=True)
    return header


def read_exposure(path: Path, camera: Camera) -> Exposure:
    """What a raw file's headers say of the exposure.

    Raises
    ------
    FitsError
        If the file cannot be read as FITS.
    HeaderError
        If a card that is needed is missing or makes no sense.
    """
    with _opened(path) as hdus:
        first = hdus[min(1, len(hdus) - 1)]
        return camera.exposure(merged(hdus[0].header, first.header))


def read_ccd(source: Path, hdu: int | None, camera: Camera) -> RawCcd:
    """Read one CCD from a packet (no `hdu`) or from an HDU of a raw file.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    return _read_packet(source, camera) if hdu is None else _read_hdu(source, hdu, camera)


def _read_packet(path: Path, camera: Camera) -> RawCcd:
    pixels, primary, extension, packet = decode(path)
    header = merged(primary, extension)
    exposure = camera.exposure(header)
    return RawCcd(exposure, packet.ccd, primary, extension, pixels)


def list_ccds(path: Path, camera: Camera) -> list[tuple[int, Ccd]]:
    """Which HDU of a raw file holds which CCD; focus chips are left out.

    Raises
    ------
    FitsError
        If the file cannot be read as FITS or holds no CCD.
    HeaderError
        If an extension does not tell its CCD.
    """
    with _opened(path) as hdus:
        found = []
        for index, hdu in enumerate(hdus):
            if hdu.is_image and hdu.header.get("NAXIS", 0) == 2:
                ccd = camera.ccd(merged(hdus[0].header, hdu.header))
                if ccd is not None:
                    found.append((index, ccd))
    if not found:
        raise FitsError(f"{path}: no CCD of {camera.name} in this file; is it a raw exposure?")
    return found


def _read_hdu(path: Path, index: int, camera: Camera) -> RawCcd:
    with _opened(path) as hdus:
        primary, hdu = hdus[0].header, hdus[index]
        header = merged(primary, hdu.header)
        exposure, ccd = camera.exposure(header), camera.ccd(header)
        if ccd is None:
            raise HeaderError(f"{path}[{index}]: no science CCD")
        pixels = hdu.data
        if pixels is None or pixels.ndim != 2:
            raise PixelError(f"{path}[{index}]: no image with two axes")
        return RawCcd(exposure, ccd, primary.copy(), hdu.header.copy(), pixels)


class _opened:  # noqa: N801 - a context manager, read as a verb
    """Open a FITS file; whatever the library stumbles over becomes a `FitsError`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        self._quiet = warnings.catch_warnings()
        self._quiet.__enter__()
        warnings.simplefilter("ignore", VerifyWarning)
        warnings.simplefilter("ignore", AstropyUserWarning)
        try:
            self._hdus = fits.open(self._path, memmap=False)
        except (OSError, ValueError, TypeError, IndexError) as error:
            self._quiet.__exit__(None, None, None)
            raise self._fault(error) from error
        return self._hdus

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._hdus.close()
        self._quiet.__exit__(None, None, None)
        # The library raises whatever its decoders meet: struct.error, zlib.error, RuntimeError ...
        if isinstance(error, Exception) and not isinstance(error, InputError):
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> FitsError:
        what = str(error).split("\n")[0] or type(error).__name__
        return FitsError(f"{self._path}: cannot be read as FITS ({what}); copy it again")
