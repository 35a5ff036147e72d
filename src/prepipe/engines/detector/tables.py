"""What is known of a camera's detectors, as its observatory hands it out: crosstalk, linearity."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from prepipe.calibrate.detector.crosstalk import Coupling, CrosstalkTable
from prepipe.calibrate.detector.linearity import linear_table
from prepipe.errors import ConfigError, PixelError
from prepipe.model import Ccd

__all__ = [
    "LinearTables",
    "csv_rows",
    "fitting_hdu",
    "modified_ns",
    "read_crosstalk",
    "read_linearity",
    "understood",
]

LinearTables = Mapping[str, NDArray[np.float32]]
"""Linear ADU of 0, 1, 2, ... ADU above the bias, by the amplifiers' names."""

LARGEST_SHARE = 0.1
"""No amplifier shows a tenth of another's signal: such a number is of another column."""

AMPLIFIER = re.compile(r"(?:ccd)?0*(\d+)([a-z]\w*)", re.IGNORECASE)
LINEAR_COLUMN = "ADU_LINEAR_"


@contextmanager
def understood(what: str, path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in a file into one sentence that names it.

    Raises
    ------
    ConfigError
    """
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"{what} {path} does not exist: give its path") from None
    except (ConfigError, PixelError) as error:
        raise ConfigError(f"{what} {path}: {error}") from None
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{what} {path} cannot be read: {reason}") from error


def modified_ns(what: str, path: Path) -> int:
    """When a file changed last, ns; what was read of it before is then read anew.

    Raises
    ------
    ConfigError
        If there is no such file.
    """
    with understood(what, path):
        return path.stat().st_mtime_ns


def csv_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file with a line of names; lines that begin with # are left out.

    Raises
    ------
    ConfigError
        If a column is missing, there are no rows, or a row has no value in one of them.
    OSError, ValueError
        If it cannot be read as text.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = (line for line in file if line.strip() and not line.startswith("#"))
        reader = csv.DictReader(lines, skipinitialspace=True)
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        missing = [column for column in columns if column not in names]
        if missing:
            found = ", ".join(names) or "none"
            raise ConfigError(f"it has no column {missing[0]} (of {', '.join(columns)}; {found})")
        reader.fieldnames = names
        rows = []
        for n, row in enumerate(reader, start=1):
            if any(not (row[column] or "").strip() for column in columns):
                raise ConfigError(f"its row {n} is incomplete")
            rows.append({name: str(value).strip() for name, value in row.items()})
    if not rows:
        raise ConfigError("it has no rows")
    return rows


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{name} {text!r} is no number") from None
    if not np.isfinite(value):
        raise ConfigError(f"{name} {text!r} is not a finite number")
    return value


def read_crosstalk(path: Path) -> CrosstalkTable:
    """Read a table of crosstalk.

    Parameters
    ----------
    path : Path
        The table of DECam's observatory: victim, source (``ccd25B``), share, its error, onset
        in ADU above the overscan and the coefficients of the polynomial from there on; or a CSV
        with the columns victim, source, coefficient.

    Returns
    -------
    CrosstalkTable

    Raises
    ------
    ConfigError
        If it is missing or wrong.
    """
    return _read_crosstalk(path, modified_ns("the crosstalk table", path))


@lru_cache(maxsize=4)
def _read_crosstalk(path: Path, _mtime_ns: int) -> CrosstalkTable:
    with understood("the crosstalk table", path):
        text = path.read_text()
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if lines and "," in lines[0]:
            rows = [
                [row["victim"], row["source"], row["coefficient"]]
                for row in csv_rows(path, ("victim", "source", "coefficient"))
            ]
        else:
            rows = [line.split() for line in lines]
        if not rows:
            raise ConfigError("it has no rows")
        couplings: dict[tuple[int, int], list[Coupling]] = defaultdict(list)
        for row in rows:
            ccds, coupling = _coupling(row)
            pair = (coupling.victim, coupling.source)
            if any((known.victim, known.source) == pair for known in couplings[ccds]):
                raise ConfigError(f"{row[0]} {row[1]} is there twice")
            couplings[ccds].append(coupling)
        return CrosstalkTable({ccds: tuple(found) for ccds, found in couplings.items()})


def _coupling(row: Sequence[str]) -> tuple[tuple[int, int], Coupling]:
    """CCDs (victim, source) and coupling of a row."""
    where = " ".join(row[:2])
    if len(row) != 3 and len(row) < 6:
        raise ConfigError(
            f"the row {' '.join(row)!r} is neither victim, source, coefficient nor these with "
            "error, onset and polynomial"
        )
    victim, source = (_amplifier(name) for name in row[:2])
    if victim == source:
        raise ConfigError(f"{where}: an amplifier is no source of its own crosstalk")
    coefficient = _number(row[2], f"{where}: the coefficient")
    if abs(coefficient) > LARGEST_SHARE:
        raise ConfigError(f"{where}: the coefficient {row[2]} is no share of a ghost")
    if len(row) == 3:
        return (victim[0], source[0]), Coupling(victim[1], source[1], coefficient)
    onset = _number(row[4], f"{where}: the onset")
    if onset <= 0:
        raise ConfigError(f"{where}: the onset {row[4]} is not above 0 ADU")
    polynomial = tuple(_number(text, f"{where}: the coefficient") for text in row[5:])
    return (victim[0], source[0]), Coupling(victim[1], source[1], coefficient, onset, polynomial)


def _amplifier(text: str) -> tuple[int, str]:
    found = AMPLIFIER.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"{text!r} is no amplifier: write it like ccd25A")
    return int(found[1]), found[2].upper()


def read_linearity(path: Path, ccd: Ccd) -> LinearTables | None:
    """Read what a CCD's amplifiers should have counted.

    Parameters
    ----------
    path : Path
        FITS with a table for each CCD, told by its CCDNUM card, its name or its place, with the
        columns ADU and ADU_LINEAR_A, ADU_LINEAR_B (as ``linearity_table_v0.4.fits`` of DECam);
        or a CSV with the columns ccd, amplifier, adu, linear_adu, between whose rows is
        interpolated.
    ccd : Ccd

    Returns
    -------
    mapping of str to ndarray of float32, or None
        None if the file has nothing about this CCD.

    Raises
    ------
    ConfigError
        If it is missing or wrong.
    """
    return _read_linearity(path, modified_ns("the linearity table", path), ccd)


@lru_cache(maxsize=64)
def _read_linearity(path: Path, _mtime_ns: int, ccd: Ccd) -> LinearTables | None:
    with understood("the linearity table", path):
        if path.suffix.lower() == ".csv":
            return _linearity_csv(path, ccd)
        with fits.open(path) as hdus:
            tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)]
            table = fitting_hdu(tables, ccd)
            return None if table is None else _linearity_fits(table.data)


def _linearity_csv(path: Path, ccd: Ccd) -> LinearTables | None:
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in csv_rows(path, ("ccd", "amplifier", "adu", "linear_adu")):
        adu, linear = _number(row["adu"], "adu"), _number(row["linear_adu"], "linear_adu")
        if _number(row["ccd"], "ccd") == ccd.number:
            points[row["amplifier"].upper()].append((adu, linear))
    if not points:
        return None
    return {name: linear_table(*np.array(rows).T) for name, rows in points.items()}


def _linearity_fits(data: fits.FITS_rec) -> LinearTables:
    names = {name.upper(): name for name in data.dtype.names}
    linear = [name for name in names if name.startswith(LINEAR_COLUMN)]
    if "ADU" not in names or not linear:
        raise ConfigError("its table has no columns ADU and ADU_LINEAR_A")
    adu = np.asarray(data[names["ADU"]], np.float64)
    return {
        name.removeprefix(LINEAR_COLUMN): linear_table(
            adu, np.asarray(data[names[name]], np.float64)
        )
        for name in linear
    }


def fitting_hdu(hdus: Sequence[fits.FitsHDU], ccd: Ccd) -> fits.FitsHDU | None:
    """The HDU of a CCD: by its CCDNUM card, else by its name, else by its place.

    Parameters
    ----------
    hdus : sequence
        Those that come in question, in the order of the file.
    ccd : Ccd

    Returns
    -------
    HDU or None
        None if the file has none of this CCD.

    Raises
    ------
    ConfigError
        If there are none, or two of this CCD.
    """
    if not hdus:
        raise ConfigError("it has no HDU of the kind that is needed")
    numbers = [hdu.header.get("CCDNUM") for hdu in hdus]
    names = [str(hdu.name).upper() for hdu in hdus]
    own = {ccd.name.upper(), str(ccd.number), f"CCD{ccd.number}", f"CCD{ccd.number:02d}"} - {""}
    if any(number is not None for number in numbers):
        found = [hdu for hdu, number in zip(hdus, numbers, strict=True) if number == ccd.number]
    elif any(names):
        found = [hdu for hdu, name in zip(hdus, names, strict=True) if name in own]
    else:
        found = list(hdus[ccd.number - 1 : ccd.number])
    if len(found) > 1:
        raise ConfigError(f"it has {len(found)} HDUs of CCD {ccd.number}")
    return found[0] if found else None
