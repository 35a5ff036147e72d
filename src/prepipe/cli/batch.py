"""What `prepipe doctor` says of a batch system; `prepipe compute test` tells the rest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from prepipe.cli.checks import CLUSTER, Check, State
from prepipe.compute.commands import COMMANDS
from prepipe.config import Site

__all__ = [
    "batch_checks",
    "check_guard",
    "check_scheduler",
    "check_seen_by_nodes",
    "check_walltime",
]

_OWN_DISKS = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))


def batch_checks(site: Site, ends: Sequence[str]) -> list[Callable[[], Check]]:
    """The checks of a site's batch system, to be called one after the other; none without one.

    Parameters
    ----------
    site : Site
    ends : sequence of str
        Which ends run on this machine.
    """
    if CLUSTER not in ends or site.compute.place == "local":
        return []
    return [
        lambda: check_scheduler(site.compute.place),
        check_guard,
        lambda: check_seen_by_nodes(site),
        lambda: check_walltime(site),
    ]


def check_scheduler(place: str) -> Check:
    """Whether jobs can be submitted from here."""
    missing = [name for name in COMMANDS[place] if shutil.which(name) is None]
    if missing:
        remedy = "run ingest on a host where jobs are submitted, or load the scheduler's module"
        return Check("compute.place", State.FAILURE, f"{place}: no {', '.join(missing)}", remedy)
    found = f"{place}: {', '.join(COMMANDS[place])}"
    return Check("compute.place", State.OK, f"{found}; `prepipe compute test` tries a job")


def check_guard() -> Check:
    """Whether the broker would end with an ingest that is killed."""
    if shutil.which("setpriv"):
        return Check("compute", State.OK, "the broker of the jobs ends with its ingest")
    remedy = "install util-linux (setpriv), or after kill -9 of ingest end interchange.py by hand"
    return Check("compute", State.WARNING, "a killed ingest would leave its broker", remedy)


def check_seen_by_nodes(site: Site) -> Check:
    """Whether directories lie where other hosts cannot see them."""
    cluster = site.cluster
    places = {"work": cluster.work, "products": cluster.products, "landing": cluster.landing}
    own = [
        f"cluster.{name}"
        for name, place in places.items()
        if any(Path(os.path.realpath(place)).is_relative_to(disk) for disk in _OWN_DISKS)
    ]
    if own:
        found = f"{', '.join(own)} below this host's own /tmp"
        return Check("shared disk", State.WARNING, found, "put them where nodes see them")
    return Check("shared disk", State.OK, "work, products and landing are not in /tmp")


def check_walltime(site: Site) -> Check:
    """Whether a job lasts long enough to hand over while its last CCDs may take their time."""
    walltime_s, limit_s = 60.0 * site.compute.walltime_min, site.cluster.time_limit_s
    found = f"{site.compute.walltime_min} min, a CCD may take {limit_s:.0f} s"
    if walltime_s < 2.0 * limit_s:
        remedy = "a job's end may come first: lengthen it, or shorten cluster.time_limit_s"
        return Check("compute.walltime_min", State.WARNING, found, remedy)
    return Check("compute.walltime_min", State.OK, found)
