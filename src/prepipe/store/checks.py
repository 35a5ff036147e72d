"""What packing cost: packets of a night that were held against their originals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import groupby
from statistics import fmean
from typing import Any

from sqlalchemy import Connection, insert, select

from prepipe.model import Night
from prepipe.store import tables

__all__ = ["CheckRow", "NightChecks", "checks_of", "codec_label", "night_checks", "note_check"]


@dataclass(frozen=True)
class CheckRow:
    """One packet that was checked.

    Parameters
    ----------
    night : Night
    camera : str
    exposure, ccd : int
    codec : str
    parameters : mapping
        What the codec was told.
    ratio : float or None
        Bytes of the pixels over bytes sent.
    figures : mapping
        By the names of `quality.fidelity.Fidelity`; None where a figure could not be told.
    at : float
        When it was checked, seconds since 1970.
    """

    night: Night
    camera: str
    exposure: int
    ccd: int
    codec: str
    parameters: Mapping[str, object]
    ratio: float | None
    figures: Mapping[str, Any]
    at: float

    @property
    def label(self) -> str:
        """Codec and what it was told, in one word."""
        return codec_label(self.codec, self.parameters)


def codec_label(codec: str, parameters: Mapping[str, object]) -> str:
    """A codec and what it is told, in one word, as `--codec` takes it."""
    told = ",".join(f"{name}={_text(value)}" for name, value in parameters.items())
    return f"{codec}:{told}" if told else codec


def _text(value: object) -> str:
    """As settings spell it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class NightChecks:
    """What the packets of a night that were checked have lost, in the mean.

    Parameters
    ----------
    night : Night
    label : str
        Codec and what it was told.
    packets : int
    ratio, scatter, found, found_original : float or None
        As in `quality.fidelity.Fidelity`.
    """

    night: Night
    label: str
    packets: int
    ratio: float | None
    scatter: float | None
    found: float | None
    found_original: float | None


def note_check(connection: Connection, row: CheckRow) -> None:
    """Write down what a check gave."""
    values = asdict(row) | {"night": str(row.night)}
    connection.execute(insert(tables.fidelity).values(values))


def checks_of(connection: Connection, night: Night | None) -> list[CheckRow]:
    """Packets that were checked, in the order of their time."""
    table = tables.fidelity
    query = select(table).order_by(table.c.at, table.c.id)
    if night is not None:
        query = query.where(table.c.night == str(night))
    return [_row(found._mapping) for found in connection.execute(query)]


def night_checks(checks: Iterable[CheckRow]) -> tuple[NightChecks, ...]:
    """Checks summed up by night and by what the codec was told, the newest night first."""

    def place(check: CheckRow) -> tuple[str, str]:
        return str(check.night), check.label

    groups = groupby(sorted(checks, key=place, reverse=True), key=place)
    return tuple(_summed_up(list(group)) for _, group in groups)


def _summed_up(checks: Sequence[CheckRow]) -> NightChecks:
    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return fmean(known) if known else None

    names = ("scatter", "found", "found_original")
    told = {name: mean(check.figures.get(name) for check in checks) for name in names}
    return NightChecks(
        night=checks[0].night,
        label=checks[0].label,
        packets=len(checks),
        ratio=mean(check.ratio for check in checks),
        **told,
    )


def _row(found: Any) -> CheckRow:
    values = {name: value for name, value in dict(found).items() if name != "id"}
    return CheckRow(**{**values, "night": Night(date.fromisoformat(values["night"]))})
