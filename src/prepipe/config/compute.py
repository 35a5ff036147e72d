"""Where CCDs are calibrated: this machine, or jobs of a batch system."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from prepipe.config.section import Section

__all__ = ["Compute"]

# these become words of a command
Word = Annotated[str, Field(pattern=r"^[\w.@:+-]*$")]
Port = Annotated[int, Field(ge=1024, le=65535)]

_DIRECTIVE = {"slurm": "#SBATCH ", "torque": "#PBS ", "pbspro": "#PBS "}
_VARIABLE = re.compile(r"[A-Za-z_]\w*")


class Compute(Section):
    """Where CCDs are calibrated, and on what terms a batch system is asked for room."""

    place: Literal["local", "slurm", "torque", "pbspro"] = Field(
        "local",
        description="local (this machine, cluster.workers of them), slurm, torque or pbspro",
    )
    account: Word = Field("", description="account, or project, that jobs are charged to")
    queue: Word = Field("", description="partition (Slurm) or queue (PBS); empty: the usual one")
    reservation: Word = Field(
        "", description="reservation to run in; on pbspro a reservation is a queue: name it there"
    )
    walltime_min: int = Field(240, ge=2, description="minutes that a job may last")
    cores: int = Field(4, ge=1, description="cores a job")
    ccds: int | None = Field(
        None,
        ge=1,
        examples=[4],
        description="CCDs calibrated at the same time in a job; unset: one a core",
    )
    memory_gb: int = Field(8, ge=0, description="memory a job, GB; 0 does not ask")
    tmp_gb: int = Field(0, ge=0, description="node's own disk a job, GB; 0 does not ask")
    jobs: int = Field(4, ge=1, description="jobs at most; two or more hand over without a gap")
    jobs_ready: int = Field(
        1, ge=0, description="jobs kept while nothing is to be done, so that no exposure waits"
    )
    idle_s: float = Field(
        600.0, gt=0, description="a job beyond jobs_ready without work this long is given back"
    )
    modules: tuple[str, ...] = Field(
        (), description='modules a job loads first, such as "python/3.11"'
    )
    environment: dict[str, str] = Field({}, description="variables a job sets then")
    setup: tuple[str, ...] = Field((), description="lines of shell that a job runs then")
    options: tuple[str, ...] = Field(
        (), description='lines for the scheduler, verbatim, such as "#SBATCH --qos=realtime"'
    )
    address: Word = Field(
        "",
        examples=["10.1.0.5"],
        description="address of this host that nodes reach; empty: they try all of its own",
    )
    ports: tuple[Port, Port] = Field(
        (54000, 55000), description="ports of this host that nodes connect to, from and to"
    )
    poll_s: float = Field(10.0, gt=0, description="seconds between two looks at the jobs' states")
    scratch: str = Field(
        "",
        examples=["$JOBFS"],
        description="a node's own disk, such as $JOBFS, $PBS_JOBFS or $TMPDIR: packets are worked "
        "on there and only products are copied back; empty: on the shared disk itself",
    )
    shared_slots: int = Field(
        0,
        ge=0,
        description="CCDs of one node that read or write the shared disk at the same time; 0: all",
    )

    @model_validator(mode="after")
    def _possible(self) -> Compute:
        if self.place == "pbspro" and self.reservation:
            raise ValueError("on pbspro a reservation is a queue: name it as queue")
        if self.jobs_ready > self.jobs:
            raise ValueError(f"jobs_ready ({self.jobs_ready}) is more than jobs ({self.jobs})")
        if self.shared_slots and not self.scratch:
            raise ValueError("shared_slots needs scratch: only then reading is apart from work")
        if self.place == "pbspro" and self.tmp_gb:
            raise ValueError(
                "PBS Pro has no common word for tmp_gb: ask in options, in your site's words"
            )
        if self.ports[0] >= self.ports[1]:
            raise ValueError("ports: the first must be below the second")
        if self.scratch and not self.scratch.startswith(("/", "$")):
            raise ValueError(f"scratch ({self.scratch}) must begin with / or with a $VARIABLE")
        for line in (*self.options, *self.setup, *self.modules, *self.environment.values()):
            if "\n" in line:
                raise ValueError(f"{line!r} must be one line")
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"environment: {name!r} is no name of a variable")
        for line in self.options:
            # any other would end the directives, and those after it would count for nothing
            if not line.startswith(_DIRECTIVE.get(self.place, "#")):
                raise ValueError(
                    f"options: {line!r} must begin with {_DIRECTIVE.get(self.place, '#')}"
                )
        return self

    @property
    def at_once(self) -> int:
        """CCDs calibrated at the same time in one job."""
        return self.ccds or self.cores
