"""`prepipe init` and `prepipe config`: a site's settings, written and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prepipe.cli.app import add_command
from prepipe.cli.options import DEFAULT_CONFIG, Config, Json, read_site
from prepipe.cli.output import print_json, print_table
from prepipe.errors import ConfigError

__all__ = ["register"]


def init(
    out: Annotated[Path, typer.Option("--out", help="File to write.")] = DEFAULT_CONFIG,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a prepipe.toml with every setting, its default and what it means."""
    from prepipe.cli.settings import commented_toml
    from prepipe.config import Site
    from prepipe.files import atomic_write

    if out.is_dir():
        raise ConfigError(f"{out} is a directory: name a file, such as {out / DEFAULT_CONFIG}")
    if out.exists() and not force:
        raise ConfigError(f"{out} exists: give another --out, or --force to overwrite it")
    with atomic_write(out) as stream:
        stream.write(commented_toml(Site()).encode())
    typer.echo(
        f"wrote {out}: set telescope.raw, link and calibration.reference, then see `prepipe doctor`"
    )


def show_config(
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
    changed: Annotated[
        bool, typer.Option("--changed", help="Only what differs from the defaults.")
    ] = False,
) -> None:
    """Show the settings in force; those that differ from the defaults bear a star."""
    from prepipe.cli.settings import compared
    from prepipe.config import Site

    site = read_site(config)
    default = Site().anchored(config.resolve().parent)
    settings = [s for s in compared(site, default) if s.changed or not changed]
    if as_json:
        print_json(
            {
                "file": str(config.resolve()),
                "settings": site.model_dump(mode="json"),
                "changed": {
                    s.name: {"value": s.value, "default": s.default} for s in settings if s.changed
                },
            }
        )
        return
    rows = [
        (
            "*" if setting.changed else "",
            setting.name,
            _shown(setting.value),
            _shown(setting.default) if setting.changed else "",
        )
        for setting in settings
    ]
    print_table(("", "setting", "value", "default"), rows, title=f"{site.name} ({config})")


def _shown(value: object) -> str:
    from prepipe.cli.settings import toml_value

    return "not set" if value is None else toml_value(value)


def register(app: typer.Typer) -> None:
    """Add `init` and `config`."""
    add_command(app, init, "prepipe init --out prepipe.toml")
    add_command(
        app,
        show_config,
        "prepipe config",
        "prepipe config --config site.toml --changed --json",
        name="config",
    )
