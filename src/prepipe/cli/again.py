"""`prepipe retry` and `prepipe release`: CCDs and files that shall be worked on again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prepipe.cli.app import add_command
from prepipe.cli.journals import FINISHED, Journals, open_journals
from prepipe.cli.masters import lacks_masters
from prepipe.cli.options import DEFAULT_CONFIG, Config, Json, read_night, read_site
from prepipe.cli.output import Failures, print_json
from prepipe.errors import ConfigError
from prepipe.model import Stage

if TYPE_CHECKING:
    from prepipe.model import Night
    from prepipe.store import CcdKey, CcdRow, Journal

__all__ = ["register"]

BEGINNING = {"telescope": Stage.FOUND, "cluster": Stage.LANDED}
"""Where the work of each end begins."""

GONE = "gone"
"""What becomes of a quarantined file that was removed meanwhile: its entry goes, too."""

Ccd = Annotated[int | None, typer.Option("--ccd", help="Only this CCD.")]
All = Annotated[bool, typer.Option("--all", help="Whatever there is.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, do nothing.")]


@dataclass(frozen=True)
class _Change:
    """Something that is to be worked on again."""

    end: str
    name: str
    was: str
    to: str
    carry_out: Callable[[], object]


def retry(
    exposures: Annotated[
        list[int] | None, typer.Argument(metavar="[EXPOSURE]...", help="Exposure numbers.")
    ] = None,
    ccd: Ccd = None,
    night: Annotated[
        str | None, typer.Option("--night", help="All of this night: YYYY-MM-DD or utYYMMDD.")
    ] = None,
    no_masters: Annotated[
        bool,
        typer.Option("--no-masters", help="Only CCDs that were calibrated without bias or flat."),
    ] = False,
    stage: Annotated[
        str | None,
        typer.Option(
            "--stage",
            help="Where to begin again: found (pack and send once more, at the telescope) or "
            "landed (calibrate once more, at the cluster).  [default: at the end that has it]",
        ),
    ] = None,
    everything: All = False,
    dry_run: DryRun = False,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Send CCDs back to be worked on from the beginning of their end, quarantined ones too.

    A running `push` or `ingest` takes them up; otherwise the next one does.
    """
    if not exposures and night is None and not everything:
        raise ConfigError("retry what? name exposures or a --night, or say --all")
    if stage is not None and stage not in BEGINNING.values():
        raise ConfigError(f"--stage {stage}: work begins again at found or at landed")
    site = read_site(config)
    of_night = read_night(night)
    failures = Failures()
    with open_journals(site) as journals:
        changes: list[_Change] = []
        numbers: Sequence[int | None] = list(dict.fromkeys(exposures or ())) or (None,)
        for exposure in numbers:
            wanted = _Wanted(exposure, ccd, of_night, no_masters)
            found = list(_retries(journals, stage, wanted))
            changes += found
            if not found:
                state = "was calibrated without masters" if no_masters else _FINISHED
                failures.add(str(exposure or night or "--all"), f"{wanted.named} {state}")
        _carry_out(changes, dry_run=dry_run, as_json=as_json)
    failures.finish()


_FINISHED = "is finished or in quarantine"


@dataclass(frozen=True)
class _Wanted:
    """Which CCDs shall be worked on again; None leaves it open."""

    exposure: int | None
    ccd: int | None
    night: Night | None
    no_masters: bool

    def rows(self, journal: Journal, *stages: Stage) -> list[CcdRow]:
        found = journal.rows(*stages, exposure=self.exposure, ccd=self.ccd, night=self.night)
        return [row for row in found if lacks_masters(row) or not self.no_masters]

    @property
    def named(self) -> str:
        what = "nothing" if self.exposure is None else f"no CCD of exposure {self.exposure}"
        return what if self.ccd is None else f"{what} with number {self.ccd}"


def _retries(journals: Journals, stage: str | None, wanted: _Wanted) -> Iterator[_Change]:
    arrived: set[CcdKey] = set()
    if journals.cluster is not None and stage is None:
        arrived = {row.key for row in wanted.rows(journals.cluster)}
    for end, journal in journals.present.items():
        if stage not in (None, BEGINNING[end]):
            continue
        for row in wanted.rows(journal, *FINISHED[end]):
            # What has arrived crosses once more only if that is asked for.
            if end == "cluster" or row.key not in arrived:
                yield _retry_change(end, journal, row)


def _retry_change(end: str, journal: Journal, row: CcdRow) -> _Change:
    beginning = BEGINNING[end]
    return _Change(
        end=end,
        name=str(row.key),
        was=row.stage.value,
        to=beginning.value,
        carry_out=lambda: journal.return_to(row.key, beginning),
    )


def release(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPOSURE|FILE]...", help="Exposure numbers, or quarantined files."
        ),
    ] = None,
    ccd: Ccd = None,
    everything: All = False,
    dry_run: DryRun = False,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Let quarantined CCDs and files try again, from where they failed.

    `prepipe status` shows what is in quarantine, and why.
    """
    wanted = names or []
    if not wanted and not everything:
        raise ConfigError("release what? name exposures or files, or say --all")
    site = read_site(config)
    failures = Failures()
    with open_journals(site) as journals:
        changes: list[_Change] = []
        if everything:
            changes += _releases(journals, None, ccd)
            changes += [] if ccd is not None else _file_releases(journals, None)
        for name in wanted:
            exposure = int(name) if name.isdecimal() else None
            if exposure is not None:
                found = list(_releases(journals, exposure, ccd))
            else:
                found = list(_file_releases(journals, name))
            if not found:
                failures.add(name, "not in quarantine; see `prepipe status`")
            changes += found
        _carry_out(changes, dry_run=dry_run, as_json=as_json)
    failures.finish()


def _releases(journals: Journals, exposure: int | None, ccd: int | None) -> Iterator[_Change]:
    for end, journal in journals.present.items():
        for row in journal.rows(Stage.QUARANTINED, exposure=exposure, ccd=ccd):
            yield _release_change(end, journal, row)


def _release_change(end: str, journal: Journal, row: CcdRow) -> _Change:
    return _Change(
        end=end,
        name=str(row.key),
        was=row.stage.value,
        to=(row.failed_stage or Stage.FOUND).value,
        carry_out=lambda: journal.release(row.key),
    )


def _file_releases(journals: Journals, name: str | None) -> Iterator[_Change]:
    for end, journal in journals.present.items():
        for file in journal.quarantined_files():
            path = Path(file.path)
            if name is None or name == path.name or Path(name).absolute() == path:
                yield _file_change(end, journal, path)


def _file_change(end: str, journal: Journal, path: Path) -> _Change:
    return _Change(
        end=end,
        name=str(path),
        was=Stage.QUARANTINED.value,
        to="new" if os.path.lexists(path) else GONE,
        carry_out=lambda: journal.forget_file(path),
    )


def _sentence(change: _Change, *, dry_run: bool) -> str:
    if change.to == GONE:
        would = "would be" if dry_run else "is"
        return f"{change.name}: does not exist any more, {would} forgotten at the {change.end}"
    would = "would go" if dry_run else "goes"
    return f"{change.name}: {would} back to {change.to} at the {change.end}"


def _carry_out(changes: Iterable[_Change], *, dry_run: bool, as_json: bool) -> None:
    done = []
    for change in changes:
        if not dry_run:
            change.carry_out()
        done.append({"end": change.end, "name": change.name, "was": change.was, "to": change.to})
        if not as_json:
            typer.echo(_sentence(change, dry_run=dry_run))
    if as_json:
        print_json({"dry_run": dry_run, "changes": done})


def register(app: typer.Typer) -> None:
    """Add `retry` and `release`."""
    add_command(
        app,
        retry,
        "prepipe retry 941420 --ccd 25",
        "prepipe retry 941420 941421 --stage found",
        "prepipe retry --night ut200306 --no-masters",
    )
    add_command(
        app,
        release,
        "prepipe release 941420",
        "prepipe release DECam_00941421.fits.fz",
        "prepipe release --all --dry-run",
    )
