"""Reading reference catalogues: FITS tables, CSV and Parquet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from astropy.io import fits
from numpy.typing import NDArray
from pyarrow import csv, parquet

from prepipe.calibrate.refcat import (
    Columns,
    ReferenceCatalogue,
    build_catalogue,
    recognise_columns,
)
from prepipe.errors import ConfigError

__all__ = ["load_reference"]

Table = dict[str, NDArray[np.generic]]


def load_reference(
    path: Path, band: str | None = None, columns: Mapping[str, str] | None = None
) -> ReferenceCatalogue:
    """Read a catalogue of reference stars.

    Parameters
    ----------
    path : Path
        A FITS table (also compressed with gzip), CSV or Parquet file, by its ending.
    band : str, optional
        Of the exposure; its magnitudes are preferred.
    columns : Mapping, optional
        Column of each quantity where its name is not a usual one, see
        `prepipe.calibrate.refcat.recognise_columns`.

    Returns
    -------
    ReferenceCatalogue

    Raises
    ------
    ConfigError
        If the file is missing, unreadable, of another kind, empty, or without the
        columns that are needed.
    """
    path = Path(path)
    readers = {
        ".fits": _read_fits,
        ".fit": _read_fits,
        ".fz": _read_fits,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
        ".pq": _read_parquet,
    }
    ending = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    reader = readers.get(ending.lower())
    if reader is None:
        raise ConfigError(f"the reference catalogue {path} is no .fits, .csv or .parquet file")
    if not path.is_file():
        raise ConfigError(f"the reference catalogue {path} does not exist: give its path")
    try:
        recognised, table = reader(path, band, columns)
        return build_catalogue(table, recognised)
    except ConfigError as error:
        raise ConfigError(f"the reference catalogue {path}: {error}") from None
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"the reference catalogue {path} cannot be read: {reason}") from error


def _read_fits(
    path: Path, band: str | None, mapping: Mapping[str, str] | None
) -> tuple[Columns, Table]:
    """Needed columns of the first table extension."""
    with fits.open(path) as hdus:
        hdu = next((h for h in hdus if isinstance(h, fits.BinTableHDU | fits.TableHDU)), None)
        if hdu is None:
            raise ConfigError("it has no table extension")
        columns = recognise_columns({c.name: c.unit for c in hdu.columns}, mapping, band)
        return columns, {name: np.array(hdu.data[name]) for name in columns.names}


def _read_csv(
    path: Path, band: str | None, mapping: Mapping[str, str] | None
) -> tuple[Columns, Table]:
    """Needed columns of a CSV file; lines that start with # above the names are skipped."""
    with pa.input_stream(path, compression="detect") as stream:
        text = stream.read()
    skipped = 0
    while text.startswith(b"#", skipped):
        skipped = text.find(b"\n", skipped) + 1 or len(text)
    if not text[skipped:].strip():
        raise ConfigError("it is empty")
    table = csv.read_csv(
        pa.py_buffer(text[skipped:]),
        convert_options=csv.ConvertOptions(null_values=["", "null", "NULL", "nan", "NaN", "--"]),
    )
    columns = recognise_columns(dict.fromkeys(table.column_names), mapping, band)
    return columns, _from_arrow(table, columns)


def _read_parquet(
    path: Path, band: str | None, mapping: Mapping[str, str] | None
) -> tuple[Columns, Table]:
    """Needed columns of a Parquet file; units are those in the fields' metadata."""
    schema = parquet.read_schema(path)
    names = {
        field.name: (field.metadata or {}).get(b"unit", b"").decode() or None for field in schema
    }
    columns = recognise_columns(names, mapping, band)
    return columns, _from_arrow(parquet.read_table(path, columns=columns.names), columns)


def _from_arrow(table: pa.Table, columns: Columns) -> Table:
    """numpy arrays of the needed columns; nulls become NaN."""
    return {name: table.column(name).to_numpy() for name in columns.names}
