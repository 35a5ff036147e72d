"""`prepipe demo`: a simulated night through every stage, on this machine."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prepipe.cli.app import FAILED, add_command
from prepipe.cli.options import Json
from prepipe.cli.output import number, print_json, print_table
from prepipe.model import Stage

if TYPE_CHECKING:
    from prepipe.cli.night import DemoNight
    from prepipe.store import CcdRow
    from prepipe.store.status import CcdStatus, ExposureStatus

__all__ = ["demo", "register"]

SHOWN_PRODUCTS = 3
STAGES = (Stage.FOUND, Stage.PACKED, Stage.SENT, Stage.LANDED, Stage.CALIBRATED)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    add_command(app, demo, "prepipe demo", "prepipe demo --workdir /tmp/night --ccds 8 --json")


def demo(
    workdir: Annotated[Path, typer.Option(help="Made anew; holds everything.")] = Path(
        "demo-night"
    ),
    exposures: Annotated[int, typer.Option(min=1, help="Exposures of the sky.")] = 3,
    ccds: Annotated[int, typer.Option(min=1, max=60, help="CCDs in each.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same night.")] = 1,
    json: Json = False,
) -> None:
    """Run a simulated night through every stage on this machine.

    A simulated DECam takes zeros, dome flats and exposures of the sky; they are packed, sent,
    calibrated and graded by the same code that a site runs.
    """
    typer.echo("prepipe: starting a simulated night", err=True)
    from prepipe.cli.night import run_demo

    begin = time.monotonic()

    def tell(what: str) -> None:
        typer.echo(f"{time.monotonic() - begin:6.1f} s  {what}", err=True)

    night = run_demo(workdir, exposures, ccds, seed, tell)
    if json:
        print_json(_as_json(night, exposures))
    else:
        _show(night)
    for name, reason in night.failures.items():
        typer.echo(f"failed: {name}: {reason}", err=True)
    if night.failures or len(night.calibrated) < night.expected:
        raise typer.Exit(FAILED)


def _as_json(night: DemoNight, exposures: int) -> dict[str, Any]:
    known = [row.reduction["wcs_rms_mas"] for row in night.calibrated]
    solved = [rms for rms in known if rms is not None]
    return {
        "exposures": exposures,
        "ccds": night.expected,
        "calibrated": len(night.calibrated),
        "quarantined": len(night.failures),
        "latency_s": night.status.latency,
        "wcs_rms_mas": {
            "median": median(solved) if solved else None,
            "max": max(solved, default=None),
            "solved": len(solved),
        },
        "grades": Counter(row.grade for row in night.calibrated),
        "seconds": night.seconds,
        "products": [row.reduction["product"] for row in night.calibrated],
        "picture": night.picture,
        "config": night.site.telescope.work.parent / "prepipe.toml",
        "failed": night.failures,
    }


def _show(night: DemoNight) -> None:
    columns = (
        *(">exposure", ">CCDs", ">seeing", ">zero point", ">WCS rms"),
        *(">packed s", ">sent s", ">landed s", ">calibrated s", ">latency s", "grade"),
    )
    print_table(columns, [_row(found, night) for found in reversed(night.status.exposures)])
    products = [row.reduction["product"] for row in night.calibrated]
    typer.echo(f"{len(products)} calibrated CCDs in {night.seconds:.0f} s:")
    for product in products[:SHOWN_PRODUCTS]:
        typer.echo(f"  {product}")
    if len(products) > SHOWN_PRODUCTS:
        typer.echo(f"  ... and {len(products) - SHOWN_PRODUCTS} more")
    config = night.site.telescope.work.parent / "prepipe.toml"
    typer.echo(f"picture of the focal plane:  {night.picture}")
    typer.echo(f"look around:                 {_own_command()} status --config {config}")


def _own_command() -> str:
    """How to call this very program: by its path where the shell would not find it."""
    own = Path(sys.argv[0])
    found = shutil.which("prepipe")
    if own.name != "prepipe" or (found and Path(found).resolve() == own.resolve()):
        return "prepipe"
    return os.path.relpath(own)


def _row(found: ExposureStatus, night: DemoNight) -> tuple[object, ...]:
    rows = [row for row in night.calibrated if row.exposure.number == found.exposure.number]
    since_last = [
        _median(_lapse(ccd, before, stage) for ccd in found.ccds)
        for before, stage in pairwise(STAGES)
    ]
    return (
        found.exposure.number,
        len(found.ccds),
        number(_figure(rows, "seeing_arcsec"), 2, '"'),
        number(_figure(rows, "zero_point"), 3),
        number(_figure(rows, "wcs_rms_mas"), 0, " mas"),
        *(number(seconds, 2) for seconds in since_last),
        number(found.latency_s, 1),
        ", ".join(f"{count} {colour}" for colour, count in found.grades.items()),
    )


def _lapse(ccd: CcdStatus, before: Stage, stage: Stage) -> float | None:
    """How long a CCD took from one stage to the next, waiting included, s."""
    times = ccd.times
    return times[stage] - times[before] if before in times and stage in times else None


def _figure(rows: list[CcdRow], name: str) -> float | None:
    return _median(row.reduction[name] for row in rows)


def _median(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
