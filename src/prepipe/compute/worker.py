"""The inside of a worker process: takes orders one by one, and ends with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

from prepipe.errors import PrepipeError

__all__ = ["Answer", "attempt", "failed", "serve"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_WATCH_S = 1.0
_CARRIED_AS_THEY_ARE = ("builtins", "prepipe.errors")


@dataclass(frozen=True)
class Answer:
    """What became of an order: an outcome, or an error with its traceback as text."""

    outcome: Any = None
    error: BaseException | None = None


def serve(
    channel: Connection[Answer, Any], parent: int, warm_up: Callable[[], object] | None
) -> None:
    """Carry out orders until the other end of `channel` is closed.

    Parameters
    ----------
    channel : Connection
        Gives pairs ``(work, order)`` and takes an `Answer` for each.
    parent : int
        Process id without which this process must not live.
    warm_up : callable or None
        Called before the first order.
    """
    _end_with(parent)
    # Ctrl-C reaches the whole terminal: the parent decides what becomes of us
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if warm_up is not None:
        # what fails here fails again in the first order, and is told there
        with suppress(Exception):
            warm_up()
    while True:
        try:
            work, order = channel.recv()
        except EOFError:
            return
        except Exception as error:
            answer = failed(error)
        else:
            answer = attempt(work, order)
        _send(channel, answer)


def _end_with(parent: int) -> None:
    """Die when the parent does, even in the midst of an order."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    """For systems without prctl, and for a parent that died before it was called."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(1)


def attempt(work: Callable[[Any], Any], order: Any) -> Answer:
    """Carry out one order, whatever it raises."""
    try:
        return Answer(outcome=work(order))
    except (Exception, SystemExit) as error:
        return failed(error)


def _send(channel: Connection[Answer, Any], answer: Answer) -> None:
    try:
        channel.send(answer)
    except OSError:
        os._exit(1)  # nobody is there to be told
    except Exception as error:
        channel.send(failed(error))


def failed(error: BaseException) -> Answer:
    """The answer that tells of an error, in a form that surely survives the way."""
    portable = _portable(error)
    portable.add_note("".join(traceback.format_exception(error)))
    return Answer(error=portable)


def _portable(error: BaseException) -> BaseException:
    """The error as one that surely survives the way: ours by its nearest class, others as told."""
    known = next(cls for cls in type(error).__mro__ if cls.__module__ in _CARRIED_AS_THEY_ARE)
    if issubclass(known, PrepipeError):
        return known(str(error))
    parts = error.args
    if isinstance(error, OSError) and error.filename is not None:
        parts = (error.errno, error.strerror, str(error.filename))
    if known is SystemExit:
        return PrepipeError(f"the work wanted to end its process (exit code {error})")
    if known is type(error) and all(isinstance(part, str | int | None) for part in parts):
        return known(*parts)
    return PrepipeError(f"{type(error).__name__}: {error}")
