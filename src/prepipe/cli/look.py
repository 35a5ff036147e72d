"""`prepipe look`: pictures of calibrated CCDs, for people who would rather look than read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prepipe.cli.app import add_command
from prepipe.cli.options import Json
from prepipe.cli.output import Failures, print_json
from prepipe.errors import FitsError, PrepipeError

if TYPE_CHECKING:
    from prepipe.quality.look import CalibratedCcd

__all__ = ["look", "register"]


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    add_command(
        app,
        look,
        "prepipe look products/ut200306/28/DWF.g.ut200306.941421_28.fits.fz",
        "prepipe look products/ut200306/*/*.fits.fz --out pictures",
    )


def look(
    products: Annotated[list[Path], typer.Argument(help="Calibrated CCDs.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the pictures go; beside the products if not given.")
    ] = None,
    json: Json = False,
) -> None:
    """Draw calibrated CCDs: image, sources, WCS residuals, seeing and zero point."""
    from prepipe.quality.look import draw_ccd

    failures = Failures()
    pictures = []
    for product in products:
        picture = (out or product.parent) / f"{product.name.removesuffix('.fits.fz')}.png"
        try:
            ccd = _read(product)
            draw_ccd(picture, product.name.removesuffix(".fits.fz"), ccd)
        except PrepipeError as error:
            failures.add(product, error)
            continue
        pictures.append(picture)
        if not json:
            typer.echo(picture)
    if json:
        print_json({"pictures": pictures, "failed": failures.reasons})
    failures.finish()


def _read(product: Path) -> CalibratedCcd:
    import fitsio
    import numpy as np

    from prepipe.engines.names import catalogue_paths
    from prepipe.quality.look import CalibratedCcd

    catalogue = catalogue_paths(product, "fits")[0]
    try:
        image, header = fitsio.read(str(product), ext="IMAGE", header=True)
        sources = fitsio.read(str(catalogue), ext="SOURCES")
        cards = {key: header[key] for key in header.keys() if key}  # noqa: SIM118
        scale = 3600.0 * float(np.hypot(cards["CD1_1"], cards["CD1_2"]))
    except (OSError, KeyError) as error:
        raise FitsError(
            f"{product} and {catalogue.name} are no calibrated CCD with its source table: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return CalibratedCcd(image, sources, cards, scale)
