"""The methods: in what order, and how many at a time, exposures leave the telescope.

Pure functions over what waits in the journal. A method picks one round; when that is
handed out it is asked again. What a round leaves out stays in the journal and waits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import zip_longest

from prepipe import config
from prepipe.config import Method
from prepipe.model import Stage
from prepipe.store import CcdRow

__all__ = [
    "JOINED_BY_ARRIVALS",
    "batch",
    "end_of_night",
    "listed",
    "next_round",
    "parallel",
    "serial",
]

JOINED_BY_ARRIVALS = frozenset({Method.PARALLEL, Method.LIST, Method.END_OF_NIGHT})
"""Methods whose round a new exposure joins at once; the others finish theirs first."""

Exposures = list[list[CcdRow]]


def next_round(
    settings: config.Push,
    waiting: Sequence[CcdRow],
    sent: Sequence[CcdRow] = (),
    inventory: Collection[str] = (),
) -> list[CcdRow]:
    """The next CCDs to leave, in order.

    Parameters
    ----------
    settings : config.Push
    waiting : sequence of CcdRow
        What is found or packed but not sent, in any order.
    sent : sequence of CcdRow
        What was sent; only end-of-night looks at it.
    inventory : collection of str
        Names of the packets that the far side has; likewise.
    """
    match settings.method:
        case Method.BATCH:
            return batch(waiting, settings.batch)
        case Method.SERIAL:
            return serial(waiting)
        case Method.PARALLEL:
            return parallel(waiting)
        case Method.LIST:
            return listed(waiting, settings.exposures)
        case Method.END_OF_NIGHT:
            return end_of_night(waiting, sent, inventory, settings.exp_min)


def batch(waiting: Sequence[CcdRow], size: int) -> list[CcdRow]:
    """The newest `size` exposures, one after the other."""
    return [row for exposure in _by_exposure(waiting)[:size] for row in exposure]


def serial(waiting: Sequence[CcdRow]) -> list[CcdRow]:
    """The newest exposure."""
    return batch(waiting, 1)


def parallel(waiting: Sequence[CcdRow]) -> list[CcdRow]:
    """All exposures at once: a CCD of each in turn, newest first."""
    turns = zip_longest(*_by_exposure(waiting))
    return [row for turn in turns for row in turn if row is not None]


def listed(waiting: Sequence[CcdRow], numbers: Sequence[int]) -> list[CcdRow]:
    """The exposures with these numbers, in this order; those not there yet are passed over."""
    exposures = _by_exposure(waiting)
    return [
        row
        for number in dict.fromkeys(numbers)
        for exposure in exposures
        if exposure[0].exposure.number == number
        for row in exposure
    ]


def end_of_night(
    waiting: Sequence[CcdRow],
    sent: Sequence[CcdRow],
    inventory: Collection[str],
    exp_min: int,
) -> list[CcdRow]:
    """All that the far side lacks, newest exposure first, none numbered below `exp_min`.

    What was sent and is not there counts as lacking. What is there and was never begun here
    does not; what is packed is looked at again, for it may have arrived unnoticed.
    """
    there = set(inventory)
    lacking = [
        row
        for row in waiting
        if row.stage is Stage.PACKED or row.sent_at is not None or packet_name(row) not in there
    ]
    lacking += [row for row in sent if row.stage is Stage.SENT and packet_name(row) not in there]
    chosen = [row for row in lacking if row.exposure.number >= exp_min]
    return [row for exposure in _by_exposure(chosen) for row in exposure]


def packet_name(row: CcdRow) -> str:
    """The name that the packet of a CCD has or will have; as `Packet.file_name`."""
    return f"{row.exposure.name}_{row.ccd.number:02d}.packet"


def _by_exposure(rows: Sequence[CcdRow]) -> Exposures:
    """CCDs of each exposure in the order given; the newest exposure first."""
    groups: dict[tuple[str, int], list[CcdRow]] = {}
    for row in rows:
        groups.setdefault((row.key.camera, row.key.exposure), []).append(row)
    return sorted(
        groups.values(),
        key=lambda group: (group[0].exposure.start, group[0].exposure.number),
        reverse=True,
    )
