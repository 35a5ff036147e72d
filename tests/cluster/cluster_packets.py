"""Small real packets, and work that stands in for an engine; workers import it too."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from astropy.io import fits

from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import read_header, write_packet
from prepipe.engines.base import Order, Outcome
from prepipe.errors import PixelError, StorageError
from prepipe.files import atomic_write
from prepipe.model import Ccd, Colour, Exposure, Grade, Kind, Night, Reduction

PATIENCE_S = 30.0
FIRST = datetime(2020, 3, 6, 1, 0, tzinfo=UTC)


def exposure(number: int, kind: Kind = Kind.OBJECT) -> Exposure:
    start = FIRST + timedelta(minutes=number)
    return Exposure("decam", number, kind, "Antlia", "g", start, 20.0, Night.of(start))


def make_packet(
    directory: Path, number: int, ccd: int, *, seed: int = 0, told: Exposure | None = None
) -> Path:
    """A packet of 8 x 12 pixels that differ with exposure, CCD and seed."""
    pixels = np.random.default_rng([number, ccd, seed]).integers(0, 60000, (8, 12), np.uint16)
    raw = directory / f".raw.{number}.{ccd}.fits"
    directory.mkdir(parents=True, exist_ok=True)
    hdus = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(pixels)])
    hdus.writeto(raw, overwrite=True)
    packed = pack_ccd(raw, 1, told or exposure(number), Ccd(ccd, f"N{ccd}"), "none")
    raw.unlink()
    return write_packet(directory, packed)


def reduce(order: Order) -> Outcome:
    """Write a product that depends on the packet alone, as an engine does."""
    packet = read_header(order.source)
    name = f"{packet.exposure.number}_{packet.ccd.number}"
    with atomic_write(order.products / name) as stream:
        stream.write(packet.payload_checksum.encode())
    reduction = Reduction(
        packet.exposure.number,
        packet.ccd.number,
        product=str(order.products / name),
        seconds={"read": 0.25, "write": 0.5},
    )
    return Outcome(
        packet.exposure, packet.ccd, reduction, Grade(Colour.YELLOW, ("no bias: not subtracted",))
    )


def reduce_slowly(order: Order) -> Outcome:
    time.sleep(0.05)
    return reduce(order)


def reduce_for_a_second(order: Order) -> Outcome:
    (order.products / f".begun.{order.source.stem}").touch()
    time.sleep(1)
    return reduce(order)


def reduce_very_slowly(order: Order) -> Outcome:
    (order.products / f".begun.{order.source.stem}").touch()
    time.sleep(60)
    return reduce(order)


def refuse_ccd_2(order: Order) -> Outcome:
    if order.source.stem.endswith("_02"):
        raise PixelError("all pixels are zero: is the CCD switched on?")
    return reduce(order)


def raise_over_ccd_2(order: Order) -> Outcome:
    if order.source.stem.endswith("_02"):
        raise ZeroDivisionError("no light at all")
    return reduce(order)


def find_the_disk_full(order: Order) -> Outcome:
    raise StorageError(f"{order.products}: No space left on device; free some space")


def be_wrong_first(order: Order) -> Outcome:
    """Fails at the first try, in a way that nobody foresaw."""
    mark = order.products / f".tried.{order.source.stem}"
    if not mark.exists():
        mark.touch()
        raise KeyError("EXTNAME")
    return reduce(order)


def die_over_ccd_2(order: Order) -> Outcome:
    if order.source.stem.endswith("_02"):
        os._exit(9)
    return reduce(order)


def times_noted(path, outcome):
    """How often each CCD has that outcome of its calibration in the journal."""
    with sqlite3.connect(path) as connection:
        noted = connection.execute(
            "select exposure, ccd from events where stage = 'calibrated' and outcome = ?",
            (outcome,),
        )
        return Counter(noted)


def wait_until(what):
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
