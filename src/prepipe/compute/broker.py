"""`Broker`: one run of Parsl's executor, with the jobs that carry its workers.

It is thrown away as a whole when its process dies, since it then answers nothing any more.
"""

from __future__ import annotations

import logging
import re
import socket
import time
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import zmq
from parsl.jobs.states import TERMINAL_STATES, JobState

from prepipe.compute.base import NOT_GRANTED, UNBORN, Job
from prepipe.compute.record import JobRecord
from prepipe.compute.scaling import rest_s, wanted_jobs
from prepipe.compute.scheduler import make_executor
from prepipe.config import Compute
from prepipe.errors import ConfigError, TransientError

__all__ = ["Broker"]

_ROUND_S = 1.0
_SILENT_S = 60.0
_SEND_MS = 1000
_UNBORN = (JobState.FAILED, JobState.MISSING)
_TAIL = 300

_LONGEST_REFUSED_S = 60.0
"""A scheduler that takes no jobs may be restarting: it is asked again sooner than after a death."""

_LAST_GIVEN_BACK = 8
_ABOUT_BLOCK = re.compile(r"^Failed to start block \d+: ")
_CARRY_OUT = "prepipe.compute.pilot.carry_out"


class Broker:
    """Hands parcels to workers in batch jobs, and sees to it that there are such jobs.

    It must be made by the main thread: its process ends with the thread that started it.

    Parameters
    ----------
    settings : Compute
    directory : Path
        Of this broker alone; nodes must see it.
    time_limit_s : float
    record : JobRecord

    Raises
    ------
    ConfigError
        If `compute.address` is no address of this host.
    TransientError
        If its process cannot be started.
    """

    def __init__(
        self, settings: Compute, directory: Path, time_limit_s: float, record: JobRecord
    ) -> None:
        _require_own(settings.address)
        # what Parsl has to say would come in the midst of the observer's screen
        logging.getLogger("parsl").addHandler(logging.NullHandler())
        self._settings = settings
        self._time_limit_s = time_limit_s
        self._record = record
        self._executor = make_executor(settings, directory, time_limit_s, record)
        try:
            self._executor.start()
            commands = self._executor.command_client
            # these would wait for ever for one that died, or hangs
            self._executor.outgoing_q.zmq_socket.setsockopt(zmq.SNDTIMEO, _SEND_MS)
            commands.run = partial(commands.run, timeout_s=_SILENT_S)
        except Exception as error:
            self._kill()
            raise TransientError(f"the broker of the batch jobs does not start: {error}") from error
        self._released = False
        self._jobs: tuple[Job, ...] = ()
        self._asked_at: dict[str, float] = {}
        self._born: set[str] = set()
        self._ended: set[str] = set()
        self._failures = 0
        self._not_before = 0.0
        self._next_look = 0.0
        self._away = ""
        self._unborn = ""
        self._lost: list[str] = []
        self._gone = ""
        self._draining: set[str] = set()
        self._refused = False
        self._asking = Lock()
        self._closing = Event()
        self._thread = Thread(target=self._run, name="prepipe-jobs", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it can be trusted with work."""
        executor = self._executor
        answers = executor.command_client.ok and not executor.bad_state_is_set
        return answers and executor.interchange_proc.poll() is None

    @property
    def trouble(self) -> str:
        """Why jobs cannot be had, or do not come to life; empty if nothing is wrong."""
        return self._away or self._unborn or self._gone

    def submit(self, packed: bytes, urgency: float) -> Future[bytes]:
        """Have a worker carry out a parcel, the most urgent first."""
        if not self.alive:
            raise TransientError("its process is gone")
        self._released = False
        context = {
            "resource_spec": {"priority": -urgency},
            "task_executor": {"f": _CARRY_OUT, "a": (self._time_limit_s,)},
        }
        future: Future[bytes] = self._executor.submit_payload(context, packed)
        return future

    def jobs(self) -> tuple[Job, ...]:
        """Its jobs that have not ended, as last looked at."""
        return self._jobs

    def release(self) -> None:
        """Keep no job without work until there is work again."""
        self._released = True

    def close(self) -> None:
        """Cancel its jobs and end its process; what was under way is lost."""
        again = self._closing.is_set()
        self._closing.set()
        self._kill()
        with self._asking:  # a job that is being asked for right now is one more to cancel
            self._record.cancel_all()
        if again:
            return
        # it may wait for an answer of the process that is no more: not to be waited for
        Thread(target=self._clear_away, name="prepipe-shutdown", daemon=True).start()

    def _clear_away(self) -> None:
        """Close the sockets; one that is closed under another thread ends the whole process."""
        with suppress(Exception):
            self._executor.interchange_proc.wait()
        self._thread.join()
        with suppress(Exception):
            self._executor.shutdown()

    def _kill(self) -> None:
        with suppress(Exception):
            self._executor.interchange_proc.kill()

    def _run(self) -> None:
        while not self._closing.wait(_ROUND_S):
            if not self.alive:
                return
            try:
                self._tend_jobs()
            except Exception as error:
                self._away = f"the batch system cannot be used: {error}"

    def _tend_jobs(self) -> None:
        executor = self._executor
        looked = self._look_at_states()
        managers = {manager["block_id"]: manager for manager in executor.connected_managers()}
        states = dict(executor.status_facade)
        self._note_births(managers)
        self._note_ends(states)
        alive = [block for block, told in states.items() if told.state not in TERMINAL_STATES]
        self._jobs = tuple(self._job(block, states[block], managers.get(block)) for block in alive)
        if looked:
            self._end_those_on_hold(managers)
            self._end_those_lost(alive, managers)
        if not self._away:
            usable = sum(_takes_work(managers.get(block)) for block in alive)
            self._scale(usable, len(alive))

    def _look_at_states(self) -> bool:
        """Ask the scheduler, as often as the site allows; whether it was asked and answered."""
        if time.monotonic() < self._next_look:
            return False
        try:
            self._executor.poll_facade()
        except Exception as error:
            self._away = f"the batch system does not answer: {error}"
        else:
            if self._away:
                self._end_again()
            self._away = ""
        self._next_look = time.monotonic() + self._settings.poll_s
        return not self._away

    def _scale(self, usable: int, alive: int) -> None:
        """Ask for jobs that are wanted, and give back those that are not."""
        settings = self._settings
        ready, idle_s = (0, _ROUND_S) if self._released else (settings.jobs_ready, settings.idle_s)
        orders = self._executor.outstanding()
        wanted = wanted_jobs(orders, settings.at_once, ready, settings.jobs)
        if usable > wanted:
            self._executor.scale_in_facade(usable - wanted, max_idletime=idle_s)
        elif time.monotonic() >= self._not_before:
            # one that takes no more work still is a job, until it has ended
            self._ask_for(min(wanted - usable, settings.jobs - alive))

    def _ask_for(self, jobs: int) -> None:
        for _ in range(jobs):
            with self._asking:
                granted = [] if self._closing.is_set() else self._executor.scale_out_facade(1)
            if not granted:
                return
            self._asked_at[self._executor.blocks_to_job_id[granted[0]]] = time.time()
            if self._lost:
                self._gone, self._lost = _told_gone(self._lost), []
            if self._refused:
                self._failures, self._unborn, self._refused = 0, "", False

    def _end_again(self) -> None:
        """Cancel the last jobs given back: a scheduler that died may have forgotten that they were.

        It would begin them anew, and nobody would know of them.
        """
        states = self._executor.status_facade
        given_back = [block for block, told in states.items() if told.state is JobState.SCALED_IN]
        ids = [self._executor.blocks_to_job_id[block] for block in given_back[-_LAST_GIVEN_BACK:]]
        if ids:
            self._executor.provider.cancel(ids)

    def _end_those_on_hold(self, managers: dict[str, Any]) -> None:
        """Cancel jobs given back that are still here: the scheduler was away, or has forgotten."""
        held = [
            self._executor.blocks_to_job_id[block]
            for block, manager in managers.items()
            if not manager["active"] and not manager["tasks"]
        ]
        if held:
            self._executor.provider.cancel(held)

    def _end_those_lost(self, alive: list[str], managers: dict[str, Any]) -> None:
        """Cancel jobs whose workers have fallen silent: the scheduler may believe in them long."""
        lost = [
            self._executor.blocks_to_job_id[block]
            for block in alive
            if block in self._born and block not in managers
        ]
        if lost:
            self._executor.provider.cancel(lost)

    def _note_births(self, managers: dict[str, Any]) -> None:
        if not managers.keys() <= self._born:
            self._failures, self._unborn, self._gone = 0, "", ""
            self._born.update(managers)
        self._draining |= {block for block, manager in managers.items() if manager["draining"]}

    def _note_ends(self, states: dict[str, Any]) -> None:
        """Forget jobs that ended; count those that ended without ever coming to life."""
        for block, told in states.items():
            if told.state not in TERMINAL_STATES or block in self._ended:
                continue
            self._ended.add(block)
            job_id = self._executor.blocks_to_job_id.get(block)
            if job_id is not None:
                self._record.remove([job_id])
                self._asked_at.pop(job_id, None)
            if block in self._born:
                if told.state is not JobState.SCALED_IN and block not in self._draining:
                    self._lost.append(str(job_id))
            elif told.state in _UNBORN:
                self._note_unborn(job_id, told)

    def _note_unborn(self, job_id: str | None, told: Any) -> None:
        if time.monotonic() >= self._not_before:  # those asked for together fail together
            self._failures += 1
            self._refused = job_id is None
            rest = rest_s(self._failures)
            longest = _LONGEST_REFUSED_S if self._refused else rest
            self._not_before = time.monotonic() + min(rest, longest)
        why = _why_unborn(job_id, told)
        if _without_id(why) != _without_id(self._unborn):
            self._unborn = why  # the same of the next job is no news

    def _job(self, block: str, told: Any, manager: dict[str, Any] | None) -> Job:
        job_id = self._executor.blocks_to_job_id.get(block, "")
        state = told.state.name.lower()
        if manager is not None:
            state = "ending" if manager["draining"] or not manager["active"] else "running"
        elif state == "running":
            state = "starting"
        return Job(
            id=str(job_id),
            state=state,
            workers=manager["worker_count"] if manager else 0,
            busy=manager["tasks"] if manager else 0,
            since=self._asked_at.get(str(job_id), 0.0),
        )


def _require_own(address: str) -> None:
    """See that nodes could be waited for at an address; empty stands for all of this host."""
    if not address:
        return
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(where)
    except OSError as error:
        raise ConfigError(
            f"compute.address: {address} is no address of this host ({error.strerror}); give one "
            "that nodes reach, or leave it empty"
        ) from error


def _takes_work(manager: dict[str, Any] | None) -> bool:
    """Whether a job may be counted on; one that has not come to life yet may."""
    return manager is None or (manager["active"] and not manager["draining"])


def _told_gone(lost: list[str]) -> str:
    if len(lost) == 1:
        return f"job {lost[0]} is gone; another is asked for"
    return f"jobs {', '.join(lost)} are gone; others are asked for"


def _without_id(why: str) -> str:
    return why.partition(":")[2]


def _why_unborn(job_id: str | None, told: Any) -> str:
    said = (told.stderr_summary or "") if job_id else (told.message or "")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if lines and not job_id:
        lines[0] = _ABOUT_BLOCK.sub("", lines[0])
    about = f"the job {job_id} {UNBORN}" if job_id else NOT_GRANTED
    return f"{about}: {' / '.join(lines[-3:])[-_TAIL:] or 'it said nothing'}"
