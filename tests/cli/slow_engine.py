"""Work that goes on until a test says so; workers import it."""

from __future__ import annotations

import time

from prepipe.codec.packet import read_header
from prepipe.engines.base import Order, Outcome
from prepipe.model import Colour, Grade, Reduction


def until_told(order: Order) -> Outcome:
    """Calibrate as soon as there is a file ``go`` among the products."""
    while not (order.products / "go").exists():
        time.sleep(0.02)
    packet = read_header(order.source)
    reduction = Reduction(packet.exposure.number, packet.ccd.number, seconds={"read": 0.1})
    return Outcome(packet.exposure, packet.ccd, reduction, Grade(Colour.GREEN, ()))
