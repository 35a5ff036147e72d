"""A night on a batch system in which everything dies once: what is done, and how late."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psutil
from astropy.io import fits
from sqlalchemy import create_engine, text

from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import write_packet
from prepipe.model import Ccd, Exposure, Kind, Night, Stage
from prepipe.store import Journal
from scheduling.slurm import Slurm

FIRST_AT_S = 8.0
PERIOD_S = 5.0
RESTART_S = 3.0
PATIENCE_S = 180.0

SITE = """
[cluster]
poll_s = 0.2
time_limit_s = 30
[calibration]
engine = "scheduling.work:carry_out"
[compute]
place = "slurm"
queue = "realtime"
account = "survey"
address = "127.0.0.1"
walltime_min = 4
cores = 2
memory_gb = 0
jobs = 4
jobs_ready = 4
poll_s = 5
scratch = "/tmp"
shared_slots = 1
"""


@dataclass(frozen=True)
class Told:
    """How the night went.

    Parameters
    ----------
    asked, done : int
        CCDs that landed, and that the store knows as calibrated.
    twice : int
        CCDs that the store was told of more than once.
    ended_twice : int
        CCDs that some worker carried to the end more than once, at no harm.
    latencies_s : list of float
        From landing to calibrated.
    faults : list of str
        What happened, and when.
    missed : int
        Faults that found nothing to harm.
    left : list of str
        Processes and jobs that were still there at the end.
    """

    asked: int
    done: int
    twice: int
    ended_twice: int
    latencies_s: list[float]
    faults: list[str]
    missed: int
    left: list[str]

    @property
    def p50_s(self) -> float:
        """Median latency, s."""
        return statistics.median(self.latencies_s)

    @property
    def p90_s(self) -> float:
        """Nine of ten CCDs were not later, s."""
        return statistics.quantiles(self.latencies_s, n=10)[-1]


def run_night(work: Path, slurm: Slurm, exposures: int, ccds: int) -> Told:
    """Let exposures land one after the other while faults happen, and see what comes of it."""
    site = work / "prepipe.toml"
    site.write_text(SITE)
    packets = [small_packets(work / "packed", number, ccds) for number in range(1, exposures + 1)]
    daemon = _Daemon(site)
    faults = list(_faults(daemon, slurm, exposures * PERIOD_S))
    landing = work / "landing"
    landing.mkdir()
    began, arrived, said = time.time(), dict[tuple[int, int], float](), []
    missed = 0
    while packets or faults:
        now = time.time() - began
        if packets and now >= FIRST_AT_S + PERIOD_S * (exposures - len(packets)):
            number = exposures - len(packets) + 1
            for ccd, packet in enumerate(packets.pop(0), 1):
                packet.rename(landing / packet.name)
                arrived[number, ccd] = time.time()
        if faults and now >= faults[0][0]:
            _, what, do = faults.pop(0)
            harmed = do()
            missed += harmed == 0
            said.append(f"{now:.0f} s: {what}{_told(harmed)}")
        time.sleep(0.02)
    rows = _wait(work / "cluster" / "journal.sqlite", len(arrived))
    left = daemon.stop()
    latencies = [at - arrived[key] for key, at in rows.items()]
    noted = _noted(work / "cluster" / "journal.sqlite")
    ended = Counter((work / "ended").read_text().splitlines())
    return Told(
        asked=len(arrived),
        done=len(rows),
        twice=sum(times > 1 for times in noted.values()),
        ended_twice=sum(times > 1 for times in ended.values()),
        latencies_s=latencies,
        faults=said,
        missed=missed,
        left=left + [f"job {job}" for job in slurm.running_jobs()],
    )


def _told(harmed: object) -> str:
    return "" if harmed is None else f" ({harmed})"


class _Daemon:
    """The ingest of a site, as an operator runs it."""

    def __init__(self, site: Path) -> None:
        self._site = site
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "NIGHT_ENDED": str(site.parent / "ended"),
        }
        self._log = (site.parent / "ingest.log").open("a")
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "prepipe", "ingest", "--config", str(self._site)]
        self._process = subprocess.Popen(
            command, env=self._environment, stdout=self._log, stderr=self._log
        )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def kill_a_worker(self) -> int:
        """Kill a process that takes CCDs, as a lack of memory does; how many it found."""
        return _kill([made[-1] for made in self._pools()][:1])

    def kill_a_keeper(self) -> int:
        """Kill the process that a pool of workers keeps its notes in; how many it found."""
        return _kill([made[0] for made in self._pools()][:1])

    def _pools(self) -> Iterator[list[psutil.Process]]:
        """Of each pool of workers the processes that it made, its keeper first."""
        for process in psutil.process_iter():
            if _is_pool(process, self._environment["NIGHT_ENDED"]):
                children = process.children()
                made = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
                if len(made) > 1:
                    yield sorted(made, key=psutil.Process.create_time)

    def below(self, name: str) -> list[psutil.Process]:
        """Its broker, by the broker's name."""
        parent = psutil.Process(self._process.pid)
        return [
            child
            for child in parent.children(recursive=True)
            if name in " ".join(child.cmdline()) or name in child.name()
        ]

    def stop(self) -> list[str]:
        """End it as an operator does; what is left of it afterwards."""
        family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return ["an ingest that did not end"]
        _, alive = psutil.wait_procs(family, timeout=10)
        return [process.name() for process in alive]


def _faults(
    daemon: _Daemon, slurm: Slurm, night_s: float
) -> Iterator[tuple[float, str, Callable[[], object]]]:
    """When, what, and how to do it; spread over the night."""
    plan: list[tuple[str, Callable[[], object]]] = [
        ("a worker is killed", daemon.kill_a_worker),
        ("one job is cancelled", lambda: slurm.cancel(slurm.running_jobs()[:1])),
        ("a node dies", lambda: slurm.kill_node(slurm.busy_node())),
        (
            "the node is back, the controller goes",
            lambda: (slurm.mend(), slurm.kill_controller())[0],
        ),
        ("the daemon is killed", daemon.kill),
        ("the daemon is started again", daemon.start),
        ("the controller is back", slurm.mend),
        ("the broker is killed", lambda: _kill(daemon.below("interchange"))),
        ("all jobs are cancelled", lambda: slurm.cancel(slurm.running_jobs())),
        ("a worker is killed", daemon.kill_a_worker),
        ("what a pool keeps its notes in is killed", daemon.kill_a_keeper),
    ]
    step = (night_s - 10.0) / len(plan)
    at = FIRST_AT_S + step / 2
    for what, do in plan:
        yield at, what, do
        at += RESTART_S if "daemon is killed" in what else step


def _is_pool(process: psutil.Process, mark: str) -> bool:
    """Whether it is a pool of this night: other nights may be on the same machine."""
    try:
        words = process.cmdline()
        ours = process.environ().get("NIGHT_ENDED") == mark
    except psutil.Error:
        return False
    return ours and len(words) > 1 and words[1].endswith("process_worker_pool.py")


def _kill(processes: list[psutil.Process]) -> int:
    for process in processes:
        process.kill()
    return len(processes)


def small_packets(directory: Path, number: int, ccds: int) -> list[Path]:
    """Packets of an exposure whose CCDs have 8 x 12 pixels."""
    start = datetime(2026, 3, 6, 1, tzinfo=UTC) + timedelta(minutes=number)
    exposure = Exposure("decam", number, Kind.OBJECT, "Antlia", "g", start, 20.0, Night.of(start))
    raw = directory / "raw.fits"
    directory.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 60000, (8, 12), np.uint16)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(pixels)]).writeto(raw, overwrite=True)
    return [
        write_packet(directory, pack_ccd(raw, 1, exposure, Ccd(ccd, f"N{ccd}"), "none"))
        for ccd in range(1, ccds + 1)
    ]


def _wait(path: Path, ccds: int) -> dict[tuple[int, int], float]:
    """When each CCD was calibrated, once all are or nothing moves any more."""
    until = time.monotonic() + PATIENCE_S
    while True:
        journal = Journal(path)
        rows = journal.rows(Stage.CALIBRATED)
        journal.close()
        if len(rows) >= ccds or time.monotonic() > until:
            return {
                (row.key.exposure, row.key.ccd): row.calibrated_at
                for row in rows
                if row.calibrated_at is not None
            }
        time.sleep(1.0)


def _noted(path: Path) -> Counter[tuple[int, int]]:
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        rows = connection.execute(
            text("select exposure, ccd from events where stage='calibrated' and outcome='done'")
        )
        return Counter((row.exposure, row.ccd) for row in rows)
