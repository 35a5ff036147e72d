"""`prepipe link test`, and the line that tells of a link at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from prepipe.cli.link import _show
from prepipe.cli.live import Display, link_line
from prepipe.link.ssh import ConnectionState, LinkState
from prepipe.link.trial import Step, Trial


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


@pytest.mark.parametrize("counts", ["0", "1000", "1,65"])
def test_numbers_of_connections_that_cannot_be_are_refused(run, site_file, counts: str) -> None:
    text = site_file.read_text() + '\n[link]\nkind = "ssh"\nhost = "cluster.invalid"\n'
    ssh_site = site_file.with_name("ssh.toml")
    ssh_site.write_text(text)
    done = run("link", "test", "--config", ssh_site, "--connections", counts)
    assert done.exit_code == 2
    assert "each between 1 and 64" in done.stderr


def test_what_the_far_end_says_of_itself_steers_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = Step(1, 90.0, None, 0.24)
    _show(Trial("far\x1b[2J", "9\x1b]0;x\x07", 10**9, 1.0, (step,), ("so\x1bso",), 97.0, 4))
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ({}, False),
        ({"queued_bytes": 1_000_000}, True),
        ({"trouble": "it does not answer"}, True),
    ],
)
def test_a_log_is_told_of_a_link_only_while_something_is_under_way_or_nothing_can_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: dict[str, object], told: bool
) -> None:
    now = state(**what)
    assert now.is_at_work is told
    display = Display(tmp_path / "journal.sqlite", "telescope")
    display.link_state = lambda: now
    display._tell_of_link()
    assert (link_line(now) in capsys.readouterr().err) is told
