"""What a job looks like to a batch system: Parsl's providers, filled in from the settings."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.launchers import SimpleLauncher
from parsl.providers import PBSProProvider, SlurmProvider, TorqueProvider

from prepipe.compute.record import JobRecord
from prepipe.config import Compute
from prepipe.errors import ConfigError, TransientError

__all__ = ["COMMANDS", "make_executor", "make_provider", "script_of"]

COMMANDS = {
    "slurm": ("sbatch", "squeue", "scancel"),
    "torque": ("qsub", "qstat", "qdel"),
    "pbspro": ("qsub", "qstat", "qdel"),
}
"""What each batch system must offer on this host."""

HEARTBEAT_S = 5
LOST_AFTER_S = 20
"""Silence after which a node is given up, and after which a node gives up its broker."""

START_S = 60
"""Allowance for the start of a job, out of its walltime."""

_COMMAND_TIMEOUT_S = 30
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def make_executor(
    settings: Compute, directory: Path, time_limit_s: float, record: JobRecord | None = None
) -> Any:
    """Parsl's executor for jobs of a batch system, not started yet.

    Parameters
    ----------
    settings : Compute
    directory : Path
        Of this executor alone: scripts, keys and logs of its jobs; nodes must see it.
    time_limit_s : float
        Longest order: so long before its walltime a job takes no more.
    record : JobRecord, optional
        Told of every job.
    """
    programs = Path(sys.executable).parent
    executor = HighThroughputExecutor(
        label="ccds",
        provider=make_provider(settings, record),
        launch_cmd=f"{shlex.quote(str(programs))}/{DEFAULT_LAUNCH_CMD}",
        interchange_launch_cmd=[*_dying_with_us(), str(programs / "interchange.py")],
        address=settings.address or None,
        worker_port_range=settings.ports,
        max_workers_per_node=settings.at_once,
        # how many CCDs share a core is the site's choice, not to be computed here
        cores_per_worker=1e-6,
        heartbeat_period=HEARTBEAT_S,
        heartbeat_threshold=LOST_AFTER_S,
        drain_period=_drain_s(settings, time_limit_s),
        encrypted=True,
    )
    executor.run_dir = str(directory)
    executor.provider.script_dir = str(directory / "scripts")
    (directory / "scripts").mkdir(parents=True, exist_ok=True)
    return executor


def _dying_with_us() -> list[str]:
    """A broker without its master would keep nodes busy for ever; Ctrl-C is not for it."""
    prefix = []
    if shutil.which("setsid"):
        prefix += ["setsid"]
    if shutil.which("setpriv"):
        prefix += ["setpriv", "--pdeathsig", "KILL"]
    return prefix


def _drain_s(settings: Compute, time_limit_s: float) -> int:
    """When a job begins to take no more work, s after its start; at the earliest half-way."""
    walltime_s = 60.0 * settings.walltime_min
    return int(max(walltime_s / 2.0, walltime_s - time_limit_s - START_S))


def make_provider(settings: Compute, record: JobRecord | None = None) -> Any:
    """Parsl's provider for the batch system that `settings` name.

    Raises
    ------
    ConfigError
        If its commands are missing here.
    """
    for command in COMMANDS[settings.place]:
        if shutil.which(command) is None:
            raise ConfigError(
                f"compute.place is {settings.place}, but there is no {command} here: run this "
                "where jobs can be submitted, or load the batch system's module first"
            )
    provider = _MAKERS[settings.place](settings)
    provider.__class__ = _watched(type(provider), settings, record)
    return provider


def script_of(settings: Compute, directory: Path, time_limit_s: float) -> tuple[str, str]:
    """The script of a job and the command that would submit it; nothing is submitted.

    Returns
    -------
    script : str
    command : str
    """
    executor = make_executor(settings, directory, time_limit_s)
    submitted: list[str] = []

    def only_noted(command: str, timeout: int | None = None) -> tuple[int, str, str]:
        submitted.append(command)
        return 0, "Submitted batch job 0\n", ""

    executor.provider.execute_wait = only_noted
    executor.logconf_path = None
    executor.worker_port = settings.ports[0]
    executor.initialize_scaling()
    executor.provider.submit(executor.launch_cmd.format(block_id="0"), 1, "prepipe")
    script = next((directory / "scripts").iterdir())
    return script.read_text(), submitted[-1]


def _slurm(settings: Compute) -> Any:
    options = list(settings.options)
    options.append("#SBATCH --no-requeue")  # a job that comes back by itself would wait minutes
    if settings.reservation:
        options.append(f"#SBATCH --reservation={settings.reservation}")
    if settings.tmp_gb:
        options.append(f"#SBATCH --tmp={settings.tmp_gb}G")
    return SlurmProvider(
        partition=settings.queue or None,
        account=settings.account or None,
        cores_per_node=settings.cores,
        mem_per_node=settings.memory_gb or None,
        exclusive=False,
        scheduler_options="\n".join(options),
        cmd_timeout=_COMMAND_TIMEOUT_S,
        **_common(settings),
    )


def _torque(settings: Compute) -> Any:
    options = list(settings.options)
    if settings.memory_gb:
        options.append(f"#PBS -l mem={settings.memory_gb}gb")
    if settings.tmp_gb:
        options.append(f"#PBS -l file={settings.tmp_gb}gb")
    if settings.reservation:
        options.append(f"#PBS -l advres={settings.reservation}")
    provider = TorqueProvider(
        account=settings.account or None,
        queue=settings.queue or None,
        scheduler_options="\n".join(options),
        cmd_timeout=_COMMAND_TIMEOUT_S,
        **_common(settings),
    )
    # It would ask for one core, whatever the number of workers.
    provider.template_string = provider.template_string.replace(
        "ppn=${tasks_per_node}", f"ppn={settings.cores}"
    )
    return provider


def _pbspro(settings: Compute) -> Any:
    return PBSProProvider(
        account=settings.account or None,
        queue=settings.queue or None,
        cpus_per_node=settings.cores,
        select_options=f"mem={settings.memory_gb}gb" if settings.memory_gb else "",
        scheduler_options="\n".join(settings.options),
        cmd_timeout=_COMMAND_TIMEOUT_S,
        **_common(settings),
    )


_MAKERS: dict[str, Callable[[Compute], Any]] = {
    "slurm": _slurm,
    "torque": _torque,
    "pbspro": _pbspro,
}


def _common(settings: Compute) -> dict[str, Any]:
    hours, minutes = divmod(settings.walltime_min, 60)
    return {
        "walltime": f"{hours:02d}:{minutes:02d}:00",
        "worker_init": "\n".join(_setup_lines(settings)),
        "launcher": SimpleLauncher(),
        "init_blocks": 0,
        "max_blocks": settings.jobs,
    }


def _setup_lines(settings: Compute) -> list[str]:
    lines = [f"module load {shlex.quote(module)}" for module in settings.modules]
    lines += [f"export {name}=1" for name in _ONE_THREAD]
    lines += [f"export {name}={shlex.quote(text)}" for name, text in settings.environment.items()]
    return lines + list(settings.setup)


def _watched(provider: type[Any], settings: Compute, record: JobRecord | None) -> type[Any]:
    """A provider that notes its jobs, looks as often as told, and doubts a scheduler that fails."""

    def submit(self: Any, command: str, tasks_per_node: int, job_name: str = "prepipe") -> Any:
        job_id = provider.submit(self, command, tasks_per_node, job_name)
        if job_id and record is not None:
            record.add(str(job_id))
        return job_id

    def execute_wait(self: Any, command: str, timeout: int | None = None) -> Any:
        if command.startswith("qsub"):
            # some write the job's output where qsub was called, whatever the script says
            command = f"cd {shlex.quote(str(self.script_dir))} && {command}"
        code, out, err = provider.execute_wait(self, command, timeout)
        # Torque's provider takes every job for ended when qstat fails as a whole.
        if code and command.startswith("qstat") and not out.strip():
            unknown = "unknown job" in err.lower()
            if not unknown:
                raise TransientError(f"qstat failed: {err.strip()[:200]}")
        return code, out, err

    own = {
        "status_polling_interval": settings.poll_s,
        "submit": submit,
        "execute_wait": execute_wait,
    }
    return type(provider.__name__, (provider,), own)
