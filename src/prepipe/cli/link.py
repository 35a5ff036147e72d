"""`prepipe link test`: what the line to the cluster can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from prepipe.cli.app import add_command
from prepipe.cli.options import DEFAULT_CONFIG, Config, Json, number_list, read_site
from prepipe.cli.output import print_json, print_table, printable
from prepipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prepipe.link import Link
    from prepipe.link.ssh import LinkState
    from prepipe.link.trial import Step, Trial

__all__ = ["link_line", "register", "watched"]

COUNTS = (1, 2, 4, 8, 16)
MOST_CONNECTIONS = 64


def test(
    config: Config = DEFAULT_CONFIG,
    seconds: Annotated[
        float, typer.Option("--seconds", min=2.0, max=120.0, help="For each number of connections.")
    ] = 8.0,
    connections: Annotated[
        str, typer.Option("--connections", help="Numbers of connections to try.")
    ] = ",".join(map(str, COUNTS)),
    as_json: Json = False,
) -> None:
    """Measure the link: round trip, speed by number of connections, loss; and what to set.

    Noise crosses and is thrown away at the far end; nothing is written there. The line is full
    while this runs, so not while exposures wait.
    """
    from prepipe.link.trial import try_link

    settings = read_site(config).link
    if settings.kind != "ssh":
        raise ConfigError(
            f"only a link of kind ssh can be measured, and link.kind is {settings.kind}"
        )
    counts = _counts(connections)
    typer.echo(
        f"connecting to {settings.host}; then {seconds:.0f} s with each of "
        f"{', '.join(map(str, counts))} connections",
        err=True,
    )
    trial = try_link(settings, seconds, counts, _tell)
    if as_json:
        print_json(trial)
    else:
        _show(trial)


def _counts(text: str) -> tuple[int, ...]:
    counts = number_list(text, "--connections")
    if not 1 <= min(counts) <= max(counts) <= MOST_CONNECTIONS:
        raise ConfigError(
            f"--connections {text}: each between 1 and {MOST_CONNECTIONS}, such as 1,2,4,8"
        )
    return counts


def _tell(step: Step) -> None:
    typer.echo(f"{step.connections} connections: {step.mbit_s:.1f} Mbit/s", err=True)


def _show(trial: Trial) -> None:
    print_table(
        (">connections", ">Mbit/s", ">sent again", ">round trip"),
        [
            (
                step.connections,
                f"{step.mbit_s:.1f}",
                "-" if step.retransmitted is None else f"{100 * step.retransmitted:.3f} %",
                f"{1e3 * step.rtt_s:.1f} ms",
            )
            for step in trial.steps
        ],
    )
    typer.echo(
        f"{printable(trial.host)}: prepipe {printable(trial.prepipe)}, "
        f"{trial.free_bytes / 1e9:,.1f} GB free where packets land; "
        f"the first connection was open after {trial.opening_s:.1f} s"
    )
    for notice in trial.notices:
        typer.echo(f"note: {printable(notice)}")
    typer.echo(f"\n[link]\nrate = {trial.rate:g}\nconnections = {trial.connections}")


_MARKS = {"open": "o", "silent": "?", "opening": ".", "leaving": "-"}


def link_line(state: LinkState) -> str:
    """What a link does at this moment, in a line: ``[oooooo.?]`` is one mark a connection.

    ``o`` is open, ``.`` being opened, ``?`` silent, ``-`` taking its leave.
    """
    marks = "".join(_MARKS.get(each.state, " ") for each in state.connections)
    line = f"link [{marks}] {state.mbit_s:.1f} of {state.rate:.0f} Mbit/s"
    rtts = [each.rtt_s for each in state.connections if each.rtt_s]
    if rtts:
        line += f", round trip {1e3 * min(rtts):.0f} ms"
    if state.queued_bytes:
        left = "" if state.eta_s is None else f", {state.eta_s:.0f} s left"
        line += f", {state.queued_bytes / 1e6:.1f} MB under way{left}"
    if state.trouble:
        line += f"; down: {state.trouble}"
    return line


def watched(link: Link, *, open_now: bool = False) -> Callable[[], LinkState | None]:
    """Gives what tells what a link does; it tells None of one that has nothing to tell.

    Parameters
    ----------
    link : Link
    open_now : bool
        Whether to connect before there is anything to send.
    """
    from prepipe.link.ssh import SshLink

    if not isinstance(link, SshLink):
        return lambda: None
    if open_now:
        link.open()
    return link.state


def register(app: typer.Typer) -> None:
    """Add `link`."""
    group = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Measure the link to the cluster.\n\n\b\nExample:\n  prepipe link test",
        short_help="Measure the link to the cluster.",
    )
    add_command(group, test, "prepipe link test --config prepipe.toml", "prepipe link test --json")
    app.add_typer(group, name="link")
