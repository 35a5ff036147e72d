"""What crossed, when and how fast: an account of each exposure that is sent, and of a night."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, exists, insert, select

from prepipe.model import Night, Stage
from prepipe.store import tables

__all__ = [
    "NightTraffic",
    "TransferRow",
    "close_account",
    "night_traffic",
    "transfer_row",
    "transfers_of",
    "unaccounted",
]

_CLOCK_S = 1e-3
"""Times closer together than this are the same."""
_WAITING = (Stage.FOUND.value, Stage.PACKED.value)


@dataclass(frozen=True)
class TransferRow:
    """CCDs of an exposure that were sent, until none of it waited any more.

    Parameters
    ----------
    night : Night
    camera : str
    exposure : int
    ccds : int
    bytes : int
        Of their packets.
    began : float
        First byte, seconds since 1970.
    seconds : float
        From the first byte to the last acknowledgement, s.
    """

    night: Night
    camera: str
    exposure: int
    ccds: int
    bytes: int
    began: float
    seconds: float

    @property
    def mbit_s(self) -> float:
        """Mbit/s."""
        return _mbit_s(self.bytes, self.seconds)


@dataclass(frozen=True)
class NightTraffic:
    """What crossed in a night.

    Parameters
    ----------
    night : Night
    exposures, ccds, bytes : int
    seconds : float
        During which at least one exposure was under way, s.
    mbit_s : float
        Mean over these.
    """

    night: Night
    exposures: int
    ccds: int
    bytes: int
    seconds: float
    mbit_s: float


def close_account(connection: Connection, camera: str, number: int) -> TransferRow | None:
    """Write down what crossed of an exposure since its last account, if none of it waits.

    Returns
    -------
    TransferRow or None
        None if CCDs wait, or none was sent since. What the far side had already took no time
        and is left out.
    """
    exposures, ccds = tables.exposures, tables.ccds
    # two that close it at once would both account for the same
    own = (exposures.c.camera == camera) & (exposures.c.number == number)
    connection.execute(select(exposures.c.id).where(own).with_for_update())
    query = (
        select(ccds.c.stage, ccds.c.packet_bytes, ccds.c.sent_at, ccds.c.seconds, exposures.c.night)
        .join(exposures, ccds.c.exposure_id == exposures.c.id)
        .where(own)
    )
    rows = connection.execute(query).all()
    if any(row.stage in _WAITING for row in rows):
        return None
    known = connection.execute(transfers_of(camera, number)).all()
    since = max((row.began + row.seconds for row in known), default=0.0) + _CLOCK_S
    sent = [
        (row, row.seconds.get(Stage.SENT.value, 0.0))
        for row in rows
        if row.stage == Stage.SENT and (row.sent_at or 0.0) > since and row.seconds
    ]
    sent = [(row, took) for row, took in sent if took > 0.0]
    if not sent:
        return None
    began = min(row.sent_at - took for row, took in sent)
    values = {
        "night": sent[0][0].night,
        "camera": camera,
        "exposure": number,
        "ccds": len(sent),
        "bytes": sum(row.packet_bytes for row, _ in sent),
        "began": began,
        # the clock may have been set meanwhile
        "seconds": max(max(row.sent_at for row, _ in sent) - began, _CLOCK_S),
    }
    connection.execute(insert(tables.transfers).values(values))
    return transfer_row(values)


def unaccounted(connection: Connection) -> list[tuple[str, int]]:
    """Camera and number of the exposures of which something was sent and none has an account."""
    exposures, ccds, done = tables.exposures, tables.ccds, tables.transfers
    sent = (ccds.c.exposure_id == exposures.c.id) & (ccds.c.stage == Stage.SENT.value)
    account = (done.c.camera == exposures.c.camera) & (done.c.exposure == exposures.c.number)
    query = (
        select(exposures.c.camera, exposures.c.number)
        .where(exists().where(sent), ~exists().where(account))
        # in one order, lest two processes each wait for a row of the other
        .order_by(exposures.c.id)
    )
    return [(row.camera, row.number) for row in connection.execute(query)]


def transfers_of(camera: str | None = None, number: int | None = None) -> Any:
    """Select accounts, in the order of their time."""
    table = tables.transfers
    query = select(table).order_by(table.c.began)
    if camera is not None:
        query = query.where(table.c.camera == camera)
    return query if number is None else query.where(table.c.exposure == number)


def transfer_row(found: Any) -> TransferRow:
    """Turn a row of the table into a `TransferRow`."""
    values = {name: value for name, value in dict(found).items() if name != "id"}
    return TransferRow(**{**values, "night": Night(date.fromisoformat(values["night"]))})


def night_traffic(transfers: Iterable[TransferRow]) -> tuple[NightTraffic, ...]:
    """Accounts added up, night by night, the newest first."""

    def night(transfer: TransferRow) -> str:
        return str(transfer.night)

    groups = groupby(sorted(transfers, key=night, reverse=True), key=night)
    return tuple(_added_up(list(group)) for _, group in groups)


def _added_up(transfers: list[TransferRow]) -> NightTraffic:
    size, seconds = sum(each.bytes for each in transfers), _busy_s(transfers)
    return NightTraffic(
        night=transfers[0].night,
        exposures=len({(each.camera, each.exposure) for each in transfers}),
        ccds=sum(each.ccds for each in transfers),
        bytes=size,
        seconds=seconds,
        mbit_s=_mbit_s(size, seconds),
    )


def _busy_s(transfers: list[TransferRow]) -> float:
    """Length of the time in which at least one was under way."""
    total, until = 0.0, 0.0
    for each in sorted(transfers, key=lambda transfer: transfer.began):
        end = each.began + each.seconds
        total += max(0.0, end - max(each.began, until))
        until = max(until, end)
    return total


def _mbit_s(size: int, seconds: float) -> float:
    return size * 8e-6 / seconds if seconds > 0.0 else 0.0
