"""Where work runs: one small interface, and this machine behind it."""

from __future__ import annotations

from collections.abc import Callable

from prepipe.compute.base import Compute
from prepipe.compute.local import LocalCompute, worker_traceback
from prepipe.config import Site

__all__ = ["Compute", "LocalCompute", "open_compute", "worker_traceback"]


def open_compute(site: Site, warm_up: Callable[[], object] | None = None) -> Compute:
    """Start the workers that a site asks for.

    Parameters
    ----------
    site : Site
    warm_up : callable, optional
        A top-level function that each worker calls before its first order, such as one
        that compiles what is compiled at first use.
    """
    return LocalCompute(site.cluster.workers, warm_up, site.cluster.time_limit_s)
