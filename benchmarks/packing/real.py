"""Every codec on real frames: ratio and loss, as tables in Markdown and as a picture.

    python benchmarks/packing/real.py [--data DIR] [--picture PNG] [--json]

DECam: raw cut-outs of nine CCDs (g, 120 s); one is left out, whose stars tell no width. HSC: a raw
cut-out of one channel (r2, 40 s), judged on the right of the trail of a satellite, packed whole.
SDSS: whole frames in g, r and i (54 s). All from the shared data beside the checkout, or DIR; what
is measured is what ``prepipe fidelity`` measures. ``seeing_px`` is that of each frame's own stars.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from astropy.io import fits
from matplotlib.figure import Figure

from prepipe.cameras import Camera, load_camera
from prepipe.codec.pixels import native
from prepipe.quality.fidelity import averaged
from prepipe.quality.fidelity_figures import Fidelity
from prepipe.quality.injection import inject, place_transients
from prepipe.telescope.intake import ccd_spans
from prepipe.telescope.trial import Setting, Subject, Trial, read_subject, try_codec

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared/data"
PRESETS = ("precise", "fast", "faint-link")
HEADINGS = ("codec", "ratio", "scatter", "recovered", "found", "faint", "bright", "rms / noise")


@dataclass(frozen=True)
class Frames:
    """Raw files of one camera that are told together."""

    name: str
    camera: Camera
    paths: tuple[Path, ...]
    supposed_fwhm_arcsec: float = 1.2
    sets_of_transients: int = 1


@dataclass(frozen=True)
class Result:
    """What a codec did to frames of one kind, on average."""

    label: str
    ratio: float
    fidelity: Fidelity


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--picture", type=Path, help="PNG to draw: rate against loss")
    parser.add_argument("--data", type=Path, default=DATA, help="where the frames lie")
    parser.add_argument("--json", action="store_true", help="one JSON object with rows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        told = {frames.name: results_of(frames) for frames in kinds(options.data, Path(place))}
    if options.json:
        print(json.dumps({"rows": list(rows(told))}, indent=2))
    else:
        for name, results in told.items():
            print("\n".join(table(name, results)))
    if options.picture:
        draw(told, options.picture)


def kinds(data: Path, place: Path) -> Iterator[Frames]:
    """The real frames there are."""
    decam = data / "decam_raw/history_reduced_c4d_200306_000415_ori.fits.fz"
    yield Frames("DECam", load_camera("decam"), (decam,))
    yield Frames(
        "HSC", load_camera(str(HERE / "hsc-cutout.toml")), (hsc_cutout(data, place),), 0.7, 10
    )
    sdss = tuple(data / f"sdss/fpC-004192-{band}4-0300.fit.gz" for band in "gri")
    yield Frames("SDSS", load_camera("sdss"), sdss)


def hsc_cutout(data: Path, place: Path) -> Path:
    """The cut-out with sections of its own: its header tells those of the whole CCD.

    Light-sensitive shall be what lies on the right of the trail.
    """
    path = place / "hsc.fits"
    with fits.open(data / "hsc_raw/cutout_HSCA21787010.fits", do_not_scale_image_data=True) as raw:
        header = raw[0].header
        for keyword in [card for card in header if card.startswith(("T_EFM", "T_OSM"))]:
            del header[keyword]
        header["EXPNUM"] = int(header["EXP-ID"].removeprefix("HSCE"))
        header["DATASEC"], header["BIASSEC"] = "[233:400,1:400]", "[1:8,1:400]"
        raw.writeto(path)
    return path


def settings_for(fwhm_px: float) -> Iterator[tuple[str, Setting]]:
    """Codecs by the names they have in the tables; those with several points make a curve."""
    yield "none", Setting("none")
    yield "rice", Setting("rice")
    for preset in PRESETS:
        yield f"wavelet {preset}", Setting("wavelet", {"preset": preset})
    seeing = round(fwhm_px, 1)
    for preset in PRESETS:
        told = {"preset": preset, "seeing_px": seeing}
        yield f"wavelet {preset}, seeing_px", Setting("wavelet", told)
    for ratio in (5.0, 7.0, 10.0, 14.0):
        yield f"jpeg2000 ratio {ratio:g}", Setting("jpeg2000", {"ratio": ratio})
    for step in (0.5, 0.75, 1.0, 1.5):
        yield f"htj2k step_sigma {step:g}", Setting("htj2k", {"step_sigma": step})


def results_of(frames: Frames) -> list[Result]:
    """Every codec on every CCD of the frames."""
    trials: dict[str, list[Trial]] = {}
    for subject in subjects_of(frames):
        say(f"{frames.name}: {subject.path.name} CCD {subject.raw.ccd.number}")
        for label, setting in settings_for(subject.scene.profile.fwhm_px):
            trials.setdefault(label, []).append(try_codec(subject, setting))
    return [
        Result(
            label,
            fmean(trial.ratio for trial in same),
            averaged([trial.fidelity for trial in same]),
        )
        for label, same in trials.items()
    ]


def subjects_of(frames: Frames) -> Iterator[Subject]:
    """All CCDs of all files."""
    for path in frames.paths:
        for number in sorted(ccd_spans(path, frames.camera)):
            subject = read_subject(path, number, frames.camera, frames.supposed_fwhm_arcsec)
            if len(subject.transients):
                yield subject
                yield from more_transients(subject, frames.sets_of_transients)
            else:
                say(f"{path.name} CCD {number} is left out: no place for transients of its width")


def more_transients(subject: Subject, sets: int) -> Iterator[Subject]:
    """The same frame with others in it: small frames have room for few at a time."""
    for seed in range(1, sets):
        scene = subject.scene
        transients = place_transients(scene, seed)
        injected = inject(
            native(subject.raw.pixels), subject.layout, transients, scene.profile, seed
        )
        yield replace(subject, transients=transients, injected=injected)


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def rows(told: dict[str, list[Result]]) -> Iterator[dict[str, Any]]:
    """Benchmark rows."""
    for name, results in told.items():
        for result in results:
            found = result.fidelity
            figures = {"ratio": result.ratio, "scatter": found.scatter, "found": found.found}
            for figure, value in figures.items():
                where = f"{figure}.{name.lower()}.{result.label.replace(' ', '-')}"
                yield {"name": where, "value": value}


def table(name: str, results: Sequence[Result]) -> Iterator[str]:
    """Lines of Markdown."""
    first = results[0].fidelity
    width = f"stars of {first.fwhm_px:.1f} pixels" if first.profile_measured else "width supposed"
    what = f"{first.transients} transients, {width}"
    yield f"\n{name}: {what}; found without packing {first.found_original:.3f}\n"
    yield f"| {' | '.join(HEADINGS)} |"
    yield "|---" * len(HEADINGS) + "|"
    for result in results:
        found = result.fidelity
        cells = (
            result.label,
            f"{result.ratio:.1f}",
            f"{found.scatter:.2f}",
            f"{found.recovered:.2f}",
            f"{found.found:.3f}",
            f"{100 * found.bias_faint:.1f} %",
            f"{100 * found.bias_bright:.2f} %",
            f"{found.rms:.2f}",
        )
        yield f"| {' | '.join(cells)} |"


def draw(told: dict[str, list[Result]], path: Path) -> None:
    """Rate against loss: a panel a camera, a curve a codec."""
    figure = Figure(figsize=(15.0, 8.0), layout="constrained")
    for column, (name, results) in enumerate(told.items()):
        scatter = figure.add_subplot(2, len(told), column + 1)
        found = figure.add_subplot(2, len(told), len(told) + column + 1, sharex=scatter)
        for place, (curve, points) in enumerate(curves(results).items()):
            ratios = [point.ratio for point in points]
            marks = {"marker": "osD^vP"[place], "color": f"C{place}", "lw": 1.0, "ms": 5}
            scatter.plot(ratios, [one.fidelity.scatter for one in points], label=curve, **marks)
            found.plot(ratios, [one.fidelity.found for one in points], **marks)
        original = results[0].fidelity.found_original
        found.axhline(original, color="black", ls="--", lw=1.0, label="original")
        scatter.axhline(0.2, color="#d0d0d0", lw=0.8, zorder=0)
        scatter.set_title(name)
        scatter.set_xscale("log", base=2)
        scatter.xaxis.set_major_formatter("{x:g}")
        found.set_xlabel("compression ratio")
        if column == 0:
            scatter.set_ylabel("scatter / photon and read noise")
            found.set_ylabel("transients of 5 to 10 sigma found")
            scatter.legend(frameon=False)
            found.legend(frameon=False)
    figure.savefig(path, dpi=90)


def curves(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by codec, those of wavelet that know the seeing by themselves."""
    found: dict[str, list[Result]] = {}
    for result in results:
        codec = result.label.split()[0]
        knows = result.label.endswith("seeing_px")
        found.setdefault(f"{codec}, seeing_px" if knows else codec, []).append(result)
    return found


if __name__ == "__main__":
    main()
