"""`prepipe make-cals`: raw zeros and dome flats become masters."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prepipe.cli.app import add_command
from prepipe.cli.journals import journal_of
from prepipe.cli.options import (
    DEFAULT_CONFIG,
    CameraName,
    Json,
    OptionalConfig,
    site_of,
    writable,
)
from prepipe.cli.output import Failures, number, print_json, print_table
from prepipe.cli.progress import progress
from prepipe.errors import ConfigError, InputError
from prepipe.model import Kind, Mark, Stage

if TYPE_CHECKING:
    from prepipe.cameras import Camera
    from prepipe.config import Site
    from prepipe.engines.detector.masters import FrameGroup, MadeMaster
    from prepipe.model import Night
    from prepipe.store import CcdRow, Journal

__all__ = ["lacks_masters", "register"]

KINDS = (Kind.ZERO, Kind.DOME_FLAT)
COLUMNS = (
    *("kind", "band", "ccd", "night", "frames", "noise", "path"),
    *("mark", "why", "previous", "shift", "rms", "deviating"),
)


def make_cals(
    raw: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...|NIGHT",
            help="Raw zeros and dome flats or packets of them; or a night whose packets landed: "
            "YYYY-MM-DD or utYYMMDD, as `prepipe status` shows it.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where the masters go; a night's go where the site says.")
    ] = None,
    camera: CameraName = None,
    config: OptionalConfig = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be made.")] = False,
    json: Json = False,
) -> None:
    """Combine zeros and dome flats into masters, one a CCD, band and night.

    A master that differs too much from the last good one is written but held: it is not used
    until `prepipe masters mark` says that it is good.
    """
    from prepipe.cameras import load_camera
    from prepipe.engines.detector.masters import gather

    night = _as_night(raw)
    if night is not None and config is None:
        config = DEFAULT_CONFIG
    site = site_of(config, camera)
    root = out or (site.cluster.calibrations if night is not None else None)
    if root is None:
        raise ConfigError("say with --out where the masters go")
    writable(root, "--out" if out else "cluster.calibrations")
    failures = Failures()
    instrument = load_camera(site.camera)
    groups, unusable = gather(_sources(site, night, raw, failures), instrument)
    for source, reason in unusable.items():
        failures.add(source, reason)
    made = [] if dry_run else _made(groups, root, instrument, site, failures)
    rows = [_planned_row(group) for group in groups] if dry_run else [_row(each) for each in made]
    lacking = _lacking(site, night, made) if night is not None else []
    redo = _command(lacking, config) if lacking else None
    if json:
        told = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
        without = {"ccds": len(lacking), "redo": redo}
        print_json({"masters": told, "without_masters": without, "failed": failures.reasons})
    else:
        _show(rows, len(lacking), redo)
    failures.finish()


def lacks_masters(row: CcdRow) -> bool:
    """Whether a CCD was calibrated without bias or without flat.

    Parameters
    ----------
    row : CcdRow
    """
    flags = row.reduction.get("flags") or ()
    return row.stage is Stage.CALIBRATED and any(flag in flags for flag in ("NO_BIAS", "NO_FLAT"))


def _as_night(words: list[str]) -> Night | None:
    from prepipe.model import Night

    if len(words) != 1 or Path(words[0]).exists():
        return None
    try:
        return Night.parse(words[0])
    except ValueError as error:
        if re.fullmatch(r"(ut)?[0-9-]+", words[0]):
            raise ConfigError(
                f"{words[0]} is neither a file nor a night: write YYYY-MM-DD or utYYMMDD"
            ) from error
        return None


def _sources(site: Site, night: Night | None, raw: list[str], failures: Failures) -> list[Path]:
    """The files that are there; the others are named."""
    wanted = [Path(name) for name in raw] if night is None else _packets_of(site, night)
    for path in wanted:
        if not path.exists():
            failures.add(path, "does not exist")
    return [path for path in wanted if path.exists()]


def _packets_of(site: Site, night: Night) -> list[Path]:
    with closing(_journal(site)) as journal:
        rows = journal.rows(night=night, kinds=KINDS, whole=False)
        found = [Path(row.packet) for row in rows if row.packet]
        others = [] if found else journal.rows(kinds=KINDS, whole=False)
    if not found:
        known = sorted({row.exposure.night for row in others if row.packet})
        told = ", ".join(f"{each.ut_name} ({each})" for each in known) or "none"
        raise ConfigError(
            f"no zeros or dome flats of the night {night.ut_name} ({night}) have landed here; "
            f"nights that have some: {told}"
        )
    return found


def _journal(site: Site) -> Journal:
    from prepipe.store import Journal

    journal = Journal.existing(journal_of(site.cluster))
    if journal is None:
        where = site.cluster.journal or site.cluster.work
        raise ConfigError(f"no journal in {where}: nothing has landed; run `prepipe ingest`")
    return journal


def _made(
    groups: Sequence[FrameGroup], root: Path, camera: Camera, site: Site, failures: Failures
) -> list[MadeMaster]:
    from prepipe.engines.detector.masters import make_master
    from prepipe.files import sweep_partials

    sweep_partials(root)
    made: list[MadeMaster] = []
    with progress("combining", len(groups)) as advance:
        for group in groups:
            words = (group.kind, group.band, f"CCD {group.ccd}", group.night.ut_name)
            name = " ".join(word for word in words if word)
            try:
                made.append(make_master(group, root, camera, site.calibration))
            except InputError as error:
                failures.add(name, error)
            advance(name)
    for master in made:
        for reason in master.left_out:
            failures.add(master.path.name, reason)
        if master.mark is not Mark.GOOD:
            failures.add(master.path, _not_used(master))
    return made


def _not_used(master: MadeMaster) -> str:
    if master.mark is Mark.HELD:
        return f"held, not used until `prepipe masters mark` accepts it: {master.why}"
    return f"still marked {master.mark}, not used: {master.why}"


def _lacking(site: Site, night: Night, made: Sequence[MadeMaster]) -> list[CcdRow]:
    """CCDs that were calibrated before the masters that they could have had."""
    ccds = {master.group.ccd for master in made if master.mark is Mark.GOOD}
    with closing(_journal(site)) as journal:
        return [
            row
            for each in journal.nights()
            if abs((each.date - night.date).days) <= site.calibration.master_days
            for row in journal.rows(Stage.CALIBRATED, night=each)
            if row.key.ccd in ccds and lacks_masters(row)
        ]


def _command(lacking: Sequence[CcdRow], config: Path | None) -> str:
    nights = {row.exposure.night for row in lacking}
    which = f"--night {nights.pop().ut_name}" if len(nights) == 1 else "--all"
    site = "" if config in (None, DEFAULT_CONFIG) else f" --config {shlex.quote(str(config))}"
    return f"prepipe retry {which} --no-masters{site}"


def _planned_row(group: FrameGroup) -> tuple[object, ...]:
    head = (group.kind, group.band, group.ccd, group.night.ut_name)
    return (*head, len(group.frames), *(None for _ in COLUMNS[5:]))


def _row(master: MadeMaster) -> tuple[object, ...]:
    changed = master.changed
    difference: tuple[object, ...] = (None, None, None)
    if changed is not None:
        difference = (changed.shift, changed.rms, changed.deviating)
    head = (*_planned_row(master.group)[:4], master.used, master.noise, master.path)
    return (*head, master.mark, master.why, master.previous, *difference)


def _show(rows: Sequence[tuple[Any, ...]], lacking: int, redo: str | None) -> None:
    if rows:
        shown = [(*row[:5], number(row[5], 4), row[7] or "-", row[6] or "-") for row in rows]
        print_table(("kind", "band", ">ccd", "night", ">frames", ">noise", "mark", "path"), shown)
    if redo is not None:
        typer.echo(f"{lacking} CCDs were calibrated without masters; to do them anew: {redo}")


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    add_command(
        app,
        make_cals,
        "prepipe make-cals zeros/*.fits.fz flats/*.fits.fz --out cals",
        "prepipe make-cals ut200306 --config prepipe.toml",
    )
