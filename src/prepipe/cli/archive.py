"""`prepipe archive`: the originals follow by day."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from prepipe.cli.app import add_command
from prepipe.cli.journals import ARCHIVE_LOCK, journal_of
from prepipe.cli.link import watched
from prepipe.cli.live import Display
from prepipe.cli.options import DEFAULT_CONFIG, Config, Json, read_night, read_site
from prepipe.cli.output import Failures, print_json, print_table
from prepipe.cli.signals import stop_on_signals
from prepipe.files import is_in_use

if TYPE_CHECKING:
    from prepipe.cameras import Camera
    from prepipe.config import Site
    from prepipe.model import Night
    from prepipe.store import CcdRow
    from prepipe.telescope import ArchiveReport, Event, PlannedOriginal

__all__ = ["register"]

TOLD = ("failed", "obstacle", "cleared", "waits", "whole")


def archive(
    config: Config = DEFAULT_CONFIG,
    night: Annotated[
        str | None, typer.Option("--night", help="Only this night: YYYY-MM-DD or utYYMMDD.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Send what may be sent now, wait for nothing, then end.")
    ] = False,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for daylight.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, in order; do nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send the bit-exact originals of what went with a loss, by day, the newest first.

    Of what went by wavelet only what its packet lost is sent, unless pack.archive says "whole";
    `prepipe restore` puts the two together. It works beside `prepipe push`, which goes first.
    What arrives lies in archive/ below the landing directory. Ends cleanly on SIGTERM or Ctrl-C;
    started again, it goes on where it was.
    """
    site, wanted = read_site(config), read_night(night)
    if dry_run:
        _plan(site, wanted, as_json=as_json)
        return
    report = _archive(site, wanted, once=once, now=now)
    failures = Failures()
    for failure in report.failures:
        failures.add(failure.what, failure.reason)
    if as_json:
        done = {
            "archived": report.archived,
            "archived_bytes": report.archived_bytes,
            "residuals": report.residuals,
            "waiting": report.waiting,
        }
        print_json({**done, "failed": failures.reasons})
    else:
        size = f"{report.archived_bytes / 1e6:.1f} MB"
        residuals = f", {report.residuals} as residuals" if report.residuals else ""
        typer.echo(
            f"originals: {report.archived} archived ({size}{residuals}), {report.waiting} waiting"
        )
    if once:
        failures.finish()


def _archive(site: Site, night: Night | None, *, once: bool, now: bool) -> ArchiveReport:
    from prepipe.cameras import load_camera
    from prepipe.link import open_link
    from prepipe.store import Journal
    from prepipe.telescope import Archive

    where = journal_of(site.telescope)
    camera = load_camera(site.camera)
    display = Display(where, "archive")
    journal = Journal(where)
    link = open_link(site.link, display.say)
    try:
        with display.shown(), stop_on_signals(display.say) as stop:
            if not is_in_use(site.telescope.work / ARCHIVE_LOCK):
                display.say(_archives(site, camera, now=now))
                display.link_state = watched(link)
            work = Archive(
                site,
                journal,
                link,
                camera,
                lambda event: _show(display, event, once=once),
                night=night,
                any_hour=now,
            )
            return work.run(once=once, stop=stop)
    finally:
        link.close()
        journal.close()


def _archives(site: Site, camera: Camera, *, now: bool) -> str:
    """Where originals go, and at what hours."""
    link = site.link
    there = f"{link.host}:{link.landing}" if link.kind != "local" else str(link.landing)
    if now:
        hours = "at any hour"
    elif camera.location is None:
        hours = (
            f"at any hour, for camera {camera.name} does not say where it stands: [site] in its "
            "description would"
        )
    else:
        hours = "by day"
    return f"sending originals to {there}/archive when nothing waits to be pushed, {hours}"


def _show(display: Display, event: Event, *, once: bool) -> None:
    if event.key is not None:
        display.touch(event.key.exposure)
    # what failed is listed at the end of a run that has one, and so is what it does not wait for
    told = ("obstacle", "cleared", "whole") if once else TOLD
    if event.what in told:
        display.say(f"{event.what.value}: {event.text}")


def _plan(site: Site, night: Night | None, *, as_json: bool) -> None:
    """Say what would be sent."""
    from prepipe.cameras import load_camera
    from prepipe.store import Journal
    from prepipe.telescope import plan_archive

    camera = load_camera(site.camera)
    journal = Journal.existing(journal_of(site.telescope)) or Journal("sqlite://")
    try:
        plan = plan_archive(journal, camera, site.pack, night)
    finally:
        journal.close()
    failures = Failures()
    for failure in plan.failures:
        failures.add(failure.what, failure.reason)
    if as_json:
        told = [
            {
                "exposure": original.row.key.exposure,
                "ccd": original.row.key.ccd,
                "as": _form(original),
                "about_bytes": original.bytes,
            }
            for original in plan.originals
        ]
        print_json({"originals": told, "about_bytes": plan.bytes, "failed": failures.reasons})
    else:
        rows = [
            (place, *_named(original.row), _form(original), f"{original.bytes / 1e6:.2f}")
            for place, original in enumerate(plan.originals, start=1)
        ]
        columns = (">order", ">exposure", "night", "field", ">CCD", "as", ">about MB")
        print_table(columns, rows)
        typer.echo(f"{len(rows)} originals would be sent, about {plan.bytes / 1e6:.1f} MB")
    failures.finish()


def _form(original: PlannedOriginal) -> str:
    return "residual" if original.residual else "whole"


def _named(row: CcdRow) -> tuple[object, ...]:
    exposure = row.exposure
    return exposure.number, exposure.night.ut_name, exposure.field, row.ccd.number


def register(app: typer.Typer) -> None:
    """Add `archive`."""
    add_command(
        app,
        archive,
        "prepipe archive --config prepipe.toml",
        "prepipe archive --night ut200306 --once --now",
        "prepipe archive --dry-run",
    )
