"""The ids of jobs that were asked for, on disk, so that a killed process leaves none behind."""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import suppress
from pathlib import Path
from threading import Lock

from prepipe.compute.commands import COMMANDS
from prepipe.errors import StorageError
from prepipe.files import atomic_write

__all__ = ["JobRecord"]

_PATIENCE_S = 30.0
_GONE = re.compile("unknown job|invalid job|has finished|already complet", re.IGNORECASE)
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\[\]-]*")


class JobRecord:
    """Jobs of one batch system that this directory's owner has asked for.

    Parameters
    ----------
    path : Path
        A JSON list, made with the first job.
    place : str
    """

    def __init__(self, path: Path, place: str) -> None:
        self._path = path
        self._cancel = COMMANDS[place].cancel
        self._changing = Lock()
        self._ids = _read(path)

    def add(self, job_id: str) -> None:
        """Remember a job."""
        with self._changing:
            self._write([*self._ids, job_id])

    def remove(self, job_ids: list[str]) -> None:
        """Forget jobs that have ended."""
        with self._changing:
            self._write([known for known in self._ids if known not in job_ids])

    def cancel_all(self) -> list[str]:
        """Cancel every job that is remembered, running or not; what is left if that fails.

        Returns
        -------
        list of str
            Jobs that the scheduler could not be told of: they stay remembered, and end by
            themselves since nobody answers their heartbeat.
        """
        with self._changing:
            left = list(self._ids)
            # a scheduler that is away need not be asked once a job
            while left and self._is_cancelled(left[0]):
                del left[0]
            self._write(left)
        return left

    def _is_cancelled(self, job_id: str) -> bool:
        try:
            done = subprocess.run(
                [self._cancel, job_id],
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        # one that is gone already makes it fail; Slurm's qdel says nothing then
        said = (done.stdout + done.stderr).strip()
        return not done.returncode or not said or bool(_GONE.search(said))

    def _write(self, ids: list[str]) -> None:
        self._ids = ids
        with suppress(StorageError), atomic_write(self._path) as stream:
            stream.write(json.dumps(ids).encode())


def _read(path: Path) -> list[str]:
    with suppress(OSError, ValueError):
        told = json.loads(path.read_bytes())
        if isinstance(told, list):
            return [name for name in told if isinstance(name, str) and _JOB_ID.fullmatch(name)]
    return []
