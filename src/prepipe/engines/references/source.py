"""Reading reference catalogues: FITS tables, CSV, Parquet, or a store built of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from prepipe.calibrate.sky.refcat import (
    ReferenceCatalogue,
    ReferenceSource,
    build_catalogue,
    recognise_columns,
)
from prepipe.engines.references.store import open_store
from prepipe.engines.references.tables import column_units, read_batches, readable
from prepipe.errors import ConfigError

__all__ = ["load_reference"]


def load_reference(
    path: Path, band: str | None = None, columns: Mapping[str, str] | None = None
) -> ReferenceSource:
    """Open a catalogue of reference stars.

    Parameters
    ----------
    path : Path
        A FITS table (also compressed with gzip), CSV or Parquet file, by its ending; or
        the directory of a store, of which nothing is read yet.
    band : str, optional
        Of the exposure; its magnitudes are preferred.
    columns : Mapping, optional
        Column of each quantity where its name is not a usual one, see
        `prepipe.calibrate.sky.refcat.recognise_columns`.

    Returns
    -------
    ReferenceSource
        A `ReferenceCatalogue` with all stars of a file; a `ReferenceStore`, read where
        and when it is asked, of a directory.

    Raises
    ------
    ConfigError
        If the file is missing, unreadable, of another kind, empty, or without the
        columns that are needed; if the directory is no store, or not whole.
    """
    path = Path(path)
    return open_store(path, band, columns) if path.is_dir() else _whole(path, band, columns)


def _whole(path: Path, band: str | None, mapping: Mapping[str, str] | None) -> ReferenceCatalogue:
    """All stars of a file."""
    names = column_units(path)
    with readable(path):
        columns = recognise_columns(names, mapping, band)
        batches = list(read_batches(path, columns.names))
        if not batches:
            raise ConfigError("it has no rows")
        table = {name: np.concatenate([batch[name] for batch in batches]) for name in columns.names}
        return build_catalogue(table, columns)
