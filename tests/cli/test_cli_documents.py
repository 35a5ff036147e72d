"""What README and guide tell people to type can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from prepipe.cli import app

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = typer.main.get_command(app).commands


def told() -> list[str]:
    lines = []
    for name in (
        "README.md",
        "docs/guide.md",
        "docs/link.md",
        "docs/products.md",
        "docs/engines.md",
    ):
        text = (ROOT / name).read_text()
        lines += re.findall(r"^    (prepipe .+)$", text, re.MULTILINE)
        lines += re.findall(r"`(prepipe [a-z][^`]+)`", text)
    return sorted(set(lines))


@pytest.mark.parametrize("line", told())
def test_every_command_that_is_told_exists_with_its_options(line: str) -> None:
    words = shlex.split(line.replace("\n", " "), comments=True)[1:]
    command = COMMANDS[words[0]]
    if hasattr(command, "commands") and len(words) > 1:
        command = command.commands[words[1]]
    known = {option for parameter in command.params for option in parameter.opts}
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= known


def test_the_rehearsal_of_the_readme_goes_through_every_step() -> None:
    text = (ROOT / "README.md").read_text()
    rehearsal = text.partition("## A rehearsal")[2].partition("\n## ")[0]
    steps = re.findall(r"^    prepipe (\S+)", rehearsal, re.MULTILINE)
    assert steps == [
        *("simulate", "simulate", "simulate", "init", "doctor", "push", "ingest", "make-cals"),
        *("retry", "ingest", "status"),
    ]
