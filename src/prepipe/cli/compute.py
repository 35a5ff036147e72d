"""`prepipe compute test`: what a site's batch system does with one trivial task."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prepipe.cli.app import add_command
from prepipe.cli.options import DEFAULT_CONFIG, Config, Json, read_site
from prepipe.cli.output import Failures, counted, print_json, printable
from prepipe.cli.signals import ended_by_signals
from prepipe.errors import TransientError

if TYPE_CHECKING:
    from prepipe.compute.trial import Look, Trial
    from prepipe.config import Site

__all__ = ["register"]

_LAST_LINES = 5


def test(
    config: Config = DEFAULT_CONFIG,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the script that would be submitted, do nothing."),
    ] = False,
    patience_s: Annotated[
        float, typer.Option("--patience", min=1.0, help="Wait so long for a first answer, s.")
    ] = 300.0,
    as_json: Json = False,
) -> None:
    """Submit one trivial task where CCDs would be calibrated, and tell what happened.

    It asks for one job as the settings describe it, waits until it starts, looks whether
    that node has the disks it needs, and gives the job back.
    """
    site = read_site(config)
    if dry_run:
        _show_script(site, as_json=as_json)
        return
    trial = _tried(site, patience_s)
    if as_json:
        print_json({"place": site.compute.place, "faults": trial.seen.faults, **vars(trial)})
    else:
        _show(site, trial)
    failures = Failures()
    for place in trial.seen.places:
        if place.fault:
            failures.add(place.path, place.fault)
    failures.finish()


def _tried(site: Site, patience_s: float) -> Trial:
    from prepipe.compute.trial import Look

    cluster = site.cluster
    cluster.work.mkdir(parents=True, exist_ok=True)
    shared = (cluster.work, cluster.landing, cluster.products, cluster.calibrations)
    settings = site.compute.model_copy(update={"jobs": 1, "jobs_ready": 1})
    one = site.model_copy(update={"compute": settings})
    _tell(f"one task for {site.compute.place}")
    apart = tempfile.TemporaryDirectory(
        prefix="compute-test-", dir=cluster.work, ignore_cleanup_errors=True
    )
    # apart from a running ingest's own jobs, and where nodes see it
    with ended_by_signals(), apart as directory:
        return _tried_in(Path(directory), one, Look(settings.scratch, shared), patience_s)


def _tried_in(directory: Path, site: Site, look: Look, patience_s: float) -> Trial:
    from prepipe.compute import open_compute
    from prepipe.compute.trial import try_compute

    compute = open_compute(site, directory=directory)
    failed = ""
    try:
        return try_compute(compute, look, patience_s, _tell, _reasons(site.compute.place))
    except TransientError as error:
        failed = str(error)
        raise
    finally:
        said = [line for line in _said_by_jobs(directory) if line not in failed]
        compute.close()
        if said:
            _tell("\n  ".join(["the job's shell said on stderr:", *said]))


def _reasons(place: str) -> Callable[[str], str]:
    """How to learn why a job waits."""
    if place == "local":
        return lambda _: ""
    from prepipe.compute.scheduler import why_pending

    return partial(why_pending, place)


def _said_by_jobs(directory: Path) -> list[str]:
    """The last lines that a job's shell wrote on stderr."""
    lines: list[str] = []
    for path in sorted(directory.glob("runs/*/scripts/*.stderr")):
        with suppress(OSError):
            lines += path.read_text(errors="replace").splitlines()
    return [printable(line.strip()) for line in lines if line.strip()][-_LAST_LINES:]


def _tell(text: str) -> None:
    typer.echo(text, err=True)


def _show_script(site: Site, *, as_json: bool) -> None:
    if site.compute.place == "local":
        script, command = "", ""
        text = f"nothing is submitted: {counted(site.cluster.workers, 'worker')} on this machine"
    else:
        from prepipe.compute import DIRECTORY
        from prepipe.compute.batch import RUNS
        from prepipe.compute.scheduler import script_of

        runs = (site.cluster.work / DIRECTORY / RUNS).absolute()
        directory = runs / f"{os.getpid()}-1"
        script, command = script_of(site.compute, directory, site.cluster.time_limit_s)
        text = f"{script}\n# submitted by: {command}"
    if as_json:
        print_json({"place": site.compute.place, "script": script, "command": command})
    else:
        typer.echo(text)


def _show(site: Site, trial: Trial) -> None:
    seen = trial.seen
    job = f", job {seen.job}" if seen.job else ""
    typer.echo(f"{site.compute.place}: first answer after {trial.first_s:.1f} s")
    typer.echo(f"then {trial.warm_ms:.1f} ms from submitting to answer")
    typer.echo(
        f"node {printable(seen.node)}{job}: {seen.cores} cores, Python {seen.python}, "
        f"prepipe {seen.prepipe}"
    )
    for place in seen.places:
        if place.free_bytes is not None:
            free = f"{place.free_bytes / 1e9:,.1f} GB free" if place.exists else "will be made"
            typer.echo(f"{printable(place.path)}: {free}")


def register(app: typer.Typer) -> None:
    """Add `compute`."""
    group = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Try the batch system.\n\n\b\nExample:\n  prepipe compute test --dry-run",
        short_help="Try the batch system.",
    )
    add_command(group, test, "prepipe compute test", "prepipe compute test --dry-run")
    app.add_typer(group, name="compute")
