"""Where work runs: one small interface, and this machine behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prepipe.compute.base import Compute, Job
from prepipe.compute.local import LocalCompute, worker_traceback
from prepipe.config import Site

__all__ = ["DIRECTORY", "Compute", "Job", "LocalCompute", "open_compute", "worker_traceback"]


DIRECTORY = "compute"
"""Below the cluster's work directory: what the batch jobs need, and notes of what runs."""


def open_compute(
    site: Site,
    warm_up: Callable[[], object] | None = None,
    directory: Path | None = None,
) -> Compute:
    """Start the workers that a site asks for.

    Parameters
    ----------
    site : Site
    warm_up : callable, optional
        A top-level function that each worker of this machine calls before its first order,
        such as one that compiles what is compiled at first use.
    directory : Path, optional
        For what batch jobs need, which nodes must see; the cluster's own if not given.

    Raises
    ------
    ConfigError
        If the batch system's commands are missing here.
    TransientError
        If the workers cannot be started.
    """
    cluster, settings = site.cluster, site.compute
    if settings.place == "local":
        return LocalCompute(cluster.workers, warm_up, cluster.time_limit_s)
    # Parsl takes half a second to load, which whoever works on one machine need not wait for
    from prepipe.compute.batch import BatchCompute  # noqa: PLC0415

    return BatchCompute(settings, directory or cluster.work / DIRECTORY, cluster.time_limit_s)
