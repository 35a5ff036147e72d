"""The application: its global options, and the one place where errors become sentences."""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from prepipe import __version__
from prepipe.errors import ConfigError, PrepipeError

__all__ = ["DONE", "FAILED", "INTERRUPTED", "WRONG_USE", "add_command", "make_app"]

DONE = 0
FAILED = 1
WRONG_USE = 2
INTERRUPTED = 130

HELP = "From a telescope's raw exposures to calibrated, graded CCDs, within minutes."
EPILOG = (
    "Exit codes: 0 done, 1 some input failed (each is named with its reason), "
    "2 wrong use or configuration."
)


class _PlainErrors(TyperGroup):
    """Commands whose errors end as one sentence on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise
        except Exception as error:
            if isinstance(error, typer.Abort) or hasattr(error, "exit_code"):
                raise  # typer's own: usage errors and exits
            if ctx.params.get("debug"):
                traceback.print_exc()
            else:
                typer.echo(f"prepipe: {_sentence(error)}", err=True)
            raise typer.Exit(_exit_code(error)) from error


def _exit_code(error: Exception) -> int:
    return WRONG_USE if isinstance(error, ConfigError) else FAILED


def _sentence(error: Exception) -> str:
    if isinstance(error, PrepipeError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return (
        f"unexpected {type(error).__name__}: {error}. This is a fault of prepipe itself; "
        f"report it with {_written_traceback(error)}"
    )


def _written_traceback(error: Exception) -> Path:
    handle, name = tempfile.mkstemp(prefix="prepipe-", suffix=".traceback")
    with os.fdopen(handle, "w") as stream:
        stream.write(f"prepipe {__version__}: {sys.argv}\n")
        traceback.print_exception(error, file=stream)
    return Path(name)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prepipe {__version__}")
        raise typer.Exit(DONE)


def _global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


def make_app() -> typer.Typer:
    """Make the application, without commands yet."""
    app = typer.Typer(
        cls=_PlainErrors,
        help=HELP,
        epilog=EPILOG,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    return app


def add_command(
    app: typer.Typer, command: Callable[..., None], *examples: str, name: str | None = None
) -> None:
    """Add a command; its docstring and `examples` are its help page.

    Parameters
    ----------
    app : typer.Typer
    command : callable
        With annotated parameters, as typer takes them.
    *examples : str
        Command lines that work.
    name : str, optional
        Name of the command, if not the function's own.
    """
    purpose = inspect.getdoc(command) or ""
    lines = "\n".join(f"  {example}" for example in examples)
    app.command(
        name or command.__name__.replace("_", "-"),
        help=f"{purpose}\n\n\b\nExample:\n{lines}",
        short_help=purpose.partition("\n\n")[0].replace("\n", " "),
    )(command)
