"""Which engine a site uses; what the others need is never loaded."""

from __future__ import annotations

from importlib import import_module

from prepipe.config import Site
from prepipe.engines.base import Engine
from prepipe.errors import ConfigError

__all__ = ["open_engine"]

_MODULES = {
    "builtin": "prepipe.engines.builtin.engine",
    "photpipe": "prepipe.engines.photpipe.engine",
    "hscpipe": "prepipe.engines.stack.hscpipe",
    "lsst": "prepipe.engines.stack.lsst",
}


def open_engine(site: Site) -> Engine:
    """The engine that ``calibration.engine`` names.

    Parameters
    ----------
    site : Site

    Raises
    ------
    ConfigError
        If it is one of the site's own and cannot be loaded.
    """
    name = site.calibration.engine
    if ":" in name:
        return _own(name)
    module = import_module(_MODULES[name])
    engine: Engine = module.engine(site)
    return engine


def _own(name: str) -> Engine:
    """An engine of the site's own: a function from order to outcome, or an `Engine`."""
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module_name), attribute)
    except Exception as error:  # whatever a module of somebody else raises when it is loaded
        raise ConfigError(
            f"calibration.engine: {name} cannot be loaded ({type(error).__name__}: {error}); look "
            "at its name, and whether PYTHONPATH leads to it"
        ) from error
    if isinstance(found, Engine):
        return found
    if not callable(found):
        raise ConfigError(
            f"calibration.engine: {name} is neither a function from order to outcome nor an Engine"
        )
    return Engine(name, found)
