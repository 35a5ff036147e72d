"""`prepipe push` and `prepipe ingest`: the two ends at work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from prepipe.cli.app import add_command
from prepipe.cli.journals import INGEST_LOCK, PUSH_LOCK, journal_of
from prepipe.cli.link import watched
from prepipe.cli.live import Display
from prepipe.cli.options import DEFAULT_CONFIG, Config, Json, number_list, read_site
from prepipe.cli.output import Failures, counted, print_json, print_table
from prepipe.cli.signals import stop_on_signals
from prepipe.errors import ConfigError
from prepipe.files import is_in_use

if TYPE_CHECKING:
    from prepipe import cluster, telescope
    from prepipe.config import Site

__all__ = ["register"]

Once = Annotated[bool, typer.Option("--once", help="Do what is there, then end.")]

TOLD_AT_ONCE = (
    *("taken over", "checked", "packing", "failed", "readmitted", "obstacle", "cleared"),
)
TOLD_AT_THE_END = ("quarantined", "rejected", "trouble")
"""Kinds of event that a run with an end lists there; another tells them at once, too."""


def push(
    config: Config = DEFAULT_CONFIG,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="batch, serial, parallel, list or end-of-night.  [default: as configured]",
        ),
    ] = None,
    exposures: Annotated[
        str | None, typer.Option("--exposures", help="For method list: 941420,941425-941430.")
    ] = None,
    exp_min: Annotated[
        int | None, typer.Option("--exp-min", help="For end-of-night: nothing below this number.")
    ] = None,
    once: Once = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, in order; do nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Watch for raw exposures, pack their CCDs and send them.

    Ends cleanly on SIGTERM or Ctrl-C; started again, it goes on where it was.
    """
    site = _with_method(read_site(config), method, exposures, exp_min)
    if dry_run:
        _plan(site, as_json=as_json)
    else:
        _push(site, once=once, as_json=as_json)


def _with_method(
    site: Site, method: str | None, exposures: str | None, exp_min: int | None
) -> Site:
    """The site with what the command line says of the method."""
    from prepipe.config import Method, Push

    if method is not None and method not in list(Method):
        raise ConfigError(f"--method {method}: choose one of {', '.join(Method)}")
    if exp_min is not None and exp_min < 0:
        raise ConfigError(f"--exp-min {exp_min}: give 0 or more")
    given = {
        "method": method,
        "exposures": None if exposures is None else number_list(exposures, "--exposures"),
        "exp_min": exp_min,
    }
    told = {name: value for name, value in given.items() if value is not None}
    chosen = Push.model_validate(site.push.model_dump() | told)
    if exposures is not None and chosen.method is not Method.LIST:
        raise ConfigError(f"--exposures is for --method list, not for {chosen.method.value}")
    if exp_min is not None and chosen.method is not Method.END_OF_NIGHT:
        raise ConfigError(f"--exp-min is for --method end-of-night, not for {chosen.method.value}")
    if chosen.method is Method.LIST and not chosen.exposures:
        raise ConfigError("method list needs the exposures: say --exposures 941420,941425")
    return site.model_copy(update={"push": chosen})


def _push(site: Site, *, once: bool, as_json: bool) -> None:
    from prepipe.cameras import load_camera
    from prepipe.link import open_link
    from prepipe.store import Journal
    from prepipe.telescope import Push

    where = journal_of(site.telescope)
    camera = load_camera(site.camera)
    display = Display(where, "telescope")
    journal = Journal(where)
    link = open_link(site.link, display.say)
    try:
        with display.shown(), stop_on_signals(display.say) as stop:
            if not is_in_use(site.telescope.work / PUSH_LOCK):
                display.say(_pushes(site))
                display.link_state = watched(link, open_now=True)
            pushing = Push(
                site, journal, link, camera, lambda event: _show_pushed(display, event, once=once)
            )
            report = pushing.run(once=once, stop=stop)
    finally:
        link.close()
        journal.close()
    done = {
        "found": report.ccds,
        "sent": report.sent,
        "already_there": report.already_there,
        "waiting": report.waiting,
    }
    failed = {failure.what: failure.reason for failure in report.failures}
    _finish(done, failed, once=once, as_json=as_json)


def _pushes(site: Site) -> str:
    """What a push watches, and where it sends to."""
    link = site.link
    there = f"{link.host}:{link.landing}" if link.kind != "local" else str(link.landing)
    return (
        f"watching {site.telescope.raw} for {site.telescope.pattern}, sending to {there} by method "
        f"{site.push.method.value}, codec {site.pack.codec}"
    )


def _show_pushed(display: Display, event: telescope.Event, *, once: bool) -> None:
    if event.what == "complete" and event.key is not None:
        display.conclude(event.key.exposure, event.text)
        return
    if event.key is not None:
        display.touch(event.key.exposure)
    if event.what in TOLD_AT_ONCE or (event.what in TOLD_AT_THE_END and not once):
        display.say(f"{event.what.value}: {event.text}")


def _plan(site: Site, *, as_json: bool) -> None:
    """Say what a push would send."""
    from prepipe.cameras import load_camera
    from prepipe.link import open_link
    from prepipe.store import Journal
    from prepipe.telescope import plan_push

    journal = Journal.existing(journal_of(site.telescope)) or Journal("sqlite://")
    link = open_link(site.link)
    try:
        plan = plan_push(site, journal, link, load_camera(site.camera))
    finally:
        link.close()
        journal.close()
    failures = Failures()
    for failure in plan.failures:
        failures.add(failure.what, failure.reason)
    told = [
        {"exposure": ccd.key.exposure, "ccd": ccd.key.ccd, "stage": ccd.stage} for ccd in plan.ccds
    ]
    if as_json:
        print_json({"ccds": told, "left_waiting": plan.left_waiting, "failed": failures.reasons})
    else:
        rows = [
            (place, ccd.exposure.number, ccd.exposure.field, ccd.key.ccd, ccd.stage.value)
            for place, ccd in enumerate(plan.ccds, start=1)
        ]
        print_table((">order", ">exposure", "field", ">CCD", "now"), rows)
        typer.echo(f"{counted(len(rows), 'CCD')} would be sent, {plan.left_waiting} left waiting")
    failures.finish()


def ingest(
    config: Config = DEFAULT_CONFIG,
    once: Once = False,
    as_json: Json = False,
) -> None:
    """Take packets that land, calibrate and grade their CCDs, newest exposure first.

    Ends cleanly on SIGTERM or Ctrl-C; started again, it goes on where it was.
    """
    from prepipe.cluster import Ingest
    from prepipe.compute import open_compute
    from prepipe.engines.choice import open_engine
    from prepipe.store import Journal

    site = read_site(config)
    where = journal_of(site.cluster)
    display = Display(where, "cluster")
    journal = Journal(where)
    compute = open_compute(site, open_engine(site).warm_up)
    try:
        with display.shown(), stop_on_signals(display.say) as stop:
            if not is_in_use(site.cluster.work / INGEST_LOCK):
                display.say(_ingests(site))
            told = Ingest(
                site,
                journal,
                compute,
                on_event=lambda event: _show_ingested(display, event, once=once),
            )
            report = told.run(once=once, stop=stop)
    finally:
        compute.close()
        journal.close()
    done = {"calibrated": len(report.calibrated), "awaiting_masters": len(report.awaiting)}
    _finish(done, report.failures, once=once, as_json=as_json)


def _ingests(site: Site) -> str:
    """What an ingest watches, and why it may be silent at first."""
    compute = site.compute
    workers = (
        f"{counted(site.cluster.workers, 'worker')} on this machine (a new one compiles first: "
        "about a minute)"
        if compute.place == "local"
        else f"up to {counted(compute.jobs, 'job')} of {counted(compute.at_once, 'CCD')} may be "
        f"asked for from {compute.place} (`prepipe jobs` shows them)"
    )
    return f"watching {site.cluster.landing}, products go to {site.cluster.products}; {workers}"


def _show_ingested(display: Display, event: cluster.Event, *, once: bool) -> None:
    if event.key is not None:
        display.touch(event.key.exposure)
    if event.what in TOLD_AT_ONCE or (event.what in TOLD_AT_THE_END and not once):
        display.say(f"{event.what.value} {event.name}: {event.text}")


def _finish(
    done: Mapping[str, int], failed: Mapping[str, str], *, once: bool, as_json: bool
) -> None:
    """Tell what was done, and exit with 1 if something failed in a run that had an end."""
    if as_json:
        print_json({**done, "failed": failed})
    else:
        told = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in done.items())
        typer.echo(f"CCDs: {told}")
    failures = Failures()
    for name, reason in failed.items():
        failures.add(name, reason)
    if once:
        failures.finish()


def register(app: typer.Typer) -> None:
    """Add `push` and `ingest`."""
    add_command(
        app,
        push,
        "prepipe push --config prepipe.toml",
        "prepipe push --once --method end-of-night --exp-min 941400",
        "prepipe push --method list --exposures 941420,941425 --dry-run",
    )
    add_command(app, ingest, "prepipe ingest --config prepipe.toml", "prepipe ingest --once")
