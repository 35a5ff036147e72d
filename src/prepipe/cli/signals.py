"""SIGTERM and SIGINT as a polite request to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from prepipe.cli.app import INTERRUPTED

__all__ = ["ended_by_signals", "stop_on_signals"]


@contextmanager
def stop_on_signals(say: Callable[[str], object]) -> Iterator[threading.Event]:
    """Give an event that SIGTERM or SIGINT sets; a second one ends the process at once.

    Parameters
    ----------
    say : callable
        Told one sentence when the first signal comes.

    Yields
    ------
    threading.Event
    """
    stop = threading.Event()

    def ask_to_stop(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            # The journal survives any death; waiting for a hanging link would not end.
            os._exit(INTERRUPTED)
        if not stop.is_set():
            stop.set()
            # Printing inside a signal handler could meet a print that it interrupted.
            name = signal.Signals(number).name
            sentence = f"{name}: stopping; what is under way stays in the journal"
            threading.Thread(target=say, args=(sentence,), daemon=True).start()

    before = {number: signal.signal(number, ask_to_stop) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end what is within as Ctrl-C does, so that it clears up."""
    before = {number: signal.getsignal(number) for number in _ENDING}

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # another one must not end the clearing up
        raise KeyboardInterrupt

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup wishes
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ENDING = (signal.SIGTERM, signal.SIGHUP)
