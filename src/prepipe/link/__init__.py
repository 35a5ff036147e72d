"""How packets cross to the cluster: links behind one small interface."""

from __future__ import annotations

from prepipe import config
from prepipe.link.base import DONE, REJECTED, Held, Link
from prepipe.link.local import LocalLink
from prepipe.link.ssh import SshLink

__all__ = ["DONE", "REJECTED", "Held", "Link", "LocalLink", "SshLink", "open_link"]


def open_link(settings: config.Link) -> Link:
    """Make the link that a site has chosen; nothing is connected before it is used.

    Raises
    ------
    ConfigError
        If the programs it needs are not installed.
    """
    if settings.kind == "local":
        return LocalLink(settings.landing)
    return SshLink(settings)
