"""Work that tests give to jobs of a batch system; nodes import it."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

from prepipe.errors import FitsError, PacketError


class OwnError(PacketError):
    """An error that cannot be rebuilt from its message."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} is not {right}")


def double(order: int) -> int:
    return 2 * order


def process_id(_order: object) -> int:
    return os.getpid()


def variable(name: str) -> str | None:
    return os.environ.get(name)


def tell_and_sleep(order: tuple[Path, float]) -> int:
    path, seconds = order
    path.write_text(str(os.getpid()))
    time.sleep(seconds)
    return os.getpid()


def tell_and_wait(order: tuple[Path, Path]) -> None:
    """Keep a worker until there is the second file."""
    told, leave = order
    told.write_text(str(os.getpid()))
    while not leave.exists():
        time.sleep(0.01)


def add_line(order: tuple[Path, str]) -> None:
    """Note in what order orders are begun."""
    path, line = order
    with path.open("a") as stream:
        stream.write(f"{line}\n")
    time.sleep(0.02)


def fail(order: str) -> None:
    if order == "fits":
        raise FitsError("this.fits ends too early")
    if order == "own":
        raise OwnError(1, 2)
    raise ValueError(order)


def hang_in_a_library(_order: object) -> None:
    """Never gives up the interpreter's lock, as C code that loops."""
    ctypes.PyDLL(None).sleep(1000)


def give_what_cannot_cross(_order: object) -> object:
    return lambda: None
