"""`prepipe jobs`, `cancel` and `drain`: what runs where, and how to stop it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prepipe.cli.app import FAILED, add_command
from prepipe.cli.journals import INGEST_LOCK, open_journals
from prepipe.cli.options import DEFAULT_CONFIG, Config, Json, read_night, read_site
from prepipe.cli.output import Failures, counted, print_json, print_table, printable
from prepipe.errors import ConfigError
from prepipe.model import Stage

if TYPE_CHECKING:
    from prepipe.cluster.board import Board, Shown
    from prepipe.config import Site
    from prepipe.store import CcdKey, CcdRow, Journal

__all__ = ["register"]

CANCELLED = "cancelled by hand; `prepipe release` lets it go on"

_GLANCE_S = 0.5
_MOST_ROWS = 20


@dataclass(frozen=True)
class _Running:
    """A CCD with the workers; node and job are empty until one has taken it up."""

    exposure: int
    ccd: int
    node: str
    job: str
    pid: int | None
    seconds: float


@dataclass(frozen=True)
class _Waiting:
    """An exposure in the queue: its place (1 is next), and how many of its CCDs wait."""

    place: int
    exposure: int
    kind: str
    ccds: int


def jobs(
    exposure: Annotated[
        int | None, typer.Argument(metavar="[EXPOSURE]", help="Only this exposure.")
    ] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show what runs where: jobs of the batch system, CCDs with workers, and the queue.

    An exposure that the cluster does not know is told, with exit code 1.
    """
    from prepipe.cluster.board import Board
    from prepipe.files import is_in_use

    site = read_site(config)
    board = Board(site.cluster.work)
    alive = is_in_use(site.cluster.work / INGEST_LOCK)
    shown = board.read() if alive else None
    with open_journals(site, read_only=True) as journals:
        journal = journals.cluster
        rows = journal.rows(Stage.LANDED, whole=False) if journal is not None else []
        unknown = exposure is not None and not (
            journal is not None and journal.rows(exposure=exposure, whole=False)
        )
    running = _running(board, shown, rows)
    busy = {(one.exposure, one.ccd) for one in running}
    waiting = _queue(row for row in rows if (row.key.exposure, row.key.ccd) not in busy)
    if exposure is not None:
        running = [one for one in running if one.exposure == exposure]
        waiting = [one for one in waiting if one.exposure == exposure]
    told = {
        "ingest": alive,
        "place": site.compute.place,
        "engine": site.calibration.engine,
        "draining": board.draining,
        "trouble": shown.trouble if shown else "",
        "jobs": shown.jobs if shown else (),
        "running": running,
        "queue": waiting,
        "counts": {
            "running": sum(1 for one in running if one.node),
            "handed over": sum(1 for one in running if not one.node),
            "waiting": sum(one.ccds for one in waiting),
        },
    }
    if as_json:
        print_json(told)
    elif not unknown:
        _show(site, shown, running, waiting, alive=alive, draining=board.draining)
    if unknown:
        typer.echo(f"no such exposure: {exposure}; `prepipe status` shows those known", err=True)
        raise typer.Exit(FAILED)


def _running(board: Board, shown: Shown | None, rows: Iterable[CcdRow]) -> list[_Running]:
    if shown is None:
        return []
    names = {row.key: Path(row.packet).name for row in rows}
    notes = board.where(name for one in shown.under_way if (name := names.get(one.key)))
    now = time.time()
    found = []
    for one in shown.under_way:
        note = notes.get(names.get(one.key, ""), {})
        found.append(
            _Running(
                exposure=one.key.exposure,
                ccd=one.key.ccd,
                node=str(note.get("node", "")),
                job=str(note.get("job", "")),
                pid=note.get("pid"),
                seconds=now - float(note.get("since", one.since)),
            )
        )
    return sorted(found, key=lambda one: (not one.node, -one.exposure, one.ccd))


def _queue(rows: Iterable[CcdRow]) -> list[_Waiting]:
    """Exposures in the order of the queue, which is that of the journal: newest first."""
    queue = []
    for place, (number, group) in enumerate(groupby(rows, lambda row: row.key.exposure), 1):
        ccds = list(group)
        queue.append(_Waiting(place, number, ccds[0].exposure.kind.value, len(ccds)))
    return queue


def _show(
    site: Site,
    shown: Shown | None,
    running: list[_Running],
    waiting: list[_Waiting],
    *,
    alive: bool,
    draining: bool,
) -> None:
    if shown is not None and shown.jobs:
        print_table(
            ("=job", "state", ">busy", ">workers", ">age"),
            [
                (job.id or "-", job.state, job.busy, job.workers, _age(time.time() - job.since))
                for job in shown.jobs
            ],
            title=f"{site.compute.place}, engine {site.calibration.engine}",
        )
    if running:
        print_table(
            (">exposure", ">CCD", "=node", "=job", ">since"),
            [
                (one.exposure, one.ccd, one.node or "(queued)", one.job or "-", _age(one.seconds))
                for one in running[:_MOST_ROWS]
            ],
            title=_of("with the workers", len(running)),
        )
    if waiting:
        print_table(
            (">place", ">exposure", "kind", ">CCDs"),
            [(one.place, one.exposure, one.kind, one.ccds) for one in waiting[:_MOST_ROWS]],
            title=_of("waiting, next first", len(waiting)),
        )
    count = sum(one.ccds for one in waiting)
    wait = "waits" if count == 1 else "wait"
    typer.echo(f"{counted(len(running), 'CCD')} with the workers, {count} {wait}")
    if shown is not None and shown.trouble:
        typer.echo(f"trouble: {printable(shown.trouble)}")
    if draining:
        typer.echo("draining: nothing is begun until `prepipe drain --resume`")
    if not alive:
        typer.echo("no ingest runs here: start one with `prepipe ingest`")


def _of(title: str, count: int) -> str:
    return title if count <= _MOST_ROWS else f"{title}: {_MOST_ROWS} of {count}"


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def cancel(
    exposures: Annotated[
        list[int] | None, typer.Argument(metavar="[EXPOSURE]...", help="Exposure numbers.")
    ] = None,
    ccd: Annotated[int | None, typer.Option("--ccd", help="Only this CCD.")] = None,
    night: Annotated[
        str | None, typer.Option("--night", help="All of this night: YYYY-MM-DD or utYYMMDD.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that wait.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, do nothing.")
    ] = False,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Take CCDs out of the queue of the cluster; `prepipe release` brings them back.

    What a worker is at already ends in its own time, and does not count.
    """
    if not exposures and night is None and not everything:
        raise ConfigError("cancel what? name exposures or a --night, or say --all")
    site = read_site(config)
    of_night = read_night(night)
    failures = Failures()
    keys: list[CcdKey] = []
    with open_journals(site) as journals:
        journal = journals.cluster
        for exposure in exposures or (None,):
            rows = (
                journal.rows(Stage.LANDED, exposure=exposure, ccd=ccd, night=of_night, whole=False)
                if journal is not None
                else []
            )
            keys += [row.key for row in rows]
            if not rows:
                failures.add(str(exposure or night or "--all"), "nothing of it waits here")
        if journal is not None and not dry_run:
            keys = _taken_out(journal, keys)
    if as_json:
        print_json({"dry_run": dry_run, "cancelled": keys})
    else:
        for key in keys:
            typer.echo(f"{key}: {'would be' if dry_run else 'is'} cancelled")
    failures.finish()


def _taken_out(journal: Journal, keys: Iterable[CcdKey]) -> list[CcdKey]:
    """Those that were still waiting."""
    return [
        key
        for key in keys
        if journal.fail(key, Stage.CALIBRATED, CANCELLED, only_at=Stage.LANDED, counts_as_try=False)
    ]


def drain(
    resume: Annotated[bool, typer.Option("--resume", help="Let CCDs be begun again.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return once nothing is with the workers.")
    ] = False,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Begin no more CCDs, finish those under way, and give the batch jobs back.

    Packets still land, and wait. It holds until --resume, whatever is restarted meanwhile.
    """
    from prepipe.cluster.board import Board

    site = read_site(config)
    board = Board(site.cluster.work)
    board.drain(not resume)
    left, heard = _left(site, board)
    while wait and not resume and (left or not heard):
        time.sleep(_GLANCE_S)
        left, heard = _left(site, board)
    if as_json:
        print_json({"draining": board.draining, "under_way": left})
    elif resume:
        typer.echo("CCDs are begun again")
    else:
        typer.echo(f"draining: {counted(left, 'CCD')} with the workers, no other is begun")


def _left(site: Site, board: Board) -> tuple[int, bool]:
    """CCDs with the workers, and whether the ingest knows that it drains: it may begin some yet."""
    from prepipe.files import is_in_use

    if not is_in_use(site.cluster.work / INGEST_LOCK):
        return 0, True
    shown = board.read()
    return (len(shown.under_way), shown.draining) if shown is not None else (0, False)


def register(app: typer.Typer) -> None:
    """Add `jobs`, `cancel` and `drain`."""
    add_command(app, jobs, "prepipe jobs", "prepipe jobs 941420 --json")
    add_command(app, cancel, "prepipe cancel 941420 --ccd 25", "prepipe cancel --all --dry-run")
    add_command(app, drain, "prepipe drain --wait", "prepipe drain --resume")
