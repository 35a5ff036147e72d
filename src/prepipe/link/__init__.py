"""How packets cross to the cluster: links behind one small interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prepipe.link.base import DONE, REJECTED, Link
from prepipe.link.local import LocalLink

if TYPE_CHECKING:
    from prepipe import config
    from prepipe.link.ssh import SshLink

__all__ = ["DONE", "REJECTED", "Link", "LocalLink", "SshLink", "open_link"]


def open_link(settings: config.Link) -> Link:
    """Make the link that a site has chosen; nothing is connected before it is used.

    Raises
    ------
    ConfigError
        If the programs it needs are not installed.
    """
    if settings.kind == "local":
        return LocalLink(settings.landing)
    # the far end of a link starts at once: it loads neither settings nor the near end
    from prepipe.link.ssh import SshLink  # noqa: PLC0415

    return SshLink(settings)


def __getattr__(name: str) -> object:
    if name == "SshLink":
        from prepipe.link.ssh import SshLink  # noqa: PLC0415

        return SshLink
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
