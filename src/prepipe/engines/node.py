"""Around an engine's work, on the node that does it: own disk, turns at the shared one, a note."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from prepipe.compute.scratch import scratch_directory, scratch_root, shared_turn
from prepipe.engines.base import Order, Outcome
from prepipe.errors import PlaceLostError, PrepipeError, StorageError
from prepipe.files import atomic_path, storage_errors

__all__ = ["Node", "on_node"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_JOB_IDS = ("SLURM_JOB_ID", "PBS_JOBID")


@dataclass(frozen=True)
class Node:
    """What a worker is told about the node that it will find itself on.

    Parameters
    ----------
    scratch : str
        The node's own disk, see `scratch_root`; empty to work on the shared disk itself.
    shared_slots : int
        With `scratch`: workers of one node that read or write the shared disk at the same time;
        0 for all.
    notes : Path or None
        Directory where a note lies while a CCD is worked on.
    """

    scratch: str = ""
    shared_slots: int = 0
    notes: Path | None = None


def on_node(work: Callable[[Order], Outcome], node: Node, order: Order) -> Outcome:
    """Carry out an order on the node's own disk; only finished products reach the shared one.

    Parameters
    ----------
    work : callable
        An engine's.
    node : Node
    order : Order

    Returns
    -------
    Outcome
        As `work` gave it, with the products' paths on the shared disk.

    Raises
    ------
    PlaceLostError
        If the node's disk cannot be used.
    """
    with _noted(node.notes, order):
        if not node.scratch:
            return work(order)
        root = scratch_root(node.scratch)
        with scratch_directory(root) as here, _as_if_shared(here, order):
            return _worked_on(work, order, here, root, node.shared_slots)


def _worked_on(
    work: Callable[[Order], Outcome], order: Order, here: Path, root: Path, slots: int
) -> Outcome:
    source, products, scratch = here / order.source.name, here / "products", here / "scratch"
    # one that is not mounted could be made anew, on a disk that nobody else sees
    _require_seen(order.products)
    with _own_disk():
        scratch.mkdir()
    with shared_turn(root, slots):
        _fetch(order.source, source)
    outcome = work(replace(order, source=source, products=products, scratch=scratch))
    with shared_turn(root, slots):
        return _delivered(outcome, products, order.products)


def _require_seen(*paths: Path) -> None:
    for path in paths:
        if not os.path.lexists(path):
            raise PlaceLostError(f"{os.uname().nodename} does not see {path}: is it mounted?")


def _fetch(source: Path, target: Path) -> None:
    # whether it is gone is for the ingest to say, which has just seen it; a node may lag behind
    _require_seen(source.parent, source)
    try:
        packed = source.read_bytes()
    except OSError as error:
        raise StorageError(f"{source}: {error.strerror}; it is tried again") from error
    with _own_disk():
        target.write_bytes(packed)


@contextmanager
def _own_disk() -> Iterator[None]:
    """A fault of the node's disk is none of the CCD."""
    try:
        yield
    except OSError as error:
        told = "is full" if error.errno in _FULL else f"cannot be used: {error.strerror}"
        raise PlaceLostError(f"{os.uname().nodename}: its own disk {told}") from error


def _delivered(outcome: Outcome, products: Path, shared: Path) -> Outcome:
    """Copy what was made; the product that the journal names last, since it stands for the rest."""
    named = outcome.reduction.product
    files = [path for path in products.rglob("*") if path.is_file() and not path.is_symlink()]
    for path in sorted(files, key=lambda path: str(path) == named):
        target = shared / path.relative_to(products)
        with storage_errors(target), atomic_path(target) as partial:
            shutil.copyfile(path, partial)

    def moved(told: str | None) -> str | None:
        if told is None or not Path(told).is_relative_to(products):
            return told
        return str(shared / Path(told).relative_to(products))

    reduction = outcome.reduction
    return replace(
        outcome,
        reduction=replace(
            reduction, product=moved(reduction.product), catalogue=moved(reduction.catalogue)
        ),
    )


@contextmanager
def _as_if_shared(here: Path, order: Order) -> Iterator[None]:
    """Tell errors by the packet's own path; a node's full disk is no fault of the CCD."""
    try:
        yield
    except PrepipeError as error:
        text = str(error)
        if isinstance(error, StorageError) and str(here) in text:
            raise PlaceLostError(f"{os.uname().nodename}: {text}") from error
        told = text.replace(str(here / order.source.name), str(order.source))
        if told == text:
            raise
        raise type(error)(told) from error
    except OSError as error:
        if error.errno in _FULL or str(error.filename).startswith(str(here)):
            raise PlaceLostError(f"{os.uname().nodename}: {error}") from error
        raise


@contextmanager
def _noted(notes: Path | None, order: Order) -> Iterator[None]:
    """A note of where the CCD is, while it is worked on."""
    if notes is None:
        yield
        return
    note = notes / order.source.name
    told = {
        "node": os.uname().nodename,
        "pid": os.getpid(),
        "job": next((os.environ[name] for name in _JOB_IDS if name in os.environ), ""),
        "since": time.time(),
    }
    # a note is a courtesy: where it cannot be written, work goes on
    with suppress(OSError):
        notes.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(told))
    try:
        yield
    finally:
        with suppress(OSError):
            note.unlink()
