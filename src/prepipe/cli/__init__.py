"""The one command, `prepipe`: one thin module a command group; each parses, calls and renders.

A module of commands has one function, ``register(app)``, and stands in `MODULES`. What is
slow to import (numba, astropy, the journal) is imported inside the commands.
"""

from __future__ import annotations

from importlib import import_module

import typer

from prepipe.cli.app import make_app

__all__ = ["MODULES", "app", "main"]

MODULES = (
    "demo",
    "site",
    "doctor",
    "simulate",
    "packets",
    "fidelity",
    "run",
    "archive",
    "restore",
    "receive",
    "link",
    "compute",
    "jobs",
    "masters",
    "library",
    "calibrate",
    "look",
    "wcs",
    "status",
    "again",
    "refcat",
)
"""Modules of commands, in the order of the help page."""


def _complete_app() -> typer.Typer:
    complete = make_app()
    for name in MODULES:
        import_module(f"{__name__}.{name}").register(complete)
    return complete


app = _complete_app()


def main() -> None:
    """Run the command line."""
    app(prog_name="prepipe")
