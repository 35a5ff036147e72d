"""Work for nodes that take their time without a core; they import this module by its name."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prepipe.codec.packet import read_header
from prepipe.engines.base import Order, Outcome
from prepipe.files import atomic_write
from prepipe.model import Colour, Grade, Reduction

CCD_S = 0.6
"""How long a CCD takes, s."""


def started(_order: object) -> float:
    """When it was begun."""
    return time.time()


def note_start(order: tuple[Path, str, float]) -> None:
    """Append a name to a file, then take a while."""
    path, name, seconds = order
    with path.open("a") as stream:
        stream.write(f"{name}\n")
    time.sleep(seconds)


def carry_out(order: Order) -> Outcome:
    """Stand in for an engine: a product that depends on the packet alone, after a while."""
    packet = read_header(order.source)
    time.sleep(CCD_S)
    product = order.products / f"{packet.exposure.number}_{packet.ccd.number}"
    with atomic_write(product) as stream:
        stream.write(packet.payload_checksum.encode())
    note = Path(os.environ["NIGHT_ENDED"])
    with note.open("a") as stream:
        stream.write(f"{packet.exposure.number} {packet.ccd.number}\n")
    reduction = Reduction(
        packet.exposure.number, packet.ccd.number, product=str(product), seconds={"work": CCD_S}
    )
    return Outcome(packet.exposure, packet.ccd, reduction, Grade(Colour.GREEN, ()))
