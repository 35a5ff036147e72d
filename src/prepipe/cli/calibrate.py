"""`prepipe calibrate` and `prepipe make-cals`: the cluster's work on files at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prepipe.cli.app import add_command
from prepipe.cli.options import Json, read_site
from prepipe.cli.output import Failures, number, print_json, print_table
from prepipe.cli.progress import progress
from prepipe.errors import ConfigError, InputError, PrepipeError

if TYPE_CHECKING:
    from prepipe.config import Site
    from prepipe.engines.base import Order, Outcome
    from prepipe.engines.masters import MadeMaster

__all__ = ["calibrate", "make_cals", "register"]

OptionalConfig = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Take camera, catalogue and limits from these settings."),
]
CameraName = Annotated[
    str | None, typer.Option(help="decam, or a .toml file that describes a camera.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    add_command(
        app,
        calibrate,
        "prepipe calibrate DECam_00941420.fits.fz --refcat gaia.fits --cals cals --out products",
    )
    add_command(
        app,
        make_cals,
        "prepipe make-cals zeros/*.fits.fz flats/*.fits.fz --out cals",
        "prepipe make-cals 2020-03-05 --config prepipe.toml",
    )


def calibrate(
    files: Annotated[list[Path], typer.Argument(help="Raw exposures or packets.")],
    out: Annotated[Path, typer.Option(help="Where the products go.")],
    refcat: Annotated[
        Path | None, typer.Option(help="Star catalogue: FITS, CSV or Parquet.")
    ] = None,
    cals: Annotated[
        Path | None, typer.Option(help="Masters made by make-cals; without, none is applied.")
    ] = None,
    camera: CameraName = None,
    config: OptionalConfig = None,
    workers: Annotated[int, typer.Option(min=1, help="CCDs calibrated at the same time.")] = 1,
    json: Json = False,
) -> None:
    """Calibrate raw exposures or packets, without journal or queue."""
    site = _site(config, camera)
    failures = Failures()
    settings = site.calibration
    if refcat is not None:
        _must_exist(refcat, "the star catalogue")
        settings = settings.model_copy(update={"reference": refcat})
    if cals is not None:
        _must_exist(cals, "the directory of masters")
    base = {
        "camera": site.camera,
        "calibration": settings,
        "limits": site.limits,
        "products": out,
        "calibrations": cals,
    }
    orders = list(_orders(files, base, failures))
    outcomes = []
    with progress("calibrating", len(orders)) as advance:
        for order, outcome in _carried_out(orders, workers):
            name = order.source.name if order.hdu is None else f"{order.source}[{order.hdu}]"
            if isinstance(outcome, PrepipeError):
                failures.add(name, outcome)
            else:
                outcomes.append(outcome)
            advance(name)
    outcomes.sort(key=lambda outcome: (outcome.exposure.number, outcome.ccd.number))
    if json:
        print_json({"ccds": [_as_json(o) for o in outcomes], "failed": failures.reasons})
    else:
        _show(outcomes)
    failures.finish()


def make_cals(
    raw: Annotated[
        list[str], typer.Argument(help="Raw zeros and dome flats or packets of them; or a night.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where the masters go; a night's go where the site says.")
    ] = None,
    camera: CameraName = None,
    config: OptionalConfig = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be made.")] = False,
    json: Json = False,
) -> None:
    """Combine zeros and dome flats into masters, one a CCD, band and night."""
    from prepipe.cameras import load_camera  # noqa: PLC0415
    from prepipe.engines.masters import gather, make_master  # noqa: PLC0415

    night = _as_night(raw)
    if night is not None and config is None:
        config = Path("prepipe.toml")
    site = _site(config, camera)
    sources = _packets_of(site, night) if night is not None else [Path(name) for name in raw]
    root = out or (site.cluster.calibrations if night is not None else None)
    if root is None:
        raise ConfigError("say with --out where the masters go")
    failures = Failures()
    instrument = load_camera(site.camera)
    groups, unusable = gather(sources, instrument)
    for source, reason in unusable.items():
        failures.add(source, reason)
    made: list[MadeMaster] = []
    if not dry_run:
        with progress("combining", len(groups)) as advance:
            for group in groups:
                name = f"{group.kind} {group.band} CCD {group.ccd} {group.night.ut_name}"
                try:
                    made.append(make_master(group, root, instrument))
                except InputError as error:
                    failures.add(name, error)
                advance(name)
    for master in made:
        for reason in master.left_out:
            failures.add(master.path.name, reason)
    shown = (
        [(g.kind, g.band, g.ccd, g.night.ut_name, len(g.frames), "-", "-") for g in groups]
        if dry_run
        else [_master_row(master) for master in made]
    )
    columns = ("kind", "band", "ccd", "night", "frames", "noise", "path")
    if json:
        rows = [dict(zip(columns, row, strict=True)) for row in shown]
        print_json({"masters": rows, "failed": failures.reasons})
    else:
        print_table(("kind", "band", ">ccd", "night", ">frames", ">noise", "path"), shown)
    failures.finish()


def _site(config: Path | None, camera: str | None) -> Site:
    from prepipe.config import Site  # noqa: PLC0415

    site = Site() if config is None else read_site(config)
    return site if camera is None else site.model_copy(update={"camera": camera})


def _must_exist(path: Path, what: str) -> None:
    if not path.exists():
        raise ConfigError(f"{what}, {path}, does not exist")


def _orders(files: list[Path], base: dict[str, Any], failures: Failures) -> Iterator[Order]:
    from prepipe.cameras import load_camera  # noqa: PLC0415
    from prepipe.engines.base import Order  # noqa: PLC0415
    from prepipe.engines.raw import list_ccds, read_exposure  # noqa: PLC0415

    camera = load_camera(base["camera"])
    seen: dict[str, Path] = {}
    for path in files:
        if path.suffix == ".packet":
            yield Order(source=path, **base)
            continue
        try:
            found = list_ccds(path, camera)
            exposure = read_exposure(path, camera)
        except PrepipeError as error:
            failures.add(path, error)
            continue
        name = f"{exposure.name} {exposure.band}"
        if seen.setdefault(name, path) != path:
            failures.add(path, f"exposure {exposure.number} was given already, as {seen[name]}")
            continue
        for hdu, _ in found:
            yield Order(source=path, hdu=hdu, **base)


def _carried_out(
    orders: list[Order], workers: int
) -> Iterator[tuple[Order, Outcome | PrepipeError]]:
    from prepipe.engines.builtin import carry_out  # noqa: PLC0415

    if workers == 1 or len(orders) == 1:
        for order in orders:
            try:
                yield order, carry_out(order)
            except PrepipeError as error:
                yield order, error
        return
    from concurrent.futures import as_completed  # noqa: PLC0415

    from prepipe.compute.local import LocalCompute  # noqa: PLC0415

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


def _as_json(outcome: Outcome) -> dict[str, Any]:
    found = outcome.reduction
    return {
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


def _as_night(words: list[str]) -> Any:
    from prepipe.model import Night  # noqa: PLC0415

    if len(words) != 1 or Path(words[0]).exists():
        return None
    try:
        return Night.parse(words[0])
    except ValueError:
        return None


def _packets_of(site: Site, night: Any) -> list[Path]:
    from prepipe.model import Kind  # noqa: PLC0415
    from prepipe.store import Journal  # noqa: PLC0415

    journal = Journal(site.cluster.work / "journal.sqlite")
    rows = journal.rows(night=night)
    journal.close()
    kinds = (Kind.ZERO, Kind.DOME_FLAT)
    found = [Path(row.packet) for row in rows if row.exposure.kind in kinds and row.packet]
    if not found:
        raise ConfigError(f"no zeros or dome flats of the night {night} have landed here")
    return found


def _master_row(master: MadeMaster) -> tuple[object, ...]:
    group = master.group
    return (
        group.kind,
        group.band,
        group.ccd,
        group.night.ut_name,
        master.used,
        number(master.noise, 4),
        master.path,
    )
