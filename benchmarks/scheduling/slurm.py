"""A real Slurm of four nodes on this machine, and what can happen to it."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[3] / "shared/tools/mini-slurm/mini-slurm.sh"


NODES = 4
NODES_ABOVE = 100
"""Nodes listen at ports that lie so far above the controller's."""


def _free_ports() -> int:
    """A port for a controller; it and those of its nodes are free."""
    while True:
        port = random.randrange(20000, 30000)
        with ExitStack() as held:
            try:
                for number in (port, *range(port + NODES_ABOVE, port + NODES_ABOVE + NODES)):
                    held.enter_context(socket.create_server(("", number)))
            except OSError:
                continue
        return port


class Slurm:
    """Started when made; `stop` ends it.

    Parameters
    ----------
    directory : Path
    """

    def __init__(self, directory: Path) -> None:
        self._environment = {
            **os.environ,
            "MINISLURM_DIR": str(directory),
            "MINISLURM_PORT": str(_free_ports()),
        }
        self._directory = directory
        self._run("start")
        os.environ["SLURM_CONF"] = str(directory / "etc" / "slurm.conf")
        # jobs take over the environment: there they find the work of this benchmark
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)

    def stop(self) -> None:
        """End every process of it."""
        self._run("stop")

    def running_jobs(self) -> list[str]:
        """Ids of its jobs that run."""
        return self._told("squeue", "-h", "-t", "R", "-o", "%i").split()

    def cancel(self, jobs: list[str]) -> int:
        """Cancel jobs, as an administrator may; how many."""
        subprocess.run(["scancel", *jobs], check=False)
        return len(jobs)

    def busy_node(self) -> str:
        """A node with a job."""
        return self._told("squeue", "-h", "-t", "R", "-o", "%N").split()[-1]

    def kill_node(self, node: str) -> None:
        """A node dies with all that runs on it."""
        self._run("kill-node", node)

    def mend(self) -> None:
        """What is dead comes back."""
        self._run("start")

    def kill_controller(self) -> None:
        """Nobody answers sbatch, squeue and scancel any more."""
        os.kill(int((self._directory / "run" / "slurmctld.pid").read_text()), signal.SIGTERM)
        time.sleep(0.2)

    def _told(self, *words: str) -> str:
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout

    def _run(self, *words: str) -> None:
        subprocess.run(
            ["bash", str(SCRIPT), *words], env=self._environment, check=True, capture_output=True
        )
