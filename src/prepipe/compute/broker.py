"""`Broker`: one run of Parsl's executor, with the jobs that carry its workers.

It is thrown away as a whole when its process dies, since it then answers nothing any more.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from parsl.jobs.states import TERMINAL_STATES, JobState

from prepipe.compute.base import Job
from prepipe.compute.record import JobRecord
from prepipe.compute.scaling import rest_s, wanted_jobs
from prepipe.compute.scheduler import make_executor
from prepipe.config import Compute
from prepipe.errors import TransientError

__all__ = ["Broker"]

_ROUND_S = 1.0
_UNBORN = (JobState.FAILED, JobState.MISSING)
_TAIL = 300
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
    TransientError
        If its process cannot be started.
    """

    def __init__(
        self, settings: Compute, directory: Path, time_limit_s: float, record: JobRecord
    ) -> None:
        # what Parsl has to say would come in the midst of the observer's screen
        logging.getLogger("parsl").addHandler(logging.NullHandler())
        self._settings = settings
        self._time_limit_s = time_limit_s
        self._record = record
        self._executor = make_executor(settings, directory, time_limit_s, record)
        try:
            self._executor.start()
        except Exception as error:
            raise TransientError(f"the broker of the batch jobs does not start: {error}") from error
        self._ready = settings.jobs_ready
        self._jobs: tuple[Job, ...] = ()
        self._asked_at: dict[str, float] = {}
        self._ended: set[str] = set()
        self._failures = 0
        self._not_before = 0.0
        self.trouble = ""
        """Why jobs cannot be had, or do not come to life; empty if nothing is wrong."""
        self._closing = Event()
        self._thread = Thread(target=self._run, name="prepipe-jobs", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it can be trusted with work."""
        process = self._executor.interchange_proc
        return process.poll() is None and not self._executor.bad_state_is_set

    def submit(self, packed: bytes, urgency: float) -> Future[bytes]:
        """Have a worker carry out a parcel, the most urgent first."""
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
        """Keep no job without work from now on."""
        self._ready = 0
        self._settings = self._settings.model_copy(update={"idle_s": _ROUND_S})

    def close(self) -> None:
        """Cancel its jobs and end its process; what was under way is lost."""
        self._closing.set()
        with suppress(Exception):
            self._executor.interchange_proc.kill()
        with suppress(Exception):
            if self._asked_at:
                self._executor.provider.cancel(list(self._asked_at))
                self._record.remove(list(self._asked_at))
        # it may wait for an answer of the process that is no more: not to be waited for
        Thread(target=self._executor.shutdown, name="prepipe-shutdown", daemon=True).start()

    def _run(self) -> None:
        while not self._closing.wait(_ROUND_S):
            if not self.alive:
                return
            try:
                self._tend_jobs()
            except Exception as error:
                self.trouble = f"the batch system does not answer: {error}"

    def _tend_jobs(self) -> None:
        executor = self._executor
        executor.poll_facade()
        managers = {manager["block_id"]: manager for manager in executor.connected_managers()}
        states = dict(executor.status_facade)
        self._note_ends(states, managers)
        alive = [block for block, told in states.items() if told.state not in TERMINAL_STATES]
        self._jobs = tuple(self._job(block, states[block], managers.get(block)) for block in alive)
        usable = [block for block in alive if not managers.get(block, {}).get("draining")]
        wanted = wanted_jobs(
            executor.outstanding(), self._settings.at_once, self._ready, self._settings.jobs
        )
        if len(usable) > wanted:
            executor.scale_in_facade(len(usable) - wanted, max_idletime=self._settings.idle_s)
        elif time.monotonic() >= self._not_before:
            # one that takes no more work still is a job, until it has ended
            self._ask_for(min(wanted - len(usable), self._settings.jobs - len(alive)))

    def _ask_for(self, jobs: int) -> None:
        if jobs <= 0 or self._closing.is_set():
            return
        for block in self._executor.scale_out_facade(jobs):
            self._asked_at[self._executor.blocks_to_job_id[block]] = time.time()

    def _note_ends(self, states: dict[str, Any], managers: dict[str, Any]) -> None:
        """Forget jobs that ended; count those that ended without ever coming to life."""
        if managers:
            self._failures, self.trouble = 0, ""
        for block, told in states.items():
            if told.state not in TERMINAL_STATES or block in self._ended:
                continue
            self._ended.add(block)
            job_id = self._executor.blocks_to_job_id.get(block)
            if job_id is not None:
                self._record.remove([job_id])
                self._asked_at.pop(job_id, None)
            if told.state in _UNBORN and not managers:
                self._failures += 1
                self._not_before = time.monotonic() + rest_s(self._failures)
                self.trouble = _why_unborn(job_id, told)

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


def _why_unborn(job_id: str | None, told: Any) -> str:
    said = (told.stderr_summary or told.message or "").strip()
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    about = f"the job {job_id} ended before its workers started" if job_id else "no job is granted"
    return f"{about}: {' / '.join(lines[-3:])[-_TAIL:] or 'it said nothing'}"
