"""What workers do on their own disk in the tests of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prepipe.compute.scratch import scratch_directory, shared_turn


def stay_in_scratch(order: tuple[Path, Path, float]) -> str:
    """Tell where one is, and stay there for some seconds."""
    root, told, seconds = order
    with scratch_directory(root) as here:
        (here / "half.fits").write_bytes(bytes(1000))
        told.write_text(f"{os.getpid()} {here}")
        time.sleep(seconds)
        return str(here)


def note_a_turn(order: tuple[Path, int, Path]) -> None:
    """Note when one's turn at the shared disk begins and ends."""
    root, slots, notes = order
    with shared_turn(root, slots), notes.open("a", buffering=1) as stream:
        stream.write("+\n")
        time.sleep(0.05)
        stream.write("-\n")


def keep_a_turn(order: tuple[Path, int, Path]) -> None:
    """Hold a turn for ever."""
    root, slots, told = order
    with shared_turn(root, slots):
        told.write_text(str(os.getpid()))
        time.sleep(300)
