"""`prepipe retry` and `prepipe release`: CCDs and files that shall be worked on again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prepipe.cli.app import add_command
from prepipe.cli.journals import FINISHED, Journals, open_journals
from prepipe.cli.options import DEFAULT_CONFIG, Config, Json, read_site
from prepipe.cli.output import Failures, print_json
from prepipe.errors import ConfigError
from prepipe.model import Stage

if TYPE_CHECKING:
    from prepipe.store import CcdKey, CcdRow, Journal

__all__ = ["register"]

BEGINNING = {"telescope": Stage.FOUND, "cluster": Stage.LANDED}
"""Where the work of each end begins."""

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
    exposure: Annotated[int | None, typer.Argument(help="Exposure number.")] = None,
    ccd: Ccd = None,
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
    if exposure is None and not everything:
        raise ConfigError("retry what? name an exposure, or say --all")
    if stage is not None and stage not in BEGINNING.values():
        raise ConfigError(f"--stage {stage}: work begins again at found or at landed")
    site = read_site(config)
    with open_journals(site) as journals:
        changes = list(_retries(journals, stage, exposure, ccd))
        if not changes:
            _nothing("is finished or in quarantine", exposure, ccd)
        _carry_out(changes, dry_run=dry_run, as_json=as_json)


def _retries(
    journals: Journals, stage: str | None, exposure: int | None, ccd: int | None
) -> Iterator[_Change]:
    arrived: set[CcdKey] = set()
    if journals.cluster is not None and stage is None:
        arrived = {row.key for row in journals.cluster.rows(exposure=exposure, ccd=ccd)}
    for end, journal in journals.present.items():
        if stage not in (None, BEGINNING[end]):
            continue
        for row in journal.rows(*FINISHED[end], exposure=exposure, ccd=ccd):
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
            exposure = int(name) if name.isdigit() else None
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
        to="new",
        carry_out=lambda: journal.forget_file(path),
    )


def _nothing(state: str, exposure: int | None, ccd: int | None) -> None:
    what = "nothing" if exposure is None else f"no CCD of exposure {exposure}"
    if ccd is not None:
        what += f" with number {ccd}"
    failures = Failures()
    failures.add(str(exposure or "--all"), f"{what} {state}")
    failures.finish()


def _carry_out(changes: Iterable[_Change], *, dry_run: bool, as_json: bool) -> None:
    done = []
    for change in changes:
        if not dry_run:
            change.carry_out()
        done.append({"end": change.end, "name": change.name, "was": change.was, "to": change.to})
        if not as_json:
            would = "would go" if dry_run else "goes"
            typer.echo(f"{change.name}: {would} back to {change.to} at the {change.end}")
    if as_json:
        print_json({"dry_run": dry_run, "changes": done})


def register(app: typer.Typer) -> None:
    """Add `retry` and `release`."""
    add_command(
        app,
        retry,
        "prepipe retry 941420 --ccd 25",
        "prepipe retry 941420 --stage found",
    )
    add_command(
        app,
        release,
        "prepipe release 941420",
        "prepipe release DECam_00941421.fits.fz",
        "prepipe release --all --dry-run",
    )
