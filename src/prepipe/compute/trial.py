"""Does a site's batch system do what prepipe wants of it? One trivial task tells."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from prepipe.compute.base import Compute
from prepipe.compute.scratch import scratch_directory, scratch_root
from prepipe.errors import PrepipeError, TransientError

__all__ = ["Look", "Place", "Seen", "Trial", "look_around", "try_compute"]

_GLANCE_S = 0.1
_WARM = 20
_ROOM_BYTES = 1 << 20


@dataclass(frozen=True)
class Look:
    """What a worker shall look for: a node's own disk (may be empty), and shared directories."""

    scratch: str
    shared: tuple[Path, ...]


@dataclass(frozen=True)
class Place:
    """A directory as a node sees it.

    Parameters
    ----------
    path : str
    free_bytes : int or None
        None if it cannot be written.
    fault : str
        Why it cannot be used; empty if it can.
    """

    path: str
    free_bytes: int | None
    fault: str = ""


@dataclass(frozen=True)
class Seen:
    """What a worker found where it ran.

    Parameters
    ----------
    node, job, python, prepipe : str
    cores : int
        That it may use.
    scratch : Place or None
        None if the node's own disk is not used.
    shared : tuple of Place
    """

    node: str
    job: str
    python: str
    prepipe: str
    cores: int
    scratch: Place | None
    shared: tuple[Place, ...]

    @property
    def faults(self) -> tuple[str, ...]:
        """What must be mended before CCDs can be calibrated there."""
        places = (*self.shared, self.scratch) if self.scratch else self.shared
        return tuple(place.fault for place in places if place.fault)


@dataclass(frozen=True)
class Trial:
    """How it went.

    Parameters
    ----------
    first_s : float
        From submitting to the first answer: the wait for a job, and its start.
    warm_ms : float
        Median of the same once a worker is there.
    seen : Seen
    """

    first_s: float
    warm_ms: float
    seen: Seen


def look_around(order: Look) -> Seen:
    """What the worker that runs this sees around it."""
    from prepipe import __version__  # noqa: PLC0415

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Seen(
        node=os.uname().nodename,
        job=os.environ.get("SLURM_JOB_ID") or os.environ.get("PBS_JOBID", ""),
        python=platform.python_version(),
        prepipe=__version__,
        cores=cores or 1,
        scratch=_own_disk(order.scratch) if order.scratch else None,
        shared=tuple(_writable(path) for path in order.shared),
    )


def _own_disk(told: str) -> Place:
    try:
        root = scratch_root(told)
        with scratch_directory(root) as here:
            return _writable(here, shown=root)
    except PrepipeError as error:
        return Place(told, None, str(error))


def _writable(path: Path, shown: Path | None = None) -> Place:
    name = str(shown or path)
    try:
        # one that is not there yet is made in the nearest that is
        there = next(place for place in (path, *path.parents) if place.exists())
        with tempfile.TemporaryFile(dir=there) as stream:
            stream.write(bytes(_ROOM_BYTES))
        return Place(name, shutil.disk_usage(there).free)
    except OSError as error:
        node = os.uname().nodename
        return Place(name, None, f"{name} cannot be written on {node}: {error.strerror}")


def try_compute(
    compute: Compute, order: Look, patience_s: float, tell: Callable[[str], object]
) -> Trial:
    """Submit a trivial task, wait for its answer, then measure how quickly others follow.

    Parameters
    ----------
    compute : Compute
        New, without other work.
    order : Look
    patience_s : float
        How long to wait for the first answer, s.
    tell : callable
        Called with a sentence whenever something changes.

    Raises
    ------
    TransientError
        If there was no answer in time; with the trouble that is known.
    """
    begun = time.monotonic()
    seen = _awaited(compute, compute.submit(look_around, order), patience_s, tell)
    first_s = time.monotonic() - begun
    nothing = Look("", ())
    took = []
    for _ in range(_WARM):
        at = time.monotonic()
        _answer(compute.submit(look_around, nothing), patience_s)
        took.append(time.monotonic() - at)
    return Trial(first_s, 1e3 * statistics.median(took), seen)


def _answer(future: Future[Seen], patience_s: float) -> Seen:
    try:
        return future.result(timeout=patience_s)
    except TimeoutError:
        raise TransientError(
            f"a worker that had answered is silent for {patience_s:.0f} s; try again"
        ) from None


def _awaited(
    compute: Compute, future: Future[Seen], patience_s: float, tell: Callable[[str], object]
) -> Seen:
    until = time.monotonic() + patience_s
    told, trouble = "", ""
    while not future.done():
        trouble = compute.tend()
        now = trouble or ", ".join(f"job {job.id} is {job.state}" for job in compute.jobs())
        if now and now != told:
            tell(now)
            told = now
        if time.monotonic() > until:
            raise TransientError(
                f"no answer within {patience_s:.0f} s ({told or 'no job was granted'}): "
                "look at the queue, or wait longer with --patience"
            )
        time.sleep(_GLANCE_S)
    return future.result()
