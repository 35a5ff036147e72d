"""This machine: one persistent process a slot, each fed by a thread of its own.

A worker holds one order at a time, so that its death is blamed on that order alone.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import get_context
from queue import Empty, PriorityQueue
from threading import Event, Lock, Thread
from typing import Any, TypeVar

from prepipe.compute.base import Job
from prepipe.compute.worker import Answer, serve
from prepipe.errors import TransientError

__all__ = ["LocalCompute", "worker_traceback"]

Order = TypeVar("Order")
Outcome = TypeVar("Outcome")

_STOP_S = 5.0
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

# a fork would copy locks that other threads hold, and hang on them
_SPAWN = get_context("spawn")


def worker_traceback(error: BaseException) -> str:
    """Traceback of an error as it was in the worker; empty if it arose elsewhere."""
    return "\n".join(getattr(error, "__notes__", ()))


@dataclass(frozen=True, order=True)
class _Turn:
    """A task's place in the queue; one without a task ends a slot, after all that wait."""

    lateness: float
    number: int
    task: _Task | None = field(compare=False)


@dataclass(frozen=True)
class _Task:
    work: Callable[[Any], Any]
    order: Any
    future: Future[Any]


class LocalCompute:
    """Persistent workers on this machine; they die with the process that made them.

    Each is meant to use one core: unless the environment says otherwise, numerical libraries
    are told to use one thread (in this process's environment, which the workers inherit).

    Parameters
    ----------
    workers : int
        How many.
    warm_up : callable, optional
        A top-level function that each worker calls before its first order.
    time_limit_s : float
        A worker that takes longer over one order hangs: it is killed and replaced.
    """

    def __init__(
        self,
        workers: int,
        warm_up: Callable[[], object] | None = None,
        time_limit_s: float = 600.0,
    ) -> None:
        for name in _ONE_THREAD:
            os.environ.setdefault(name, "1")
        self.slots = workers
        self._since = time.time()
        self._tasks: PriorityQueue[_Turn] = PriorityQueue()
        self._numbers = count()
        self._closing = Event()
        self._served = [
            _Slot(self._tasks, self._closing, warm_up, time_limit_s) for _ in range(workers)
        ]

    def submit(
        self, work: Callable[[Order], Outcome], order: Order, urgency: float = 0.0
    ) -> Future[Outcome]:
        """Carry out `work(order)` in a worker, the most urgent first.

        Parameters
        ----------
        work : callable
            A top-level function, or a `functools.partial` of one.
        order
            Its argument; it and the outcome cross between processes.
        urgency : float
            Of two orders of the same urgency the first comes first.

        Returns
        -------
        Future
            Raises what `work` raised, with the worker's traceback as a note (see
            `worker_traceback`), or `TransientError` if the worker died. An error of a class
            that is neither prepipe's nor Python's own comes as the nearest of prepipe's.

        Raises
        ------
        TransientError
            If the workers were stopped.
        """
        if self._closing.is_set():
            raise TransientError("the workers were stopped: start them again")
        future: Future[Outcome] = Future()
        self._put(-urgency, _Task(work, order, future))
        return future

    def _put(self, lateness: float, task: _Task | None) -> None:
        self._tasks.put(_Turn(lateness, next(self._numbers), task))

    def tend(self) -> str:
        """Nothing to be done: each worker's own thread keeps it alive."""
        return ""

    def jobs(self) -> tuple[Job, ...]:
        """This process, with the workers that are alive."""
        alive = len(self.worker_ids())
        busy = sum(slot.busy for slot in self._served)
        return (Job(str(os.getpid()), "running", alive, busy, self._since),)

    def release(self) -> None:
        """Workers of this machine cost nobody else anything: they stay."""

    def worker_ids(self) -> list[int]:
        """Process ids of the workers that are alive."""
        return [pid for slot in self._served if (pid := slot.worker_id()) is not None]

    def close(self) -> None:
        """Kill the workers; what they were at raises `TransientError`, the rest is cancelled."""
        self._closing.set()
        with suppress(Empty):
            while True:
                turn = self._tasks.get_nowait()
                if turn.task is not None:
                    turn.task.future.cancel()
        for slot in self._served:
            self._put(math.inf, None)
            slot.kill()
        for slot in self._served:
            slot.join()


class _Slot:
    """A thread that keeps one worker alive and hands it one order after the other."""

    def __init__(
        self,
        tasks: PriorityQueue[_Turn],
        closing: Event,
        warm_up: Callable[[], object] | None,
        time_limit_s: float,
    ) -> None:
        self._tasks = tasks
        self._closing = closing
        self._warm_up = warm_up
        self._time_limit_s = time_limit_s
        self._worker: _Worker | None = None
        self.busy = False
        self._changing = Lock()
        # a worker dies with the thread that made it, so that thread must be one that lasts
        self._thread = Thread(target=self._run, name="prepipe-slot", daemon=True)
        self._thread.start()

    def worker_id(self) -> int | None:
        worker = self._worker
        return worker.pid if worker is not None and worker.alive else None

    def kill(self) -> None:
        with self._changing:
            if self._worker is not None:
                self._worker.kill()

    def join(self) -> None:
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        # begun before there is work, so that nothing waits for the start; told with the work
        with suppress(TransientError):
            self._living_worker()
        while (task := self._tasks.get().task) is not None:
            if not task.future.set_running_or_notify_cancel():
                continue
            self.busy = True
            try:
                outcome = self._living_worker().carry_out(task.work, task.order, self._time_limit_s)
            except BaseException as error:
                self.busy = False
                task.future.set_exception(error)
            else:
                self.busy = False
                task.future.set_result(outcome)

    def _living_worker(self) -> _Worker:
        with self._changing:
            if self._closing.is_set():
                raise TransientError("the workers were stopped before it was done")
            if self._worker is None or not self._worker.alive:
                self._worker = _Worker(self._warm_up)
            return self._worker


class _Worker:
    """A process and our end of the pipe to it."""

    def __init__(self, warm_up: Callable[[], object] | None) -> None:
        self._channel, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(
            target=serve, args=(theirs, os.getpid(), warm_up), name="prepipe-worker", daemon=True
        )
        try:
            self._process.start()
        except OSError as error:
            raise TransientError(
                f"no worker could be started: {error.strerror}; ask for fewer workers"
            ) from error
        finally:
            theirs.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()

    def carry_out(self, work: Callable[[Any], Any], order: Any, time_limit_s: float) -> Any:
        try:
            self._channel.send((work, order))
            if not self._channel.poll(time_limit_s):
                self.kill()
                self._process.join(_STOP_S)
                raise TransientError(
                    f"the worker hung over it for {time_limit_s:g} s and was stopped"
                )
            answer: Answer = self._channel.recv()
        except (EOFError, OSError):
            self._process.join(_STOP_S)
            raise TransientError(
                f"the worker died over it ({_ending(self._process.exitcode)}): if this repeats, "
                "look for a lack of memory"
            ) from None
        if answer.error is not None:
            raise answer.error
        return answer.outcome


def _ending(exit_code: int | None) -> str:
    if exit_code is None:
        return "it hangs"
    return f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
