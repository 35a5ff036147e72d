"""`prepipe receive`: the far end of a link, started by sshd."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from prepipe.cli.app import add_command

__all__ = ["register"]


def receive(
    landing: Annotated[Path, typer.Option("--landing", help="The directory packets land in.")],
    idle: Annotated[
        float,
        typer.Option("--idle", min=0.1, help="End after so many seconds without a word."),
    ] = 60.0,
    check: Annotated[
        bool, typer.Option("--check", help="Say whether the directory can be used, then end.")
    ] = False,
) -> None:
    """Take packets on stdin, as the far end of the ssh link.

    The telescope's end starts it over ssh, once a connection; there is no need to do so by hand.
    """
    landing = landing.expanduser()
    if check:
        from prepipe.link.partial import check_landing

        typer.echo(check_landing(landing))
    else:
        from prepipe.link.far_end import serve

        # a disk that does not answer keeps no process alive
        os._exit(serve(landing, idle))


def register(app: typer.Typer) -> None:
    """Add `receive`."""
    add_command(
        app,
        receive,
        "prepipe receive --landing /fred/dwf/landing --check",
        "ssh ozstar prepipe receive --landing /fred/dwf/landing --check",
    )
