"""The same work by others: the classical chain of programs, and good Python libraries.

Both begin with the raw file that the engine reads and the same masters, and end with a compressed
image, a weight and a table of sources with positions and a zero point.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import astroscrappy
import fitsio
import numpy as np
import sep
from astropy import units
from astropy.coordinates import SkyCoord, match_coordinates_sky
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from prepipe.calibrate.sky.refcat import ReferenceCatalogue
from prepipe.engines.builtin.reduce import Stopwatch
from prepipe.model import Layout

PROGRAMS = ("source-extractor", "scamp", "missfits", "fpack")
CONVOLUTION = "/usr/share/source-extractor/gauss_3.0_5x5.conv"
PARAMETERS = """NUMBER X_IMAGE Y_IMAGE XWIN_IMAGE YWIN_IMAGE ERRAWIN_IMAGE ERRBWIN_IMAGE
ERRTHETAWIN_IMAGE ALPHAWIN_J2000 DELTAWIN_J2000 FLUX_AUTO FLUXERR_AUTO MAG_AUTO FLUX_APER(5)
FLUXERR_APER(5) FLUX_RADIUS FWHM_IMAGE ELLIPTICITY ELONGATION X2WIN_IMAGE Y2WIN_IMAGE XYWIN_IMAGE
FLAGS"""
APERTURES_FWHM = (0.5, 1.0, 1.5, 2.0, 3.0)

Image = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Job:
    """What a chain is given.

    Parameters
    ----------
    raw : Path
    hdu : int
    header : astropy.io.fits.Header
        Of the trimmed CCD.
    layout : Layout
    bias, flat : ndarray, shape (ny, nx)
    stars : ReferenceCatalogue
        Near the CCD, at its date.
    fwhm_px : float
    """

    raw: Path
    hdu: int
    header: fits.Header
    layout: Layout
    bias: Image
    flat: Image
    stars: ReferenceCatalogue
    fwhm_px: float


@dataclass(frozen=True)
class Result:
    """CPU seconds of each step, and what came out."""

    seconds: dict[str, float]
    wcs: WCS
    cosmic_rays: NDArray[np.bool_]


def cpu_seconds() -> float:
    """User and system time of this process and of its children that ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def programs_there() -> bool:
    """Whether the classical chain can run.

    Raises
    ------
    SystemExit
        If a program is missing and ``CI=true``.
    """
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if not missing:
        return True
    message = f"{', '.join(missing)} not found: apt install source-extractor scamp missfits"
    if os.environ.get("CI") == "true":
        raise SystemExit(message)
    print(f"{message}; the classical chain is left out", file=sys.stderr)
    return False


def classical(job: Job, work: Path) -> Result:
    """astropy, numpy in double precision, astroscrappy, and the programs of Astromatic."""
    work.mkdir(parents=True, exist_ok=True)
    watch = Stopwatch(cpu_seconds)
    image_path, weight_path = work / "image.fits", work / "image.weight.fits"
    reference = write_ldac_reference(work / "reference.cat", job.stars)
    (work / "default.param").write_text("\n".join(PARAMETERS.split()) + "\n")
    with watch.timing("read"), fits.open(job.raw, memmap=False) as hdus:
        pixels = hdus[job.hdu].data
    with watch.timing("detrend"):
        image, variance, mask = _detrended(pixels, job, np.float64)
    with watch.timing("cosmic rays"):
        hit, clean = astroscrappy.detect_cosmics(
            image,
            inmask=mask,
            gain=1.0,
            readnoise=job.layout.amplifiers[0].read_noise,
            satlevel=_full_well(job),
        )
    with watch.timing("write"):
        weight = np.where(mask | hit, 0.0, 1.0 / variance)
        for path, plane in ((image_path, clean), (weight_path, weight)):
            fits.PrimaryHDU(plane.astype(np.float32), job.header).writeto(path, overwrite=True)
    with watch.timing("sources"):
        _extract(work, image_path, weight_path, "image.cat", job.fwhm_px)
    with watch.timing("astrometry"):
        scamp(work, "image.cat", reference)
        options = ["-SAVE_TYPE", "REPLACE", "-WRITE_XML", "N", "-VERBOSE_TYPE", "QUIET"]
        _run(["missfits", image_path.name, *options], work)
    with watch.timing("sources again"):
        _extract(work, image_path, weight_path, "final.cat", job.fwhm_px)
    with watch.timing("photometry"):
        _zero_point(work / "final.cat", job)
    with watch.timing("pack"):
        _run(["fpack", "-F", "-q", "4", image_path.name, weight_path.name], work)
    with fits.open(work / "image.fits", memmap=False) as hdus:
        header = hdus[-1].header
    return Result(watch.seconds, WCS(header, fix=False), hit)


def libraries(job: Job, work: Path) -> Result:
    """fitsio, numpy in single precision, sep, astroscrappy once, an affine fit by hand."""
    work.mkdir(parents=True, exist_ok=True)
    watch = Stopwatch(cpu_seconds)
    with watch.timing("read"), fitsio.FITS(str(job.raw)) as file:
        pixels = file[job.hdu].read()
    with watch.timing("detrend"):
        image, variance, mask = _detrended(pixels, job, np.float32)
    with watch.timing("cosmic rays"):
        hit, image = astroscrappy.detect_cosmics(
            image,
            inmask=mask,
            gain=1.0,
            readnoise=job.layout.amplifiers[0].read_noise,
            satlevel=_full_well(job),
            niter=1,
        )
    with watch.timing("background"):
        sky = sep.Background(image, mask=mask, bw=64, bh=64)
        flat = image - sky.back()
        noise = sky.rms()
    with watch.timing("sources"):
        sep.set_extract_pixstack(3_000_000)
        found = sep.extract(flat, 1.5, err=noise, mask=mask)
        x, y = found["x"], found["y"]
        x, y, _ = sep.winpos(flat, x, y, np.full(len(x), job.fwhm_px / 2.355))
        for factor in APERTURES_FWHM:
            flux, _, _ = sep.sum_circle(flat, x, y, factor * job.fwhm_px, err=noise, gain=1.0)
        sep.flux_radius(flat, x, y, np.full(len(x), 6.0 * job.fwhm_px), 0.5, normflux=flux)
    with watch.timing("astrometry"):
        wcs = _affine(job, np.stack([x, y], -1), flux)
    with watch.timing("photometry"):
        ra, dec = wcs.wcs_pix2world(x, y, 0)
        _difference(job, ra, dec, flux)
    with watch.timing("write"):
        weight = np.where(mask | hit, 0, 1 / variance).astype(np.float32)
        path = str(work / "image.fits.fz")
        with fitsio.FITS(path, "rw", clobber=True) as file:
            file.write(image, compress="rice", qlevel=4)
            file.write(weight, compress="rice", qlevel=4)
            file.write((mask | hit).astype(np.uint8), compress="rice")
        fitsio.write(str(work / "image.cat"), found, clobber=True)
    return Result(watch.seconds, wcs, hit)


def write_ldac_reference(path: Path, stars: ReferenceCatalogue) -> Path:
    """The catalogue as SCAMP reads it with ``ASTREF_CATALOG FILE``."""
    error = (stars.position_error_mas / 3.6e6).astype(np.float32)
    columns = {
        "X_WORLD": ("D", "deg", stars.ra),
        "Y_WORLD": ("D", "deg", stars.dec),
        "ERRA_WORLD": ("E", "deg", error),
        "ERRB_WORLD": ("E", "deg", error),
        "MAG": ("E", "mag", stars.mag),
        "MAGERR": ("E", "mag", np.full(len(stars), 0.01)),
        "OBSDATE": ("D", "yr", np.full(len(stars), stars.epoch_year)),
    }
    table = fits.BinTableHDU.from_columns(
        [fits.Column(name, form, unit, array=a) for name, (form, unit, a) in columns.items()],
        name="LDAC_OBJECTS",
    )
    text = fits.Header([("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0)]).tostring(padding=False)
    head = fits.BinTableHDU.from_columns(
        [fits.Column("Field Header Card", f"{len(text)}A", array=[text])], name="LDAC_IMHEAD"
    )
    fits.HDUList([fits.PrimaryHDU(), head, table]).writeto(path, overwrite=True)
    return path


def scamp(work: Path, catalogue: str, reference: Path) -> int:
    """Solve; a ``.head`` appears beside the catalogue. The exit status."""
    options = {
        "ASTREF_CATALOG": "FILE",
        "ASTREFCAT_NAME": reference.name,
        "ASTREFMAG_KEY": "MAG",
        "ASTREFMAGERR_KEY": "MAGERR",
        "POSITION_MAXERR": "1.25",
        "POSANGLE_MAXERR": "0.5",
        "PIXSCALE_MAXERR": "1.02",
        "CHECKPLOT_TYPE": "NONE",
        "SOLVE_PHOTOM": "N",
        "WRITE_XML": "N",
        "VERBOSE_TYPE": "QUIET",
        "NTHREADS": "1",
    }
    command = ["scamp", catalogue, *(word for k, v in options.items() for word in (f"-{k}", v))]
    return _run(command, work, check=False)


def read_head(path: Path) -> fits.Header:
    """The cards that SCAMP wrote; an author's name in the remarks is not ASCII."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    cards = [line for line in lines if line[:8].strip() not in {"HISTORY", "COMMENT", "END", ""}]
    return fits.Header([fits.Card.fromstring(card) for card in cards])


def _detrended(
    pixels: NDArray[np.uint16], job: Job, dtype: type
) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.bool_]]:
    """Image, variance (e-^2) and mask: the textbook way, with the precision asked for."""
    shape = job.layout.trimmed_shape
    image, read = np.empty(shape, dtype), np.empty(shape, dtype)
    mask = np.empty(shape, bool)
    for amplifier in job.layout.amplifiers:
        assert amplifier.overscan is not None
        raw, place = pixels[amplifier.data.slices], amplifier.trimmed.slices
        level = np.median(pixels[amplifier.overscan.slices], axis=1).astype(dtype)
        level = np.convolve(np.pad(level, 7, mode="edge"), np.full(15, 1 / 15, dtype), "valid")
        image[place] = (raw.astype(dtype) - level[:, None] - job.bias[place]) * amplifier.gain
        read[place] = amplifier.read_noise**2
        mask[place] = raw >= amplifier.saturation
    flat = job.flat.astype(dtype)
    variance = (np.maximum(image, 0) + read) / flat**2
    return image / flat, variance, mask


def _full_well(job: Job) -> float:
    return min(a.saturation * a.gain for a in job.layout.amplifiers)


def _extract(work: Path, image: Path, weight: Path, catalogue: str, fwhm_px: float) -> None:
    options = {
        "CATALOG_NAME": catalogue,
        "CATALOG_TYPE": "FITS_LDAC",
        "PARAMETERS_NAME": "default.param",
        "FILTER_NAME": CONVOLUTION,
        "STARNNW_NAME": "/usr/share/source-extractor/default.nnw",
        "WEIGHT_TYPE": "MAP_WEIGHT",
        "WEIGHT_IMAGE": weight.name,
        "PHOT_APERTURES": ",".join(f"{2 * f * fwhm_px:.2f}" for f in APERTURES_FWHM),
        "GAIN": "1.0",
        "VERBOSE_TYPE": "QUIET",
    }
    words = (word for key, value in options.items() for word in (f"-{key}", value))
    _run(["source-extractor", image.name, "-c", "/dev/null", *words], work)


def _zero_point(catalogue: Path, job: Job) -> float:
    table = fitsio.read(str(catalogue), ext=2)
    return _difference(
        job, table["ALPHAWIN_J2000"], table["DELTAWIN_J2000"], table["FLUX_APER"][:, -1]
    )


def _difference(job: Job, ra: Floats, dec: Floats, flux: Floats) -> float:
    """Median difference of magnitudes to the reference stars within an arcsec."""
    good = flux > 0
    ours = SkyCoord(ra[good] * units.deg, dec[good] * units.deg)
    theirs = SkyCoord(job.stars.ra * units.deg, job.stars.dec * units.deg)
    index, away, _ = match_coordinates_sky(ours, theirs)
    near = away < 1.0 * units.arcsec
    mag = job.stars.mag[index[near]]
    return float(np.median(mag + 2.5 * np.log10(flux[good][near])))


def _affine(job: Job, places: Floats, flux: Floats) -> WCS:
    """Offset by the fullest bin of the brightest pairs, then an affine fit of all pairs."""
    wcs = WCS(job.header, fix=False)
    x, y = wcs.wcs_world2pix(job.stars.ra, job.stars.dec, 0)
    stars = np.stack([x, y], axis=-1)
    rows, columns = job.layout.trimmed_shape
    near = (x > -300) & (x < columns + 300) & (y > -300) & (y < rows + 300)
    stars, mag = stars[near], job.stars.mag[near]
    some, most = np.argsort(-flux)[:200], np.argsort(mag)[:300]
    apart = (stars[most][None] - places[some][:, None]).reshape(-1, 2)
    apart = apart[np.abs(apart).max(axis=1) < 300]
    counts, xs, ys = np.histogram2d(*apart.T, bins=75)
    i, j = np.unravel_index(counts.argmax(), counts.shape)
    offset = np.array([xs[i : i + 2].mean(), ys[j : j + 2].mean()])
    matrix, tree = np.array([[1.0, 0.0], [0.0, 1.0], offset]), cKDTree(stars)
    design = np.column_stack([places, np.ones(len(places))])
    for radius in (15.0, 8.0, 3.0, 1.5, 1.0):
        away, partner = tree.query(design @ matrix)
        pairs = away < radius
        matrix = np.linalg.lstsq(design[pairs], stars[partner[pairs]], rcond=None)[0]
    # Header pixel = matrix (true pixel): CD takes the linear part, CRPIX what remains.
    solved = wcs.deepcopy()
    linear = matrix[:2].T
    solved.wcs.cd = wcs.wcs.cd @ linear
    solved.wcs.crpix = np.linalg.solve(linear, wcs.wcs.crpix - 1.0 - matrix[2]) + 1.0
    return solved


def _run(command: Sequence[str], work: Path, *, check: bool = True) -> int:
    done = subprocess.run(
        command, cwd=work, check=check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return done.returncode
