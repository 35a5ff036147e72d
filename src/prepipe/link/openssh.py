"""The user's own OpenSSH: options, and the command that runs at the far end."""

from __future__ import annotations

import shlex
import shutil
import subprocess

from prepipe import config
from prepipe.errors import ConfigError

__all__ = [
    "base_options",
    "cipher_options",
    "far_command",
    "has_shared_connection",
    "need_programs",
    "pool_options",
    "where",
]

CONNECT_S = 30.0
_CHEAPEST = "aes128-gcm@openssh.com"
_LOOK_S = 2.0


def need_programs(*programs: str) -> None:
    """See that OpenSSH is installed.

    Raises
    ------
    ConfigError
    """
    for program in programs:
        if shutil.which(program) is None:
            raise ConfigError(f"{program} is not installed; install the OpenSSH client")


def where(settings: config.Link) -> str:
    """The far side, as people write it."""
    user = f"{settings.user}@" if settings.user else ""
    port = f":{settings.port}" if settings.port else ""
    return f"{user}{settings.host}{port}"


def base_options(
    settings: config.Link, connect_s: float, alive_s: int, alive_count: int
) -> list[str]:
    """Options of ssh and sftp; the site's own come first, for the first one counts.

    Parameters
    ----------
    settings : config.Link
    connect_s : float
        How long a connection may take to be answered, s.
    alive_s, alive_count : int
        The connection is given up after `alive_count` questions without an answer, one every
        `alive_s` seconds.
    """
    options = [
        *settings.options,
        "-oBatchMode=yes",
        # whatever ~/.ssh/config says: nobody looks on who could judge a new key
        "-oStrictHostKeyChecking=yes",
        "-oLogLevel=ERROR",
        f"-oConnectTimeout={max(1, round(connect_s))}",
        f"-oServerAliveInterval={alive_s}",
        f"-oServerAliveCountMax={alive_count}",
    ]
    if settings.user:
        options.append(f"-oUser={settings.user}")
    if settings.port:
        options.append(f"-oPort={settings.port}")
    return options


def pool_options(*, shared: bool) -> list[str]:
    """Options of a connection that is opened again and again, beside others, and carries bytes.

    Parameters
    ----------
    shared : bool
        Whether it may go through the user's own ControlMaster. What shares one connection
        shares its one window.
    """
    alone = [] if shared else ["-oControlMaster=no", "-oControlPath=none"]
    return [
        *alone,
        "-oConnectionAttempts=1",
        "-oClearAllForwardings=yes",
        "-oRemoteCommand=none",
        "-oRequestTTY=no",
        "-oCompression=no",
        # what this user knows of hosts is the user's own affair
        "-oUpdateHostKeys=no",
    ]


def far_command(settings: config.Link) -> str:
    """What the far side's shell is told to run.

    `link.command` is the site's own shell text and goes as it is; the path is quoted. The far
    end itself knows what ``~`` means.
    """
    return f"{settings.command} receive --landing {shlex.quote(str(settings.landing))}"


def cipher_options(settings: config.Link) -> list[str]:
    """Ask for the cheapest of the ciphers that both ends allow, unless the user chose some.

    AES-GCM, which processors know, takes a sixth less of both ends' time than OpenSSH's first
    choice.
    """
    own = _told(["-F", "/dev/null", "--", settings.host], "ciphers")
    told = _told([*settings.options, "--", settings.host], "ciphers")
    if not own or own != told or _CHEAPEST not in own.split(","):
        return []
    # in full: only OpenSSH 8.1 learnt to put one first
    rest = [cipher for cipher in own.split(",") if cipher != _CHEAPEST]
    return [f"-oCiphers={','.join([_CHEAPEST, *rest])}"]


def _told(arguments: list[str], key: str) -> str:
    """What ssh would use, as ``ssh -G`` tells it; empty if it does not."""
    try:
        done = subprocess.run(
            ["ssh", "-G", *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = [line for line in done.stdout.splitlines() if line.startswith(f"{key} ")]
    return found[0].removeprefix(f"{key} ") if found else ""


def has_shared_connection(settings: config.Link) -> bool:
    """Whether the user's own ControlMaster holds a connection open."""
    options = base_options(settings, CONNECT_S, 15, 3)
    command = ["ssh", *options, "-O", "check", "--", settings.host]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_LOOK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
