"""What each batch system is spoken to with."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["COMMANDS", "Commands"]


class Commands(NamedTuple):
    """Programs that must be on the path where jobs are asked for."""

    submit: str
    look: str
    cancel: str


_SLURM = Commands("sbatch", "squeue", "scancel")
_PBS = Commands("qsub", "qstat", "qdel")

COMMANDS = {"slurm": _SLURM, "torque": _PBS, "pbspro": _PBS}
