"""photpipe's names and directories, on shared storage or on the node's own disk.

::

    PIPE_DATA/rawdata/utYYMMDD/CCD/FIELD.F.utYYMMDD.EXPNUM_CCD.fits     an exposure of the sky
    PIPE_DATA/rawdata/utYYMMDD/CCD/bias.utYYMMDD.EXPNUM_CCD.fits        a zero
    PIPE_DATA/rawdata/utYYMMDD/CCD/domeflat.F.utYYMMDD.EXPNUM_CCD.fits  a dome flat
    PIPE_DATA/workspace/utYYMMDD/CCD/                                   what becomes of them
"""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prepipe.codec.fits_bytes import scan_fits
from prepipe.engines.external import copy_product, plain_raw_file
from prepipe.engines.names import safe_band
from prepipe.engines.raw import RawCcd
from prepipe.errors import EngineError, InputError
from prepipe.files import storage_errors
from prepipe.model import Exposure, Kind

__all__ = ["Place", "file_stem", "own_data", "place_raw", "whole_image"]

RAWDATA, WORKSPACE = "rawdata", "workspace"


@dataclass(frozen=True)
class Place:
    """Where photpipe keeps one CCD of one exposure.

    Parameters
    ----------
    data : Path
        PIPE_DATA.
    night : str
        ``utYYMMDD``.
    ccd : int
    number : str
        The exposure's, as it stands in names.
    stem : str
        Name of the image without ``.fits``.
    """

    data: Path
    night: str
    ccd: int
    number: str
    stem: str

    @property
    def raw(self) -> Path:
        """The raw file."""
        return self._below(RAWDATA) / f"{self.stem}.fits"

    @property
    def workspace(self) -> Path:
        """Directory of what becomes of it."""
        return self._below(WORKSPACE)

    def made(self, ends: Sequence[str]) -> tuple[Path, str] | None:
        """The first file of the workspace whose name ends so, and that end."""
        for end in ends:
            path = self.workspace / f"{self.stem}{end}"
            if path.is_file():
                return path, end
        return None

    def discard(self, ends: Sequence[str]) -> None:
        """Remove the files of the workspace whose names end so."""
        for end in ends:
            path = self.workspace / f"{self.stem}{end}"
            with storage_errors(path):
                path.unlink(missing_ok=True)

    def _below(self, part: str) -> Path:
        return self.data / part / self.night / str(self.ccd)


def file_stem(exposure: Exposure, ccd: int, number: str) -> str:
    """photpipe's name of an image, by what its shutter looked at, without ``.fits``."""
    night, band = exposure.night.ut_name, safe_band(exposure.band)
    what = {Kind.ZERO: "bias", Kind.DOME_FLAT: f"domeflat.{band}"}
    first = what.get(exposure.kind, f"{exposure.safe_field}.{band}")
    return f"{first}.{night}.{number}_{ccd}"


def place_raw(raw: RawCcd, place: Place, scratch: Path) -> bool:
    """Put the raw file where photpipe looks for it, whole or not at all.

    Parameters
    ----------
    raw : RawCcd
    place : Place
    scratch : Path

    Returns
    -------
    bool
        Whether it took the place of another one, of which photpipe may have results.

    Raises
    ------
    StorageError
    """
    if not place.raw.exists():
        plain_raw_file(raw, place.raw)
        return False
    fresh = scratch / place.raw.name
    plain_raw_file(raw, fresh)
    with storage_errors(place.raw):
        if filecmp.cmp(fresh, place.raw, shallow=False):
            return False
    copy_product(fresh, place.raw)
    return True


def own_data(shared: Path, own: Path, night: str, ccd: int, patterns: Sequence[str]) -> None:
    """Make a PIPE_DATA for one CCD, with what it needs of the shared one.

    Raw calibration frames are linked; masters in the workspace are copied, for photpipe may
    write them anew; everything beside rawdata and workspace is linked as a whole.

    Parameters
    ----------
    shared, own : Path
    night : str
    ccd : int
    patterns : sequence of str
        Names below `shared`; ``{night}`` and ``{ccd}`` in them become those of the CCD.

    Raises
    ------
    StorageError
    """
    with storage_errors(shared):
        for entry in sorted(shared.iterdir()):
            if entry.name not in (RAWDATA, WORKSPACE):
                _link(entry, own / entry.name)
        for path in _fitting(shared, night, ccd, patterns):
            target = own / path.relative_to(shared)
            if WORKSPACE in path.relative_to(shared).parts[:1]:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            else:
                _link(path, target)


def _fitting(shared: Path, night: str, ccd: int, patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        named = pattern.replace("{night}", night).replace("{ccd}", str(ccd))
        yield from (path for path in sorted(shared.glob(named)) if path.is_file())


def _link(path: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(path.resolve())


def whole_image(path: Path) -> Path:
    """The same path, if it is a FITS file to its end.

    Raises
    ------
    EngineError
        If it is not: its writer died.
    """
    try:
        scan_fits(path)
    except InputError as error:
        raise EngineError(f"photpipe left a damaged image ({error})") from error
    return path
