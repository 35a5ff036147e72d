"""`prepipe fidelity`: what each codec costs, on a site's own raw files, and in a night."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prepipe.cli.app import FAILED, add_command
from prepipe.cli.journals import open_journals
from prepipe.cli.options import (
    DEFAULT_CONFIG,
    CameraName,
    Config,
    Json,
    number_list,
    read_night,
    read_site,
    writable,
)
from prepipe.cli.output import Failures, number, print_json, print_table
from prepipe.cli.progress import progress
from prepipe.errors import ConfigError, PrepipeError

if TYPE_CHECKING:
    from prepipe.cameras import Camera
    from prepipe.config import Site
    from prepipe.telescope.trial import Setting, Subject, Trial

__all__ = ["register"]

USUAL = ("rice", "jpeg2000:ratio=10")
PRESETS = ("precise", "fast", "faint-link")

COLUMNS = (
    *(">ratio", ">rms", ">mean", ">max", ">recovered", ">new", ">scatter"),
    *(">bias faint %", ">bright %", ">centroid px", ">found", ">of"),
)


def fidelity(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Raw exposures of the sky.")
    ] = None,
    codecs: Annotated[
        list[str] | None,
        typer.Option(
            "--codec",
            metavar="NAME[:key=value,...]",
            help="Codec to try, and what it is told; may be given again.  [default: that of the "
            "settings, rice, jpeg2000 at 10:1, the presets of wavelet]",
        ),
    ] = None,
    ccd: Annotated[
        str | None,
        typer.Option("--ccd", help="CCDs to try it on: 25,31.  [default: one in the middle]"),
    ] = None,
    night: Annotated[
        str | None,
        typer.Option("--night", help="No FILE: what was checked in this night, utYYMMDD."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="PNG to draw: rate against loss, and bias.")
    ] = None,
    config: Config = DEFAULT_CONFIG,
    camera: CameraName = None,
    as_json: Json = False,
) -> None:
    """Pack and unpack raw exposures, and tell what that costs astronomy.

    Errors of pixels (rms, mean, max) are in units of the sky's noise; scatter is what is added to
    the fluxes of stars, in units of the noise they have; found is the part of faint transients,
    put into the frame, that is found again, of what is found without packing.
    """
    if night is not None:
        if files or codecs or ccd or picture:
            raise ConfigError("--night tells what was checked already: give no FILE with it")
        _tell_night(config, night, as_json=as_json)
        return
    if not files:
        raise ConfigError("give raw exposures, or --night for what was checked in a night")
    if picture is not None:
        writable(picture.parent, "--picture")
    site = _site(config, camera)
    settings = _settings(codecs, site, told=config.exists())
    failures = Failures()
    trials = _try_all(files, ccd, settings, site or _defaults(camera), failures)
    _report(trials, failures, picture, as_json=as_json)
    failures.finish()


def _site(config: Path, camera: str | None) -> Site | None:
    """Settings, if there are any or they are asked for."""
    if config == DEFAULT_CONFIG and not config.exists():
        return None
    site = read_site(config)
    return site if camera is None else site.model_copy(update={"camera": camera})


def _defaults(camera: str | None) -> Site:
    from prepipe.config import Site

    return Site() if camera is None else Site(camera=camera)


def _settings(codecs: Sequence[str] | None, site: Site | None, *, told: bool) -> list[Setting]:
    """Codecs to try, each once."""
    from prepipe.codec import codec_names
    from prepipe.telescope.trial import Setting

    chosen = [Setting.parse(text) for text in codecs or ()]
    if not chosen:
        if site is not None and told:
            chosen.append(Setting(site.pack.codec, site.pack.parameters))
        chosen += [Setting.parse(text) for text in USUAL]
        if "wavelet" in codec_names():
            chosen += [Setting("wavelet", {"preset": preset}) for preset in PRESETS]
    return list({setting.label: setting for setting in chosen}.values())


Tried = dict[str, Any]
"""A trial and what it was made on."""


def _try_all(
    files: Sequence[Path],
    ccd: str | None,
    settings: Sequence[Setting],
    site: Site,
    failures: Failures,
) -> list[Tried]:
    """Every codec on every CCD; what cannot be used is named, the others go on."""
    from prepipe.cameras import load_camera
    from prepipe.telescope.trial import read_subject, try_codec

    camera = load_camera(site.camera)
    wanted = None if ccd is None else number_list(ccd, "--ccd")
    tried: list[Tried] = []
    places = list(_places(files, wanted, camera, failures))
    with progress("codecs tried", len(places) * len(settings)) as advance:
        for path, chosen in places:
            name = f"{path} CCD {chosen}"
            try:
                guess = site.calibration.seeing_guess_arcsec
                subject = read_subject(path, chosen, camera, guess)
            except ConfigError:
                raise
            except PrepipeError as error:
                failures.add(name, str(error).removeprefix(f"{path}: "))
                for _ in settings:
                    advance(name)
                continue
            for setting in settings:
                try:
                    tried.append(_told(subject, try_codec(subject, setting)))
                except ConfigError:
                    raise
                except PrepipeError as error:
                    failures.add(f"{name} with {setting.label}", error)
                advance(f"{name} {setting.label}")
    return tried


def _places(
    files: Sequence[Path], wanted: Sequence[int] | None, camera: Camera, failures: Failures
) -> Iterator[tuple[Path, int]]:
    from prepipe.telescope.trial import choose_ccd

    for path in dict.fromkeys(files):
        try:
            chosen = [choose_ccd(path, camera)] if wanted is None else wanted
        except PrepipeError as error:
            failures.add(path, error)
            continue
        for ccd in chosen:
            yield path, ccd


def _told(subject: Subject, trial: Trial) -> Tried:
    return {
        "file": subject.path,
        "exposure": subject.raw.exposure.number,
        "night": str(subject.raw.exposure.night),
        "ccd": subject.raw.ccd.number,
        "label": trial.setting.label,
        "codec": trial.setting.codec,
        "parameters": dict(trial.setting.parameters),
        "ratio": trial.ratio,
        "encode_mpix_s": trial.encode_mpix_s,
        "decode_mpix_s": trial.decode_mpix_s,
        "pixel_checksum": trial.pixel_checksum,
        "fidelity": trial.fidelity,
    }


def _report(
    tried: Sequence[Tried], failures: Failures, picture: Path | None, *, as_json: bool
) -> None:
    from prepipe.quality.fidelity import averaged

    summary: list[Tried] = []
    for label in dict.fromkeys(each["label"] for each in tried):
        same = [each for each in tried if each["label"] == label]
        speeds = {
            name: fmean(each[name] for each in same)
            for name in ("ratio", "encode_mpix_s", "decode_mpix_s")
        }
        found = averaged([each["fidelity"] for each in same])
        summary.append({"label": label, "frames": len(same), **speeds, "fidelity": found})
    if as_json:
        print_json({"trials": tried, "codecs": summary, "failed": failures.reasons})
    elif summary:
        print_table(("codec", *COLUMNS, ">Mpix/s in", ">out"), map(_row, summary), _title(tried))
    if picture is not None and summary:
        _draw(picture, summary, _title(tried))


def _tell_night(config: Path, night: str, *, as_json: bool) -> None:
    """Tell what `prepipe push` checked."""
    from prepipe.store.checks import night_checks

    wanted = read_night(night)
    assert wanted is not None
    with open_journals(read_site(config)) as journals:
        checks = journals.telescope.checks(wanted) if journals.telescope else []
    if as_json:
        told = [vars(check) | {"night": str(check.night)} for check in checks]
        means = [vars(each) | {"night": str(each.night)} for each in night_checks(checks)]
        print_json({"checks": told, "codecs": means})
    elif checks:
        rows = (
            (check.exposure, check.ccd, check.label, *_columns(check.ratio, check.figures))
            for check in checks
        )
        print_table((">exposure", ">CCD", "codec", *COLUMNS), rows)
    if not checks:
        typer.echo(
            f"no packet of {wanted.ut_name} was checked: `prepipe push` checks lossy ones, one in "
            "pack.check_every exposures",
            err=True,
        )
        raise typer.Exit(FAILED)


def _row(each: Tried) -> tuple[object, ...]:
    cells = _columns(each["ratio"], vars(each["fidelity"]))
    speeds = (number(each[name], 0) for name in ("encode_mpix_s", "decode_mpix_s"))
    return (each["label"], *cells, *speeds)


def _columns(ratio: float | None, figures: Mapping[str, Any]) -> tuple[str, ...]:
    """Cells of `COLUMNS`."""

    def told(name: str, digits: int, scale: float = 1.0) -> str:
        value = figures.get(name)
        return number(None if value is None else scale * value, digits)

    return (
        number(ratio),
        told("rms", 3),
        told("mean_error", 4),
        told("max_error", 1),
        told("recovered", 3),
        told("new", 3),
        told("scatter", 3),
        told("bias_faint", 2, 100.0),
        told("bias_bright", 3, 100.0),
        told("centroid_px", 4),
        told("found", 3),
        told("found_original", 3),
    )


def _title(tried: Sequence[Tried]) -> str:
    frames = list(dict.fromkeys((each["exposure"], each["ccd"]) for each in tried))
    first = next(iter(tried))["fidelity"]
    which = (
        f"exposure {frames[0][0]} CCD {frames[0][1]}" if len(frames) == 1 else f"{len(frames)} CCDs"
    )
    width = f"stars of {first.fwhm_px:.1f} pixels"
    known = "" if first.profile_measured else " supposed, none bright enough to tell"
    return f"{which}: {first.sources} sources, {first.transients} transients, {width}{known}"


def _draw(path: Path, summary: Sequence[Tried], title: str) -> None:
    from prepipe.quality.fidelity_picture import Judged, draw_fidelity

    judged = [Judged(each["label"], each["ratio"], each["fidelity"]) for each in summary]
    draw_fidelity(path, judged, title)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    add_command(
        app,
        fidelity,
        "prepipe fidelity DECam_00941420.fits.fz --picture fidelity.png",
        "prepipe fidelity *.fits.fz --ccd 25,31 --codec rice --codec jpeg2000:ratio=10 --json",
        "prepipe fidelity --night ut200306",
    )
