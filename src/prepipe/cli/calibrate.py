"""`prepipe calibrate`: the cluster's work on files at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from prepipe.cli.app import add_command
from prepipe.cli.options import CameraName, Json, OptionalConfig, site_of, writable
from prepipe.cli.output import Failures, number, print_json, print_table
from prepipe.cli.progress import progress
from prepipe.errors import ConfigError, InputError, PrepipeError
from prepipe.model import Kind

if TYPE_CHECKING:
    from prepipe.cameras import Camera
    from prepipe.compute.local import LocalCompute
    from prepipe.config import Calibration, ProductForm, Site
    from prepipe.engines.base import Engine, Order, Outcome, Work
    from prepipe.model import Exposure

__all__ = ["register"]

Section = TypeVar("Section", "Calibration", "ProductForm")

PACKET = ".packet"

Place = tuple[Path, int | None]
"""A file, and the HDU of one of its CCDs."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    add_command(
        app,
        calibrate,
        "prepipe calibrate DECam_00941420.fits.fz --refcat gaia.fits --cals cals --out products",
        "prepipe calibrate *.packet --refcat stars.csv --columns ra=RA_J2000,dec=DE_J2000 --out p",
        "prepipe calibrate X.fits.fz --crosstalk xtalk.txt --bad-pixels bpm --out products",
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
    crosstalk: Annotated[Path | None, typer.Option(help="Table of crosstalk.")] = None,
    linearity: Annotated[Path | None, typer.Option(help="Table of linearity.")] = None,
    bad_pixels: Annotated[
        Path | None, typer.Option(help="Map of bad pixels, or a directory of maps.")
    ] = None,
    photometry: Annotated[
        str | None,
        typer.Option(help="aperture, or psf: overlapping stars are fitted together."),
    ] = None,
    camera: CameraName = None,
    config: OptionalConfig = None,
    wcs: Annotated[
        str | None, typer.Option(help="tpv, or sip: how the products tell their distortion.")
    ] = None,
    catalogue: Annotated[
        str | None, typer.Option(help="Source tables as fits, parquet or both.")
    ] = None,
    pixels: Annotated[
        str | None, typer.Option(help="quantised, or float: every bit, five times the size.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="CCDs calibrated at the same time.")] = 1,
    json: Json = False,
) -> None:
    """Calibrate raw exposures or packets, without journal or queue."""
    from prepipe.engines.choice import open_engine

    site = site_of(config, camera)
    tables = {"crosstalk": crosstalk, "linearity": linearity, "bad_pixels": bad_pixels}
    settings = _with_tables(_calibration(site, refcat, columns), tables)
    settings = _as_told(settings, photometry=photometry)
    form = _as_told(settings.output, wcs=wcs, catalogue=catalogue, pixels=pixels)
    settings = settings.model_copy(update={"output": form})
    if cals is not None and not cals.exists():
        raise ConfigError(f"the directory of masters, {cals}, does not exist")
    writable(out, "--out")
    failures = Failures()
    base = {
        "camera": site.camera,
        "calibration": settings,
        "limits": site.limits,
        "products": out,
        "settings": site.engines,
    }
    engine = open_engine(site)
    orders = list(_orders(files, base, cals, failures, engine))
    with _pool(min(workers, len(orders))) as compute:
        done = _calibrated(orders, engine.work, compute, failures)
        while again := _second_tries(done):
            for order in again:
                del done[order.source, order.hdu]
            done |= _calibrated(
                again, engine.work, compute, failures, "trying again with what others tell"
            )
    pairs = sorted(done.values(), key=lambda pair: (pair[1].exposure.number, pair[1].ccd.number))
    if json:
        print_json({"ccds": [_as_json(*pair) for pair in pairs], "failed": failures.reasons})
    elif pairs:
        _show([outcome for _, outcome in pairs])
    failures.finish()


def _calibration(site: Site, refcat: Path | None, columns: str | None) -> Calibration:
    """How to calibrate; a catalogue that no CCD could use is found out here, not CCD by CCD."""
    from prepipe.engines.references.source import load_reference

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


def _as_told(section: Section, **told: str | None) -> Section:
    """Settings with the options that were given in place of theirs."""
    from pydantic import ValidationError

    given = {name: value for name, value in told.items() if value is not None}
    try:
        return type(section).model_validate(section.model_dump() | given)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(f"--{fault['loc'][0]} {fault['input']}: {fault['msg']}") from error


def _with_tables(settings: Calibration, tables: dict[str, Path | None]) -> Calibration:
    """The settings with the tables of the detector that were given, each looked at once."""
    from prepipe.engines.detector.corrections import check_tables

    given = {name: path for name, path in tables.items() if path is not None}
    settings = settings.model_copy(update=given)
    check_tables(settings)
    return settings


def _column_names(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(what.strip() and name.strip() for what, _, name in pairs):
        raise ConfigError(f"--columns {text}: write it like ra=RA_J2000,mag=rmag")
    return {what.strip(): name.strip() for what, _, name in pairs}


def _orders(
    files: list[Path], base: dict[str, Any], cals: Path | None, failures: Failures, engine: Engine
) -> Iterator[Order]:
    from prepipe.cameras import load_camera
    from prepipe.engines.base import Order
    from prepipe.engines.detector.library import MasterLibrary

    settings: Calibration = base["calibration"]
    library = None if cals is None else MasterLibrary(cals)
    camera = load_camera(base["camera"])
    seen: dict[tuple[object, ...], Path] = {}
    for path in dict.fromkeys(files):
        try:
            exposure, ccds = _looked_into(path, camera, engine)
        except PrepipeError as error:
            failures.add(path, error)
            continue
        # some cameras write a file for each CCD
        name = exposure.name, exposure.band, *sorted(ccd for _, ccd in ccds)
        if path.suffix != PACKET and seen.setdefault(name, path) != path:
            failures.add(path, f"exposure {exposure.number} was given already, as {seen[name]}")
            continue
        for hdu, ccd in ccds:
            masters = None if library is None else library.choose(exposure, ccd, settings)
            yield Order(source=path, hdu=hdu, calibrations=masters, **base)


def _looked_into(
    path: Path, camera: Camera, engine: Engine
) -> tuple[Exposure, list[tuple[int | None, int]]]:
    """The exposure of a file, and its CCDs by HDU; a packet has one CCD and no HDUs."""
    from prepipe.codec.fits_bytes import scan_fits
    from prepipe.codec.packet import read_header
    from prepipe.engines.raw import list_ccds, read_exposure

    ccds: list[tuple[int | None, int]]
    if path.suffix == PACKET:
        packet = read_header(path)
        exposure, ccds = packet.exposure, [(None, packet.ccd.number)]
    else:
        scan_fits(path)
        ccds = [(hdu, ccd.number) for hdu, ccd in list_ccds(path, camera)]
        exposure = read_exposure(path, camera)
    if exposure.kind in (Kind.ZERO, Kind.DOME_FLAT) and not engine.wants_calibrations:
        kind = exposure.kind.value.replace("-", " ")
        raise InputError(f"{path}: this is a {kind}: combine it with make-cals")
    return exposure, ccds


def _calibrated(
    orders: list[Order],
    work: Work,
    compute: LocalCompute | None,
    failures: Failures,
    what: str = "calibrating",
) -> dict[Place, tuple[Order, Outcome]]:
    """What came of the orders, by file and HDU; those that failed are noted."""
    done = {}
    with progress(what, len(orders)) as advance:
        for order, outcome in _carried_out(orders, work, compute):
            name = order.source.name if order.hdu is None else f"{order.source}[{order.hdu}]"
            if isinstance(outcome, PrepipeError):
                failures.add(name, outcome)
            else:
                done[order.source, order.hdu] = (order, outcome)
            advance(name)
    return done


def _second_tries(done: dict[Place, tuple[Order, Outcome]]) -> list[Order]:
    """CCDs whose WCS failed, with what the others tell of the pointing; each rung once."""
    from prepipe.quality.rescue import Pointing, can_be_helped, new_hints

    def pointing(outcome: Outcome) -> Pointing:
        found, exposure = outcome.reduction, outcome.exposure
        east, north = found.offset_east_arcsec, found.offset_north_arcsec
        shift = None if east is None or north is None else (east, north)
        return Pointing(exposure.number, outcome.ccd.number, exposure.field, shift)

    told = [pointing(outcome) for _, outcome in done.values()]
    again = []
    for order, outcome in done.values():
        found = outcome.reduction
        tried = {attempt.rung for attempt in found.wcs_tries} | {hint.rung for hint in order.hints}
        if can_be_helped(found.flags) and outcome.exposure.kind is Kind.OBJECT:
            hints = new_hints(pointing(outcome), told, tried)
            again += [replace(order, hints=hints)] if hints else []
    return again


@contextmanager
def _pool(workers: int) -> Iterator[LocalCompute | None]:
    """Workers for all rounds; None where this process does the work itself."""
    if workers <= 1:
        yield None
        return
    from prepipe.compute.local import LocalCompute

    compute = LocalCompute(workers)
    try:
        yield compute
    finally:
        compute.close()


def _carried_out(
    orders: list[Order], work: Work, compute: LocalCompute | None
) -> Iterator[tuple[Order, Outcome | PrepipeError]]:
    from concurrent.futures import as_completed

    if compute is None:
        for order in orders:
            try:
                yield order, work(order)
            except PrepipeError as error:
                yield order, error
        return
    running = {compute.submit(work, order): order for order in orders}
    for future in as_completed(running):
        try:
            yield running[future], future.result()
        except PrepipeError as error:
            yield running[future], error


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
        "wcs_tries": [asdict(attempt) for attempt in found.wcs_tries],
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
