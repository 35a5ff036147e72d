"""`prepipe calibrate`: the cluster's work on files at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prepipe.cli.app import add_command
from prepipe.cli.options import CameraName, Json, OptionalConfig, site_of, writable
from prepipe.cli.output import Failures, number, print_json, print_table
from prepipe.cli.progress import progress
from prepipe.errors import ConfigError, InputError, PrepipeError
from prepipe.model import Kind

if TYPE_CHECKING:
    from prepipe.cameras import Camera
    from prepipe.config import Calibration, Site
    from prepipe.engines.base import Order, Outcome
    from prepipe.model import Exposure

__all__ = ["register"]

PACKET = ".packet"


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    add_command(
        app,
        calibrate,
        "prepipe calibrate DECam_00941420.fits.fz --refcat gaia.fits --cals cals --out products",
        "prepipe calibrate *.packet --refcat stars.csv --columns ra=RA_J2000,dec=DE_J2000 --out p",
    )


def calibrate(
    files: Annotated[list[Path], typer.Argument(help="Raw exposures or packets.")],
    out: Annotated[Path, typer.Option(help="Where the products go.")],
    refcat: Annotated[
        Path | None, typer.Option(help="Star catalogue: FITS, CSV or Parquet.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Columns of the catalogue that are not recognised: ra=RA_J2000,mag=rmag."
        ),
    ] = None,
    cals: Annotated[
        Path | None, typer.Option(help="Masters made by make-cals; without, none is applied.")
    ] = None,
    photometry: Annotated[
        str | None,
        typer.Option(help="aperture, or psf: overlapping stars are fitted together."),
    ] = None,
    camera: CameraName = None,
    config: OptionalConfig = None,
    workers: Annotated[int, typer.Option(min=1, help="CCDs calibrated at the same time.")] = 1,
    json: Json = False,
) -> None:
    """Calibrate raw exposures or packets, without journal or queue."""
    site = site_of(config, camera)
    settings = _calibration(site, refcat, columns)
    if photometry is not None:
        settings = _measured_by(settings, photometry)
    if cals is not None and not cals.exists():
        raise ConfigError(f"the directory of masters, {cals}, does not exist")
    writable(out, "--out")
    failures = Failures()
    base = {
        "camera": site.camera,
        "calibration": settings,
        "limits": site.limits,
        "products": out,
        "calibrations": cals,
    }
    orders = list(_orders(files, base, failures))
    done: list[tuple[Order, Outcome]] = []
    with progress("calibrating", len(orders)) as advance:
        for order, outcome in _carried_out(orders, workers):
            name = order.source.name if order.hdu is None else f"{order.source}[{order.hdu}]"
            if isinstance(outcome, PrepipeError):
                failures.add(name, outcome)
            else:
                done.append((order, outcome))
            advance(name)
    done.sort(key=lambda pair: (pair[1].exposure.number, pair[1].ccd.number))
    if json:
        print_json({"ccds": [_as_json(*pair) for pair in done], "failed": failures.reasons})
    elif done:
        _show([outcome for _, outcome in done])
    failures.finish()


def _calibration(site: Site, refcat: Path | None, columns: str | None) -> Calibration:
    """How to calibrate; a catalogue that no CCD could use is found out here, not CCD by CCD."""
    from prepipe.engines.reference import load_reference

    settings = site.calibration
    if refcat is not None:
        settings = settings.model_copy(update={"reference": refcat, "columns": {}})
    if columns is not None:
        settings = settings.model_copy(update={"columns": _column_names(columns)})
    if settings.reference is None:
        return settings
    if not settings.reference.exists():
        raise ConfigError(f"the star catalogue, {settings.reference}, does not exist")
    try:
        load_reference(settings.reference, columns=settings.columns)
    except ConfigError as error:
        if "column" not in str(error):
            raise
        raise ConfigError(
            f"{error}, with `[calibration] columns` or --columns ra=RA_J2000,mag=rmag"
        ) from error
    return settings


def _measured_by(settings: Calibration, photometry: str) -> Calibration:
    known = ("aperture", "psf")
    if photometry not in known:
        raise ConfigError(f"--photometry {photometry}: choose of {', '.join(known)}")
    return settings.model_copy(update={"photometry": photometry})


def _column_names(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(what.strip() and name.strip() for what, _, name in pairs):
        raise ConfigError(f"--columns {text}: write it like ra=RA_J2000,mag=rmag")
    return {what.strip(): name.strip() for what, _, name in pairs}


def _orders(files: list[Path], base: dict[str, Any], failures: Failures) -> Iterator[Order]:
    from prepipe.cameras import load_camera
    from prepipe.engines.base import Order

    camera = load_camera(base["camera"])
    seen: dict[str, Path] = {}
    for path in dict.fromkeys(files):
        try:
            exposure, hdus = _looked_into(path, camera)
        except PrepipeError as error:
            failures.add(path, error)
            continue
        name = f"{exposure.name} {exposure.band}"
        if path.suffix != PACKET and seen.setdefault(name, path) != path:
            failures.add(path, f"exposure {exposure.number} was given already, as {seen[name]}")
            continue
        for hdu in hdus:
            yield Order(source=path, hdu=hdu, **base)


def _looked_into(path: Path, camera: Camera) -> tuple[Exposure, list[int | None]]:
    """The exposure of a file, and the HDUs of its CCDs; a packet has one CCD and no HDUs."""
    from prepipe.codec.fits_bytes import scan_fits
    from prepipe.codec.packet import read_header
    from prepipe.engines.raw import list_ccds, read_exposure

    hdus: list[int | None] = [None]
    if path.suffix == PACKET:
        exposure = read_header(path).exposure
    else:
        scan_fits(path)
        hdus = [hdu for hdu, _ in list_ccds(path, camera)]
        exposure = read_exposure(path, camera)
    if exposure.kind in (Kind.ZERO, Kind.DOME_FLAT):
        kind = exposure.kind.value.replace("-", " ")
        raise InputError(f"{path}: this is a {kind}: combine it with make-cals")
    return exposure, hdus


def _carried_out(
    orders: list[Order], workers: int
) -> Iterator[tuple[Order, Outcome | PrepipeError]]:
    from prepipe.engines.builtin import carry_out

    if workers == 1 or len(orders) == 1:
        for order in orders:
            try:
                yield order, carry_out(order)
            except PrepipeError as error:
                yield order, error
        return
    from concurrent.futures import as_completed

    from prepipe.compute.local import LocalCompute

    compute = LocalCompute(min(workers, len(orders)))
    try:
        running = {compute.submit(carry_out, order): order for order in orders}
        for future in as_completed(running):
            try:
                yield running[future], future.result()
            except PrepipeError as error:
                yield running[future], error
    finally:
        compute.close()


def _as_json(order: Order, outcome: Outcome) -> dict[str, Any]:
    found = outcome.reduction
    return {
        "file": order.source,
        "band": outcome.exposure.band,
        "exposure": found.exposure,
        "ccd": found.ccd,
        "grade": outcome.grade.colour,
        "reasons": outcome.grade.reasons,
        "wcs_rms_mas": found.wcs_rms_mas,
        "wcs_matches": found.wcs_matches,
        "offset_arcsec": found.offset_arcsec,
        "zero_point": found.zero_point,
        "zero_point_scatter": found.zero_point_scatter,
        "seeing_arcsec": found.seeing_arcsec,
        "ellipticity": found.ellipticity,
        "sky_adu": found.sky_adu,
        "limiting_mag": found.limiting_mag,
        "n_sources": found.n_sources,
        "product": found.product,
        "catalogue": found.catalogue,
        "seconds": sum(found.seconds.values()),
        "steps": found.seconds,
    }


def _show(outcomes: list[Outcome]) -> None:
    columns = (
        *(">exposure", ">ccd", "grade", ">WCS mas", ">stars", ">offset", ">zero point"),
        *(">scatter", ">seeing", ">depth", ">sources", ">s", "reasons"),
    )
    rows = [
        (
            o.reduction.exposure,
            o.reduction.ccd,
            o.grade.colour.value,
            number(o.reduction.wcs_rms_mas, 0),
            o.reduction.wcs_matches,
            number(o.reduction.offset_arcsec, 1, '"'),
            number(o.reduction.zero_point, 3),
            number(o.reduction.zero_point_scatter, 3),
            number(o.reduction.seeing_arcsec, 2, '"'),
            number(o.reduction.limiting_mag, 2),
            o.reduction.n_sources,
            number(sum(o.reduction.seconds.values()), 2),
            "; ".join(o.grade.reasons),
        )
        for o in outcomes
    ]
    print_table(columns, rows)
