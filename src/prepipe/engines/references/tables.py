"""Tables of stars as archives hand them out: FITS, CSV, Parquet and HATS, batch by batch."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import numpy as np
import pyarrow as pa
from astropy.io import fits
from numpy.typing import NDArray
from pyarrow import csv, parquet

from prepipe.errors import ConfigError

__all__ = ["Source", "Table", "column_units", "find_source", "read_batches", "readable"]

Table = dict[str, NDArray[np.generic]]
"""Columns by name; all of one length."""

BATCH_ROWS = 250_000
CSV_BLOCK_BYTES = 1 << 24
NULLS = ["", "null", "NULL", "nan", "NaN", "--"]


@dataclass(frozen=True)
class Source:
    """One input of a reference catalogue.

    Parameters
    ----------
    path : Path
        As it was given.
    files : tuple of Path
        Its tables, sorted.
    columns : Mapping
        What it says itself of its columns, as for `recognise_columns`.
    promised_rows : int or None
        Rows that the whole catalogue has by its own account; a part may be here.
    """

    path: Path
    files: tuple[Path, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    promised_rows: int | None = None


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in a table into one sentence that names it.

    Raises
    ------
    ConfigError
    """
    try:
        yield
    except ConfigError as error:
        if str(path) in str(error):
            raise
        raise ConfigError(f"the reference catalogue {path}: {error}") from None
    except (OSError, ValueError, LookupError, TypeError, EOFError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"the reference catalogue {path} cannot be read: {reason}") from error


def find_source(path: Path) -> Source:
    """Find the tables of an input.

    Parameters
    ----------
    path : Path
        A FITS, CSV or Parquet file; a HATS catalogue or collection (IVOA note HATS 1.0: its
        rows lie in ``Norder=/Dir=/Npix=``); or a directory of tables.

    Returns
    -------
    Source

    Raises
    ------
    ConfigError
        If there is none, or only the margin of a HATS catalogue.
    """
    if not path.exists():
        raise ConfigError(f"the reference catalogue {path} does not exist: give its path")
    if path.is_file():
        _reader(path)
        return Source(path, (path,))
    root = path
    primary = _properties(path / "collection.properties").get("hats_primary_table_url")
    if primary is not None:
        root = path / primary
    facts = _properties(root / "properties") | _properties(root / "hats.properties")
    if facts.get("dataproduct_type") == "margin":
        raise ConfigError(f"{root} is only the margin of a HATS catalogue: give the catalogue")
    files = _hats_files(root)
    if not files and facts:
        raise ConfigError(f"the HATS catalogue {root} has no Norder=*/Dir=*/Npix=*.parquet")
    if not files:
        files = _plain_files(root)
    if not files:
        raise ConfigError(f"the directory {path} has no .fits, .csv or .parquet tables")
    named = {what: facts.get(f"hats_col_{what}") for what in ("ra", "dec")}
    rows = facts.get("hats_nrows", "")
    return Source(
        path,
        tuple(files),
        {what: name for what, name in named.items() if name},
        int(rows) if rows.isdigit() else None,
    )


def column_units(path: Path) -> dict[str, str | None]:
    """Names of a table's columns with their units (None: not stated).

    Raises
    ------
    ConfigError
        If the file is missing, unreadable or of another kind.
    """
    names, _ = _reader(path)
    if not path.is_file():
        raise ConfigError(f"the reference catalogue {path} does not exist: give its path")
    with readable(path):
        return names(path)


def read_batches(
    path: Path, columns: Sequence[str], identifier: str | None = None
) -> Iterator[Table]:
    """Read some columns of a table, a bounded number of rows at a time.

    Parameters
    ----------
    path : Path
    columns : sequence of str
        Of numbers; nulls become NaN.
    identifier : str, optional
        Another column, of integers or strings.

    Yields
    ------
    Table

    Raises
    ------
    ConfigError
        If the file is unreadable or of another kind.
    """
    _, batches = _reader(path)
    wanted = list(dict.fromkeys([*columns, *([identifier] if identifier else [])]))
    with readable(path):
        yield from batches(path, wanted, identifier)


def _properties(path: Path) -> dict[str, str]:
    """Key = value lines of a HATS catalogue; nothing if there is no such file."""
    if not path.is_file():
        return {}
    with readable(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if not line.lstrip().startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs if value.strip()}


def _hats_files(root: Path) -> list[Path]:
    """Tables of a HATS catalogue: a pixel is a file, or a directory of them."""
    pixels = [
        *root.glob("dataset/Norder=*/Dir=*/Npix=*"),
        *root.glob("Norder=*/Dir=*/Npix=*"),
    ]
    files: list[Path] = []
    for pixel in pixels:
        files += sorted(pixel.glob("[!._]*.parquet")) if pixel.is_dir() else [pixel]
    return sorted(file for file in files if file.suffix == ".parquet")


def _plain_files(root: Path) -> list[Path]:
    """Tables anywhere below a directory; what is hidden or _metadata does not count."""
    found = []
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        hidden = any(part.startswith((".", "_")) for part in parts)
        if not hidden and _ending(path) in READERS and path.is_file():
            found.append(path)
    return sorted(found)


def _ending(path: Path) -> str:
    unzipped = Path(path.stem) if path.suffix.lower() == ".gz" else path
    return unzipped.suffix.lower()


def _reader(path: Path) -> tuple[_Names, _Batches]:
    reader = READERS.get(_ending(path))
    if reader is None:
        raise ConfigError(f"the reference catalogue {path} is no .fits, .csv or .parquet file")
    return reader


@contextmanager
def _fits_table(path: Path) -> Iterator[fits.BinTableHDU]:
    """First table extension, mapped from the disk; unzipped to one where needed."""
    with tempfile.TemporaryDirectory(prefix="prepipe-") as scratch:
        file = path
        if path.suffix.lower() == ".gz":
            file = Path(scratch) / path.stem
            with gzip.open(path) as packed, file.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 22)
        with fits.open(file, memmap=True) as hdus:
            kinds = fits.BinTableHDU | fits.TableHDU
            hdu = next((hdu for hdu in hdus if isinstance(hdu, kinds)), None)
            if hdu is None:
                raise ConfigError("it has no table extension")
            yield hdu


def _fits_names(path: Path) -> dict[str, str | None]:
    with _fits_table(path) as hdu:
        return {column.name: column.unit for column in hdu.columns}


def _fits_batches(path: Path, columns: list[str], _identifier: str | None) -> Iterator[Table]:
    with _fits_table(path) as hdu:
        for begin in range(0, hdu.header["NAXIS2"], BATCH_ROWS):
            rows = hdu.data[begin : begin + BATCH_ROWS]
            yield {name: np.array(rows[name]) for name in columns}


@contextmanager
def _csv_stream(
    path: Path, convert: csv.ConvertOptions | None = None
) -> Iterator[csv.CSVStreamingReader]:
    """A CSV file from below the lines that start with #."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rb") as stream:
        skipped = sum(1 for _ in takewhile(lambda line: line.startswith(b"#"), stream))
    if not path.stat().st_size:
        raise ConfigError("it is empty")
    with (
        pa.input_stream(path, compression="detect") as text,
        csv.open_csv(
            text,
            read_options=csv.ReadOptions(block_size=CSV_BLOCK_BYTES, skip_rows=skipped),
            convert_options=convert or csv.ConvertOptions(null_values=NULLS),
        ) as reader,
    ):
        yield reader


def _csv_names(path: Path) -> dict[str, str | None]:
    with _csv_stream(path) as reader:
        return dict.fromkeys(reader.schema.names)


def _csv_batches(path: Path, columns: list[str], identifier: str | None) -> Iterator[Table]:
    # Types are stated: a column that is empty in the first block would count as no numbers.
    types = dict.fromkeys(columns, pa.float64())
    if identifier is not None:
        with _csv_stream(path) as reader:
            integers = pa.types.is_integer(reader.schema.field(identifier).type)
        types[identifier] = pa.int64() if integers else pa.string()
    convert = csv.ConvertOptions(include_columns=columns, column_types=types, null_values=NULLS)
    with _csv_stream(path, convert) as reader:
        for batch in reader:
            yield _from_arrow(batch, columns)


def _parquet_names(path: Path) -> dict[str, str | None]:
    """Column names with the units in the fields' metadata."""
    return {
        column.name: (column.metadata or {}).get(b"unit", b"").decode() or None
        for column in parquet.read_schema(path)
    }


def _parquet_batches(path: Path, columns: list[str], _identifier: str | None) -> Iterator[Table]:
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
            yield _from_arrow(batch, columns)


def _from_arrow(batch: pa.RecordBatch, columns: list[str]) -> Table:
    return {name: batch.column(name).to_numpy(zero_copy_only=False) for name in columns}


_Names = Callable[[Path], dict[str, str | None]]
_Batches = Callable[[Path, list[str], str | None], Iterator[Table]]

READERS: dict[str, tuple[_Names, _Batches]] = {
    ".fits": (_fits_names, _fits_batches),
    ".fit": (_fits_names, _fits_batches),
    ".fz": (_fits_names, _fits_batches),
    ".csv": (_csv_names, _csv_batches),
    ".parquet": (_parquet_names, _parquet_batches),
    ".pq": (_parquet_names, _parquet_batches),
}
"""How each kind of table is read, by its ending: names of columns, and batches."""
