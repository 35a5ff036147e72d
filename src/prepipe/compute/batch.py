"""A batch system: workers in jobs of many orders each, behind a broker that may be replaced."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

from prepipe.compute.base import Job
from prepipe.compute.broker import Broker
from prepipe.compute.pilot import opened, parcel
from prepipe.compute.record import JobRecord
from prepipe.compute.scaling import rest_s
from prepipe.config import Compute
from prepipe.errors import PlaceLostError, PrepipeError, TransientError
from prepipe.files import sole_user

__all__ = ["RUNS", "BatchCompute"]

Order = TypeVar("Order")
Outcome = TypeVar("Outcome")


RUNS = "runs"
"""Below the directory of a `BatchCompute`: one for each of its brokers."""

_RECORD = "jobs.json"
_LOCK = "lock"


class BatchCompute:
    """Workers in jobs of Slurm, Torque or PBS Pro.

    Jobs of an earlier process that was killed are cancelled first.

    Parameters
    ----------
    settings : Compute
    directory : Path
        prepipe's own, which nodes must see; one process uses it at a time.
    time_limit_s : float
        A worker that takes longer over one order hangs, and ends itself.

    Raises
    ------
    ConfigError
        If the batch system's commands are missing here, or another process has this directory.
    TransientError
        If the broker does not start.
    """

    def __init__(self, settings: Compute, directory: Path, time_limit_s: float = 600.0) -> None:
        self.slots = settings.jobs * settings.at_once
        self._settings = settings
        self._directory = directory.absolute()
        self._time_limit_s = time_limit_s
        self._runs = count(1)
        self._under_way: dict[Future[Any], Future[bytes]] = {}
        self._changing = Lock()
        self._failures = 0
        self._not_before = 0.0
        self._trouble = ""
        self._closed = False
        with ExitStack() as held:
            # whoever comes second must not take the jobs of the first for left-overs
            held.enter_context(sole_user(self._directory / _LOCK))
            shutil.rmtree(self._directory / RUNS, ignore_errors=True)
            self._record = JobRecord(self._directory / _RECORD, settings.place)
            self._record.cancel_all()
            self._broker = self._new_broker()
            self._held = held.pop_all()

    def submit(
        self, work: Callable[[Order], Outcome], order: Order, urgency: float = 0.0
    ) -> Future[Outcome]:
        """Carry out `work(order)` in a worker of some job, the most urgent first.

        Parameters
        ----------
        work : callable
            A top-level function, or a `functools.partial` of one, that nodes can import.
        order
            Its argument; it and the outcome cross between hosts.
        urgency : float

        Returns
        -------
        Future
            Raises what `work` raised, `TransientError` if the worker died or hung over it,
            `PlaceLostError` if the node, its job or the broker was lost.

        Raises
        ------
        TransientError
            If there is no broker now.
        """
        promised: Future[Outcome] = Future()
        promised.set_running_or_notify_cancel()
        try:
            packed = parcel(work, order)
        except Exception as error:
            promised.set_exception(error)
            return promised
        if self._closed:
            promised.set_exception(PlaceLostError("the batch jobs were given up: start again"))
            return promised
        if not self._broker.alive:
            # an order that can only be lost would be held against its CCD
            raise TransientError(self._trouble or "the broker of the batch jobs died")
        try:
            inner = self._broker.submit(packed, urgency)
        except Exception as error:
            promised.set_exception(PlaceLostError(f"the broker takes no orders: {error}"))
            return promised
        with self._changing:
            self._under_way[promised] = inner
        inner.add_done_callback(lambda done: self._settle(promised, done))
        return promised

    def _settle(self, promised: Future[Any], done: Future[bytes]) -> None:
        with self._changing:
            if self._under_way.pop(promised, None) is None:
                return  # a late answer of a broker that was given up
        try:
            answer = opened(done.result())
        except BaseException as error:
            promised.set_exception(_plain(error))
            return
        if answer.error is not None:
            promised.set_exception(answer.error)
        else:
            promised.set_result(answer.outcome)

    def tend(self) -> str:
        """Replace a broker that died; to be called often, by the main thread.

        Returns
        -------
        str
            What keeps it from starting workers; empty if nothing does.
        """
        if not self._broker.alive:
            self._give_up()
            if time.monotonic() >= self._not_before:
                self._replace_broker()
        return self._trouble or self._broker.trouble

    def _give_up(self) -> None:
        """All that the dead broker had is lost."""
        with self._changing:
            lost, self._under_way = list(self._under_way), {}
        for promised in lost:
            promised.set_exception(PlaceLostError("the broker of the batch jobs died"))

    def _replace_broker(self) -> None:
        self._broker.close()
        try:
            self._broker = self._new_broker()
        except (PrepipeError, OSError) as error:
            # even a command that is not there now may be back when its disk is
            self._failures += 1
            self._not_before = time.monotonic() + rest_s(self._failures)
            self._trouble = str(error)
        else:
            self._failures, self._trouble = 0, ""

    def _new_broker(self) -> Broker:
        directory = self._directory / RUNS / f"{os.getpid()}-{next(self._runs)}"
        directory.mkdir(parents=True, mode=0o700)
        return Broker(self._settings, directory, self._time_limit_s, self._record)

    def jobs(self) -> tuple[Job, ...]:
        """Jobs that have not ended."""
        return self._broker.jobs()

    def release(self) -> None:
        """Give back jobs without work, and keep none from now on."""
        self._broker.release()

    def close(self) -> None:
        """Cancel all jobs; what is under way raises `PlaceLostError`."""
        self._closed = True
        self._broker.close()
        self._give_up()
        with suppress(OSError):
            shutil.rmtree(self._directory / RUNS)
        self._held.close()


def _plain(error: BaseException) -> TransientError:
    """What became of a worker or its node, in our own words."""
    if isinstance(error, WorkerLost):
        return TransientError(
            "the worker died over it, or hung: if this repeats, look for a lack of memory"
        )
    if isinstance(error, ManagerLost):
        return PlaceLostError("the node or its job was lost")
    return PlaceLostError(f"the batch system lost it: {type(error).__name__}: {error}")
