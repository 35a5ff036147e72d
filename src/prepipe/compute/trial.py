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

from prepipe import __version__
from prepipe.compute.base import NOT_GRANTED, UNBORN, Compute, Job
from prepipe.compute.scratch import scratch_directory, scratch_root
from prepipe.errors import PrepipeError, TransientError

__all__ = ["Look", "Place", "Seen", "Trial", "look_around", "try_compute"]

_GLANCE_S = 0.1
_ASK_WHY_S = 2.0
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
    exists : bool
        Whether it is there, and not only a directory that it can be made in.
    """

    path: str
    free_bytes: int | None
    fault: str = ""
    exists: bool = True


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
        return tuple(place.fault for place in self.places if place.fault)

    @property
    def places(self) -> tuple[Place, ...]:
        """All that was looked at."""
        return (*self.shared, self.scratch) if self.scratch else self.shared


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
        return Place(name, shutil.disk_usage(there).free, exists=there == path)
    except OSError as error:
        node = os.uname().nodename
        return Place(name, None, f"{name} cannot be written on {node}: {error.strerror}")


def try_compute(
    compute: Compute,
    order: Look,
    patience_s: float,
    tell: Callable[[str], object],
    why_pending: Callable[[str], str] = lambda _: "",
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
    why_pending : callable, optional
        Gives the reason for which the job of an id waits; empty if none is known.

    Raises
    ------
    TransientError
        If there was no answer in time, with the trouble that is known; or at once, if no job is
        granted or its set-up fails.
    """
    begun = time.monotonic()
    states = _States(compute, why_pending)
    seen = _awaited(compute, compute.submit(look_around, order), patience_s, tell, states)
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


class _States:
    """What there is to say of the jobs; a scheduler is not asked for its reasons all the time."""

    def __init__(self, compute: Compute, why_pending: Callable[[str], str]) -> None:
        self._compute = compute
        self._why_pending = why_pending
        self._reasons: dict[str, str] = {}
        self._next_look = 0.0

    def told(self) -> str:
        """A sentence; empty without a job."""
        jobs = self._compute.jobs()
        if time.monotonic() >= self._next_look:
            pending = [job.id for job in jobs if job.state == "pending"]
            self._reasons = {name: self._why_pending(name) for name in pending}
            self._next_look = time.monotonic() + _ASK_WHY_S
        return ", ".join(self._of(job) for job in jobs)

    def _of(self, job: Job) -> str:
        why = self._reasons.get(job.id) if job.state == "pending" else ""
        return f"job {job.id} is {job.state}" + (f" ({why})" if why else "")


def _awaited(
    compute: Compute,
    future: Future[Seen],
    patience_s: float,
    tell: Callable[[str], object],
    states: _States,
) -> Seen:
    until = time.monotonic() + patience_s
    told, trouble = "", ""
    while not future.done():
        trouble = compute.tend()
        if NOT_GRANTED in trouble or UNBORN in trouble:
            raise TransientError(trouble)  # the next would fare no better
        now = trouble or states.told()
        if now and now != told:
            tell(now)
            told = now
        if time.monotonic() > until:
            raise TransientError(
                f"no answer within {patience_s:.0f} s; {told or 'there is no job yet'}: "
                "look at the queue, or wait longer with --patience"
            )
        time.sleep(_GLANCE_S)
    return future.result()
