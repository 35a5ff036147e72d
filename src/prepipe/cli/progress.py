"""Progress of long work: a bar on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from prepipe.cli.output import console

__all__ = ["Advance", "progress"]

Advance = Callable[[str], None]
"""Called once an item is done, with a few words about it."""

LINE_EVERY_S = 2.0


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """Show how far some work has come.

    Parameters
    ----------
    title : str
        What is being done.
    total : int
        How many items there are.

    Yields
    ------
    callable
        To be called after each item.
    """
    with _bar(title, total) if sys.stderr.isatty() else _lines(title, total) as advance:
        yield advance


@contextmanager
def _bar(title: str, total: int) -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[item]}", markup=False),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, item="")

        def advance(item: str) -> None:
            bar.update(task, advance=1, item=item)

        yield advance


@contextmanager
def _lines(title: str, total: int) -> Iterator[Advance]:
    done = 0
    last = 0.0

    def advance(item: str) -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if done == total or now - last >= LINE_EVERY_S:
            typer.echo(f"{title} {done}/{total} {item}".rstrip(), err=True)
            last = now

    yield advance
