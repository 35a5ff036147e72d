"""What a reference catalogue store says of itself, and whether all of it is there."""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from prepipe.errors import ConfigError
from prepipe.files import storage_errors

__all__ = [
    "ASTROMETRIC",
    "MANIFEST",
    "POSITION_ERROR",
    "VERSION",
    "Input",
    "Manifest",
    "Partitions",
    "partition_path",
    "read_manifest",
    "whole_manifest",
]

MANIFEST = "refcat.json"
KIND = "prepipe reference catalogue"
VERSION = 1

POSITION_ERROR = "position_error"
ASTROMETRIC = {
    "ra": "deg",
    "dec": "deg",
    POSITION_ERROR: "mas",
    "pm_ra": "mas / yr",
    "pm_dec": "mas / yr",
}
"""Columns that every store names alike, with their units; the others are named as they came."""


class Partitions(BaseModel):
    """The files of a store, one entry each in every list.

    Parameters
    ----------
    order, pixel : list of int
        HEALPix order and nested pixel.
    rows, size : list of int
        Stars; bytes.
    ra, dec, radius : list of float
        Circle around all its stars, deg.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: list[int]
    pixel: list[int]
    rows: list[int]
    size: list[int]
    ra: list[float]
    dec: list[float]
    radius: list[float]

    def __len__(self) -> int:
        return len(self.order)


class Input(BaseModel):
    """What a store was built from: rows read of it, and rows it has by its own account."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    files: int
    rows: int
    promised_rows: int | None = None


class Manifest(BaseModel):
    """What a store holds.

    Parameters
    ----------
    format, version : str, int
    created : datetime
        UTC.
    epoch_year : float or None
        Julian year of all positions.
    columns : dict
        Magnitudes, errors and colours, each with the number of stars that have one.
    motions : int or None
        Number of stars with proper motions; None if the catalogue has none.
    identifier : str or None
        Column with the star's number in its survey.
    named : dict
        Columns of magnitudes that were named at the build, as for `recognise_columns`.
    max_mag : float or None
        Fainter ones were left out.
    cone : tuple of float or None
        RA, Dec and radius (deg) beyond which stars were left out.
    duplicates : int
        Rows left out because the same star was there already.
    inputs : list of Input
    partitions : Partitions
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["prepipe reference catalogue"] = "prepipe reference catalogue"
    version: Literal[1] = 1
    created: datetime
    epoch_year: float | None
    columns: dict[str, int]
    motions: int | None
    identifier: str | None
    named: dict[str, str]
    max_mag: float | None
    cone: tuple[float, float, float] | None
    duplicates: int
    inputs: list[Input]
    partitions: Partitions

    @property
    def rows(self) -> int:
        """Stars in the store."""
        return sum(self.partitions.rows)


def partition_path(order: int, pixel: int) -> Path:
    """Where a partition lies within a store, as HATS names it."""
    return Path(f"Norder={order}/Dir={pixel // 10000 * 10000}/Npix={pixel}.parquet")


def read_manifest(root: Path) -> Manifest:
    """Read what a store says of itself.

    Raises
    ------
    ConfigError
        If the directory is no store, of another version, or its manifest is damaged.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise ConfigError(
            f"{root} is no reference catalogue store, it has no {MANIFEST}: "
            "make one with `prepipe refcat build`"
        )
    try:
        with storage_errors(path):
            facts: Any = json.loads(path.read_bytes())
        if not isinstance(facts, dict) or facts.get("format") != KIND:
            raise ValueError("it describes no reference catalogue")
        if facts.get("version") != VERSION:
            raise ConfigError(
                f"{path} is of version {facts.get('version')}, this is for {VERSION}: "
                "build the store again"
            )
        return Manifest.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{where}: {first['msg']}"
    except ValueError as error:
        reason = str(error)
    raise ConfigError(f"{path} is damaged ({reason}): build the store again")


def whole_manifest(root: Path) -> Manifest:
    """Read what a store says of itself, and see that its files are there and of full length.

    Parameters
    ----------
    root : Path

    Returns
    -------
    Manifest
        Kept until the store is built anew.

    Raises
    ------
    ConfigError
        If it is no store, of another version, or a partition is missing or cut short.
    """
    path = root / MANIFEST
    return _checked(root, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=4)
def _checked(root: Path, _mtime_ns: int) -> Manifest:
    """Manifest of a store whose files are all there and as long as they should be."""
    manifest = read_manifest(root)
    partitions = manifest.partitions
    for order, pixel, size in zip(partitions.order, partitions.pixel, partitions.size, strict=True):
        path = root / partition_path(order, pixel)
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            raise ConfigError(f"{path} is missing: build the store again") from None
        if found != size:
            raise ConfigError(f"{path} has {found} bytes instead of {size}: build the store again")
    return manifest
