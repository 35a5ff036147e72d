"""`prepipe init` and `prepipe config`: a site's settings, written and shown."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prepipe.cli.app import add_command
from prepipe.cli.options import DEFAULT_CONFIG, Config, Json, read_site
from prepipe.cli.output import print_json, print_table
from prepipe.errors import ConfigError

if TYPE_CHECKING:
    from prepipe.config import Site

__all__ = ["register"]

_TO_SET = "set telescope.raw, link and calibration.reference, then see `prepipe doctor`"


def init(
    out: Annotated[Path, typer.Option("--out", help="File to write.")] = DEFAULT_CONFIG,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    engine: Annotated[
        str | None,
        typer.Option(help="Calibrate with photpipe, hscpipe, lsst or module:name, and set it up."),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(help="Only what a site changes, commented: ozstar, g2 or laptop."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Settings of all engines, not only of the one used.")
    ] = False,
) -> None:
    """Write a prepipe.toml with every setting, its default and what it means."""
    from prepipe.cli.settings import commented_toml
    from prepipe.files import atomic_write

    if out.is_dir():
        raise ConfigError(f"{out} is a directory: name a file, such as {out / DEFAULT_CONFIG}")
    if out.exists() and not force:
        raise ConfigError(f"{out} exists: give another --out, or --force to overwrite it")
    if like is not None and (engine is not None or every):
        raise ConfigError("--like writes a file as it is: leave --engine and --all away")
    if like is not None:
        text = _example(like)
    else:
        site = _site_with(engine)
        text = commented_toml(site, () if every else _idle_tables(site))
    with atomic_write(out) as stream:
        stream.write(text.encode())
    typer.echo(f"wrote {out}: {_advice(text) if like is not None else _TO_SET}")


def _advice(example: str) -> str:
    """What to do with a commented file, which may be for the cluster alone."""
    doctor = "prepipe doctor" if "\n[telescope]" in example else "prepipe doctor --only cluster"
    return f"put in what is your site's, paths and catalogue first, then see `{doctor}`"


def _example(name: str) -> str:
    """The commented settings of a kind of site."""
    examples = files("prepipe.cli") / "examples"
    known = sorted(Path(entry.name).stem for entry in examples.iterdir())
    if name not in known:
        raise ConfigError(f"--like {name}: there is {', '.join(known)}")
    return (examples / f"{name}.toml").read_text(encoding="utf-8")


def _site_with(engine: str | None) -> Site:
    """The default site, with an engine."""
    from pydantic import ValidationError

    from prepipe.config import Calibration, Site

    if engine is None:
        return Site()
    try:
        return Site(calibration=Calibration(engine=engine))
    except ValidationError as error:
        raise ConfigError(
            f"--engine {engine}: say builtin, photpipe, hscpipe, lsst, or module:name of your own"
        ) from error


def _idle_tables(site: Site) -> list[str]:
    """The tables of engines that a site does not use."""
    from prepipe.config import EXTERNAL_ENGINES

    used = site.calibration.engine
    idle = [f"engines.{name}" for name in EXTERNAL_ENGINES if name != used]
    return ["engines", *idle] if used == "builtin" else idle


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
    add_command(
        app,
        init,
        "prepipe init --out prepipe.toml",
        "prepipe init --engine photpipe",
        "prepipe init --like ozstar",
    )
    add_command(
        app,
        show_config,
        "prepipe config",
        "prepipe config --config site.toml --changed --json",
        name="config",
    )
