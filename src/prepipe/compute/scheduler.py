"""What a job looks like to a batch system: Parsl's providers, filled in from the settings."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.launchers import SimpleLauncher
from parsl.providers import PBSProProvider, SlurmProvider, TorqueProvider

from prepipe.compute import pool
from prepipe.compute.commands import COMMANDS
from prepipe.compute.record import JobRecord
from prepipe.config import Compute
from prepipe.errors import ConfigError, TransientError

__all__ = ["make_executor", "make_provider", "script_of", "why_pending"]

HEARTBEAT_S = 3
LOST_AFTER_S = 12
"""Silence after which a node is given up, and after which a node gives up its broker."""

START_S = 60
"""Allowance for the start of a job, out of its walltime."""

_JOB_NAME = "prepipe"
_COMMAND_TIMEOUT_S = 30
_NOT_RERUN = "#PBS -r n"  # a job that comes back by itself would find another broker
_UNKNOWN_JOB = 153
"""Exit code of every qstat that does not know all the jobs that it was asked for."""

_PLAIN_PATH = re.compile(r"[\w./@%+=:,-]+")
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

    Raises
    ------
    ConfigError
        If the batch system's commands or Parsl's own are missing here, or a path that they
        cannot take.
    """
    programs = _programs()
    _require_plain(directory)
    _require_plain(programs)
    executor = HighThroughputExecutor(
        label="ccds",
        provider=make_provider(settings, record),
        launch_cmd=f"{sys.executable} {pool.__file__} {programs}/{DEFAULT_LAUNCH_CMD}",
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


def _require_plain(path: Path) -> None:
    """Neither Parsl nor the directives of a job know of quotes."""
    if not _PLAIN_PATH.fullmatch(str(path)):
        raise ConfigError(
            f"{path}: jobs can only use paths of letters, digits and ./-_+@%=:, without "
            "spaces; set cluster.work to such a one"
        )


def _programs() -> Path:
    """Where Parsl's own programs are, which need not be on the path of a job."""
    places = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    found = shutil.which("interchange.py", path=os.pathsep.join(places))
    if found is None:
        raise ConfigError(
            f"Parsl's interchange.py is not in {places[0]}: install prepipe in a virtual "
            "environment of its own"
        )
    return Path(found).parent


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

    Parameters
    ----------
    settings : Compute
    directory : Path
        That the job would use; it is not made.
    time_limit_s : float

    Returns
    -------
    script : str
    command : str
    """
    _require_plain(directory)
    with tempfile.TemporaryDirectory() as apart:
        told = _composed(settings, Path(apart), time_limit_s)
    script, command = (text.replace(apart, str(directory)) for text in told)
    return script, command


def _composed(settings: Compute, directory: Path, time_limit_s: float) -> tuple[str, str]:
    """The script and the command, as they are when a job is asked for in a directory."""
    executor = make_executor(settings, directory, time_limit_s)
    submitted: list[str] = []

    def only_noted(command: str, timeout: int | None = None) -> tuple[int, str, str]:
        submitted.append(command)
        return 0, "Submitted batch job 0\n", ""

    executor.provider.ask = only_noted
    executor.logconf_path = None
    executor.cert_dir = f"{executor.logdir}/certificates"
    executor.worker_port = settings.ports[0]
    executor.initialize_scaling()
    executor.provider.submit(executor.launch_cmd.format(block_id="0"), 1, _JOB_NAME)
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
    options.append(_NOT_RERUN)
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
        scheduler_options="\n".join([*settings.options, _NOT_RERUN]),
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
    lines = [_module_line(module) for module in settings.modules]
    lines += [f"export {name}=1" for name in _ONE_THREAD]
    lines += [f"export {name}={shlex.quote(text)}" for name, text in settings.environment.items()]
    return lines + list(settings.setup)


def _module_line(module: str) -> str:
    """Load a module, or end the job: what it was for would fail in a less telling way."""
    sentence = shlex.quote(f"prepipe: module {module} cannot be loaded")
    return f"module load {shlex.quote(module)} || {{ echo {sentence} >&2; exit 3; }}"


def why_pending(place: str, job_id: str) -> str:
    """Why the scheduler lets a job wait, in its own word; empty if it does not say."""
    if place != "slurm":
        return ""
    words = ["squeue", "--noheader", f"--jobs={job_id}", "--format=%r"]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    said = done.stdout.strip()
    return "" if done.returncode or said == "None" else said


def _watched(provider: type[Any], settings: Compute, record: JobRecord | None) -> type[Any]:
    """A provider that notes its jobs, and tells what a scheduler that refuses says.

    Parsl's own take every job for ended when a look at them fails, or look for ever for one that
    the scheduler has forgotten.
    """
    take, look, _ = COMMANDS[settings.place]
    said_in: dict[str, str] = {}

    def submit(self: Any, command: str, tasks_per_node: int, _name: str = "") -> Any:
        job_id = provider.submit(self, command, tasks_per_node, _JOB_NAME)
        if job_id and record is not None:
            record.add(str(job_id))
        if job_id:
            said_in[job_id] = f"{self.submitted}.stderr"
        return job_id

    def execute_wait(self: Any, command: str, timeout: int | None = None) -> Any:
        name, _, rest = command.partition(" ")
        if name == take:
            self.submitted = rest.split()[-1]
        if settings.place == "torque" and name == take:
            # Slurm's qsub goes by these words, not by the script's own lines
            command = f"{name} -o {self.submitted}.stdout -e {self.submitted}.stderr {rest}"
        code, out, err = self.ask(command, timeout)
        if name == look and _is_forgotten(code, err):
            return 0, out or ("{}" if settings.place == "pbspro" else ""), err
        if code and name in (look, take):
            raise TransientError(f"{name}: {_said(name, err.strip() or out.strip())[-200:]}")
        return code, out, err

    def _status(self: Any) -> None:
        provider._status(self)
        for job_id, told in self.resources.items():
            told["status"].stderr_path = said_in.get(job_id)

    def write_script(self: Any, template: str, path: str, _name: str, told: dict[str, Any]) -> None:
        provider._write_submit_script(self, template, path, _JOB_NAME, told)

    own = {
        "_write_submit_script": write_script,
        "status_polling_interval": 0,  # the broker keeps time
        "submit": submit,
        "ask": provider.execute_wait,
        "execute_wait": execute_wait,
        "_status": _status,
    }
    return type(provider.__name__, (provider,), own)


def _said(name: str, text: str) -> str:
    """What a command says, without its name before each line."""
    lines = (re.sub(rf"^{name}: (error: )?", "", line.strip()) for line in text.splitlines())
    return " / ".join(line for line in lines if line)


def _is_forgotten(code: int, err: str) -> bool:
    """Whether a look failed because the scheduler knows a job no more."""
    text = err.lower()
    return code == _UNKNOWN_JOB or (code != 0 and ("unknown job" in text or "invalid job" in text))
