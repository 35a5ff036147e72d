"""The built-in engine as one that a site can name."""

from __future__ import annotations

from functools import partial

from prepipe.config import Site
from prepipe.engines.base import Engine
from prepipe.engines.builtin.reduce import carry_out
from prepipe.engines.builtin.warm_up import warm_up

__all__ = ["engine"]


def engine(site: Site) -> Engine:
    """The engine, for `open_engine`."""
    return Engine("builtin", carry_out, partial(warm_up, site.calibration.photometry))
