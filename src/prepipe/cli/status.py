"""`prepipe status`: where every exposure is, what failed and why, and how long it takes."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prepipe.cli.app import add_command
from prepipe.cli.journals import Journals, open_journals
from prepipe.cli.options import DEFAULT_CONFIG, Config, Json, read_site
from prepipe.cli.output import console, make_table, number, print_json
from prepipe.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from prepipe.model import Night
    from prepipe.store.status import CcdStatus, ExposureStatus, NightStatus, Spread

__all__ = ["exposure_table", "register", "status_json"]

REFRESH_S = 2.0
REST = 4.0
OTHER_ROWS = 16
"""Lines of the screen that the other tables take."""
FEWEST_ROWS = 5
LONGEST_LIST = 20


def status(
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every two seconds, until Ctrl-C.")
    ] = False,
    night: Annotated[
        str | None, typer.Option("--night", help="Only this night: YYYY-MM-DD or utYYMMDD.")
    ] = None,
    exposure: Annotated[
        int | None, typer.Option("--exposure", help="Only this exposure, CCD by CCD.")
    ] = None,
) -> None:
    """Show where every exposure is, what failed and why, and the latency of each stage.

    The journals of both ends are seen as one, as far as they lie on this machine.
    """
    if watch and as_json:
        raise ConfigError("--watch is for people and --json for machines: choose one")
    site = read_site(config)
    wanted = _night(night)
    with open_journals(site) as journals:
        if not journals.present:
            typer.echo(
                f"no journal yet in {site.telescope.work} or {site.cluster.work}: "
                "start `prepipe push` or `prepipe ingest`",
                err=True,
            )
        if as_json:
            print_json(status_json(journals.status(exposure, wanted), ccds=exposure is not None))
        elif watch:
            _watch(journals, exposure, wanted)
        else:
            console().print(_view(journals.status(exposure, wanted), ccds=exposure is not None))


def _night(text: str | None) -> Night | None:
    from prepipe.model import Night  # noqa: PLC0415

    try:
        return None if text is None else Night.parse(text)
    except ValueError as error:
        raise ConfigError(f"--night: {error}") from error


def _watch(journals: Journals, exposure: int | None, night: Night | None) -> None:
    from rich.live import Live  # noqa: PLC0415

    screen = console()
    newest = max(FEWEST_ROWS, screen.height - OTHER_ROWS) if screen.is_terminal else None
    terminal = Live(console=screen, auto_refresh=False, screen=True)
    with terminal if screen.is_terminal else nullcontext():
        while True:
            begun = time.monotonic()
            view = _view(journals.status(exposure, night), ccds=exposure is not None, newest=newest)
            if screen.is_terminal:
                terminal.update(view, refresh=True)
            else:
                screen.print(view)
            # A long night takes a second to read: that must not become all that this machine does.
            time.sleep(max(REFRESH_S, REST * (time.monotonic() - begun)))


def status_json(found: NightStatus, *, ccds: bool) -> dict[str, Any]:
    """What ``--json`` prints.

    Parameters
    ----------
    found : NightStatus
    ccds : bool
        Whether every CCD is told, not only those that failed.
    """
    return {
        "exposures": [_exposure_json(exposure, ccds=ccds) for exposure in found.exposures],
        "totals": found.totals,
        "failed": [_ccd_json(ccd) for ccd in found.failing],
        "files": found.files,
        "latency_s": found.latency,
        "stages": found.stages,
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
    }


def exposure_table(found: NightStatus, *, newest: int | None = None) -> Table:
    """A row per exposure, newest first."""
    shown = found.exposures[:newest]
    rows = [
        (
            exposure.exposure.number,
            exposure.exposure.field,
            exposure.exposure.band,
            exposure.exposure.kind.value,
            len(exposure.ccds),
            _counts(exposure.stages),
            _counts(exposure.grades),
            number(exposure.latency_s, 1),
        )
        for exposure in shown
    ]
    columns = (">exposure", "field", "band", "kind", ">CCDs", "stages", "grades", ">latency s")
    return make_table(columns, rows)


def _counts(counts: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "-"


def _view(found: NightStatus, *, ccds: bool, newest: int | None = None) -> Group:
    from rich.console import Group  # noqa: PLC0415

    parts: list[Any] = [exposure_table(found, newest=newest)]
    if ccds:
        parts.append(_ccd_table(found))
    if found.failing:
        parts.append(_failing_table(found))
    if found.files:
        parts.append(_file_table(found))
    parts += [_latency_table(found), _summary(found)]
    return Group(*parts)


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


def _failing_table(found: NightStatus) -> Table:
    rows = [
        (ccd.key.exposure, ccd.key.ccd, ccd.end, _fate(ccd), ccd.tries, ccd.reason)
        for ccd in found.failing[:LONGEST_LIST]
    ]
    title = f"CCDs that failed{_of(len(found.failing))}"
    return make_table((">exposure", ">CCD", "at", "now", ">tries", "why"), rows, title)


def _fate(ccd: CcdStatus) -> str:
    after = f" after {ccd.failed_stage.value}" if ccd.failed_stage else ""
    return f"{ccd.stage.value}{after}"


def _file_table(found: NightStatus) -> Table:
    rows = [(file.end, file.path, file.reason) for file in found.files[:LONGEST_LIST]]
    return make_table(("at", "file", "why"), rows, f"files in quarantine{_of(len(found.files))}")


def _of(total: int) -> str:
    return f" ({LONGEST_LIST} of {total}; all with --json)" if total > LONGEST_LIST else ""


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
    line = f"{len(found.exposures)} exposures; CCDs: {_counts(found.totals)}"
    if found.latency:
        line += (
            f"; found to calibrated: median {found.latency.p50:.1f} s, "
            f"95 % within {found.latency.p95:.1f} s"
        )
    return line


def register(app: typer.Typer) -> None:
    """Add `status`."""
    add_command(
        app,
        status,
        "prepipe status",
        "prepipe status --watch",
        "prepipe status --exposure 941420 --json",
    )
