"""Runs a pool of workers in a job, and ends it when the process that it keeps its notes in dies.

Without that process, which the kernel may choose when memory is short, the pool would neither
work nor end, and write a traceback a millisecond. This file is run as a program, by its path, so
that a job need not load prepipe for it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

__all__ = ["main"]

_ROUND_S = 0.5
_BROKEN = 70
"""Exit code of a pool that was ended (EX_SOFTWARE of sysexits.h)."""


def main(words: list[str]) -> int:
    """Run the program `words` to its end, or to that of its keeper."""
    pool = subprocess.Popen(words)
    signal.signal(signal.SIGTERM, lambda *_: pool.terminate())
    keeper: psutil.Process | None = None
    while True:
        try:
            return pool.wait(_ROUND_S)
        except subprocess.TimeoutExpired:
            keeper = keeper or _keeper(pool.pid)
        if keeper is not None and not _lives(keeper):
            _end(pool)
            return _BROKEN


def _keeper(pool: int) -> psutil.Process | None:
    """The first process that a pool starts by itself; its workers come after it."""
    with suppress(psutil.Error):
        children = psutil.Process(pool).children()
        made = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        return min(made, key=psutil.Process.create_time, default=None)
    return None


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _end(pool: subprocess.Popen[bytes]) -> None:
    family = []
    with suppress(psutil.Error):
        family = psutil.Process(pool.pid).children(recursive=True)
    pool.kill()
    for process in family:
        with suppress(psutil.Error):
            process.kill()
    pool.wait()


if __name__ == "__main__":
    started = time.monotonic()
    code = main(sys.argv[1:])
    if code == _BROKEN:
        print(f"the pool was ended after {time.monotonic() - started:.0f} s: its keeper is gone")
    sys.exit(code)
