"""`prepipe masters`: the library of master biases and dome flats, listed and marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prepipe.cli.app import add_command
from prepipe.cli.options import DEFAULT_CONFIG, Config, Json, read_night, read_site
from prepipe.cli.output import Failures, number, print_json, print_table
from prepipe.errors import ConfigError
from prepipe.model import Kind, Mark

if TYPE_CHECKING:
    from prepipe.engines.detector.library import LibraryMaster, MasterLibrary
    from prepipe.engines.names import MasterName
    from prepipe.model import Night
    from prepipe.store import MasterRow

__all__ = ["list_masters", "mark_masters", "register", "set_validity"]

OPEN = "open"
"""Takes a limit in time away."""

Paths = Annotated[list[Path] | None, typer.Argument(metavar="[PATH]...", help="Files of masters.")]
OfNight = Annotated[
    str | None, typer.Option("--night", help="Only those of a night: YYYY-MM-DD or utYYMMDD.")
]
OfKind = Annotated[str | None, typer.Option("--kind", help="Only zero (biases) or dome-flat.")]
OfCcd = Annotated[int | None, typer.Option("--ccd", help="Only those of a CCD.")]
OfBand = Annotated[str | None, typer.Option("--band", help="Only flats of a band.")]
Cals = Annotated[
    Path | None,
    typer.Option("--cals", help="Directory of the masters.  [default: cluster.calibrations]"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, do nothing.")]


@dataclass(frozen=True)
class _Wanted:
    """Which masters are meant; None leaves it open."""

    night: Night | None
    kind: Kind | None
    ccd: int | None
    band: str | None

    @classmethod
    def told(
        cls, night: str | None, kind: str | None, ccd: int | None, band: str | None
    ) -> _Wanted:
        kinds = {"zero": Kind.ZERO, "bias": Kind.ZERO, "dome-flat": Kind.DOME_FLAT}
        if kind is not None and kind not in kinds:
            raise ConfigError(f"--kind {kind}: masters are of kind zero or dome-flat")
        return cls(read_night(night), None if kind is None else kinds[kind], ccd, band)

    @property
    def everything(self) -> bool:
        return self == _Wanted(None, None, None, None)

    def has(self, name: MasterName) -> bool:
        return (
            self.night in (None, name.night)
            and self.kind in (None, name.kind)
            and self.ccd in (None, name.ccd)
            and self.band in (None, name.band)
        )


def list_masters(
    night: OfNight = None,
    kind: OfKind = None,
    ccd: OfCcd = None,
    band: OfBand = None,
    mark: Annotated[str | None, typer.Option("--mark", help="Only good, bad or held.")] = None,
    cals: Cals = None,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """List the masters: what they are made of, how they differ from the last, whether they count.

    A shift, an rms and a fraction of deviating pixels tell how far each is from the good one that
    it was compared with when it was made: ADU for biases, relative for dome flats.
    """
    library = _library(cals, config)
    wanted = _Wanted.told(night, kind, ccd, band)
    marks = {None if mark is None else _mark(mark)} - {None}
    found = [
        master for master in library.masters(wanted.has) if not marks or master.row.mark in marks
    ]
    missing = library.without_file()
    if json:
        print_json({"masters": [_facts(master) for master in found], "without_file": missing})
    elif found:
        _show(found)
    else:
        typer.echo(f"no such masters in {library.root}")
    for path in missing:
        typer.echo(f"note: {path} is remembered, but there is no such file", err=True)


def mark_masters(
    mark: Annotated[str, typer.Argument(metavar="good|bad", help="What they are.")],
    paths: Paths = None,
    why: Annotated[str, typer.Option("--why", help="The reason; kept with the mark.")] = "",
    night: OfNight = None,
    kind: OfKind = None,
    ccd: OfCcd = None,
    band: OfBand = None,
    cals: Cals = None,
    config: Config = DEFAULT_CONFIG,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Say whether masters may be used; what is marked bad never is, what was held may be again.

    CCDs that are calibrated already stay as they are: see `prepipe retry`.
    """
    wanted_mark = _mark(mark)
    if wanted_mark is Mark.HELD:
        raise ConfigError("mark masters good or bad: only make-cals holds them")
    if not why.strip():
        raise ConfigError("say --why: whoever meets the mark later wants to know")
    wanted = _Wanted.told(night, kind, ccd, band)
    values = {"mark": wanted_mark, "why": why.strip(), "by_hand": True}
    _change(_library(cals, config), paths, wanted, values, _mark_told, dry_run, json)


def set_validity(
    paths: Paths = None,
    begin: Annotated[
        str | None, typer.Option("--from", help="First night they hold for, or open.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--until", help="Last night they hold for, or open.")
    ] = None,
    night: OfNight = None,
    kind: OfKind = None,
    ccd: OfCcd = None,
    band: OfBand = None,
    cals: Cals = None,
    config: Config = DEFAULT_CONFIG,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Say for which nights masters hold, the first and the last included.

    Use it when something changed for good, such as a new lamp: nothing before is used or compared
    with beyond it.
    """
    if begin is None and end is None:
        raise ConfigError("say --from, --until or both: a night, or open")
    first, last = _limit("--from", begin), _limit("--until", end)
    if first is not None and last is not None and first > last:
        raise ConfigError(f"--from {begin} is after --until {end}")
    values = {} if begin is None else {"valid_from": first}
    values |= {} if end is None else {"valid_until": last}
    wanted = _Wanted.told(night, kind, ccd, band)
    _change(_library(cals, config), paths, wanted, values, _validity_told, dry_run, json)


def _limit(option: str, text: str | None) -> Night | None:
    from prepipe.model import Night

    try:
        return None if text in (None, OPEN) else Night.parse(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}; or open") from error


def _library(cals: Path | None, config: Path) -> MasterLibrary:
    from prepipe.engines.detector.library import MasterLibrary

    root = read_site(config).cluster.calibrations if cals is None else cals
    if not root.is_dir():
        raise ConfigError(f"the directory of masters, {root}, does not exist")
    return MasterLibrary(root)


def _mark(word: str) -> Mark:
    if word not in list(Mark):
        raise ConfigError(f"{word!r} is no mark: say good or bad")
    return Mark(word)


def _change(
    library: MasterLibrary,
    paths: Sequence[Path] | None,
    wanted: _Wanted,
    values: dict[str, Any],
    told: Callable[[MasterRow], str],
    dry_run: bool,
    json: bool,
) -> None:
    """Change the rows of the masters that are meant, all or none, and say what changed."""
    from dataclasses import replace

    failures = Failures()
    found = _meant(library, paths, wanted, failures)
    rows = [master.row for master in found]
    if not dry_run:
        library.table.change(rows, **values)
    changes = [
        {"path": str(master.path), "was": told(row), "to": told(replace(row, **values))}
        for master, row in zip(found, rows, strict=True)
    ]
    if json:
        print_json({"dry_run": dry_run, "changes": changes, "failed": failures.reasons})
    else:
        word = "would be" if dry_run else "is"
        for change in changes:
            typer.echo(f"{change['path']}: {word} {change['to']} (was {change['was']})")
    failures.finish()


def _meant(
    library: MasterLibrary, paths: Sequence[Path] | None, wanted: _Wanted, failures: Failures
) -> list[LibraryMaster]:
    if not paths and wanted.everything:
        raise ConfigError("which masters? name files, or say --night, --kind, --ccd or --band")
    if not paths:
        found = library.masters(wanted.has)
        if not found:
            failures.add(library.root, "no such masters there")
        return found
    named = []
    for path in paths:
        try:
            master = library.master(path)
        except ConfigError as error:
            failures.add(path, error)
            continue
        if wanted.has(master.name):
            named.append(master)
        else:
            failures.add(path, "is not of the night, kind, CCD and band that were told")
    return named


def _mark_told(row: MasterRow) -> str:
    return f"{row.mark}: {row.why}" if row.why else str(row.mark)


def _validity_told(row: MasterRow) -> str:
    begin = OPEN if row.valid_from is None else row.valid_from.ut_name
    end = OPEN if row.valid_until is None else row.valid_until.ut_name
    return f"valid from {begin} until {end}"


def _facts(master: LibraryMaster) -> dict[str, Any]:
    row, name = master.row, master.name
    return {
        "kind": name.kind,
        "band": name.band,
        "ccd": name.ccd,
        "night": str(name.night),
        "frames": master.frames,
        "noise": master.noise,
        "readable": bool(master.shape),
        "mark": row.mark,
        "why": row.why,
        "by_hand": row.by_hand,
        "adopted": not master.recorded,
        "valid_from": None if row.valid_from is None else str(row.valid_from),
        "valid_until": None if row.valid_until is None else str(row.valid_until),
        "previous": row.previous or None,
        "shift": row.shift,
        "rms": row.rms,
        "rms_of_noise": row.noise,
        "deviating": row.deviating,
        "path": str(master.path),
    }


def _show(masters: Sequence[LibraryMaster]) -> None:
    columns = (
        *("kind", "band", ">ccd", "night", ">frames", ">noise", ">shift", ">rms", ">deviating"),
        *("mark", "from", "until", "why", "path"),
    )
    print_table(columns, [_shown(master) for master in masters])


def _shown(master: LibraryMaster) -> tuple[object, ...]:
    row, name = master.row, master.name
    limits = ("" if at is None else at.ut_name for at in (row.valid_from, row.valid_until))
    return (
        *(name.kind, name.band, name.ccd, name.night.ut_name),
        "-" if master.frames is None else master.frames,
        *(number(figure, 4) for figure in (master.noise, row.shift, row.rms, row.deviating)),
        str(row.mark) if master.shape else "damaged",
        *limits,
        row.why,
        master.path,
    )


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="List masters, and say which of them may be used, and when.\n\n"
        "\b\nExample:\n  prepipe masters list --mark held",
        short_help="List masters, and say which of them may be used, and when.",
    )
    add_command(
        group,
        list_masters,
        "prepipe masters list --mark held",
        "prepipe masters list --ccd 25 --kind dome-flat --json",
        name="list",
    )
    add_command(
        group,
        mark_masters,
        'prepipe masters mark bad --night ut200306 --kind dome-flat --why "lamp flickered"',
        'prepipe masters mark good cals/ut200306/25/*.fits.fz --cals cals --why "new controller"',
        name="mark",
    )
    add_command(
        group,
        set_validity,
        "prepipe masters valid --kind dome-flat --until ut200310 --dry-run",
        "prepipe masters valid --night ut200311 --from ut200311 --until open",
        name="valid",
    )
    app.add_typer(group, name="masters")
