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
    from prepipe.telescope import ArchiveReport, Event

__all__ = ["register"]

TOLD = ("failed", "obstacle", "cleared", "waits")


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

    It works beside `prepipe push`, which goes first. What arrives lies in archive/ below the
    landing directory. Ends cleanly on SIGTERM or Ctrl-C; started again, it goes on where it was.
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
            "waiting": report.waiting,
        }
        print_json({**done, "failed": failures.reasons})
    else:
        megabytes = report.archived_bytes / 1e6
        typer.echo(
            f"originals: {report.archived} archived ({megabytes:.1f} MB), {report.waiting} waiting"
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
    told = ("obstacle", "cleared") if once else TOLD
    if event.what in told:
        display.say(f"{event.what.value}: {event.text}")


def _plan(site: Site, night: Night | None, *, as_json: bool) -> None:
    """Say what would be sent."""
    from prepipe.store import Journal
    from prepipe.telescope import plan_archive

    journal = Journal.existing(journal_of(site.telescope)) or Journal("sqlite://")
    try:
        plan = plan_archive(journal, night)
    finally:
        journal.close()
    failures = Failures()
    for failure in plan.failures:
        failures.add(failure.what, failure.reason)
    if as_json:
        told = [{"exposure": row.key.exposure, "ccd": row.key.ccd} for row in plan.originals]
        print_json({"originals": told, "failed": failures.reasons})
    else:
        exposures = [(row.exposure, row.ccd.number) for row in plan.originals]
        rows = [
            (place, exposure.number, exposure.night.ut_name, exposure.field, ccd)
            for place, (exposure, ccd) in enumerate(exposures, start=1)
        ]
        print_table((">order", ">exposure", "night", "field", ">CCD"), rows)
        typer.echo(f"{len(rows)} originals would be sent")
    failures.finish()


def register(app: typer.Typer) -> None:
    """Add `archive`."""
    add_command(
        app,
        archive,
        "prepipe archive --config prepipe.toml",
        "prepipe archive --night ut200306 --once --now",
        "prepipe archive --dry-run",
    )
