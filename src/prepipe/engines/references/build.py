"""Building a reference catalogue store: tables of any size in, a directory or nothing out.

Rows are spilled to one file a coarse pixel as they are read, so that memory holds one batch;
then each spill becomes one or more partitions of bounded size.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from prepipe.engines.references.manifest import (
    ASTROMETRIC,
    MANIFEST,
    Input,
    Manifest,
    Partitions,
    partition_path,
)
from prepipe.engines.references.rows import (
    BASE_ORDER,
    FINEST_ORDER,
    NO_IDENTIFIER,
    Filters,
    Kept,
    Rows,
    RowStream,
)
from prepipe.engines.references.store import directions
from prepipe.engines.references.tables import Source, find_source
from prepipe.errors import ConfigError
from prepipe.files import PARTIAL_SUFFIX, atomic_write, sole_user, storage_errors, sync_directory

__all__ = ["Filters", "Plan", "build_store", "find_sources", "plan_store"]

PARTITION_ROWS = 100_000
"""A denser partition is split into four, until `FINEST_ORDER`."""

SPARSE_ROWS = 20_000
"""Partitions coarser than `BASE_ORDER` hold no more: few files for few stars."""

SAME_STAR_ARCSEC = 1.0
"""Rows of one identifier this near to each other are one star; surveys do reuse numbers."""

ROUNDING_DEG = 1e-7

Counts = NDArray[np.int64]
Advance = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a build would make.

    Parameters
    ----------
    rows : int
        Stars, with those that come twice.
    partitions : int
    columns : tuple of str
        Magnitudes, errors and colours.
    epoch_year : float
        NaN if the catalogue has no epoch.
    inputs : tuple of Input
    """

    rows: int
    partitions: int
    columns: tuple[str, ...]
    epoch_year: float
    inputs: tuple[Input, ...]


def find_sources(inputs: Sequence[Path], out: Path | None = None) -> list[Source]:
    """Find the tables of all inputs.

    Parameters
    ----------
    inputs : sequence of Path
        Files and directories, see `prepipe.engines.references.tables.find_source`.
    out : Path, optional
        Store to be made; must not hold its own inputs.

    Raises
    ------
    ConfigError
        If an input has no tables, is a store itself, or lies within `out`.
    """
    sources = [find_source(Path(path)) for path in inputs]
    for source in sources:
        if (source.path / MANIFEST).is_file():
            raise ConfigError(f"{source.path} is a store already: give what it was built from")
        if out is not None and source.path.resolve().is_relative_to(out.resolve()):
            raise ConfigError(f"{source.path} lies in the store to be made: give another --out")
    return sources


def plan_store(
    sources: Sequence[Source],
    columns: Mapping[str, str] | None = None,
    filters: Filters | None = None,
    advance: Advance | None = None,
) -> Plan:
    """Read all inputs and say what a store of them would hold; nothing is written.

    Parameters
    ----------
    sources, columns, filters, advance
        As in `build_store`.

    Raises
    ------
    ConfigError
        If an input cannot be used, or no star is left.
    """
    stream = RowStream(sources, columns or {}, filters or Filters(), advance)
    counts = np.zeros(12 * 4**FINEST_ORDER, np.int64)
    for batch in stream:
        counts += np.bincount(batch["pixel"], minlength=len(counts))
    kept = _something(stream, counts)
    leaves = len(list(_leaves(counts)))
    return Plan(int(counts.sum()), leaves, kept.photometry, stream.epoch_year, tuple(stream.inputs))


def build_store(
    sources: Sequence[Source],
    out: Path,
    columns: Mapping[str, str] | None = None,
    filters: Filters | None = None,
    *,
    force: bool = False,
    advance: Advance | None = None,
) -> Manifest:
    """Build a store; it appears whole under its name, or not at all.

    Parameters
    ----------
    sources : sequence of Source
        From `find_sources`; all with the same magnitudes.
    out : Path
        Directory of the store. Its spills lie beside it meanwhile, about as large as it.
    columns : Mapping, optional
        Column of each quantity where its name is not a usual one, see
        `prepipe.calibrate.sky.refcat.recognise_columns`.
    filters : Filters, optional
    force : bool
        Replace a store that is there.
    advance : callable, optional
        Called with the name of each file that was read.

    Returns
    -------
    Manifest

    Raises
    ------
    ConfigError
        If an input cannot be used, no star is left, or `out` is there.
    StorageError
        If the disk is full or the directory cannot be written.
    """
    out = Path(out).absolute()
    _refuse_to_replace(out, force)
    stream = RowStream(sources, columns or {}, filters or Filters(), advance)
    with _workshop(out) as work, storage_errors(out):
        spill, store = work / "spill", work / "store"
        spill.mkdir()
        store.mkdir()
        counts = _spill(stream, spill)
        kept = _something(stream, counts)
        tally = _Tally(dict.fromkeys(kept.photometry, 0))
        for trunk, leaves in groupby(_leaves(counts), _trunk):
            spills = _spills(spill, *trunk)
            _partition(_read_spills(spills, kept), list(leaves), kept, store, tally)
            for path in spills:
                path.unlink()
        manifest = _manifest(stream, kept, tally)
        with atomic_write(store / MANIFEST) as target:
            target.write(manifest.model_dump_json().encode())
        _sync_tree(store)
        _put_in_place(store, out, work)
    return manifest


@dataclass
class _Tally:
    """What has been written so far."""

    stars: dict[str, int]
    motions: int = 0
    duplicates: int = 0
    partitions: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in Partitions.model_fields}
    )


def _refuse_to_replace(out: Path, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise ConfigError(f"{out} is there already: give --force to replace it")
    if not (out / MANIFEST).is_file():
        raise ConfigError(f"{out} is no reference catalogue store: give another --out")


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """A hidden directory beside the store, for one builder alone; gone when all is done."""
    work = out.with_name(f".{out.name}{PARTIAL_SUFFIX}")
    with sole_user(work / "lock"):
        try:
            with storage_errors(work):
                if not out.exists() and (work / "replaced").exists():
                    (work / "replaced").rename(out)  # the last builder was killed in between
                for leftover in ("spill", "store", "replaced"):
                    shutil.rmtree(work / leftover, ignore_errors=True)
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _spill(stream: RowStream, folder: Path) -> Counts:
    """Append every row to the file of its coarse pixel; how many there are in each fine one."""
    counts = np.zeros(12 * 4**FINEST_ORDER, np.int64)
    for batch in stream:
        counts += np.bincount(batch["pixel"], minlength=len(counts))
        base = batch["pixel"] >> 2 * (FINEST_ORDER - BASE_ORDER)
        starts = np.flatnonzero(np.diff(base, prepend=-1))
        for begin, end in zip(starts, [*starts[1:], len(base)], strict=True):
            with (folder / str(base[begin])).open("ab") as file:
                file.write(batch[begin:end].tobytes())
    return counts


def _something(stream: RowStream, counts: Counts) -> Kept:
    if stream.kept is None or not counts.any():
        raise ConfigError("no star with a position and a magnitude is left of the inputs")
    return stream.kept


def _leaves(counts: Counts) -> Iterator[tuple[int, int]]:
    """Order and pixel of all partitions, in nested order."""
    for face, inside in enumerate(counts.reshape(12, -1)):
        yield from _quartered(inside, 0, face)


def _quartered(counts: Counts, order: int, pixel: int) -> Iterator[tuple[int, int]]:
    rows = counts.sum()
    if rows == 0:
        return
    most = PARTITION_ROWS if order >= BASE_ORDER else SPARSE_ROWS
    if rows <= most or order == FINEST_ORDER:
        yield order, pixel
        return
    for child, quarter in enumerate(counts.reshape(4, -1)):
        yield from _quartered(quarter, order + 1, 4 * pixel + child)


def _trunk(leaf: tuple[int, int]) -> tuple[int, int]:
    """Pixel whose spills hold a partition."""
    order, pixel = leaf
    return leaf if order <= BASE_ORDER else (BASE_ORDER, pixel >> 2 * (order - BASE_ORDER))


def _spills(folder: Path, order: int, pixel: int) -> list[Path]:
    """Spills of all that lies in a pixel."""
    shift = 2 * (BASE_ORDER - order)
    named = (folder / str(base) for base in range(pixel << shift, (pixel + 1) << shift))
    return [path for path in named if path.exists()]


def _read_spills(spills: Sequence[Path], kept: Kept) -> Rows:
    """A large spill stays on disk, small ones come to memory."""
    if len(spills) == 1:
        return np.memmap(spills[0], dtype=kept.dtype, mode="r")
    return np.concatenate([np.fromfile(path, kept.dtype) for path in spills])


def _partition(
    rows: Rows, leaves: Sequence[tuple[int, int]], kept: Kept, store: Path, tally: _Tally
) -> None:
    """Write the partitions that some rows make."""
    by_pixel = np.argsort(rows["pixel"], kind="stable")
    pixels = rows["pixel"][by_pixel]
    for order, pixel in leaves:
        shift = 2 * (FINEST_ORDER - order)
        begin, end = np.searchsorted(pixels, [pixel << shift, (pixel + 1) << shift])
        stars = _once(np.asarray(rows[by_pixel[begin:end]]))
        tally.duplicates += int(end - begin) - len(stars)
        _write(store, order, pixel, stars[np.argsort(stars["dec"])], kept, tally)


def _once(rows: Rows) -> Rows:
    """The rows without the later ones of the same star."""
    numbers = np.sort(rows["identifier"])
    if not np.any((np.diff(numbers) == 0) & (numbers[1:] != NO_IDENTIFIER)):
        return rows
    order = np.lexsort((rows["ra"], rows["dec"], rows["identifier"]))
    identifier = rows["identifier"][order]
    place = directions(rows["ra"][order], rows["dec"][order])
    step = np.linalg.norm(np.diff(place, axis=0), axis=1)
    same = (np.diff(identifier) == 0) & (identifier[1:] != NO_IDENTIFIER)
    same &= step <= math.radians(SAME_STAR_ARCSEC / 3600.0)
    unique: Rows = rows[np.sort(order[np.concatenate([[True], ~same])])]
    return unique


def _write(store: Path, order: int, pixel: int, stars: Rows, kept: Kept, tally: _Tally) -> None:
    """Write one partition, and remember what it holds."""
    fields, columns = [], []
    for name in stars.dtype.names or ():
        if name == "pixel" or (name == "identifier" and kept.identifier is None):
            continue
        unit = ASTROMETRIC.get(name, "")
        kind = pa.from_numpy_dtype(stars.dtype[name])
        fields.append(pa.field(name, kind, metadata={"unit": unit} if unit else None))
        columns.append(pa.array(np.ascontiguousarray(stars[name])))
    path = store / partition_path(order, pixel)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_arrays(columns, schema=pa.schema(fields))
    parquet.write_table(
        table, path, compression="zstd", use_dictionary=False, write_page_checksum=True
    )
    for name in kept.photometry:
        tally.stars[name] += int(np.isfinite(stars[name]).sum())
    if kept.motions:
        tally.motions += int(np.isfinite(stars["pm_ra"]).sum())
    ra, dec, radius = _circle(stars)
    facts = {"order": order, "pixel": pixel, "rows": len(stars), "size": path.stat().st_size}
    for name, value in {**facts, "ra": ra, "dec": dec, "radius": radius}.items():
        tally.partitions[name].append(value)


def _circle(stars: Rows) -> tuple[float, float, float]:
    """RA, Dec and radius (deg) of a circle around some stars."""
    places = directions(stars["ra"], stars["dec"])
    x, y, z = places.mean(axis=0)
    ra, dec = math.degrees(math.atan2(y, x)) % 360.0, math.degrees(math.atan2(z, math.hypot(x, y)))
    chord = np.linalg.norm(places - directions(ra, dec), axis=1).max()
    return ra, dec, 2.0 * math.degrees(math.asin(min(1.0, 0.5 * chord))) + ROUNDING_DEG


def _manifest(stream: RowStream, kept: Kept, tally: _Tally) -> Manifest:
    photometric = {"mag", "mag_error", "colour", "g", "r", "i", "z", "y", "u"}
    named = {what: name for what, name in stream.mapping.items() if what in photometric}
    year = stream.epoch_year
    return Manifest(
        created=datetime.now(UTC),
        epoch_year=None if math.isnan(year) else year,
        columns=tally.stars,
        motions=tally.motions if kept.motions else None,
        identifier=kept.identifier,
        named=named,
        max_mag=stream.filters.max_mag,
        cone=stream.filters.cone,
        duplicates=tally.duplicates,
        inputs=stream.inputs,
        partitions=Partitions.model_validate(tally.partitions),
    )


def _sync_tree(root: Path) -> None:
    """Make everything below a directory survive a power cut."""
    for folder, _, files in os.walk(root):
        for name in files:
            with (Path(folder) / name).open("rb") as stream:
                os.fsync(stream.fileno())
        sync_directory(Path(folder))


def _put_in_place(store: Path, out: Path, work: Path) -> None:
    """Give the new store its name; the old one goes only once it has."""
    if out.exists():
        out.rename(work / "replaced")
    try:
        store.rename(out)
    except OSError:
        if (work / "replaced").exists():
            (work / "replaced").rename(out)
        raise
    sync_directory(out.parent)
