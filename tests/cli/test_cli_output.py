"""What commands print."""

from __future__ import annotations


def test_what_a_header_says_cannot_command_the_terminal():
    from prepipe.cli.output import printable

    assert printable("field\x1b[2J\n2") == "field?[2J\n2"
