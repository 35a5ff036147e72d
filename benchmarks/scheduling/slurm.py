"""A real Slurm of four nodes on this machine, and what can happen to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[3] / "shared/tools/mini-slurm/mini-slurm.sh"


class Slurm:
    """Started when made; `stop` ends it.

    Parameters
    ----------
    directory : Path
    port : int
        Of its controller; its nodes take some above.
    """

    def __init__(self, directory: Path, port: int = 17817) -> None:
        self._environment = {
            **os.environ,
            "MINISLURM_DIR": str(directory),
            "MINISLURM_PORT": str(port),
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

    def cancel(self, jobs: list[str]) -> None:
        """Cancel jobs, as an administrator may."""
        subprocess.run(["scancel", *jobs], check=False)

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
