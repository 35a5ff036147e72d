"""Real archive frames against their own surveys' calibration, and against sep on the same pixels.

    python benchmarks/real_frames.py [--quick] [--json] [--pictures DIR]

The frames lie in ../shared/data beside the checkout: SDSS Stripe 82 in five bands with the
stars of that sky, a DECam crop of the Community Pipeline with Gaia, and raw DECam crops of a
field that no catalogue there covers. Pointings are put off on purpose before they are solved.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fitsio
import numpy as np
import sep
from astropy.convolution import Gaussian2DKernel
from astropy.io import fits
from astropy.table import Table, vstack
from astropy.wcs import WCS, FITSFixedWarning
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.spatial import cKDTree

from prepipe.calibrate.detector.overscan import overscan_levels, overscan_noise
from prepipe.cameras import load_camera
from prepipe.config import Calibration
from prepipe.engines.base import Order, Outcome
from prepipe.engines.builtin.reduce import carry_out
from prepipe.engines.builtin.steps import Masters, clean_pixels, measure_sources
from prepipe.engines.raw import list_ccds, read_ccd
from prepipe.model import PointingHint

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
OFFSET_ARCSEC = (18.0, -24.0)
SNR = 5.0
Row = dict[str, Any]


@dataclass(frozen=True)
class Frame:
    """What came of one real frame.

    Parameters
    ----------
    outcome : Outcome
    catalogue : ndarray
        Source table of the product.
    rows : list of dict
        Figures measured on it.
    """

    outcome: Outcome
    catalogue: np.ndarray
    rows: list[Row]


def main() -> int:
    """Measure, print, and draw if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one SDSS band and three raw CCDs")
    parser.add_argument("--json", action="store_true", help="one JSON object with rows")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="also draw, into DIR")
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"no real frames at {DATA}: put the archive data there first", file=sys.stderr)
        return 1
    warnings.simplefilter("ignore", FITSFixedWarning)
    with tempfile.TemporaryDirectory(prefix="prepipe-real-") as name:
        work = Path(name)
        bands = {band: sdss_frame(band, work) for band in ("r" if options.quick else "ugriz")}
        rows = [row for frame in bands.values() for row in frame.rows]
        rows += community_pipeline_crop(work).rows
        rows += raw_crops(work, 3 if options.quick else 9)
        rows += same_pixels_as_another_reduction(work)
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)
        draw_zero_points(bands, options.pictures / "real-zero-points.png")
        draw_residuals(bands, options.pictures / "real-astrometry.png")
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        for row in rows:
            print(f"{row['name']:66s} {row['value']:10.3f} {row['unit']}")
    return 0


def sdss_frame(band: str, work: Path) -> Frame:
    """One band of an SDSS field, pointed 30 arcsec off."""
    raw = work / f"fpC-{band}.fit"
    with fits.open(DATA / f"sdss/fpC-004192-{band}4-0300.fit.gz") as hdus:
        survey_wcs = WCS(hdus[0].header)
        hdus[0].header["CRVAL1"] += OFFSET_ARCSEC[0] / 3600.0
        hdus[0].header["CRVAL2"] += OFFSET_ARCSEC[1] / 3600.0
        hdus.writeto(raw, overwrite=True)
    settings = Calibration(reference=DATA / "refcats/sdss_stripe82_stars.fits", detection_snr=SNR)
    outcome = carry_out(Order(raw, "sdss", settings, work / "products", hdu=0))
    found = outcome.reduction
    table = fitsio.read(found.catalogue)
    header = fitsio.read_header(found.product, ext="IMAGE")
    fit = fits.getdata(DATA / "sdss/tsField-004192-4-40-0300.fit", 1)[0]
    index = "ugriz".index(band)
    # Magnitude of 1 ADU/s, tsField: -(aa + kk airmass); the gain makes it one of electrons.
    survey = -(fit["aa"][index] + fit["kk"][index] * fit["airmass"][index])
    survey += 2.5 * math.log10(header["RAWGAIN"])
    expected = math.sqrt(found.sky_adu / fit["gain"][index] + fit["dark_variance"][index])
    name = f"SDSS {band}"
    rows = [
        _row(f"{name}: WCS rms", found.wcs_rms_mas, "mas"),
        _row(f"{name}: WCS stars", found.wcs_matches),
        *_against(survey_wcs, found.product, name),
        _row(f"{name}: zero point scatter", found.zero_point_scatter, "mag"),
        _row(f"{name}: zero point stars", found.zero_point_stars),
        _row(f"{name}: zero point - survey's", found.zero_point - survey, "mag"),
        _row(f"{name}: sky noise / that of gain and dark variance", found.sky_noise_adu / expected),
        _row(f"{name}: seeing", found.seeing_arcsec, "arcsec"),
        _row(f"{name}: depth, 5 sigma", found.limiting_mag, "mag"),
        _row(f"{name}: stars one mag above the depth found", _completeness(outcome, band)),
        *_against_sep([raw], "sdss", [0], name, SNR),
    ]
    return Frame(outcome, table, rows)


def community_pipeline_crop(work: Path) -> Frame:
    """A DECam crop with a galaxy on it and few stars, solved by the pointing others would tell."""
    root = DATA / "legacysurvey/testcase8"
    original = next(root.glob("images/**/*_ooi_*.fits"))
    raw = work / "ooi.fits"
    with fits.open(original) as hdus:
        survey_wcs = WCS(hdus[1].header)
        image = fits.ImageHDU(hdus[1].data, hdus[1].header)
        image.header["CRVAL1"] += OFFSET_ARCSEC[0] / 3600.0
        image.header["CRVAL2"] += OFFSET_ARCSEC[1] / 3600.0
        primary = fits.PrimaryHDU(header=hdus[0].header)
        fits.HDUList([primary, image]).writeto(raw, output_verify="silentfix")
    chunks = [Table.read(path) for path in sorted(root.glob("gaia/*.fits"))]
    vstack([chunk for chunk in chunks if len(chunk)]).write(work / "gaia.fits")
    settings = Calibration(reference=work / "gaia.fits", detection_snr=2 * SNR)
    dec = math.radians(float(survey_wcs.wcs.crval[1]))
    told = -OFFSET_ARCSEC[0] * math.cos(dec), -OFFSET_ARCSEC[1]
    hints = tuple(PointingHint("others", *told, relaxed) for relaxed in (False, True))
    order = Order(raw, "decam-cp", settings, work / "products", hdu=1, hints=hints)
    outcome = carry_out(order)
    found = outcome.reduction
    weight = fitsio.read(str(next(root.glob("images/**/*_oow_*.fits"))), ext=1)
    survey = fits.getdata(root / "survey-ccds-1.fits.gz", 1)[0]
    header = fitsio.read_header(found.product, ext="IMAGE")
    pipeline = float(survey["zpt"]) + 2.5 * math.log10(header["RAWGAIN"])
    name = "DECam CP r"
    rows = [
        _row(f"{name}: WCS rms", found.wcs_rms_mas, "mas"),
        _row(f"{name}: WCS stars", found.wcs_matches),
        *_against(survey_wcs, found.product, name),
        _row(f"{name}: zero point - Legacy Surveys'", found.zero_point - pipeline, "mag"),
        _row(f"{name}: error of the zero point", _error_of_mean(found), "mag"),
        _row(f"{name}: sky noise / pipeline's", found.sky_noise_adu * np.sqrt(np.median(weight))),
        *_against_sep([raw], "decam-cp", [1], name, 2 * SNR),
    ]
    return Frame(outcome, fitsio.read(found.catalogue), rows)


def raw_crops(work: Path, count: int) -> list[Row]:
    """Overscan, noise and sources of raw DECam crops; no catalogue covers their field."""
    camera = load_camera("decam")
    path = DATA / "decam_raw/history_reduced_c4d_200306_000415_ori.fits.fz"
    rows = []
    ccds = list_ccds(path, camera)[:count]
    for hdu, ccd in ccds:
        raw = read_ccd(path, hdu, camera)
        layout = camera.layout(raw.header, raw.pixels)
        amplifier = layout.amplifiers[0]
        outcome = carry_out(Order(path, "decam", Calibration(), work / "products", hdu=hdu))
        found = outcome.reduction
        name = f"DECam raw {ccd.name}"
        noise = overscan_noise(raw.pixels, amplifier.overscan)
        expected = math.hypot(math.sqrt(found.sky_adu / amplifier.gain), noise)
        rows += [
            _row(f"{name}: overscan", np.mean(overscan_levels(raw.pixels, layout)[0]), "ADU"),
            _row(f"{name}: read noise / header's", noise * amplifier.gain / amplifier.read_noise),
            _row(f"{name}: sky noise / photon and read noise", found.sky_noise_adu / expected),
        ]
    hdus = [hdu for hdu, _ in ccds]
    name = f"DECam raw, {len(ccds)} CCDs"
    return rows + _against_sep([path] * len(hdus), "decam", hdus, name, 2 * SNR)


def same_pixels_as_another_reduction(work: Path) -> list[Row]:
    """Raw S12 against the same pixels of the LSST stack's calibrated exposure."""
    camera = load_camera("decam")
    path = DATA / "decam_raw/cutout_c4d_200306_000415_ori.fits.fz"
    hdu = next(hdu for hdu, ccd in list_ccds(path, camera) if ccd.number == 23)
    found = carry_out(Order(path, "decam", Calibration(), work / "products", hdu=hdu)).reduction
    image, mask = (fitsio.read(found.product, ext=ext) for ext in ("IMAGE", "MASK"))
    ny, nx = image.shape
    box = np.s_[133 : 133 + ny, 136 : 136 + nx]
    with fits.open(DATA / "decam_raw/cutout_calexp-0941420_23.fits") as hdus:
        theirs, their_mask, variance = (hdus[k].data[box] for k in (1, 2, 3))
    good = (mask == 0) & (their_mask == 0)
    ours = image[good] / fitsio.read_header(found.product, ext="IMAGE")["RAWGAIN"]
    pattern = np.std(ours - theirs[good]) / found.sky_adu
    name = "DECam raw S12 / LSST stack"
    return [
        _row(f"{name}: correlation of pixels", np.corrcoef(ours, theirs[good])[0, 1]),
        _row(f"{name}: their noise / root of their variance", _noise(theirs[good], variance[good])),
        _row(f"{name}: noise of ours, not flat-fielded / theirs", ours.std() / theirs[good].std()),
        _row(f"{name}: pattern of the flat", 100.0 * pattern, "% of the sky"),
        _row(
            f"{name}: edge masked by both", 100.0 * np.mean((mask != 0)[their_mask & 16 > 0]), "%"
        ),
    ]


def _noise(pixels: np.ndarray, variance: np.ndarray) -> float:
    return float(pixels.std() / np.sqrt(np.median(variance)))


def _error_of_mean(found: Any) -> float:
    return float(found.zero_point_scatter / math.sqrt(found.zero_point_stars))


def _against(survey: WCS, product: str, name: str) -> list[Row]:
    """Our WCS against the survey's on a grid over the frame."""
    header = fits.Header(dict(fitsio.read_header(product, ext="IMAGE")))
    ours = WCS(header, fix=False)
    ny, nx = header["ZNAXIS2"] if "ZNAXIS2" in header else header["NAXIS2"], header["NAXIS1"]
    x, y = (grid.ravel() for grid in np.meshgrid(np.linspace(0, nx, 21), np.linspace(0, ny, 21)))
    ra, dec = ours.all_pix2world(x, y, 0)
    true_ra, true_dec = survey.all_pix2world(x, y, 0)
    east = (ra - true_ra) * np.cos(np.radians(true_dec)) * 3.6e6
    north = (dec - true_dec) * 3.6e6
    apart = math.hypot(float(east.mean()), float(north.mean()))
    bend = math.sqrt(0.5 * (float(east.var()) + float(north.var())))
    return [
        _row(f"{name}: WCS - survey's, mean", apart, "mas"),
        _row(f"{name}: WCS - survey's, rms about the mean", bend, "mas"),
    ]


@dataclass(frozen=True)
class Detections:
    """Pixels (x, y) of the sources on an image, and how many its negative has."""

    at: np.ndarray
    on_negative: int


def _against_sep(
    frames: list[Path], camera: str, hdus: list[int], name: str, snr: float
) -> list[Row]:
    """Sources that we and sep have, both by matched filter at one threshold, on one image.

    What is found on the negative is no source, but noise that passed for one.
    """
    ours, peers, common, back = [], [], 0, 0
    for path, hdu in zip(frames, hdus, strict=True):
        mine, theirs, fwhm_px = _detected(path, camera, hdu, snr)
        ours.append(mine)
        peers.append(theirs)
        common += _shared(theirs.at, mine.at, fwhm_px)
        back += _shared(mine.at, theirs.at, fwhm_px)
    count, peer_count = (sum(len(found.at) for found in all_) for all_ in (ours, peers))
    false, peer_false = (sum(found.on_negative for found in all_) for all_ in (ours, peers))
    return [
        _row(f"{name}: sources", count),
        _row(f"{name}: sources of sep", peer_count),
        _row(f"{name}: sep's found by us", common / max(peer_count, 1)),
        _row(f"{name}: ours found by sep", back / max(count, 1)),
        _row(f"{name}: on the negative", false),
        _row(f"{name}: on the negative, sep", peer_false),
    ]


def _detected(
    path: Path, camera_name: str, hdu: int, snr: float
) -> tuple[Detections, Detections, float]:
    camera = load_camera(camera_name)
    raw = read_ccd(path, hdu, camera)
    layout = camera.layout(raw.header, raw.pixels)
    fwhm_px = Calibration().seeing_guess_arcsec / camera.pixel_scale
    clean = clean_pixels(raw, layout, camera, Masters(), fwhm_px)
    fwhm_px = measure_sources(clean, fwhm_px, snr).psf.fwhm_px or fwhm_px
    if not math.isfinite(fwhm_px):
        fwhm_px = Calibration().seeing_guess_arcsec / camera.pixel_scale
    usable = clean.frame.mask == 0
    negative = replace(clean, image=-clean.image)
    found = [measure_sources(part, fwhm_px, snr).sources for part in (clean, negative)]
    at = [_clear(sources.x, sources.y, usable) for sources in found]
    pixels = np.ascontiguousarray(clean.frame.image, np.float32)
    sky = sep.Background(pixels, mask=~usable, bw=64, bh=64)
    peers = []
    for sign in (1.0, -1.0):
        theirs = sep.extract(
            sign * (pixels - sky.back()),
            snr,
            err=sky.rms(),
            mask=~usable,
            minarea=1,
            filter_kernel=Gaussian2DKernel(fwhm_px / 2.3548).array,
            filter_type="matched",
        )
        peers.append(_clear(theirs["x"], theirs["y"], usable))
    return Detections(at[0], len(at[1])), Detections(peers[0], len(peers[1])), fwhm_px


def _clear(x: np.ndarray, y: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Those whose pixel says something of the sky."""
    rows, columns = (
        np.clip(np.rint(a).astype(int), 0, n - 1) for a, n in zip((y, x), usable.shape, strict=True)
    )
    return np.stack([x, y], axis=1)[usable[rows, columns]]


def _shared(these: np.ndarray, those: np.ndarray, radius: float) -> int:
    """How many of these have one of those within the radius."""
    if not len(these) or not len(those):
        return 0
    distance, _ = cKDTree(those).query(these)
    return int(np.count_nonzero(distance < radius))


def _completeness(outcome: Outcome, band: str) -> float:
    """Fraction of the catalogue's stars, down to a magnitude above the depth, that are found."""
    found = outcome.reduction
    stars = fits.getdata(DATA / "refcats/sdss_stripe82_stars.fits", 1)
    header = fits.Header(dict(fitsio.read_header(found.product, ext="IMAGE")))
    mask = fitsio.read(found.product, ext="MASK")
    ra = np.asarray(stars["ra"], np.float64)
    near = np.abs((ra - header["CRVAL1"] + 180.0) % 360.0 - 180.0) < 0.3
    near &= np.abs(stars["dec"] - header["CRVAL2"]) < 0.3
    near &= stars[band] < found.limiting_mag - 1.0
    x, y = WCS(header, fix=False).all_world2pix(ra[near], stars["dec"][near], 0)
    ny, nx = mask.shape
    inside = (x > 10) & (x < nx - 10) & (y > 10) & (y < ny - 10)
    table = fitsio.read(found.catalogue)
    ours = np.stack([table["X"] - 1, table["Y"] - 1], axis=1)
    return _shared(np.stack([x[inside], y[inside]], axis=1), ours, 4.0) / max(inside.sum(), 1)


def draw_zero_points(bands: dict[str, Frame], path: Path) -> None:
    """Our magnitudes minus the catalogue's, band by band."""
    figure, panels = _panels(len(bands))
    for panel, (band, frame) in zip(panels, bands.items(), strict=True):
        table = frame.catalogue[frame.catalogue["MATCHED"]]
        clean = table["FLAGS"] == 0
        off = table["MAG"] - table["REFMAG"]
        panel.axhline(0, color="0.7", lw=1)
        panel.errorbar(
            *(table["REFMAG"][clean], off[clean], table["MAGERR"][clean]),
            fmt="o", ms=3, lw=0.8, color="C0", label="clean",
        )  # fmt: skip
        panel.plot(table["REFMAG"][~clean], off[~clean], "x", ms=4, color="C1", label="flagged")
        found = frame.outcome.reduction
        panel.set(ylim=(-0.3, 0.3), xlabel=f"{band} of the catalogue, mag")
        panel.set_title(f"{band}: scatter {1e3 * found.zero_point_scatter:.0f} mmag", fontsize=9)
    panels[0].set_ylabel("ours - catalogue, mag")
    panels[0].legend(fontsize=7, loc="lower left")
    _save(figure, path)


def draw_residuals(bands: dict[str, Frame], path: Path) -> None:
    """Where the stars of the WCS lie off the catalogue, band by band."""
    figure, panels = _panels(len(bands))
    for panel, (band, frame) in zip(panels, bands.items(), strict=True):
        table = frame.catalogue[frame.catalogue["MATCHED"]]
        east = (table["RA"] - table["REFRA"]) * np.cos(np.radians(table["DEC"])) * 3.6e6
        north = (table["DEC"] - table["REFDEC"]) * 3.6e6
        panel.axhline(0, color="0.7", lw=1)
        panel.axvline(0, color="0.7", lw=1)
        panel.plot(east, north, "o", ms=3, color="C0")
        found = frame.outcome.reduction
        panel.set(xlim=(-200, 200), ylim=(-200, 200), xlabel="east, mas", aspect="equal")
        panel.set_title(f"{band}: rms {found.wcs_rms_mas:.0f} mas", fontsize=9)
    panels[0].set_ylabel("north, mas")
    _save(figure, path)


def _panels(count: int) -> tuple[Any, list[Any]]:
    figure = Figure(figsize=(2.6 * count + 0.6, 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, sharey=True, squeeze=False)[0])


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=90)


def _row(name: str, value: Any, unit: str = "") -> Row:
    return {"name": name, "value": round(float(value), 4), "unit": unit}


if __name__ == "__main__":
    sys.exit(main())
