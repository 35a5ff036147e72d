"""What commands share for speaking: JSON and tables on stdout, all else on stderr."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from prepipe.cli.app import FAILED

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "Failures",
    "console",
    "counted",
    "make_table",
    "number",
    "plain",
    "print_json",
    "print_table",
    "printable",
]

PIPE_WIDTH = 1000
"""Columns of a table that goes into a pipe or file, unless COLUMNS tells."""


def plain(value: Any) -> Any:
    """Turn anything that the rooms return into what JSON knows; NaN and infinity become null."""
    if isinstance(value, Enum):
        value = value.value
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime | date):
        return value.isoformat()
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(plain(value), indent=2, allow_nan=False))


def printable(text: str) -> str:
    """The text without what a terminal would take for a command: headers are free text."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A number for a person; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}f}{unit}"


def counted(count: int, noun: str) -> str:
    """``1 night``, ``2 nights``."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def console(*, stderr: bool = False) -> Console:
    """The console of the stream as it is now; no terminal is as wide as COLUMNS says, or very."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    told = os.environ.get("COLUMNS", "")
    width = None if stream.isatty() else int(told) if told.isdecimal() else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, emoji=False, markup=False)


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> Table:
    """A table; columns whose name begins with ``>`` are set to the right.

    These, and those that begin with ``=``, are never broken: numbers and names to be copied.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for column in columns:
        right = column.startswith(">")
        table.add_column(
            column.lstrip(">="),
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=column.startswith((">", "=")),
        )
    for row in rows:
        table.add_row(
            *(cell if isinstance(cell, Text) else Text(printable(str(cell))) for cell in row)
        )
    return table


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a table on stdout."""
    console().print(make_table(columns, rows, title))


class Failures:
    """The inputs that failed; each is named on stderr with its reason at once."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def add(self, name: str | Path, reason: object) -> None:
        """Name an input and why it failed."""
        sentence = str(reason)
        self.reasons[str(name)] = sentence
        named = sentence if str(name) in sentence else f"{name}: {sentence}"
        typer.echo(f"failed: {printable(named)}", err=True)

    def finish(self) -> None:
        """Exit with 1 if anything failed.

        Raises
        ------
        typer.Exit
        """
        if self.reasons:
            raise typer.Exit(FAILED)
