"""The source table on disk: FITS, Parquet or both, with the same columns, units and cards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import fitsio
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from prepipe.engines.builtin.table import write_table
from prepipe.engines.names import CATALOGUES, catalogue_paths
from prepipe.engines.products import Card, is_tellable
from prepipe.errors import FitsError
from prepipe.files import atomic_path, storage_errors

__all__ = ["Columns", "read_catalogue", "write_catalogues"]

Columns = Mapping[str, tuple[NDArray[Any], str]]
"""Name to values and unit."""


def write_catalogues(product: Path, form: str, columns: Columns, cards: Iterable[Card]) -> None:
    """Write the source table of a product; one of another form that lay there goes.

    Parameters
    ----------
    product : Path
        The image; the table gets its name.
    form : {"fits", "parquet", "both"}
    columns : mapping
    cards : iterable of (keyword, value, comment)

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    told = list(cards)
    wanted = catalogue_paths(product, form)
    for path in wanted:
        write = _write_parquet if path.name.endswith(CATALOGUES["parquet"]) else write_table
        write(path, columns, told)
    for stale in set(catalogue_paths(product, "both")) - set(wanted):
        with storage_errors(stale):
            stale.unlink(missing_ok=True)


def read_catalogue(product: Path) -> tuple[NDArray[Any], dict[str, Any]]:
    """Read the source table of a product, in whatever form it is there.

    Returns
    -------
    sources : structured ndarray
    cards : dict
        Keyword to value.

    Raises
    ------
    FitsError
        If there is none, or it cannot be read.
    """
    fits, parquet_table = catalogue_paths(product, "both")
    try:
        return _read_parquet(parquet_table) if parquet_table.exists() else _read_fits(fits)
    except (OSError, ValueError) as error:
        raise FitsError(
            f"{product}: its source table {fits.name} cannot be read: {str(error).splitlines()[0]}"
        ) from error


def _write_parquet(path: Path, columns: Columns, cards: Iterable[Card]) -> None:
    """Units stand with the columns, cards with the schema; astropy finds both where it looks."""
    arrays = [pa.array(np.ascontiguousarray(values)) for values, _ in columns.values()]
    fields = [
        pa.field(name, array.type, metadata={"unit": unit} if unit else None)
        for array, (name, (_, unit)) in zip(arrays, columns.items(), strict=True)
    ]
    told = {key: _plain(value) for key, value, _ in cards if is_tellable(value)}
    metadata = {key: _text(value) for key, value in told.items()}
    metadata["table_meta_yaml"] = _for_astropy(columns, told)
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata))
    with atomic_path(path) as partial:
        parquet.write_table(table, partial, compression="zstd")


def _for_astropy(columns: Columns, cards: Mapping[str, Any]) -> str:
    """What ``astropy.table.Table.read`` takes units and meta from; JSON is YAML."""
    told = [
        {"name": name, "datatype": values.dtype.name, **({"unit": unit} if unit else {})}
        for name, (values, unit) in columns.items()
    ]
    return json.dumps({"datatype": told, "meta": cards})


def _plain(value: Any) -> bool | int | float | str:
    """The value as Python has it."""
    plain: bool | int | float | str = value.item() if isinstance(value, np.generic) else value
    return plain


def _text(value: float | str) -> str:
    """The value as text: a string as it is, anything else as JSON writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _read_fits(path: Path) -> tuple[NDArray[Any], dict[str, Any]]:
    rows, header = fitsio.read(str(path), ext="SOURCES", header=True)
    return rows, {str(key): header[key] for key in list(header.keys()) if key}


def _read_parquet(path: Path) -> tuple[NDArray[Any], dict[str, Any]]:
    table = parquet.read_table(path)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    rows = np.empty(len(table), [(name, values.dtype) for name, values in columns.items()])
    for name, values in columns.items():
        rows[name] = values
    cards = json.loads((table.schema.metadata or {}).get(b"table_meta_yaml", b"{}")).get("meta", {})
    return rows, cards
