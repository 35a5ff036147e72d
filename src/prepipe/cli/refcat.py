"""`prepipe refcat`: stores of reference stars, built from archives' tables and described."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prepipe.cli.app import add_command
from prepipe.cli.options import Json
from prepipe.cli.output import number, print_json, print_table
from prepipe.cli.progress import progress
from prepipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prepipe.engines.references.build import Plan
    from prepipe.engines.references.manifest import Input, Manifest

__all__ = ["build", "info", "register"]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Build and describe stores of reference stars.\n\n"
        "\b\nExample:\n  prepipe refcat build gaia_dr3/ --out gaia --max-mag 20.5",
        short_help="Build and describe stores of reference stars.",
    )
    add_command(
        group,
        build,
        "prepipe refcat build gaia_dr3/ --out /fred/dwf/gaia --max-mag 20.5",
        "prepipe refcat build field1.fits field2.csv --out stars --cone 150.1 2.2 3",
    )
    add_command(group, info, "prepipe refcat info /fred/dwf/gaia")
    app.add_typer(group, name="refcat")


def build(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...", help="FITS, CSV, Parquet; a HATS catalogue; a directory of tables."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory of the store.")],
    max_mag: Annotated[
        float | None, typer.Option(help="Leave out stars fainter than this in every band.")
    ] = None,
    cone: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="RA DEC RADIUS", help="Leave out stars beyond, degrees."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT=NAME", help="A column that is not recognised: mag=rPSF, epoch=2015.5."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a store that is there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would hold.")
    ] = False,
    json: Json = False,
) -> None:
    """Build a store of reference stars, of which a CCD reads only its own sky."""
    from prepipe.engines.references.build import (
        Filters,
        build_store,
        find_sources,
        plan_store,
    )

    columns = _mapping(column or [])
    filters = Filters(max_mag, cone)
    sources = find_sources(inputs, out)
    with progress("reading", sum(len(source.files) for source in sources)) as advance:
        if dry_run:
            plan = plan_store(sources, columns, filters, advance)
        else:
            made = build_store(sources, out, columns, filters, force=force, advance=advance)
    if dry_run:
        _tell_plan(plan, json)
    else:
        _tell(made, out, json)
    if cone is None:
        _warn_of_parts(plan.inputs if dry_run else made.inputs)


def info(
    store: Annotated[Path, typer.Argument(metavar="DIR", help="A store made by refcat build.")],
    json: Json = False,
) -> None:
    """Say what a store holds, and whether all of it is there."""
    from prepipe.engines.references.manifest import whole_manifest

    _tell(whole_manifest(store), store, json)


def _mapping(words: list[str]) -> dict[str, str]:
    """Columns by what they are."""
    pairs = [word.partition("=") for word in words]
    for word, (what, _, name) in zip(words, pairs, strict=True):
        if not what or not name:
            raise ConfigError(f"--column {word!r} is not like mag=rPSF")
    return {what: name for what, _, name in pairs}


def _tell_plan(plan: Plan, json: bool) -> None:
    facts: dict[str, Any] = {
        "rows": plan.rows,
        "partitions": plan.partitions,
        "epoch_year": plan.epoch_year,
        "columns": plan.columns,
        "inputs": [given.model_dump() for given in plan.inputs],
    }
    if json:
        print_json(facts)
        return
    shown = [
        ("stars", f"{plan.rows:,}"),
        ("partitions", f"{plan.partitions:,}"),
        ("epoch", number(plan.epoch_year, 2)),
        ("columns", ", ".join(plan.columns)),
        *_inputs(plan.inputs),
    ]
    print_table(("would hold", ""), shown)


def _tell(manifest: Manifest, path: Path, json: bool) -> None:
    parts = manifest.partitions
    orders = sorted(set(parts.order))
    area = sum(41252.96 / (12 * 4**order) for order in parts.order)
    facts: dict[str, Any] = {
        "path": path.absolute(),
        "rows": manifest.rows,
        "partitions": len(parts),
        "largest_partition": max(parts.rows),
        "orders": orders,
        "area_deg2": area,
        "bytes": sum(parts.size),
        **manifest.model_dump(exclude={"partitions"}),
    }
    if json:
        print_json(facts)
        return
    print_table(("store", str(path)), _facts(manifest, facts))


def _facts(manifest: Manifest, facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = manifest.rows
    filled = [f"{name} {_share(count, rows)}" for name, count in manifest.columns.items()]
    limits = [] if manifest.max_mag is None else [f"magnitude to {manifest.max_mag:g}"]
    if manifest.cone is not None:
        ra, dec, radius = manifest.cone
        limits.append(f"within {radius:g} deg of RA {ra:g}, Dec {dec:g}")
    motions = "none" if manifest.motions is None else _share(manifest.motions, rows)
    orders = "-".join(str(order) for order in sorted({facts["orders"][0], facts["orders"][-1]}))
    return [
        ("stars", f"{rows:,}"),
        (
            "partitions",
            f"{facts['partitions']:,} of order {orders}, to {facts['area_deg2']:.0f} deg2",
        ),
        ("largest", f"{facts['largest_partition']:,} stars"),
        ("size", f"{facts['bytes'] / 1e6:,.1f} MB"),
        ("epoch", number(manifest.epoch_year, 2)),
        ("proper motions", motions),
        ("columns", ", ".join(filled)),
        ("identifier", manifest.identifier or "none"),
        ("left out", ", ".join([*limits, f"{manifest.duplicates:,} duplicates"])),
        *_inputs(manifest.inputs),
        ("created", f"{manifest.created:%Y-%m-%d %H:%M} UTC"),
    ]


def _share(count: int, rows: int) -> str:
    return "100 %" if count == rows else f"{100.0 * count / rows:.1f} %"


def _inputs(inputs: Iterable[Input]) -> list[tuple[str, str]]:
    return [
        (
            "from",
            f"{given.path}: {given.rows:,} rows in {given.files:,} "
            + ("file" if given.files == 1 else "files"),
        )
        for given in inputs
    ]


def _warn_of_parts(inputs: Iterable[Input]) -> None:
    """Say which inputs are only a part of what they belong to."""
    for given in inputs:
        if given.promised_rows is not None and given.promised_rows > given.rows:
            typer.echo(
                f"note: {given.path} holds {given.rows:,} of the {given.promised_rows:,} rows "
                "of its catalogue; the sky of the others stays empty",
                err=True,
            )
