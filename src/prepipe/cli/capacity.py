"""What `prepipe doctor` says of a site's power: whether its cores can keep up with the camera."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

from prepipe.cli.checks import CLUSTER, TELESCOPE, Check, State
from prepipe.cli.output import counted
from prepipe.config import Site

__all__ = ["capacity_checks", "check_packing", "check_shared_cores"]

CADENCE_S = 60.0
"""An exposure a minute: 20 to 30 s of light, the same again of read-out and slewing."""
PACKING_CORE_S = {"jpeg2000": 2.0, "htj2k": 0.3, "wavelet": 0.16, "rice": 0.05, "none": 0.02}
"""Core-seconds to pack one CCD of 2048 x 4096 pixels; as ``benchmarks/night.py`` measures."""


def capacity_checks(site: Site, ends: Sequence[str]) -> list[Callable[[], Check]]:
    """The checks of a site's power, to be called one after the other.

    Parameters
    ----------
    site : Site
    ends : sequence of str
        Which ends run on this machine.
    """
    checks: list[Callable[[], Check]] = []
    if TELESCOPE in ends:
        checks.append(lambda: check_packing(site))
    if TELESCOPE in ends and CLUSTER in ends and site.link.kind == "local":
        checks.append(lambda: check_shared_cores(site))
    return checks


def check_packing(site: Site) -> Check:
    """Whether the CCDs of an exposure can be packed before the next one comes."""
    from prepipe.cameras import load_camera

    ccds = max(1, len(load_camera(site.camera).focal_plane()))
    needed_s = ccds * PACKING_CORE_S.get(site.pack.codec, 0.0)
    cores = len(os.sched_getaffinity(0))
    seconds = needed_s / min(site.pack.workers, cores)
    found = (
        f"{ccds} CCDs take about {seconds:.0f} s to pack with {site.pack.codec}, "
        f"{counted(site.pack.workers, 'worker')} and {counted(cores, 'core')}"
    )
    if seconds <= CADENCE_S:
        return Check("packing power", State.OK, found)
    wanted = math.ceil(needed_s / CADENCE_S)
    remedy = "exposures a minute apart will queue: " + (
        f"set pack.workers to {wanted}"
        if wanted <= cores
        else f"take a machine with {wanted} cores, or another pack.codec if the link can bear it"
    )
    return Check("packing power", State.WARNING, found, remedy)


def check_shared_cores(site: Site) -> Check:
    """Whether both ends on one machine leave each other room."""
    cores = len(os.sched_getaffinity(0))
    packing, calibrating = site.pack.workers, site.cluster.workers
    found = (
        f"{counted(packing, 'worker')} of push and {calibrating} of ingest on "
        f"{counted(cores, 'core')}"
    )
    if packing + calibrating <= cores:
        return Check("both ends here", State.OK, found)
    remedy = f"they slow each other: let pack.workers and cluster.workers add up to {cores}"
    return Check("both ends here", State.WARNING, found, remedy)
