"""How many jobs there should be: rules without state."""

from __future__ import annotations

import math

__all__ = ["rest_s", "wanted_jobs"]

FIRST_REST_S = 5.0
LONGEST_REST_S = 300.0


def wanted_jobs(orders: int, at_once: int, ready: int, most: int) -> int:
    """Jobs that should be there, pending ones counted.

    Parameters
    ----------
    orders : int
        Handed out and not answered.
    at_once : int
        Orders that one job carries out at the same time.
    ready : int
        Jobs kept without work.
    most : int
    """
    return min(most, max(ready, math.ceil(orders / at_once)))


def rest_s(failures: int) -> float:
    """Seconds to wait after so many jobs in a row that could not be had, or never came to life.

    A scheduler that is restarted should not find a flood; a broken set-up should not cost a
    queue's patience.
    """
    return min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** min(failures - 1, 10)) if failures else 0.0
