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
from dataclasses import dataclass
from pathlib import Path

from prepipe.model import Exposure, Kind, Night

__all__ = [
    "CATALOGUES",
    "IMAGE",
    "NO_PRODUCT",
    "MasterName",
    "catalogue_paths",
    "find_masters",
    "master_path",
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


def find_masters(root: Path, ccd: int) -> list[MasterName]:
    """All masters of a CCD below `root`, in order of their names."""
    found = []
    for path in sorted(root.glob(f"ut*/{ccd}/*{IMAGE}")):
        name = _MASTER.fullmatch(path.name)
        if name is not None and int(name["ccd"]) == ccd:
            kind = Kind.DOME_FLAT if name["band"] else Kind.ZERO
            found.append(
                MasterName(path, kind, name["band"] or "", Night.parse(name["night"]), ccd)
            )
    return found


def safe_band(band: str) -> str:
    """The band as it stands in a name: letters and digits only; ``none`` if there is none."""
    return re.sub(r"[^A-Za-z0-9]+", "", band) or "none"
