"""How packets cross to the cluster: links behind one small interface."""

from __future__ import annotations

from collections.abc import Callable

from prepipe import config
from prepipe.link.base import DONE, REJECTED, Held, Link
from prepipe.link.local import LocalLink
from prepipe.link.sftp import SftpLink
from prepipe.link.ssh import SshLink

__all__ = ["DONE", "REJECTED", "Held", "Link", "LocalLink", "SftpLink", "SshLink", "open_link"]


def open_link(settings: config.Link, on_notice: Callable[[str], object] = lambda _: None) -> Link:
    """Make the link that a site has chosen; nothing is connected before it is used.

    Parameters
    ----------
    settings : config.Link
    on_notice : callable, optional
        Told, in a sentence, what the link has to do without.

    Raises
    ------
    ConfigError
        If the programs it needs are not installed.
    """
    match settings.kind:
        case "local":
            return LocalLink(settings.landing)
        case "sftp":
            return SftpLink(settings)
        case "ssh":
            return SshLink(settings, on_notice)
