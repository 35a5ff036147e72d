"""`prepipe link test`, and the line that tells of a link at work."""

from __future__ import annotations

from prepipe.cli.link import link_line
from prepipe.link.ssh import ConnectionState, LinkState


def state(**changes: object) -> LinkState:
    told: dict[str, object] = {
        "connections": (
            ConnectionState("open", 0.24, 3, 1000),
            ConnectionState("open", 0.25, 2, 1000),
            ConnectionState("silent", 0.0, 1, 10),
            ConnectionState("opening", 0.0, 0, 0),
        ),
        "rate": 200.0,
        "mbit_s": 187.23,
        "queued_bytes": 0,
        "eta_s": 0.0,
        "trouble": "",
    }
    return LinkState(**{**told, **changes})


def test_the_line_has_a_mark_for_each_connection_and_tells_the_speed() -> None:
    assert link_line(state()) == "link [oo?.] 187.2 of 200 Mbit/s, round trip 240 ms"


def test_the_line_tells_what_is_under_way_and_how_long_that_takes() -> None:
    assert link_line(state(queued_bytes=34_000_000, eta_s=1.45)).endswith(
        ", 34.0 MB under way, 1 s left"
    )


def test_the_line_tells_why_nothing_moves() -> None:
    line = link_line(state(queued_bytes=1_000_000, eta_s=None, trouble="it does not answer"))
    assert line.endswith(", 1.0 MB under way; down: it does not answer")


def test_only_an_ssh_link_can_be_measured(run, site_file) -> None:
    done = run("link", "test", "--config", site_file)
    assert done.exit_code == 2
    assert "link.kind is local" in done.stderr
