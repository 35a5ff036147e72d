"""The inside of a batch job's worker: what it does with a parcel from the broker.

A parcel is a pickled pair ``(work, order)``, the answer a pickled `Answer`. Both travel between
this site's own processes only, over connections that know each other by the keys of one run.
"""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable
from typing import Any

from prepipe.compute.worker import Answer, attempt, failed

__all__ = ["carry_out", "opened", "parcel"]


def parcel(work: Callable[[Any], Any], order: Any) -> bytes:
    """What crosses to a worker."""
    return pickle.dumps((work, order), pickle.HIGHEST_PROTOCOL)


def carry_out(packed: bytes, time_limit_s: float) -> bytes:
    """Carry out a parcel; a worker that hangs over it is ended, and its pool makes a new one."""
    # the kernel's alarm ends it even if a library never gives the interpreter's lock back
    signal.setitimer(signal.ITIMER_REAL, time_limit_s)
    try:
        work, order = pickle.loads(packed)
        return _closed(attempt(work, order))
    except Exception as error:
        return _closed(failed(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def opened(packed: bytes) -> Answer:
    """An answer as it came."""
    answer = pickle.loads(packed)
    if not isinstance(answer, Answer):
        raise TypeError(f"a worker answered with a {type(answer).__name__}")
    return answer


def _closed(answer: Answer) -> bytes:
    return pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
