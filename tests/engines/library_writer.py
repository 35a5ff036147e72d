"""Adds masters to a library, in this process or in one that is to be killed.

Each is a frame of whole numbers; of those that a killed process makes, odd ones are held.
"""

from __future__ import annotations

import time
from datetime import date
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from prepipe.engines.detector.library import MasterLibrary
from prepipe.engines.names import MasterName
from prepipe.model import Kind, Mark, Night
from prepipe.store import MasterRow, MasterRows

NIGHT = Night(date(2020, 3, 5))


def name_in(root: Path, night: Night = NIGHT, number: int = 1, band: str = "") -> MasterName:
    kind = Kind.DOME_FLAT if band else Kind.ZERO
    stem = f"domeflat.{band}" if band else "bias"
    file = f"{stem}.{night.ut_name}.{number}_3.fits.fz"
    return MasterName(root / night.ut_name / "3" / file, kind, band, night, 3, number)


def add(root: Path, name: MasterName, level: int, mark: Mark = Mark.GOOD) -> MasterRow:
    # Not a constant frame: the sum of its bytes shall tell it from others.
    image = np.arange(64, dtype=np.float32).reshape(8, 8) + np.float32(level)
    row = MasterRow("", "", name.kind, name.ccd, name.band, name.night, mark=mark, why=str(level))
    cards = [("NCOMBINE", 3, ""), ("NOISE", 1.0, ""), ("LEVEL", level, "")]
    return MasterLibrary(root).add(name, image, 1.0, cards, row)


def go_on(root: Path, moment: str, told: Connection) -> None:
    """Make one master after the other, up to a moment at which to wait for the end.

    Parameters
    ----------
    root : Path
    moment : str
        ``"before the row"``, ``"before the name"`` or ``"never"``.
    told : Connection
        Hears of the beginning, and of the moment.
    """
    record = MasterRows.record

    def watched(self: MasterRows, row: MasterRow) -> MasterRow:
        stop_at("before the row")
        done = record(self, row)
        stop_at("before the name")
        return done

    def stop_at(here: str) -> None:
        if here == moment:
            told.send(moment)
            time.sleep(60)

    MasterRows.record = watched
    told.send("begun")
    for level in count(1):
        add(root, name_in(root), level, Mark.HELD if level % 2 else Mark.GOOD)
