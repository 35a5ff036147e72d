"""`prepipe status`: where every exposure is, what failed and why, and how long it takes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prepipe.cli.app import FAILED, add_command
from prepipe.cli.journals import INGEST_LOCK, PUSH_LOCK, Journals, open_journals
from prepipe.cli.options import DEFAULT_CONFIG, Config, Json, read_night, read_site
from prepipe.cli.output import console, counted, make_table, number, print_json, printable
from prepipe.errors import ConfigError
from prepipe.files import is_in_use

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from prepipe.config import Site
    from prepipe.model import Night
    from prepipe.store import NightCounts
    from prepipe.store.checks import NightChecks
    from prepipe.store.status import CcdStatus, ExposureStatus, NightStatus, Originals, Spread
    from prepipe.store.transfers import NightTraffic

__all__ = ["exposure_table", "register", "status_json"]

REFRESH_S = 2.0
REST = 4.0
OTHER_ROWS = 30
"""Lines of the screen that the other tables take."""
FEWEST_ROWS = 5
LONGEST_LIST = 20
MOST_NIGHTS = 10
MOST_FAILURES = 5
"""Of each list while the screen is watched."""


def status(
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every two seconds, until Ctrl-C.")
    ] = False,
    night: Annotated[
        str | None,
        typer.Option("--night", help="This night: YYYY-MM-DD or utYYMMDD.  [default: the newest]"),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All nights, one line each.")] = False,
    exposure: Annotated[
        int | None, typer.Option("--exposure", help="Only this exposure, CCD by CCD.")
    ] = None,
) -> None:
    """Show where every exposure of a night is, what failed and why, and the latency of each stage.

    The journals of both ends are seen as one, as far as they can be opened from this machine. An
    exposure or night that they do not know is told, with exit code 1.
    """
    if watch and as_json:
        raise ConfigError("--watch is for people and --json for machines: choose one")
    if every and (watch or night is not None or exposure is not None):
        raise ConfigError("--all tells of nights alone: leave --watch, --night, --exposure away")
    site = read_site(config)
    wanted = read_night(night)
    with open_journals(site, read_only=True) as journals:
        if not journals.present:
            typer.echo(
                f"no journal yet in {site.telescope.work} or {site.cluster.work}: "
                "start `prepipe push` or `prepipe ingest`",
                err=True,
            )
        if every:
            _show_nights(journals, as_json=as_json)
            return
        if watch:
            _watch(site, journals, exposure, wanted)
            return
        found, ccds = journals.status(exposure, wanted), exposure is not None
        unknown = not found.exposures and (ccds or wanted is not None)
        trouble = _trouble(site)
        if as_json:
            print_json(status_json(found, ccds=ccds) | {"trouble": trouble})
        elif not unknown or found.files:
            console().print(_view(found, ccds=ccds))
            if trouble:
                typer.echo(f"trouble: {printable(trouble)}")
        if unknown:
            typer.echo(_missing(journals, exposure, wanted), err=True)
            raise typer.Exit(FAILED)


def _watch(site: Site, journals: Journals, exposure: int | None, night: Night | None) -> None:
    from rich.live import Live

    screen = console()
    newest = max(FEWEST_ROWS, screen.height - OTHER_ROWS) if screen.is_terminal else None
    terminal = Live(console=screen, auto_refresh=False, screen=True)
    with suppress(KeyboardInterrupt), terminal if screen.is_terminal else nullcontext():
        while True:
            begun = time.monotonic()
            found = journals.status(exposure, night)
            view = _watched(_heading(site), found, ccds=exposure is not None, newest=newest)
            if screen.is_terminal:
                terminal.update(view, refresh=True)
            else:
                screen.print(view)
            # A long night takes a second to read: that must not become all that this machine does.
            time.sleep(max(REFRESH_S, REST * (time.monotonic() - begun)))


def _show_nights(journals: Journals, *, as_json: bool) -> None:
    """Every night in figures, as each end knows it."""
    from rich.console import Group

    counts = journals.counts()
    if as_json:
        print_json({"nights": _nights_json(counts)})
        return
    rows = [
        (
            night.ut_name,
            str(night),
            max(figures.exposures for figures in ends.values()),
            *(_counts(ends[end].stages) if end in ends else "-" for end in counts),
            _counts(ends["cluster"].grades) if "cluster" in ends else "-",
        )
        for night, ends in _by_night(counts)
    ]
    ends = [f"at the {end}" for end in counts]
    table = make_table(("=night", "began", ">exposures", *ends, "grades"), rows)
    nights = counted(len(rows), "night")
    console().print(Group(table, f"{nights}; `prepipe status --night NIGHT` for one"))


def _by_night(
    counts: dict[str, list[NightCounts]],
) -> Iterator[tuple[Night, dict[str, NightCounts]]]:
    """Each night with what either end knows of it, the newest first."""
    found = {end: {figures.night: figures for figures in told} for end, told in counts.items()}
    for night in sorted({night for told in found.values() for night in told}, reverse=True):
        yield night, {end: told[night] for end, told in found.items() if night in told}


def _nights_json(counts: dict[str, list[NightCounts]]) -> list[dict[str, Any]]:
    return [
        {"night": str(night), "ut_name": night.ut_name}
        | {
            end: {
                "exposures": figures.exposures,
                "stages": figures.stages,
                "grades": figures.grades,
            }
            for end, figures in ends.items()
        }
        for night, ends in _by_night(counts)
    ]


def _heading(site: Site) -> str:
    """The time, and which ends are at work on this machine."""
    locks = {
        "push": site.telescope.work / PUSH_LOCK,
        "ingest": site.cluster.work / INGEST_LOCK,
    }
    ends = [f"{end} {'runs' if is_in_use(lock) else 'does not run'}" for end, lock in locks.items()]
    stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    trouble = _trouble(site)
    told = f"\ntrouble: {printable(trouble)}" if trouble else ""
    return f"{stamp}; on this machine {', '.join(ends)}{told}"


def _trouble(site: Site) -> str:
    """What keeps an ingest that runs here from going on; empty if nothing does, or none runs."""
    from prepipe.cluster.board import Board

    if not is_in_use(site.cluster.work / INGEST_LOCK):
        return ""
    shown = Board(site.cluster.work).read()
    return shown.trouble if shown is not None else ""


def _missing(journals: Journals, exposure: int | None, night: Night | None) -> str:
    """That nothing is known of what was asked for."""
    names = [each.ut_name for each in journals.nights()]
    left_out = ["..."] if len(names) > MOST_NIGHTS else []
    known = f"; nights known: {', '.join([*names[:MOST_NIGHTS], *left_out])}" if names else ""
    if exposure is None:
        return f"no such night: {night.ut_name if night else ''}{known}"
    return f"no such exposure: {exposure}{'' if night is None else f' in {night.ut_name}'}{known}"


def status_json(found: NightStatus, *, ccds: bool) -> dict[str, Any]:
    """What ``--json`` prints.

    Parameters
    ----------
    found : NightStatus
    ccds : bool
        Whether every CCD is told, not only those that failed.
    """
    return {
        "night": None if found.night is None else str(found.night),
        "exposures": [_exposure_json(exposure, ccds=ccds) for exposure in found.exposures],
        "totals": found.totals,
        "failed": [_ccd_json(ccd) for ccd in found.failing],
        "files": found.files,
        "latency_s": found.latency,
        "stages": found.stages,
        "traffic": [vars(night) | {"night": str(night.night)} for night in found.traffic],
        "fidelity": [vars(night) | {"night": str(night.night)} for night in found.checks],
        "originals": found.originals,
        "presets": found.presets,
    }


def _exposure_json(found: ExposureStatus, *, ccds: bool) -> dict[str, Any]:
    exposure = found.exposure
    told: dict[str, Any] = {
        "camera": exposure.camera,
        "exposure": exposure.number,
        "night": str(exposure.night),
        "start": exposure.start,
        "field": exposure.field,
        "band": exposure.band,
        "kind": exposure.kind,
        "n_ccds": len(found.ccds),
        "stages": found.stages,
        "grades": found.grades,
        "originals": found.originals,
        "latency_s": found.latency_s,
    }
    if ccds:
        told["ccds"] = [_ccd_json(ccd) for ccd in found.ccds]
    return told


def _ccd_json(ccd: CcdStatus) -> dict[str, Any]:
    return {
        "camera": ccd.key.camera,
        "exposure": ccd.key.exposure,
        "ccd": ccd.key.ccd,
        "end": ccd.end,
        "stage": ccd.stage,
        "failed_stage": ccd.failed_stage,
        "tries": ccd.tries,
        "reason": ccd.reason,
        "grade": ccd.grade,
        "reasons": ccd.reasons,
        "latency_s": ccd.latency_s,
        "times": ccd.times,
        "seconds": ccd.seconds,
        "product": ccd.product,
        "archived": ccd.archived,
        "preset": ccd.preset,
    }


def exposure_table(found: NightStatus, *, newest: int | None = None) -> Table:
    """A row per exposure, newest first."""
    shown = found.exposures[:newest]
    any_archived = found.originals.archived > 0
    rows = [
        (
            exposure.exposure.number,
            exposure.exposure.night.ut_name,
            exposure.exposure.field,
            exposure.exposure.band,
            exposure.exposure.kind.value,
            len(exposure.ccds),
            _counts(exposure.stages),
            _counts(exposure.grades),
            number(exposure.latency_s, 1),
            *([_archived(exposure.originals)] if any_archived else []),
        )
        for exposure in shown
    ]
    columns = (
        *(">exposure", "=night", "field", "=band", "kind", ">CCDs", "stages", "grades"),
        ">latency s",
        *([">archived"] if any_archived else []),
    )
    return make_table(columns, rows)


def _archived(originals: Originals) -> str:
    return f"{originals.archived} of {originals.expected}" if originals.expected else "-"


def _counts(counts: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "-"


def _view(found: NightStatus, *, ccds: bool) -> Group:
    """What is most important stands last, just above the prompt."""
    from rich.console import Group

    tables = [exposure_table(found)]
    if ccds:
        tables.append(_ccd_table(found))
    return Group(*tables, *_failures(found, LONGEST_LIST), _latency_table(found), _summary(found))


def _watched(heading: str, found: NightStatus, *, ccds: bool, newest: int | None) -> Group:
    """What is most important stands first, where no screen is too low for it."""
    from rich.console import Group

    longest = LONGEST_LIST if newest is None else MOST_FAILURES
    tables = [exposure_table(found, newest=newest)]
    if ccds:
        tables.insert(0, _ccd_table(found))
    told = _failures(found, longest)
    return Group(heading, _summary(found), *told, *tables, _latency_table(found))


def _failures(found: NightStatus, longest: int) -> list[Table]:
    tables = []
    if found.failing:
        tables.append(_failing_table(found, longest))
    if found.files:
        tables.append(_file_table(found, longest))
    return tables


def _ccd_table(found: NightStatus) -> Table:
    rows = [
        (
            ccd.key.ccd,
            ccd.stage.value,
            ccd.grade or "-",
            "; ".join(ccd.reasons),
            number(ccd.latency_s, 1),
            ccd.product or "-",
        )
        for exposure in found.exposures
        for ccd in exposure.ccds
    ]
    return make_table((">CCD", "stage", "grade", "because", ">latency s", "product"), rows)


def _failing_table(found: NightStatus, longest: int) -> Table:
    rows = [
        (ccd.key.exposure, ccd.key.ccd, ccd.end, _fate(ccd), ccd.tries, _short(ccd.reason))
        for ccd in found.failing[:longest]
    ]
    title = f"CCDs that failed{_of(len(found.failing), longest)}"
    return make_table((">exposure", ">CCD", "at", "now", ">tries", "why"), rows, title)


def _fate(ccd: CcdStatus) -> str:
    after = f" after {ccd.failed_stage.value}" if ccd.failed_stage else ""
    return f"{ccd.stage.value}{after}"


def _file_table(found: NightStatus, longest: int) -> Table:
    rows = [
        (file.end, file.path, _short(file.reason.removeprefix(f"{file.path}: ")))
        for file in found.files[:longest]
    ]
    title = f"files in quarantine{_of(len(found.files), longest)}"
    return make_table(("at", "file", "why"), rows, title)


def _short(reason: str) -> str:
    """A reason in which files go by their names alone; --json has the paths."""
    return re.sub(r"(?<![^\s'\"(])(?:/[^/\s:;,'\"]+)+/(?=[^/\s])", "", reason)


def _of(total: int, longest: int) -> str:
    return f" ({longest} of {total}; all with --json)" if total > longest else ""


def _latency_table(found: NightStatus) -> Table:
    rows = [
        (stage.stage.value, stage.ccds, *_spread(stage.since_last), *_spread(stage.work))
        for stage in found.stages
    ]
    columns = (
        "stage",
        ">CCDs",
        ">since last s: median",
        ">95 %",
        ">work s: median",
        ">95 %",
    )
    return make_table(columns, rows)


def _spread(spread: Spread | None) -> tuple[str, str]:
    return (number(spread.p50), number(spread.p95)) if spread else ("-", "-")


def _summary(found: NightStatus) -> str:
    of = f"{found.night.ut_name}: " if found.night else ""
    line = f"{of}{counted(len(found.exposures), 'exposure')}; CCDs: {_counts(found.totals)}"
    if found.latency:
        line += (
            f"; found to calibrated: median {found.latency.p50:.1f} s, "
            f"95 % within {found.latency.p95:.1f} s"
        )
    if found.originals.expected:
        line += f"; originals archived: {_archived(found.originals)}"
    if found.presets:
        line += f"; packed by {next(iter(found.presets))}"
        line += f" now, so far {_counts(found.presets)}" if len(found.presets) > 1 else ""
    if found.quarantined_elsewhere:
        elsewhere = counted(found.quarantined_elsewhere, "CCD")
        line += f"; {elsewhere} of other nights in quarantine (--all)"
    return "\n".join([line, *map(_traffic, found.traffic), *map(_checked, found.checks)])


def _checked(night: NightChecks) -> str:
    """What packing cost, in one line a codec."""
    packets = counted(night.packets, "packet")
    return (
        f"{night.night.ut_name}: {packets} checked, {night.label}: {number(night.ratio, 1)}:1, "
        f"fluxes scatter by {number(night.scatter)} of their noise, faint transients found "
        f"{number(night.found)} of {number(night.found_original)}"
    )


def _traffic(night: NightTraffic) -> str:
    return (
        f"{night.night.ut_name}: {counted(night.exposures, 'exposure')} sent, "
        f"{night.bytes / 1e6:.1f} MB in {night.seconds:.1f} s, {night.mbit_s:.1f} Mbit/s"
    )


def register(app: typer.Typer) -> None:
    """Add `status`."""
    add_command(
        app,
        status,
        "prepipe status",
        "prepipe status --watch",
        "prepipe status --all",
        "prepipe status --exposure 941420 --json",
    )
