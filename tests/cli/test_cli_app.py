"""The application: help, version, and errors that end as one sentence and an exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import prepipe.cli
from prepipe.cli import app
from prepipe.cli.app import add_command, make_app
from prepipe.errors import ConfigError, FitsError

SLOW_LIBRARIES = ("numba", "astropy", "matplotlib", "imagecodecs", "sqlalchemy", "numpy")


def run_raising(error: BaseException, *options: str) -> Result:
    broken = make_app()

    def fall() -> None:
        """Fall."""
        raise error

    def other() -> None:
        """Do nothing."""

    add_command(broken, fall, "prepipe fall")
    add_command(broken, other, "prepipe other")
    return CliRunner().invoke(broken, [*options, "fall"])


def command_names() -> list[str]:
    return sorted(typer.main.get_command(app).commands)


def test_the_commands_that_others_rely_on_are_there():
    relied_on = {"init", "config", "doctor", "simulate", "pack", "unpack"}
    assert relied_on | {"status", "retry", "release"} <= set(command_names())


@pytest.mark.parametrize("command", command_names())
def test_every_command_explains_itself_with_an_example(run, command):
    answer = run(command, "--help")
    assert answer.exit_code == 0
    assert "Example" in answer.stdout
    assert f"  prepipe {command}" in answer.stdout


def test_the_help_needs_no_slow_library():
    code = "import sys, prepipe.cli; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert set(SLOW_LIBRARIES) & set(loaded.stdout.split()) == set()


def test_the_version_is_shown(run):
    answer = run("--version")
    assert answer.exit_code == 0
    assert answer.stdout.startswith("prepipe ")


def test_an_unknown_command_is_wrong_use(run):
    assert run("nonsense").exit_code == 2


def test_an_unknown_option_is_wrong_use(run):
    assert run("status", "--nonsense").exit_code == 2


def test_a_wrong_configuration_exits_with_2_and_one_sentence():
    answer = run_raising(ConfigError("site.toml: there is no setting 'x'"))
    assert answer.exit_code == 2
    assert answer.stderr == "prepipe: site.toml: there is no setting 'x'\n"
    assert answer.stdout == ""


def test_a_failed_input_exits_with_1_and_one_sentence():
    answer = run_raising(FitsError("a.fits: empty file"))
    assert answer.exit_code == 1
    assert answer.stderr == "prepipe: a.fits: empty file\n"


def test_debug_shows_the_traceback():
    answer = run_raising(FitsError("a.fits: empty file"), "--debug")
    assert answer.exit_code == 1
    assert "Traceback" in answer.stderr
    assert "a.fits: empty file" in answer.stderr


def test_a_file_of_the_system_that_fails_is_named():
    answer = run_raising(PermissionError(13, "Permission denied", "/data/x"))
    assert answer.exit_code == 1
    assert answer.stderr == "prepipe: /data/x: Permission denied\n"


def test_an_interrupt_exits_with_130():
    assert run_raising(KeyboardInterrupt()).exit_code == 130


def test_an_unexpected_error_is_one_sentence_and_its_traceback_lies_in_a_file():
    answer = run_raising(ZeroDivisionError("oops"))
    assert answer.exit_code == 1
    assert answer.stderr.count("\n") == 1
    assert "unexpected ZeroDivisionError: oops" in answer.stderr
    written = Path(answer.stderr.split()[-1])
    assert "Traceback" in written.read_text()
    written.unlink()


def test_the_command_line_runs_as_a_program(tmp_path):
    code = "from prepipe.cli import main; main()"
    words = [sys.executable, "-c", code, "config", "--config", str(tmp_path / "none.toml")]
    environment = {"PYTHONPATH": str(Path(prepipe.cli.__file__).parents[2])}
    answer = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "write one with `prepipe init`" in answer.stderr
