"""`prepipe simulate`: raw exposures for people who have no telescope."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prepipe.cli.app import add_command
from prepipe.cli.options import Json, number_list
from prepipe.cli.output import print_json
from prepipe.cli.progress import progress
from prepipe.errors import ConfigError
from prepipe.model import Kind

if TYPE_CHECKING:
    from prepipe.simulate import Settings

__all__ = ["register"]

SCIENCE_CCDS = 62


def simulate(
    out: Annotated[Path, typer.Option("--out", help="Directory to write to.")],
    camera: Annotated[
        str, typer.Option("--camera", help="Camera; decam is the only one so far.")
    ] = "decam",
    exposures: Annotated[int, typer.Option("--exposures", min=1, help="How many.")] = 1,
    ccds: Annotated[
        str | None,
        typer.Option(
            "--ccds",
            help="How many CCDs, from the centre outwards, or their numbers: 25,31,40-44 "
            "(25, for one alone).  [default: all]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same files.")] = 1,
    kind: Annotated[
        str, typer.Option("--kind", help="object, zero or dome-flat.")
    ] = Kind.OBJECT.value,
    cadence: Annotated[
        float | None,
        typer.Option(
            "--cadence", help="Seconds between exposures; each file grows as an instrument's does."
        ),
    ] = None,
    stars: Annotated[
        Path | None,
        typer.Option("--stars", help="Gaia-like FITS table of stars.  [default: from the seed]"),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="Write the stars there as a reference catalogue."),
    ] = None,
    band: Annotated[str | None, typer.Option("--band", help="g or r.")] = None,
    exposure_s: Annotated[
        float | None, typer.Option("--exposure-time", help="Open-shutter time, s.")
    ] = None,
    seeing: Annotated[float | None, typer.Option("--seeing", help="FWHM, arcsec.")] = None,
    pointing_error: Annotated[
        float | None, typer.Option("--pointing-error", help="Up to so many arcsec.")
    ] = None,
    rotation: Annotated[
        float | None, typer.Option("--rotation", help="Up to so many degrees.")
    ] = None,
    ra: Annotated[float | None, typer.Option("--ra", help="Pointing, degrees.")] = None,
    dec: Annotated[float | None, typer.Option("--dec", help="Pointing, degrees.")] = None,
    field: Annotated[str | None, typer.Option("--field", help="Name of the field.")] = None,
    first: Annotated[
        int | None, typer.Option("--first", help="Number of the first exposure.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite exposures and catalogue that are there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write raw exposures as the telescope would, with the truth about them beside each."""
    from prepipe.simulate import simulate_night, truth_path

    if camera.lower() != "decam":
        raise ConfigError(f"--camera {camera}: only decam can be simulated so far")
    settings = _settings(
        seed=seed,
        band=band,
        exposure_s=exposure_s,
        seeing_arcsec=seeing,
        pointing_error_arcsec=pointing_error,
        rotation_deg=rotation,
        ra=ra,
        dec=dec,
        field=field,
        first_exposure=first,
        stars=_stars(stars, seed),
        kind=_kind(kind),
    )
    chosen, n_ccds = _ccds(ccds)
    if not force:
        _refuse_to_overwrite(out, exposures, settings, reference)
    if reference is not None:
        settings.star_field.write_reference(reference)
    with progress("simulated CCDs", exposures * n_ccds) as advance:
        paths = simulate_night(
            out,
            exposures,
            ccds=chosen,
            seed=seed,
            kind=settings.kind,
            cadence=cadence,
            settings=settings,
            progress=lambda done, total: advance(""),
        )
    if as_json:
        written = [{"path": path, "truth": truth_path(path)} for path in paths]
        print_json({"exposures": written, "reference": reference})
        return
    for path in paths:
        typer.echo(path)


def _settings(**given: Any) -> Settings:
    from prepipe.simulate import Settings

    return Settings(**{name: value for name, value in given.items() if value is not None})


def _refuse_to_overwrite(
    out: Path, exposures: int, settings: Settings, reference: Path | None
) -> None:
    from prepipe.simulate.observation import plan

    paths = [out / plan(settings, index).file_name for index in range(exposures)]
    there = [path for path in [reference, *paths] if path is not None and path.exists()]
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise ConfigError(
            f"{there[0]}{more} would be overwritten: give another --out or --first, or --force"
        )


def _stars(path: Path | None, seed: int) -> Any:
    from prepipe.simulate import StarField

    return None if path is None else StarField.load(path, seed)


def _kind(text: str) -> Kind:
    kinds = (Kind.OBJECT, Kind.ZERO, Kind.DOME_FLAT)
    if text not in kinds:
        raise ConfigError(f"--kind {text}: choose one of {', '.join(kinds)}")
    return Kind(text)


def _ccds(text: str | None) -> tuple[int | tuple[int, ...] | None, int]:
    """What the simulation is told, and how many CCDs that is."""
    if text is None:
        return None, SCIENCE_CCDS
    if text.isdecimal():
        return int(text), int(text)
    numbers = number_list(text, "--ccds")
    return numbers, len(numbers)


def register(app: typer.Typer) -> None:
    """Add `simulate`."""
    add_command(
        app,
        simulate,
        "prepipe simulate --out raw --exposures 3 --ccds 4 --seed 1 --reference stars.fits",
        "prepipe simulate --out raw --exposures 5 --kind zero",
        "prepipe simulate --out raw --exposures 60 --cadence 60",
    )
