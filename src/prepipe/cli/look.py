"""`prepipe look`: pictures of calibrated CCDs, for people who would rather look than read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prepipe.cli.app import add_command
from prepipe.cli.options import Json, writable
from prepipe.cli.output import Failures, print_json
from prepipe.errors import ConfigError, PrepipeError

__all__ = ["look", "register"]


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    add_command(
        app,
        look,
        "prepipe look products/ut200306/28/DWF.g.ut200306.941421_28.fits.fz",
        "prepipe look products/ut200306/*/*.fits.fz --refcat gaia.fits --out pictures",
    )


def look(
    products: Annotated[list[Path], typer.Argument(help="Calibrated CCDs.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the pictures go; beside the products if not given.")
    ] = None,
    refcat: Annotated[
        Path | None,
        typer.Option(help="Star catalogue: show which of its stars were not found, too."),
    ] = None,
    json: Json = False,
) -> None:
    """Draw calibrated CCDs: image, sources, WCS residuals, shape of the stars and zero point."""
    from prepipe.engines.builtin.view import read_calibrated
    from prepipe.quality.look import draw_ccd

    if refcat is not None and not refcat.exists():
        raise ConfigError(f"the star catalogue, {refcat}, does not exist")
    if out is not None:
        writable(out, "--out")
    failures = Failures()
    pictures = []
    for product in dict.fromkeys(products):
        picture = (out or product.parent) / f"{product.name.removesuffix('.fits.fz')}.png"
        try:
            draw_ccd(picture, read_calibrated(product, refcat))
        except ConfigError:
            raise
        except PrepipeError as error:
            failures.add(product, error)
            continue
        pictures.append(picture)
        if not json:
            typer.echo(picture)
    if json:
        print_json({"pictures": pictures, "failed": failures.reasons})
    failures.finish()
