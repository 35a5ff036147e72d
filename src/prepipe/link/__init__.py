"""How packets cross to the cluster: links behind one small interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prepipe.link.base import ARCHIVE, DONE, REJECTED, Held, Link

if TYPE_CHECKING:
    from prepipe import config

__all__ = ["ARCHIVE", "DONE", "REJECTED", "Held", "Link", "open_link"]


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
    # the far end of a link starts at once: it loads neither settings nor the near end
    match settings.kind:
        case "local":
            from prepipe.link.local import LocalLink  # noqa: PLC0415

            return LocalLink(settings.landing)
        case "sftp":
            from prepipe.link.sftp import SftpLink  # noqa: PLC0415

            return SftpLink(settings)
        case "ssh":
            from prepipe.link.ssh import SshLink  # noqa: PLC0415

            return SshLink(settings, on_notice)
