"""The built-in engine: how fast against others, and how far from the truth.

    python benchmarks/calibrate.py [--quick] [--json] [--pictures DIR]

Three simulated fields of one full DECam CCD (200, 965 and 8000 stars of the catalogue) go through
the engine, through the classical chain of programs (source-extractor, scamp, missfits, fpack) and
through a chain of Python libraries, all in this run. Times are CPU times, medians over repetitions,
those of programs included; compare ratios, not seconds, between machines. Accuracy is that of the
product and the source table against what was simulated; the search for the WCS is also tried on
lists of detections, with headers wrong by up to 60 arcsec, and on skies that it must refuse.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.wcs import WCS
from calibration import accuracy, astrometry, fields, peers, pictures

from prepipe.calibrate.flags import Mask
from prepipe.calibrate.sky.refcat import ReferenceCatalogue
from prepipe.cameras import load_camera
from prepipe.config import Calibration
from prepipe.engines.base import Order
from prepipe.engines.builtin.buffers import Buffers
from prepipe.engines.builtin.reduce import Stopwatch, reduce_ccd
from prepipe.engines.products import read_master
from prepipe.engines.raw import list_ccds, read_ccd
from prepipe.engines.references.source import load_reference

Row = dict[str, Any]
CAMERA = load_camera("decam")


@dataclass(frozen=True)
class Size:
    """How much is done."""

    zeros: int
    flats: int
    repeats: int
    peers: tuple[str, ...]
    angles: int
    wrong_fields: int
    starts: int


WHOLE = Size(20, 10, 9, tuple(fields.KINDS), 10, 1000, 4)
QUICK = Size(5, 4, 3, ("medium",), 1, 100, 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and trials")
    parser.add_argument("--json", action="store_true", help="one JSON object with rows")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw the results there")
    options = parser.parse_args()
    size = QUICK if options.quick else WHOLE
    with tempfile.TemporaryDirectory(prefix="prepipe-bench-") as name:
        rows = list(measured(Path(name), size))
    if options.pictures is not None:
        pictures.draw(rows, options.pictures)
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        for row in rows:
            print(f"{row['name']:48s} {row['value']:12.4f} {row['unit']}")


def measured(work: Path, size: Size) -> Iterator[Row]:
    """All rows."""
    classical = peers.programs_there()
    masters = fields.make_masters(work, size.zeros, size.flats)
    for name in fields.KINDS:
        print(f"{name} field ...", file=sys.stderr)
        field = fields.make_field(name, work)
        source = load_reference(field.reference, "g")
        centre = field.header_wcs.wcs_pix2world([[1024.0, 2048.0]], 0)[0]
        stars = source.near(centre[0], centre[1], 0.2).at_epoch(field.observation.year)
        path, seconds = yield from engine(field, masters, work, size.repeats)
        product = accuracy.Product.read(path)
        expected = accuracy.Expected.of(field, masters, size.zeros, size.flats)
        yield from quality(field, product, expected)
        yield from pixel_trials(field, product, stars, size.starts)
        if name in size.peers:
            yield from against_peers(field, masters, stars, work / "peers", seconds, classical)
    print("searches for the WCS ...", file=sys.stderr)
    yield from searches(size)


def engine(field: fields.Field, masters: Path, work: Path, repeats: int) -> Iterator[Row]:
    """Core-seconds of the engine; returns the product and their median."""
    hdu = list_ccds(field.raw, CAMERA)[0][0]
    order = Order(field.raw, "decam", Calibration(), work / "products", masters, hdu=hdu)
    reference = load_reference(field.reference, "g")
    took: dict[str, list[float]] = {}
    totals = []
    buffers = Buffers()
    for repeat in range(repeats + 1):
        watch = Stopwatch(peers.cpu_seconds)
        begin = peers.cpu_seconds()
        with watch.timing("read"):
            raw = read_ccd(field.raw, hdu, CAMERA)
        outcome = reduce_ccd(raw, CAMERA, order, reference, watch, buffers)
        # The first one compiles the kernels and reads the masters.
        if repeat > 0:
            totals.append(peers.cpu_seconds() - begin)
            for step, seconds in watch.seconds.items():
                took.setdefault(step, []).append(seconds)
    assert outcome.reduction.product is not None
    total = statistics.median(totals)
    yield row(f"core_seconds.{field.name}", total, "core-s/CCD")
    yield row(f"sources.{field.name}", outcome.reduction.n_sources, "")
    for step, values in took.items():
        if field.name == "medium":
            yield row(f"stage_ms.{step}", 1e3 * statistics.median(values), "ms")
        elif step == "astrometry":
            yield row(f"astrometry_ms.{field.name}", 1e3 * statistics.median(values), "ms")
    return Path(outcome.reduction.product), total


def quality(
    field: fields.Field, product: accuracy.Product, expected: accuracy.Expected
) -> Iterator[Row]:
    """The product of one field against the truth."""
    name = field.name
    if name == "medium":
        yield from (
            row(key, value, "e-" if key.endswith("offset") else "")
            for key, value in accuracy.detrending(field, product, expected).items()
        )
    hit = (product.mask & Mask.COSMIC_RAY) != 0
    usable = (product.mask & ~np.uint8(Mask.COSMIC_RAY)) == 0
    figures = accuracy.headline(field, product, expected)
    rays = accuracy.cosmic_rays(field, hit, usable)
    figures |= {f"cosmic_rays.{key}": value for key, value in rays.items()}
    figures |= accuracy.detection(field, product, expected)
    figures |= accuracy.scatter(field, product, expected)
    figures["wcs_error_mas"] = accuracy.wcs_error_mas(field, WCS(product.cards, fix=False))
    for key, value in figures.items():
        yield row(f"{key}.{name}", value, _unit(key))


def pixel_trials(
    field: fields.Field, product: accuracy.Product, stars: ReferenceCatalogue, starts: int
) -> Iterator[Row]:
    """The search for the WCS, with the sources of the product."""
    errors = list(astrometry.through_pixels(field, product.table, stars, starts))
    good = sum(error < astrometry.GOOD_ARCSEC for error in errors)
    yield row(f"astrometry.pixels.success.{field.name}", good, "")
    yield row(f"astrometry.pixels.trials.{field.name}", len(errors), "")


def against_peers(
    field: fields.Field,
    masters: Path,
    stars: ReferenceCatalogue,
    work: Path,
    seconds: float,
    programs: bool,
) -> Iterator[Row]:
    """What others take for the same, and how well they do."""
    job = _job(field, masters, stars)
    chains = {"libraries": peers.libraries} | ({"classical": peers.classical} if programs else {})
    for chain, run in chains.items():
        result = run(job, work / chain / field.name)
        total = sum(result.seconds.values())
        yield row(f"ratio_to_{chain}.{field.name}", total / seconds, "x")
        yield row(f"{chain}.core_seconds.{field.name}", total, "core-s/CCD")
        without = total - result.seconds["cosmic rays"]
        yield row(f"{chain}.core_seconds_without_cosmic_rays.{field.name}", without, "core-s/CCD")
        for step, value in result.seconds.items():
            if field.name == "medium":
                yield row(f"{chain}.stage_ms.{step.replace(' ', '_')}", 1e3 * value, "ms")
        error = accuracy.wcs_error_mas(field, result.wcs)
        yield row(f"{chain}.wcs_error_mas.{field.name}", error, "mas")
        everywhere = np.ones(field.charge.shape, bool)
        for key, value in accuracy.cosmic_rays(field, result.cosmic_rays, everywhere).items():
            yield row(f"{chain}.cosmic_rays.{key}.{field.name}", value, _unit(key))
    if programs and field.name == "medium":
        yield from scamp_misled(field, stars, work / "classical" / field.name)


def scamp_misled(field: fields.Field, stars: ReferenceCatalogue, work: Path) -> Iterator[Row]:
    """Catalogues of other places, as SCAMP takes them."""
    rng = np.random.default_rng(1)
    wrong = [
        replace(stars, ra=stars.ra + 0.1),
        replace(stars, dec=stars.dec + 0.1),
        replace(stars, ra=rng.permutation(stars.ra)),
        replace(stars, dec=rng.permutation(stars.dec)),
    ]
    x, y, ra, dec = field.grid()
    misled = []
    for k, catalogue in enumerate(wrong):
        head = work / "image.head"
        head.unlink(missing_ok=True)
        path = peers.write_ldac_reference(work / f"wrong{k}.cat", catalogue)
        if peers.scamp(work, "image.cat", path) == 0 and head.exists():
            wcs = WCS(peers.read_head(head), fix=False)
            found = wcs.wcs_pix2world(x, y, 0)
            apart = np.hypot((found[0] - ra) * np.cos(np.radians(dec)), found[1] - dec)
            misled.append(3600.0 * float(np.median(apart)))
    yield row("classical.wrong_fields", len(wrong), "")
    yield row("classical.wrong_fields_solved", sum(error > 2.0 for error in misled), "")
    if misled:
        yield row("classical.wrong_field_error", statistics.median(misled), "arcsec")


def searches(size: Size) -> Iterator[Row]:
    """The search for the WCS on lists of detections."""
    skies = {name: astrometry.Sky.drawn(place) for name, place in astrometry.PLACES.items()}
    errors: dict[str, list[float]] = {name: [] for name in skies}
    for name, error, _ in astrometry.trials(skies, size.angles):
        errors[name].append(error)
    everything = [error for some in errors.values() for error in some]
    good = sum(error < astrometry.GOOD_ARCSEC for error in everything)
    yield row("astrometry.success", good, "")
    yield row("astrometry.trials", len(everything), "")
    for name, some in errors.items():
        yield row(f"astrometry.error_mas.{name}", 1e3 * statistics.median(some), "mas")
    for order, label in ((1, "linear"), (2, "quadratic"), (3, "cubic")):
        each = {n: astrometry.systematic_mas(sky, order) for n, sky in skies.items()}
        yield row(f"astrometry.systematic_mas.{label}", max(each.values()), "mas")
        for name, value in each.items():
            yield row(f"astrometry.systematic_mas.{label}.{name}", value, "mas")
    tried, accepted = Counter[str](), Counter[str]()
    for what, solution in astrometry.wrong_fields(skies, size.wrong_fields):
        tried[what] += 1
        accepted[what] += solution.accepted
    yield row("astrometry.wrong_fields", tried.total(), "")
    yield row("astrometry.false_of_wrong_fields", accepted.total(), "")
    for what, count in tried.items():
        label = what.replace(" ", "_")
        yield row(f"astrometry.false_of_wrong_fields.{label}", accepted[what], f"of {count}")


def row(name: str, value: Any, unit: str) -> Row:
    """One line of the result."""
    return {"name": name, "value": round(float(value), 5), "unit": unit}


def _job(field: fields.Field, masters: Path, stars: ReferenceCatalogue) -> peers.Job:
    hdu = list_ccds(field.raw, CAMERA)[0][0]
    raw = read_ccd(field.raw, hdu, CAMERA)
    layout = CAMERA.layout(raw.header, raw.pixels)
    planes = [read_master(next(masters.rglob(f"*{kind}*.fits*")))[0] for kind in ("bias", "flat")]
    header = CAMERA.wcs_header(raw.header, layout)
    return peers.Job(field.raw, hdu, header, layout, *planes, stars, field.seeing_px)


def _unit(key: str) -> str:
    """Of a figure, by its name."""
    for ending, unit in (("_mas", "mas"), ("_mmag", "mmag"), ("_px", "pixel")):
        if key.endswith(ending):
            return unit
    pixels = ("false", "beside", "false_in_bad_columns")
    return "pixels" if key.rpartition(".")[2] in pixels else ""


if __name__ == "__main__":
    sys.exit(main())
