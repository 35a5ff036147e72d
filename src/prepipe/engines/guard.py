"""Stands between a worker and a program: ends the program, and all it started, with the worker.

Run as a file that imports little, so that it starts at once; its standard input is a pipe from the
worker. When that is closed, by the worker or by its death, the program's process group is
told to end, and killed if it does not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

NOT_STARTED = 127
"""Exit status if the program cannot be run at all."""

GRACE_S = 3.0
"""How long a program may take to end by itself, s."""


def main(words: list[str]) -> int:
    """Run a program to its end, and give its exit status; 128 and more for a signal."""
    try:
        program = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"{words[0]} cannot be run: {error.strerror}\n")
        return NOT_STARTED
    threading.Thread(target=_end_with_worker, args=(program.pid,), daemon=True).start()
    status = program.wait()
    _signal(program.pid, signal.SIGKILL)
    return status if status >= 0 else 128 - status


def _end_with_worker(group: int) -> None:
    os.read(0, 1)
    _signal(group, signal.SIGTERM)
    time.sleep(GRACE_S)
    _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
