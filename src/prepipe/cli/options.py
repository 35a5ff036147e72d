"""Options that several commands have in common."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prepipe.errors import ConfigError

if TYPE_CHECKING:
    from prepipe.config import Site
    from prepipe.model import Night

__all__ = [
    "DEFAULT_CONFIG",
    "CameraName",
    "Config",
    "Json",
    "OptionalConfig",
    "number_list",
    "read_night",
    "read_site",
    "site_of",
    "writable",
]

DEFAULT_CONFIG = Path("prepipe.toml")

Config = Annotated[
    Path,
    typer.Option("--config", "-c", help="The site's settings.", envvar="PREPIPE_CONFIG"),
]
OptionalConfig = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Take camera, catalogue and limits from these settings."),
]
CameraName = Annotated[
    str | None, typer.Option(help="decam, or a .toml file that describes a camera.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]


def read_site(config: Path) -> Site:
    """Read the settings of the site.

    Raises
    ------
    ConfigError
        If they are missing or wrong.
    """
    from prepipe.config import Site

    site = Site.read(config)
    commands = site.pack.external
    if commands.encode or commands.decode:
        from prepipe.codec.external import Commands

        Commands(**commands.model_dump()).use()
    return site


def read_night(text: str | None) -> Night | None:
    """Read what ``--night`` says; None if nothing.

    Raises
    ------
    ConfigError
        If it is no night.
    """
    from prepipe.model import Night

    try:
        return None if text is None else Night.parse(text)
    except ValueError as error:
        raise ConfigError(f"--night: {error}") from error


def site_of(config: Path | None, camera: str | None) -> Site:
    """Settings of a command that needs none: those of a file, or the defaults.

    Parameters
    ----------
    config : Path or None
    camera : str or None
        Taken instead of what the settings say.

    Raises
    ------
    ConfigError
    """
    from prepipe.config import Site

    site = Site() if config is None else read_site(config)
    return site if camera is None else site.model_copy(update={"camera": camera})


def writable(directory: Path, option: str) -> None:
    """Make sure, before any work is done, that files can be written in a directory.

    It is not made yet.

    Parameters
    ----------
    directory : Path
    option : str
        Name of the option, for the message.

    Raises
    ------
    ConfigError
        If it neither can be written nor made.
    """
    place = directory.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"{option} {directory}: {place} is no directory; give another one")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ConfigError(
            f"{option} {directory}: {place} cannot be written ({error.strerror}); "
            "give another one, or this user the right to write there"
        ) from error


def number_list(text: str, what: str) -> tuple[int, ...]:
    """Read ``25,31,40-44``.

    Parameters
    ----------
    text : str
    what : str
        Name of the option, for the message.

    Raises
    ------
    ConfigError
        If `text` is no such list.
    """
    numbers: list[int] = []
    for part in text.strip().removesuffix(",").split(","):
        if re.fullmatch(r"\s*\d{1,8}(-\d{1,8})?\s*", part, re.ASCII) is None:
            raise ConfigError(f"{what}: {text!r} is not a list of numbers like 25,31,40-44")
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(numbers))
