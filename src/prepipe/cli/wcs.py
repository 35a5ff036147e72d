"""`prepipe wcs`: products with their distortion told in other words."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from prepipe.cli.app import add_command
from prepipe.cli.options import Json, writable
from prepipe.cli.output import Failures, print_json
from prepipe.cli.progress import progress
from prepipe.errors import PrepipeError

__all__ = ["register", "wcs"]


class Form(StrEnum):
    """How a distortion is told."""

    TPV = "tpv"
    SIP = "sip"


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    add_command(app, wcs, "prepipe wcs products/ut200306/*/*.fits.fz --to sip --out for-siril")


def wcs(
    products: Annotated[list[Path], typer.Argument(help="Calibrated CCDs.")],
    to: Annotated[Form, typer.Option(help="How the distortion is told.")],
    out: Annotated[Path, typer.Option(help="Directory for the copies.")],
    json: Json = False,
) -> None:
    """Copy calibrated CCDs with their distortion as SIP or TPV; the pixels stay as they are."""
    from prepipe.engines.builtin.wcs import convert_wcs

    writable(out, "--out")
    failures = Failures()
    copies = []
    with progress("copying", len(products)) as advance:
        for product in dict.fromkeys(products):
            try:
                copies.append(convert_wcs(product, out, to.value))
            except PrepipeError as error:
                failures.add(product, error)
            advance(product.name)
    if json:
        print_json({"copies": copies, "failed": failures.reasons})
    else:
        for copy in copies:
            typer.echo(copy)
    failures.finish()
