"""Which CCDs the simulator's tests look at."""

from __future__ import annotations

SOUTH, NORTH, DEAD = 28, 35, 61
