"""Batch systems for tests: a real Slurm, Torque's commands before it, a stand-in of PBS Pro.

Each is a `BatchSystem` that can be told to lose a job or its controller. The Slurm is this test
process's own: it lies in a directory of its own and listens at ports of its own.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from prepipe.compute.batch import BatchCompute
from prepipe.config import Compute
from prepipe.errors import PlaceLostError

HERE = Path(__file__).resolve().parent
MINI_SLURM = HERE.parents[1] / "shared" / "tools" / "mini-slurm" / "mini-slurm.sh"
PBS_PRO = HERE / "compute" / "pbspro"

PLACES = ("slurm", "torque", "pbspro")
PATIENCE_S = 60.0
_NODES = 3


def wait_until(what: Callable[[], object], patience_s: float = PATIENCE_S) -> bool:
    """Wait for something to become true; whether it did."""
    end = time.monotonic() + patience_s
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def lack(message: str) -> None:
    """Something that the test needs is not here: a failure in CI."""
    pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


def ask(*words: str, check: bool = True) -> str:
    """What a command says."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def told_id(path: Path) -> int:
    """Process id that a worker has written there."""
    assert wait_until(lambda: path.exists() and path.read_text()), f"nobody has written {path}"
    return int(path.read_text())


def answer(compute: BatchCompute, future: Future[Any]) -> Future[Any]:
    """Wait for an answer as an ingest does, which tends its compute meanwhile."""
    assert wait_until(lambda: compute.tend() is None or future.done()), "no answer came"
    return future


def carried_out(compute: BatchCompute, work: Callable[[Any], Any], order: object) -> Any:
    """The outcome of an order that is sent again, as an ingest does, if its place was lost."""
    for _ in range(3):
        future = answer(compute, compute.submit(work, order))
        if not isinstance(future.exception(), PlaceLostError):
            return future.result()
    raise AssertionError("its place was lost again and again")


def running_job(system: BatchSystem) -> str:
    """The one job that runs."""
    assert wait_until(lambda: list(system.states().values()) == ["running"]), system.states()
    return next(iter(system.states()))


def brokers_of(process: psutil.Process) -> list[psutil.Process]:
    """Brokers below a process, dead ones too until they are waited for."""
    family = process.children(recursive=True)
    return [child for child in family if "interchange" in child.name()]


class BatchSystem(ABC):
    """What tests do to a batch system."""

    place: str

    @abstractmethod
    def states(self) -> dict[str, str]:
        """Jobs that have not ended, each with ``"pending"`` or ``"running"``."""

    @abstractmethod
    def submitted(self) -> int:
        """How many jobs there have ever been."""

    @abstractmethod
    def cancel(self, *job_ids: str) -> None:
        """As an operator does."""

    @abstractmethod
    def lose_controller(self) -> None:
        """What runs goes on, but nobody answers any more."""

    @abstractmethod
    def return_controller(self) -> None:
        """It answers again, and remembers."""

    def empty(self) -> None:
        """Cancel what is there, and wait until it is gone."""
        if jobs := self.states():
            self.cancel(*jobs)
        assert wait_until(lambda: not self.states())

    def settings(self, **told: object) -> Compute:
        """Settings for small jobs here."""
        path = os.pathsep.join([str(HERE.parent / "src"), str(HERE / "compute")])
        usual = {
            "place": self.place,
            "cores": 2,
            "memory_gb": 0,
            "jobs": 1,
            "walltime_min": 10,
            "poll_s": 1.0,
            "address": "127.0.0.1",
            "environment": {"PYTHONPATH": path},
        }
        return Compute(**(usual | told))


class Slurm(BatchSystem):
    """Three nodes of four cores on this machine."""

    place = "slurm"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._environment = {
            **os.environ,
            "MINISLURM_DIR": str(directory),
            "MINISLURM_NODES": str(_NODES),
            "MINISLURM_CPUS": "4",
            "MINISLURM_PORT": str(_free_ports()),
        }
        self.configuration = directory / "etc" / "slurm.conf"

    def control(self, *words: str) -> None:
        """Run the script that sets it up, starts and stops it."""
        log = self._directory.with_suffix(".log")
        with log.open("a") as said:  # daemons keep it open
            done = subprocess.run(
                [str(MINI_SLURM), *words],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                timeout=120,
                check=False,
            )
        assert done.returncode == 0, f"mini-slurm {words}: {log.read_text()[-2000:]}"

    def states(self) -> dict[str, str]:
        rows = ask("squeue", "--noheader", "--format=%i %T").split("\n")
        told = dict(row.split() for row in rows if row)
        return {job: _plain(state) for job, state in told.items() if state != "COMPLETING"}

    def submitted(self) -> int:
        told = ask("scontrol", "show", "config")
        line = next(line for line in told.splitlines() if line.startswith("NEXT_JOB_ID"))
        return int(line.partition("=")[2]) - 1

    def cancel(self, *job_ids: str) -> None:
        ask("scancel", *job_ids, check=False)

    def lose_controller(self) -> None:
        pid = int((self._directory / "run" / "slurmctld.pid").read_text())
        # at SIGKILL it would forget what it did in its last seconds
        os.kill(pid, signal.SIGTERM)
        assert wait_until(lambda: not psutil.pid_exists(pid))

    def return_controller(self) -> None:
        self.control("start")

    def forget_jobs(self) -> None:
        """The controller comes back without knowing of any job."""
        self.lose_controller()
        shutil.rmtree(self._directory / "state")
        self.return_controller()

    def node_of(self, job_id: str) -> str:
        """Node that a job runs on."""
        return ask("squeue", "--noheader", "--format=%N", f"--job={job_id}").strip()

    def kill_node(self, node: str) -> None:
        """As if its power were cut."""
        self.control("kill-node", node)

    def start_node(self, node: str) -> None:
        """Its power is back."""
        self.control("start-node", node)
        up = ("IDLE", "MIXED", "ALLOCATED")
        assert wait_until(
            lambda: ask("sinfo", "-h", "-n", node, "-o", "%T").strip().upper().startswith(up)
        )


class Torque(Slurm):
    """The same Slurm, through the commands of Torque that Debian has for it."""

    place = "torque"

    def __init__(self, slurm: Slurm) -> None:
        vars(self).update(vars(slurm))


class PbsPro(BatchSystem):
    """A stand-in that is as strict as PBS Pro's reference guide; its jobs are real processes."""

    place = "pbspro"

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _jobs(self) -> dict[str, dict[str, object]]:
        with suppress(FileNotFoundError):
            jobs = (self._directory / "jobs").iterdir()
            return {path.name: json.loads(path.read_text()) for path in jobs}
        return {}

    def states(self) -> dict[str, str]:
        told = {"Q": "pending", "H": "pending", "R": "running"}
        jobs = self._jobs().items()
        return {name: told[job["job_state"]] for name, job in jobs if job["job_state"] != "F"}

    def submitted(self) -> int:
        return len(self._jobs())

    def cancel(self, *job_ids: str) -> None:
        ask("qdel", *job_ids, check=False)

    def lose_controller(self) -> None:
        (self._directory / "away").touch()

    def return_controller(self) -> None:
        (self._directory / "away").unlink()

    def forget_ended_jobs(self) -> None:
        """As on sites that keep no history of jobs."""
        (self._directory / "no-history").touch()


def _plain(state: str) -> str:
    return "running" if state == "RUNNING" else "pending"


def _free_ports() -> int:
    """A port for the controller; a hundred above it those of the nodes."""
    while True:
        port = random.randrange(20000, 50000, 200)
        wanted = [port, *range(port + 100, port + 100 + _NODES)]
        if all(_is_free(one) for one in wanted):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A real Slurm, of this test process alone."""
    for program in ("slurmctld", "slurmd", "sbatch", "munged"):
        if shutil.which(program) is None:
            lack(f"{program} is not installed (packages slurmctld slurmd slurm-client munge)")
    if os.geteuid() != 0:
        lack("a Slurm of one's own needs root")
    if not MINI_SLURM.exists():
        lack(f"no {MINI_SLURM}")
    system = Slurm(tmp_path_factory.mktemp("slurm") / "s")
    try:
        system.control("start")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(system.configuration))
            yield system
    finally:
        system.control("stop")


def opened_place(request: pytest.FixtureRequest, place: str) -> Iterator[BatchSystem]:
    """The batch system of that name, its commands first on the path."""
    if place == "slurm":
        yield request.getfixturevalue("slurm")
        return
    if place == "torque":
        slurm = request.getfixturevalue("slurm")
        if shutil.which("qsub") is None:
            lack("qsub is not installed (package slurm-wlm-torque)")
        yield Torque(slurm)
        return
    directory = request.getfixturevalue("tmp_path_factory").mktemp("pbs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PBS_STAND_IN", str(directory))
        patch.setenv("PATH", str(PBS_PRO), prepend=os.pathsep)
        system = PbsPro(directory)
        yield system
        system.empty()


@pytest.fixture(scope="module", params=PLACES)
def system(request: pytest.FixtureRequest) -> Iterator[BatchSystem]:
    """Each batch system in turn."""
    yield from opened_place(request, request.param)


@pytest.fixture(scope="module")
def pbspro(request: pytest.FixtureRequest) -> Iterator[BatchSystem]:
    """PBS Pro's stand-in."""
    yield from opened_place(request, "pbspro")


@pytest.fixture(scope="module")
def quick_to_lose() -> Iterator[None]:
    """Nodes that are silent are given up after some seconds; a night waits longer."""
    from prepipe.compute import broker, scheduler

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "HEARTBEAT_S", 1)
        patch.setattr(scheduler, "LOST_AFTER_S", 5)
        patch.setattr(broker, "_SILENT_S", 10.0)
        yield
