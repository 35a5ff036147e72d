"""`Journal`: one end's memory of every exposure and CCD, safe against kill -9.

Each change is one short transaction that writes the CCD's row and an event
together, so that after a crash the row says where the CCD really is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Self

from sqlalchemy import ColumnElement, Connection, delete, func, insert, literal, select, update

from prepipe.errors import DuplicateError
from prepipe.model import Ccd, Exposure, Grade, Kind, Night, Reduction, Stage
from prepipe.store import schema, tables
from prepipe.store.checks import CheckRow, checks_of, note_check
from prepipe.store.counts import NightCounts, counts_by_night
from prepipe.store.database import DISK, SERVER, open_engine, plain_errors
from prepipe.store.pointings import PointingRow, pointings
from prepipe.store.rows import (
    LOSSLESS,
    NOT_ARCHIVED,
    CcdKey,
    CcdRow,
    FileRow,
    ccd_rows,
    exposure_of,
    joined,
)
from prepipe.store.transfers import (
    TransferRow,
    close_account,
    transfer_row,
    transfers_of,
    unaccounted,
)

__all__ = ["Journal"]


class Journal:
    """The journal of one end.

    Parameters
    ----------
    where : Path or str
        A SQLite file, made if missing, or a database URL. Tables of an older version are revised.
    read_only : bool
        It is there, and of this version, and nothing will be changed.

    Raises
    ------
    ConfigError
        If `where` is no usable URL, or the journal was made by a newer version.
    StorageError
        If the database cannot be opened or written.
    """

    def __init__(self, where: Path | str, *, read_only: bool = False) -> None:
        self._engine = open_engine(where, read_only=read_only)
        on_server = self._engine.dialect.name == "postgresql"
        self._what = (
            f"the journal, {self._engine.url.set(query={})}," if on_server else "the journal"
        )
        self._remedy = SERVER if on_server else DISK
        # SQLite lets those who find it locked sleep longer and longer: many threads would starve
        self._writing = nullcontext() if on_server else threading.Lock()
        if not read_only:
            with self._plain_errors():
                schema.make_or_revise(self._engine, self._what.rstrip(","))

    @classmethod
    def existing(cls, where: Path | str, *, read_only: bool = False) -> Self | None:
        """Open the journal of one end if there is one; none is made.

        Parameters
        ----------
        where : Path or str
            As for `Journal`.
        read_only : bool
            Nothing will be changed: the right to read is enough, unless an older version made it.

        Raises
        ------
        ConfigError
            If `where` is no usable URL, or the journal is of another version.
        StorageError
            If it is there and cannot be used.
        """
        if isinstance(where, Path) and not where.is_file():
            return None
        journal = cls(where, read_only=True)
        with journal._reading() as connection:
            revision = schema.revision(connection)
        if read_only and revision == schema.HEAD:
            return journal
        journal.close()
        return None if revision == schema.EMPTY else cls(where)

    def close(self) -> None:
        """Release the database."""
        self._engine.dispose()

    def _plain_errors(self) -> AbstractContextManager[None]:
        return plain_errors(self._what, self._remedy)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._writing, self._plain_errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        engine = self._engine.execution_options(reads_only=True)
        with self._plain_errors(), engine.begin() as connection:
            yield connection

    def _upsert(self, table: Any) -> Any:
        return import_module(f"sqlalchemy.dialects.{self._engine.dialect.name}").insert(table)

    def add_exposure(
        self,
        exposure: Exposure,
        ccds: Sequence[Ccd],
        *,
        stage: Stage = Stage.FOUND,
        path: Path | None = None,
        size: int = 0,
        checksum: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> list[CcdKey]:
        """Remember an exposure and those of its CCDs that are not known yet.

        Parameters
        ----------
        exposure : Exposure
        ccds : sequence of Ccd
        stage : Stage
            Stage the new CCDs have reached.
        path, size, checksum
            The raw file, where this end has one.
        facts : mapping, optional
            Further columns of the new CCDs' rows.

        Returns
        -------
        list of CcdKey
            The CCDs that were new, or begin anew because their raw file was rewritten.

        Raises
        ------
        DuplicateError
            If another raw file with other content bears the same number.
        """
        now = time.time()
        fresh = []
        with self._transaction() as connection:
            known = self._exposure_row(connection, exposure, path, size, checksum)
            if known.rewritten:
                fresh += self._begin_anew(connection, exposure, known.id, stage)
            for ccd in ccds:
                values = {
                    "exposure_id": known.id,
                    "start": known.start,
                    "number": ccd.number,
                    "name": ccd.name,
                    "stage": stage.value,
                    "found_at": now,
                    "seconds": {},
                    **(facts or {}),
                }
                if stage is not Stage.FOUND:
                    values[f"{stage.value}_at"] = now
                statement = self._upsert(tables.ccds).values(values).on_conflict_do_nothing()
                if connection.scalar(statement.returning(tables.ccds.c.id)) is not None:
                    key = CcdKey(exposure.camera, exposure.number, ccd.number)
                    fresh.append(key)
                    _note(connection, key, stage, "done")
        return fresh

    def _exposure_row(
        self,
        connection: Connection,
        exposure: Exposure,
        path: Path | None,
        size: int,
        checksum: str,
    ) -> _Known:
        table = tables.exposures
        same = (table.c.camera == exposure.camera) & (table.c.number == exposure.number)
        values = {
            "camera": exposure.camera,
            "number": exposure.number,
            "kind": exposure.kind.value,
            "field": exposure.field,
            "band": exposure.band,
            "start": exposure.start.timestamp(),
            "exposure_s": exposure.exposure_s,
            "night": str(exposure.night),
            "path": str(path or ""),
            "bytes": size,
            "checksum": checksum,
        }
        connection.execute(self._upsert(table).values(values).on_conflict_do_nothing())
        known = connection.execute(select(table).where(same).with_for_update()).one()
        rewritten = bool(checksum and known.checksum and known.checksum != checksum)
        there = bool(known.path) and Path(known.path).exists()
        if rewritten and known.path != str(path) and there:
            raise DuplicateError(
                f"{path}: exposure {exposure.number} is already known from {known.path} with other "
                "content; check which one is right and remove the other"
            )
        moved = bool(checksum) and not there
        if not (rewritten or moved):
            return _Known(known.id, known.start, rewritten=False)
        connection.execute(update(table).where(table.c.id == known.id).values(values))
        own = tables.ccds.c.exposure_id == known.id
        start = exposure.start.timestamp()
        connection.execute(update(tables.ccds).where(own).values(start=start))
        return _Known(known.id, start, rewritten)

    def _begin_anew(
        self, connection: Connection, exposure: Exposure, row_id: int, stage: Stage
    ) -> list[CcdKey]:
        numbers = select(tables.ccds.c.id, tables.ccds.c.number).where(
            tables.ccds.c.exposure_id == row_id
        )
        keys = []
        for found in connection.execute(numbers).all():
            key = CcdKey(exposure.camera, exposure.number, found.number)
            self._return_to(connection, found.id, key, stage)
            connection.execute(
                update(tables.ccds).where(tables.ccds.c.id == found.id).values(NOT_ARCHIVED)
            )
            keys.append(key)
        return keys

    def rows(
        self,
        *stages: Stage,
        exposure: int | None = None,
        ccd: int | None = None,
        night: Night | None = None,
        kinds: Collection[Kind] = (),
        before: float | None = None,
        limit: int | None = None,
        whole: bool = True,
    ) -> list[CcdRow]:
        """CCDs at any of `stages` (all if none is given), newest exposure first.

        Parameters
        ----------
        *stages : Stage
        exposure, ccd : int, optional
            Only this exposure, this CCD.
        night : Night, optional
            Only this night.
        kinds : collection of Kind, optional
            Only exposures of these.
        before : float, optional
            Only exposures that began before, seconds since 1970.
        limit : int, optional
            At most so many.
        whole : bool
            False leaves out what is long: reduction, reasons of the grade, traceback.
        """
        query = joined(whole=whole)
        if stages:
            column: ColumnElement[str] = tables.ccds.c.stage
            if exposure is not None or night is not None or kinds:
                # an index would lead through all CCDs of the stage, though few are asked for
                column = column.concat("")
            query = query.where(column.in_([stage.value for stage in stages]))
        if exposure is not None:
            query = query.where(tables.exposures.c.number == exposure)
        if ccd is not None:
            query = query.where(tables.ccds.c.number == ccd)
        if night is not None:
            query = query.where(tables.exposures.c.night == str(night))
        if kinds:
            query = query.where(tables.exposures.c.kind.in_([kind.value for kind in kinds]))
        if before is not None:
            query = query.where(tables.ccds.c.start < before)
        with self._reading() as connection:
            return ccd_rows(connection.execute(query.limit(limit)))

    def exposure(self, camera: str, number: int) -> Exposure | None:
        """One exposure, or None if it is not known."""
        table = tables.exposures
        query = select(table).where((table.c.camera == camera) & (table.c.number == number))
        with self._reading() as connection:
            found = connection.execute(query).one_or_none()
            return None if found is None else exposure_of(found, number)

    def nights(self) -> list[Night]:
        """Nights of which something is known, the newest first."""
        column = tables.exposures.c.night
        query = select(column).distinct().order_by(column.desc())
        with self._reading() as connection:
            return [Night.parse(night) for night in connection.scalars(query)]

    def number_at(self, stage: Stage) -> int:
        """How many CCDs are at a stage."""
        query = select(func.count()).where(tables.ccds.c.stage == stage.value)
        with self._reading() as connection:
            return int(connection.scalar(query) or 0)

    def counts(self) -> list[NightCounts]:
        """What is known of each night in figures, the newest first."""
        with self._reading() as connection:
            return counts_by_night(connection)

    def pointings(self, camera: str, first: int, last: int) -> list[PointingRow]:
        """What calibrated CCDs of the exposures `first` to `last` tell of the pointing."""
        with self._reading() as connection:
            return pointings(connection, camera, first, last)

    def packets(self, night: Night) -> set[str]:
        """Paths of the packets of a night."""
        exposures, ccds = tables.exposures, tables.ccds
        query = (
            select(ccds.c.packet)
            .join(exposures, ccds.c.exposure_id == exposures.c.id)
            .where(exposures.c.night == str(night))
        )
        with self._reading() as connection:
            return set(connection.scalars(query))

    def row(self, key: CcdKey) -> CcdRow | None:
        """One CCD, or None if it is not known."""
        query = joined().where(
            (tables.exposures.c.camera == key.camera)
            & (tables.exposures.c.number == key.exposure)
            & (tables.ccds.c.number == key.ccd)
        )
        with self._reading() as connection:
            found = ccd_rows(connection.execute(query))
            return found[0] if found else None

    def originals(self, night: Night | None = None) -> list[CcdRow]:
        """CCDs that were sent with a loss and whose originals are not in the archive.

        Parameters
        ----------
        night : Night, optional
            Only this night.

        Returns
        -------
        list of CcdRow
            Newest exposure first.
        """
        table = tables.ccds
        query = joined().where(
            # written out, or the index of what waits would not be known to hold it
            (table.c.stage == literal(Stage.SENT.value, literal_execute=True))
            & table.c.codec.not_in(LOSSLESS)
            & table.c.archived_at.is_(None)
        )
        if night is not None:
            query = query.where(tables.exposures.c.night == str(night))
        with self._reading() as connection:
            return ccd_rows(connection.execute(query))

    def archived(self, row: CcdRow, size: int, base: str = "") -> bool:
        """Note that the original of a CCD is in the archive.

        Parameters
        ----------
        row : CcdRow
            As it was when the original was read from the raw file.
        size : int
            bytes of its packet
        base : str
            Of a residual, checksum of the file that it needs beside it.

        Returns
        -------
        bool
            False, and nothing is noted, if the CCD has begun anew since: its raw file was
            rewritten, or it is being sent again.
        """
        table = tables.ccds
        values = {"archived_at": time.time(), "archive_bytes": size, "archive_base": base}
        with self._transaction() as connection:
            row_id = _ccd_id(connection, row.key)
            same = (
                (table.c.id == row_id)
                & (table.c.stage == row.stage.value)
                & (table.c.sent_at == row.sent_at)
            )
            if connection.execute(update(table).where(same).values(values)).rowcount != 1:
                return False
            detail = "as a residual" if base else "whole"
            _note(connection, row.key, Stage.SENT, "archived", detail=detail)
        return True

    def newest_start(self) -> float:
        """When the newest exposure began, seconds since 1970; 0 if there is none."""
        with self._reading() as connection:
            found = connection.execute(select(func.max(tables.exposures.c.start))).scalar()
            return found or 0.0

    def begin(self, key: CcdKey, stage: Stage) -> None:
        """Note that work towards `stage` has begun."""
        with self._transaction() as connection:
            _note(connection, key, stage, "begun")

    def advance(self, key: CcdKey, stage: Stage, seconds: float = 0.0, **facts: Any) -> None:
        """Note that a CCD has reached `stage`.

        Parameters
        ----------
        key : CcdKey
        stage : Stage
        seconds : float
            Time the work took, s.
        **facts
            Columns of the CCD's row that became known.
        """
        now = time.time()
        with self._transaction() as connection:
            row_id = _ccd_id(connection, key)
            took = connection.execute(
                select(tables.ccds.c.seconds).where(tables.ccds.c.id == row_id)
            ).scalar_one()
            values = {
                "stage": stage.value,
                f"{stage.value}_at": now,
                "tries": 0,
                "reason": "",
                "traceback": "",
                "failed_stage": None,
                "seconds": {**(took or {}), stage.value: seconds},
                **facts,
            }
            connection.execute(update(tables.ccds).where(tables.ccds.c.id == row_id).values(values))
            _note(connection, key, stage, "done", seconds=seconds)

    def calibrated(self, key: CcdKey, reduction: Reduction, grade: Grade, seconds: float) -> None:
        """Note a CCD's reduction and its grade."""
        self.advance(
            key,
            Stage.CALIBRATED,
            seconds,
            grade=grade.colour.value,
            reasons=list(grade.reasons),
            reduction=asdict(reduction),
        )

    def fail(
        self,
        key: CcdKey,
        stage: Stage,
        reason: str,
        *,
        traceback: str = "",
        limit: int = 1,
        only_at: Stage | None = None,
        counts_as_try: bool = True,
    ) -> bool:
        """Note that the work towards `stage` failed.

        Parameters
        ----------
        limit : int
            With this many failures the CCD is quarantined.
        only_at : Stage, optional
            Nothing is noted of a CCD that is at another stage by now.
        counts_as_try : bool
            Whether it was tried at all: what a person takes out of the queue was not.

        Returns
        -------
        bool
            Whether it is quarantined now.
        """
        with self._transaction() as connection:
            row_id = _ccd_id(connection, key)
            known = connection.execute(
                select(tables.ccds.c.tries, tables.ccds.c.stage).where(tables.ccds.c.id == row_id)
            ).one()
            if only_at is not None and known.stage != only_at:
                return False
            quarantined = bool(known.tries + 1 >= limit)
            tries = known.tries + counts_as_try
            values: dict[str, Any] = {"tries": tries, "reason": reason, "traceback": traceback}
            if quarantined and known.stage != Stage.QUARANTINED:
                values |= {"stage": Stage.QUARANTINED.value, "failed_stage": known.stage}
            connection.execute(update(tables.ccds).where(tables.ccds.c.id == row_id).values(values))
            _note(connection, key, stage, "failed", detail=reason)
        return quarantined

    def wait(self, key: CcdKey, stage: Stage, reason: str) -> None:
        """Note what the work towards `stage` waits for; that is no failure of the CCD."""
        with self._transaction() as connection:
            row_id = _ccd_id(connection, key)
            connection.execute(
                update(tables.ccds).where(tables.ccds.c.id == row_id).values(reason=reason)
            )
            _note(connection, key, stage, "waits", detail=reason)

    def release(self, key: CcdKey) -> bool:
        """Let a quarantined CCD try again from where it failed; False if it was not there."""
        with self._transaction() as connection:
            row_id = _ccd_id(connection, key)
            known = connection.execute(select(tables.ccds).where(tables.ccds.c.id == row_id)).one()
            if known.stage != Stage.QUARANTINED:
                return False
            self._return_to(connection, row_id, key, Stage(known.failed_stage or Stage.FOUND))
        return True

    def return_to(self, key: CcdKey, stage: Stage, why: str = "") -> None:
        """Send a CCD back to `stage`, to be worked on again from there."""
        with self._transaction() as connection:
            self._return_to(connection, _ccd_id(connection, key), key, stage, why)

    def _return_to(
        self, connection: Connection, row_id: int, key: CcdKey, stage: Stage, why: str = ""
    ) -> None:
        values = {
            "stage": stage.value,
            "failed_stage": None,
            "tries": 0,
            "reason": "",
            "traceback": "",
        }
        connection.execute(update(tables.ccds).where(tables.ccds.c.id == row_id).values(values))
        _note(connection, key, stage, "released", detail=why)

    def close_account(self, camera: str, exposure: int) -> TransferRow | None:
        """Write down how an exposure crossed, if it is through; None if it is not."""
        with self._transaction() as connection:
            return close_account(connection, camera, exposure)

    def close_accounts(self) -> None:
        """Do so for every exposure that was through when nobody could write it down."""
        with self._transaction() as connection:
            for camera, exposure in unaccounted(connection):
                close_account(connection, camera, exposure)

    def transfers(
        self, *, exposure: int | None = None, night: Night | None = None
    ) -> list[TransferRow]:
        """How exposures crossed, in the order of time.

        Parameters
        ----------
        exposure : int, optional
            Only this one.
        night : Night, optional
            Only this one.
        """
        query = transfers_of(number=exposure)
        if night is not None:
            query = query.where(tables.transfers.c.night == str(night))
        with self._reading() as connection:
            return [transfer_row(found._mapping) for found in connection.execute(query)]

    def note_check(self, check: CheckRow) -> None:
        """Keep what became of a packet that was held against its original."""
        with self._transaction() as connection:
            note_check(connection, check)

    def checks(self, night: Night | None = None) -> list[CheckRow]:
        """Packets that were held against their originals, in the order of their time.

        Parameters
        ----------
        night : Night, optional
            Only of this one.
        """
        with self._reading() as connection:
            return checks_of(connection, night)

    def known_file(self, path: Path, size: int, mtime_ns: int) -> bool:
        """Whether a file was dealt with in just this state."""
        table = tables.files
        same = (
            (table.c.path == str(path)) & (table.c.bytes == size) & (table.c.mtime_ns == mtime_ns)
        )
        with self._reading() as connection:
            return connection.execute(select(table.c.path).where(same)).first() is not None

    def known_files(self) -> dict[str, tuple[int, int]]:
        """Size (bytes) and mtime (ns) of every file that was dealt with, by path."""
        table = tables.files
        with self._reading() as connection:
            found = connection.execute(select(table.c.path, table.c.bytes, table.c.mtime_ns))
            return {row.path: (row.bytes, row.mtime_ns) for row in found}

    def remember_file(
        self, path: Path, size: int, mtime_ns: int, reason: str = "", traceback: str = ""
    ) -> None:
        """Remember that a file was dealt with; a reason puts it into quarantine."""
        values = {
            "path": str(path),
            "bytes": size,
            "mtime_ns": mtime_ns,
            "quarantined": bool(reason),
            "reason": reason,
            "traceback": traceback,
            "at": time.time(),
        }
        with self._transaction() as connection:
            statement = self._upsert(tables.files).values(values)
            connection.execute(
                statement.on_conflict_do_update(index_elements=["path"], set_=values)
            )

    def forget_file(self, path: Path) -> bool:
        """Let the watcher take a file anew; False if it was not known."""
        with self._transaction() as connection:
            gone = connection.execute(delete(tables.files).where(tables.files.c.path == str(path)))
            return bool(gone.rowcount)

    def quarantined_files(self) -> list[FileRow]:
        """Files that could not be read as exposures or packets, newest first."""
        table = tables.files
        query = select(table).where(table.c.quarantined).order_by(table.c.at.desc())
        with self._reading() as connection:
            return [FileRow(**found._mapping) for found in connection.execute(query)]


class _Known(NamedTuple):
    """Row of an exposure, and whether its own file has other content than before."""

    id: int
    start: float
    rewritten: bool


def _ccd_id(connection: Connection, key: CcdKey) -> int:
    """Row of a CCD, which is this transaction's alone until it ends."""
    exposures, ccds = tables.exposures, tables.ccds
    query = (
        select(ccds.c.id)
        .join(exposures, ccds.c.exposure_id == exposures.c.id)
        .where(
            exposures.c.camera == key.camera,
            exposures.c.number == key.exposure,
            ccds.c.number == key.ccd,
        )
        .with_for_update(of=ccds)
    )
    row_id: int = connection.execute(query).scalar_one()
    return row_id


def _note(
    connection: Connection,
    key: CcdKey,
    stage: Stage,
    outcome: str,
    *,
    seconds: float | None = None,
    detail: str = "",
) -> None:
    values = {
        "at": time.time(),
        "camera": key.camera,
        "exposure": key.exposure,
        "ccd": key.ccd,
        "stage": stage.value,
        "outcome": outcome,
        "seconds": seconds,
        "detail": detail,
    }
    connection.execute(insert(tables.events).values(values))
