"""Photometry of crowded fields: scatter against the truth, and cost, of apertures and profiles.

    python benchmarks/crowded.py [--quick] [--json]

One simulated full-size CCD each of a sparse, a medium, a dense field and one in the bulge (0.56,
2.7, 22 and 50 times the stars of a galactic latitude of 30 degrees). The scatter is that of
stars, not galaxies, unsaturated, detected without subtraction of others, about their median:
`scatter` is 1.48 times the median absolute deviation, `rms` cuts single errors at 0.5 mag. Cost is
CPU time of this process, median over repetitions, after one warm-up that compiles the kernels.
The peer, photutils' PSFPhotometry with an ePSF built by EPSFBuilder, is given the same sources;
not in the bulge, where it would take minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from astropy.nddata import NDData
from astropy.table import QTable, Table
from photutils.psf import EPSFBuilder, PSFPhotometry, SourceGrouper, extract_stars
from scipy.spatial import cKDTree

from prepipe.calibrate.flags import Mask, SourceFlag
from prepipe.calibrate.sky.tpv import Tpv
from prepipe.calibrate.stars.psf_photometry import fit_stars
from prepipe.cameras import load_camera
from prepipe.engines.builtin.steps import Clean, Masters, Measured, clean_pixels, measure_sources
from prepipe.engines.detector.masters import gather, make_master
from prepipe.engines.products import read_master
from prepipe.engines.raw import list_ccds, read_ccd
from prepipe.model import Kind
from prepipe.simulate import Settings, read_truth, simulate_exposure
from prepipe.simulate.stars import StarField

CCD = 28
FIELDS = {"sparse": 0.56, "medium": 2.7, "dense": 22.0, "bulge": 50.0}
MAGNITUDES = {"bright": (16.5, 18.0), "faint": (18.0, 20.0), "faintest": (20.0, 21.0)}
GUESS_PX = 4.0
SNR = 5.0
Row = dict[str, Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, peer left out")
    parser.add_argument("--json", action="store_true", help="one JSON object with rows")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="prepipe-bench-") as name:
        masters, centre = _camera_frames(Path(name))
        for field, crowding in FIELDS.items():
            clean, stars = _exposed(Path(name) / field, crowding, masters, centre)
            rows += _measured(
                field,
                clean,
                stars,
                3 if options.quick else 9,
                not options.quick and field != "bulge",
            )
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        for row in rows:
            print(f"{row['name']:48s} {row['value']:10.3f} {row['unit']}")


def _measured(field: str, clean: Clean, stars: np.ndarray, repeats: int, peer: bool) -> list[Row]:
    noise = clean.background.median_rms
    measured = measure_sources(clean, GUESS_PX, SNR)
    sources = measured.sources

    def fit() -> Any:
        return fit_stars(clean.image, clean.frame.mask, sources, measured.psf, noise**2, SNR)

    fitted = fit()
    first = np.arange(len(sources))
    clear = (sources.flags & ~SourceFlag.NEIGHBOUR) == 0
    told = {
        "aperture": (sources.x, sources.y, sources.flux, clear),
        "psf": (fitted.sources.x[first], fitted.sources.y[first], fitted.flux[first], clear),
    }
    rows = [
        _row(
            f"core_ms.aperture.{field}",
            1e3 * _median(lambda: measure_sources(clean, GUESS_PX, SNR), repeats),
            "ms",
        ),
        _row(f"core_ms.psf.{field}", 1e3 * _median(fit, repeats), "ms"),
        _row(f"sources.{field}", len(sources), ""),
        _row(f"companions.{field}", fitted.companions, ""),
    ]
    if peer:
        begin = time.process_time()
        told["photutils"] = _photutils(clean, measured)
        rows.append(_row(f"core_ms.photutils.{field}", 1e3 * (time.process_time() - begin), "ms"))
    for method, result in told.items():
        rows += _scatter(field, method, stars, *result)
    return rows


def _scatter(
    field: str,
    method: str,
    stars: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    flux: np.ndarray,
    clear: np.ndarray,
) -> list[Row]:
    """Errors of the brightest true star at each source, by its magnitude."""
    distance, source = cKDTree(np.column_stack([x, y])).query(
        np.column_stack([stars["x"], stars["y"]]), distance_upper_bound=1.5
    )
    order = np.argsort(stars["flux_e"])
    order = order[np.isfinite(distance[order])]
    true = np.full(x.size, -1)
    true[source[order]] = order
    good = clear & (true >= 0) & (flux > 0.0)
    good &= stars["size_arcsec"][true] == 0.0
    mag, error = stars["mag"][true[good]], -2.5 * np.log10(flux[good] / stars["flux_e"][true[good]])
    error -= np.median(error[(mag > 16.0) & (mag < 18.0)])
    rows = []
    for name, (low, high) in MAGNITUDES.items():
        here = 1e3 * error[(mag >= low) & (mag < high)]
        about = np.clip(here - np.median(here), -500.0, 500.0)
        mad = 1.4826 * np.median(np.abs(about))
        rows += [
            _row(f"scatter_mmag.{field}.{name}.{method}", mad, "mmag"),
            _row(f"rms_mmag.{field}.{name}.{method}", np.sqrt(np.mean(about**2)), "mmag"),
            _row(f"bias_mmag.{field}.{name}.{method}", np.median(here), "mmag"),
        ]
    return rows


def _photutils(clean: Clean, measured: Measured) -> tuple[np.ndarray, ...]:
    sources, image = measured.sources, clean.image.astype(float)
    stars = measured.psf.stars
    isolated = stars[sources.flags[stars] == 0]
    chosen = isolated[np.argsort(-sources.snr[isolated])[:100]]
    reach = 30
    inside = (np.minimum(sources.x, sources.y) > reach) & (sources.x < image.shape[1] - reach)
    chosen = chosen[(inside & (sources.y < image.shape[0] - reach))[chosen]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = Table({"x": sources.x[chosen], "y": sources.y[chosen]})
        cutouts = extract_stars(NDData(image), table, size=25)
        epsf, _ = EPSFBuilder(oversampling=2, maxiters=5, progress_bar=False)(cutouts)
        unfit = SourceFlag.SATURATED | SourceFlag.BAD_PIXEL | SourceFlag.NO_CENTROID
        used = np.flatnonzero((sources.flags & unfit) == 0)
        start = QTable(
            {"x": sources.x[used], "y": sources.y[used], "flux": sources.flux[used].clip(10.0)}
        )
        fit = PSFPhotometry(
            epsf,
            fit_shape=(9, 9),
            grouper=SourceGrouper(2.0 * measured.psf.fwhm_px),
            aperture_radius=measured.psf.fwhm_px,
        )
        bad = (clean.frame.mask & (Mask.BAD | Mask.SATURATED | Mask.DEAD | Mask.CORRUPT)) != 0
        error = np.sqrt(clean.background.median_rms**2 + image.clip(0.0))
        told = fit(image, error=error, mask=bad, init_params=start)
    clear = (sources.flags[used] & ~SourceFlag.NEIGHBOUR) == 0
    return (*(np.asarray(told[name]) for name in ("x_fit", "y_fit", "flux_fit")), clear)


def _camera_frames(work: Path) -> tuple[Masters, tuple[float, float]]:
    """Masters of the CCD, and where its centre points to."""
    camera = load_camera("decam")
    frames = [
        simulate_exposure(Settings(ccds=(CCD,), kind=kind), index, work / "raw")
        for kind in (Kind.ZERO, Kind.DOME_FLAT)
        for index in range(3)
    ]
    for group in gather(frames, camera)[0]:
        make_master(group, work / "masters", camera)
    nothing = StarField.generate(0.0, -90.0, radius_deg=0.01)
    path = simulate_exposure(Settings(ccds=(CCD,), stars=nothing), 0, work / "pointing")
    raw = read_ccd(path, list_ccds(path, camera)[0][0], camera)
    layout = camera.layout(raw.header, raw.pixels)
    ny, nx = layout.trimmed_shape
    wcs = Tpv.from_header(camera.wcs_header(raw.header, layout))
    ra, dec = wcs.pixel_to_sky(np.array([nx / 2]), np.array([ny / 2]))
    made = {p.name.partition(".")[0]: read_master(p) for p in (work / "masters").rglob("*.fz")}
    masters = Masters(made["bias"][0], made["domeflat"][0], made["bias"][1])
    return masters, (float(ra[0]), float(dec[0]))


def _exposed(
    work: Path, crowding: float, masters: Masters, centre: tuple[float, float]
) -> tuple[Clean, np.ndarray]:
    camera = load_camera("decam")
    stars = StarField.generate(*centre, radius_deg=0.35, crowding=crowding)
    path = simulate_exposure(Settings(ccds=(CCD,), stars=stars), 0, work)
    raw = read_ccd(path, list_ccds(path, camera)[0][0], camera)
    layout = camera.layout(raw.header, raw.pixels)
    clean = clean_pixels(raw, layout, camera, masters, GUESS_PX)
    return clean, read_truth(path).stars_on(CCD)


def _median(work: Callable[[], object], repeats: int) -> float:
    took = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        took.append(time.process_time() - begin)
    return statistics.median(took)


def _row(name: str, value: Any, unit: str) -> Row:
    return {"name": name, "value": round(float(value), 4), "unit": unit}


if __name__ == "__main__":
    sys.exit(main())
