"""What `prepipe demo` tells at its end; the demo itself is run by the test of a night."""

from __future__ import annotations

from pathlib import Path

import pytest

from prepipe.cli.demo import _own_command


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, which runs now."""
    own = tmp_path / ".venv" / "bin" / "prepipe"
    own.parent.mkdir(parents=True)
    own.touch(mode=0o755)
    monkeypatch.setattr("sys.argv", [str(own), "demo"])
    monkeypatch.chdir(tmp_path)
    return own


def test_a_program_that_the_shell_does_not_find_is_called_by_its_path(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert _own_command() == str(Path(".venv", "bin", "prepipe"))


def test_a_program_that_the_shell_finds_is_called_by_its_name(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(program.parent))
    assert _own_command() == "prepipe"
