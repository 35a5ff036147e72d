"""`prepipe doctor`: whether this site can work, on one screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from prepipe.cli.app import FAILED, add_command
from prepipe.cli.options import DEFAULT_CONFIG, Config, Json, read_site
from prepipe.cli.output import console, counted, plain, print_json
from prepipe.errors import ConfigError

if TYPE_CHECKING:
    from rich.text import Text

    from prepipe.cli.checks import Check

__all__ = ["register"]

STYLES = {"ok": "green", "warning": "yellow", "failure": "bold red"}


def doctor(
    config: Config = DEFAULT_CONFIG,
    only: Annotated[
        str | None,
        typer.Option("--only", help="telescope or cluster, if just that end is on this machine."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look whether this site can work, and say what to do where it cannot."""
    from prepipe.cli.batch import batch_checks
    from prepipe.cli.capacity import capacity_checks
    from prepipe.cli.checks import CLUSTER, TELESCOPE, State, all_checks

    if only not in (None, TELESCOPE, CLUSTER):
        raise ConfigError(f"--only {only}: say telescope or cluster")
    site = read_site(config)
    done = []
    ends = (only,) if only else (TELESCOPE, CLUSTER)
    checks = [*all_checks(site, ends), *batch_checks(site, ends), *capacity_checks(site, ends)]
    for check in checks:
        done.append(_carried_out(check))
        if not as_json:
            console().print(_line(done[-1]), soft_wrap=True)
    failures = [check for check in done if check.state is State.FAILURE]
    if as_json:
        print_json({"site": site.name, "ok": not failures, "checks": plain(done)})
    else:
        typer.echo(_verdict(done))
        if only is None and site.link.kind != "local":
            typer.echo("both ends were looked at; --only telescope or --only cluster looks at one")
    if failures:
        raise typer.Exit(FAILED)


def _carried_out(check: Callable[[], Check]) -> Check:
    from prepipe.cli.checks import Check, State

    try:
        return check()
    except Exception as error:
        # The doctor is asked when things are odd: one check that breaks must not hide the others.
        name = getattr(check, "__name__", "check")
        return Check(name, State.FAILURE, f"{type(error).__name__}: {error}", "report this")


def _line(check: Check) -> Text:
    from rich.text import Text

    line = Text(f"{check.state.value:8}", style=STYLES[check.state])
    line.append(f"{check.name:24} {check.found}", style="default")
    if check.remedy:
        line.append(f"\n{'':8}{'':24} -> {check.remedy}", style="bold")
    return line


def _verdict(done: list[Check]) -> str:
    counts = {state: sum(check.state == state for check in done) for state in STYLES}
    told = ", ".join(counted(counts[state], state) for state in ("failure", "warning"))
    return f"not ready: {told}" if counts["failure"] else f"ready: {told}"


def register(app: typer.Typer) -> None:
    """Add `doctor`."""
    add_command(
        app, doctor, "prepipe doctor", "prepipe doctor --only cluster --config site.toml --json"
    )
