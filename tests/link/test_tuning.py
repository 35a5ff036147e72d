"""The line's rate as a link finds it, of what is acknowledged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prepipe import config
from prepipe.link.pacing import HEADERS
from prepipe.link.protocol import CHUNK_BYTES
from prepipe.link.tuning import Tuning

TICK_S = 0.1


class InStep:
    """A line whose connections, paced alike, have their chunks acknowledged all at once.

    Their sockets are not to be had, so that only whole chunks count.
    """

    def __init__(self, capacity: float, connections: int = 8) -> None:
        self.capacity = capacity
        self.queue: Any = SimpleNamespace(has_chunks=True, overdue_s=0.0)
        settings = config.Link(kind="ssh", host="cluster", connections=connections)
        self.tuning = Tuning(settings, self.queue, lambda *_: None)
        self.connections: Any = [
            SimpleNamespace(share=0.0, sockets=[], least_rtt_s=0.24, pace=SimpleNamespace())
            for _ in range(connections)
        ]
        self.now = 0.0
        self.sent = 0.0

    def run(self, seconds: float) -> float:
        """Send without a pause for so long; gives the rate found."""
        until = self.now + seconds
        while self.now < until:
            self.tuning.share_out(self.connections)
            each = min(
                self.connections[0].share,
                self.capacity * 1e6 / 8 / HEADERS / len(self.connections),
            )
            self.sent += each * TICK_S
            self.now += TICK_S
            chunks = int(self.sent / CHUNK_BYTES) * len(self.connections)
            self.tuning.follow(self.now, chunks * CHUNK_BYTES, complete=True)
        return self.tuning.rate


@pytest.mark.parametrize("capacity", [20.0, 100.0, 200.0, 500.0])
def test_a_rate_is_found_though_the_chunks_of_all_connections_arrive_at_once(
    capacity: float,
) -> None:
    line = InStep(capacity)
    line.run(40.0)
    found = [line.run(1.0) for _ in range(30)]
    assert sorted(found)[15] == pytest.approx(capacity, rel=0.12)


def test_nothing_is_learnt_while_there_is_nothing_to_send() -> None:
    line = InStep(100.0)
    line.queue.has_chunks = False
    assert line.run(30.0) == 50.0
