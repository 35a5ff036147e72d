"""How much may be begun now: a rule without state, so that later ones can take its place."""

from __future__ import annotations

__all__ = ["AHEAD", "RESERVE_BYTES", "may_begin"]

AHEAD = 2
"""CCDs that wait inside the compute so that no worker ever does; more would spoil newest first."""

RESERVE_BYTES = 64 << 20
"""Free disk for each CCD under way: image, weight, mask and sources of the largest one known."""


def may_begin(slots: int, in_flight: int, free_bytes: int) -> int:
    """How many CCDs may be handed to the workers now.

    Parameters
    ----------
    slots : int
        Orders that are carried out at the same time.
    in_flight : int
        Orders handed out and not yet answered.
    free_bytes : int
        Free space where the products go, bytes. With little of it fewer are begun, so that a
        full disk makes CCDs wait instead of failing them.
    """
    by_disk = free_bytes // RESERVE_BYTES
    return max(0, min(slots + AHEAD, by_disk) - in_flight)
