"""The methods: in what order, and how many together, exposures leave the telescope.

Pure functions over what waits in the journal. What a method passes over stays there and waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

from prepipe import config
from prepipe.config import Method
from prepipe.link.base import Held
from prepipe.model import Stage
from prepipe.store import CcdRow

__all__ = [
    "archive_urgency",
    "arrived",
    "end_of_night",
    "in_order",
    "listed",
    "newest_first",
    "packet_name",
    "parallel",
    "together",
    "urgency",
]

Exposures = list[list[CcdRow]]

_BEHIND_ALL = 1 << 40
"""More than seconds since 1970, and than exposures that are listed."""


def in_order(
    settings: config.Push,
    waiting: Sequence[CcdRow],
    sent: Sequence[CcdRow] = (),
    inventory: Mapping[str, Held] | None = None,
) -> list[CcdRow]:
    """All that the method wants to leave, in order.

    Parameters
    ----------
    settings : config.Push
    waiting : sequence of CcdRow
        What is found or packed but not sent, in any order.
    sent : sequence of CcdRow
        What was sent; only end-of-night looks at it.
    inventory : mapping, optional
        Packets that the far side has, by name; likewise.
    """
    match settings.method:
        case Method.BATCH | Method.SERIAL:
            return newest_first(waiting)
        case Method.PARALLEL:
            return parallel(waiting)
        case Method.LIST:
            return listed(waiting, settings.exposures)
        case Method.END_OF_NIGHT:
            return end_of_night(waiting, sent, inventory or {}, settings.exp_min)


def together(settings: config.Push) -> int | None:
    """How many exposures are sent at the same time, the newest ones; None if any number."""
    match settings.method:
        case Method.BATCH:
            return settings.batch
        case Method.SERIAL:
            return 1
        case _:
            return None


def urgency(settings: config.Push, row: CcdRow) -> int:
    """Which of several packets under way goes first: the one with the highest."""
    match settings.method:
        case Method.PARALLEL:
            return 0
        case Method.LIST:
            number = row.exposure.number
            return -settings.exposures.index(number) if number in settings.exposures else 0
        case _:
            return int(row.exposure.start.timestamp())


def archive_urgency(row: CcdRow) -> int:
    """Of an original: the newest goes first, behind all that a push sends."""
    return int(row.exposure.start.timestamp()) - _BEHIND_ALL


def newest_first(waiting: Sequence[CcdRow]) -> list[CcdRow]:
    """One exposure after the other, the newest first."""
    return [row for exposure in _by_exposure(waiting) for row in exposure]


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
    inventory: Mapping[str, Held],
    exp_min: int,
) -> list[CcdRow]:
    """All that the far side lacks, newest exposure first, none numbered below `exp_min`.

    What was sent and is not there, or is there with other content, counts as lacking. What is
    there and was never begun here does not; what is packed is looked at again, for it may have
    arrived unnoticed.
    """
    lacking = [
        row
        for row in waiting
        if row.exposure.number >= exp_min
        and (
            row.stage is Stage.PACKED
            or row.sent_at is not None
            or packet_name(row) not in inventory
        )
    ]
    lacking += [
        row
        for row in sent
        if row.exposure.number >= exp_min and not arrived(row, inventory.get(packet_name(row)))
    ]
    return newest_first(lacking)


def packet_name(row: CcdRow) -> str:
    """The name that the packet of a CCD has or will have; as `Packet.file_name`."""
    return f"{row.exposure.name}_{row.ccd.number:02d}.packet"


def arrived(row: CcdRow, held: Held | None) -> bool:
    """Whether the far side holds just the packet of a CCD, as far as both ends can tell.

    Parameters
    ----------
    row : CcdRow
    held : Held or None
        What it holds under the packet's name.
    """
    if held is None:
        return False
    if row.packet_bytes and held.size != row.packet_bytes:
        return False
    # an older journal does not know the checksum of the file, nor does every link
    return not (row.file_checksum and held.checksum) or held.checksum == row.file_checksum


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
