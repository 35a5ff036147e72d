"""Where products lie and what they are called: the layout that photpipe expects.

::

    ROOT/utYYMMDD/CCD/FIELD.F.utYYMMDD.EXPNUM_CCD.fits.fz        a calibrated CCD
    ROOT/utYYMMDD/CCD/FIELD.F.utYYMMDD.EXPNUM_CCD.cat.fits       its sources
    ROOT/utYYMMDD/CCD/FIELD.F.utYYMMDD.EXPNUM_CCD.cat.parquet    the same as Parquet
    ROOT/utYYMMDD/CCD/bias.utYYMMDD.EXPNUM_CCD.fits.fz           a master bias
    ROOT/utYYMMDD/CCD/domeflat.F.utYYMMDD.EXPNUM_CCD.fits.fz     a master dome flat
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prepipe.engines.base import ChosenMasters
from prepipe.files import storage_errors
from prepipe.model import Exposure, Kind, Night

__all__ = [
    "CATALOGUES",
    "IMAGE",
    "NO_PRODUCT",
    "MasterName",
    "catalogue_paths",
    "chosen_by_name",
    "find_masters",
    "master_name",
    "master_path",
    "masters_near",
    "nights_apart",
    "product_path",
    "safe_band",
]

IMAGE = ".fits.fz"
CATALOGUES = {"fits": ".cat.fits", "parquet": ".cat.parquet"}
"""How the name of a source table ends, by its form."""

NO_PRODUCT = (
    f"is no calibrated CCD (FIELD.F.utYYMMDD.EXPNUM_CCD{IMAGE}); make one of a raw exposure or"
    " packet with `prepipe calibrate`"
)
_MASTER = re.compile(
    r"(?:bias|domeflat\.(?P<band>[A-Za-z0-9]+))\.(?P<night>ut\d{6})\.(?P<number>\d+)_(?P<ccd>\d+)"
    + re.escape(IMAGE)
)


@dataclass(frozen=True)
class MasterName:
    """What the name of a master tells."""

    path: Path
    kind: Kind
    band: str
    night: Night
    ccd: int
    number: int

    def fits(self, kind: Kind, band: str) -> bool:
        """Whether it is of a kind and, if a flat, of a band as observed."""
        return self.kind is kind and self.band == ("" if kind is Kind.ZERO else safe_band(band))


def product_path(root: Path, exposure: Exposure, ccd: int) -> Path:
    """Path of a calibrated CCD below `root`."""
    night = exposure.night.ut_name
    band = safe_band(exposure.band)
    name = f"{exposure.safe_field}.{band}.{night}.{exposure.number}_{ccd}{IMAGE}"
    return root / night / str(ccd) / name


def catalogue_paths(product: Path, form: str) -> list[Path]:
    """Paths of the source table beside a calibrated CCD.

    Parameters
    ----------
    product : Path
    form : {"fits", "parquet", "both"}
    """
    stem = product.name.removesuffix(IMAGE)
    return [
        product.with_name(stem + suffix)
        for name, suffix in CATALOGUES.items()
        if form in (name, "both")
    ]


def master_path(root: Path, first: Exposure, ccd: int) -> Path:
    """Path of the master made of frames of which `first` is the earliest."""
    night = first.night.ut_name
    stem = "bias" if first.kind is Kind.ZERO else f"domeflat.{safe_band(first.band)}"
    return root / night / str(ccd) / f"{stem}.{night}.{first.number}_{ccd}{IMAGE}"


def master_name(path: Path) -> MasterName | None:
    """What the name of a file tells, if it is that of a master."""
    found = _MASTER.fullmatch(path.name)
    night = None if found is None else _night(found["night"])
    if found is None or night is None:
        return None
    kind = Kind.DOME_FLAT if found["band"] else Kind.ZERO
    return MasterName(
        path, kind, found["band"] or "", night, int(found["ccd"]), int(found["number"])
    )


def find_masters(root: Path) -> Iterator[MasterName]:
    """All masters below `root`, by night, CCD and name.

    Raises
    ------
    StorageError
        If a directory cannot be read.
    """
    for night in sorted(name for name in _names(root) if _night(name) is not None):
        for ccd in sorted(int(name) for name in _names(root / night) if name.isdecimal()):
            yield from _masters_in(root / night / str(ccd))


def masters_near(root: Path, ccd: int, night: Night, days: int) -> Iterator[MasterName]:
    """Masters of a CCD, nearest in time first.

    Of two nights as near the earlier one comes first, of one night what was taken last.

    Parameters
    ----------
    root : Path
    ccd : int
    night : Night
        Of the exposure.
    days : int
        Masters further away are not given.

    Raises
    ------
    StorageError
        If a directory cannot be read.
    """
    found = {name: _night(name) for name in _names(root)}
    nights = {
        name: (nights_apart(at, night), at)
        for name, at in found.items()
        if at is not None and nights_apart(at, night) <= days
    }
    for name in sorted(nights, key=nights.__getitem__):
        yield from reversed(_masters_in(root / name / str(ccd)))


def chosen_by_name(root: Path, exposure: Exposure, ccd: int, days: int) -> ChosenMasters:
    """The masters of a directory that a CCD may take, by their names alone.

    Raises
    ------
    StorageError
        If a directory cannot be read.
    """
    near = list(masters_near(root, ccd, exposure.night, days))

    def fitting(kind: Kind) -> tuple[Path, ...]:
        return tuple(name.path for name in near if name.fits(kind, exposure.band))

    return ChosenMasters(fitting(Kind.ZERO), fitting(Kind.DOME_FLAT))


def nights_apart(one: Night, other: Night) -> int:
    """From one night to another, without sign."""
    return abs((one.date - other.date).days)


def _masters_in(directory: Path) -> list[MasterName]:
    found = [master_name(directory / name) for name in _names(directory)]
    own = [each for each in found if each is not None and str(each.ccd) == directory.name]
    return sorted(own, key=lambda each: (each.kind is not Kind.ZERO, each.band, each.number))


def _names(directory: Path) -> list[str]:
    with storage_errors(directory):
        try:
            return [path.name for path in directory.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []


def _night(name: str) -> Night | None:
    try:
        return Night.parse(name) if re.fullmatch(r"ut\d{6}", name) else None
    except ValueError:
        return None


def safe_band(band: str) -> str:
    """The band as it stands in a name: letters and digits only; ``none`` if there is none."""
    return re.sub(r"[^A-Za-z0-9]+", "", band) or "none"
