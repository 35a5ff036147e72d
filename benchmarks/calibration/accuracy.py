"""How far a calibrated CCD is from the truth: its product and source table, nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sep
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from scipy.spatial import cKDTree

from calibration.fields import Field, lamp_level, true_flat
from prepipe.calibrate.flags import Mask
from prepipe.cameras import load_camera
from prepipe.engines.names import catalogue_paths
from prepipe.engines.products import read_master

Floats = NDArray[np.float64]
Image = NDArray[np.float32]
Figures = dict[str, float]

MATCHED_SNR = 7.7
"""Signal to noise above which detections are compared."""
NEAR_LIMIT = (9.0, 11.0)
"""Signal to noise, by the truth, of the sources that completeness is counted on."""
BRIGHT, MEDIUM = (16.5, 18.0), (18.0, 20.0)
BRIGHT_SKY = 0.25
"""Light of sources, in units of the sky, above which a pixel is no longer sky."""


@dataclass(frozen=True)
class Product:
    """A calibrated CCD as the engine wrote it."""

    image: Image
    mask: NDArray[np.uint8]
    weight: Image
    cards: fits.Header
    table: fits.FITS_rec

    @classmethod
    def read(cls, path: Path) -> Product:
        """Read the product and its source table."""
        with fits.open(path, memmap=False) as hdus:
            planes = [hdus[name].data for name in ("IMAGE", "MASK", "WEIGHT")]
            cards = hdus["IMAGE"].header
        with fits.open(catalogue_paths(path, "fits")[0], memmap=False) as hdus:
            return cls(*planes, cards, hdus[1].data)


@dataclass(frozen=True)
class Expected:
    """What the calibrated CCD should be.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
        e-, flat-fielded, sky included.
    variance : ndarray of float32, shape (ny, nx)
        e-^2; photons, read noise, digitisation, and both masters.
    factor : float
        Electrons in the calibrated image for one that a typical pixel of all CCDs collects.
    """

    image: Image
    variance: Image
    factor: float

    @classmethod
    def of(cls, field: Field, masters: Path, zeros: int, flats: int) -> Expected:
        """Work it out; the level of the master flat is the engine's own choice."""
        flat = true_flat(field)
        master = read_master(next(masters.rglob("*flat*.fits*")))[0]
        factor = float(np.median(flat / master))
        flat = flat / np.float32(factor)
        variance = field.charge + field.dark_variance * np.float32(1.0 + 1.0 / zeros)
        variance += field.charge**2 / np.float32(60_000.0 * flats)
        return cls(field.charge / flat, variance / flat**2, factor)


def detrending(field: Field, product: Product, expected: Expected) -> Figures:
    """Image and weight against the truth, on the sky."""
    sky = field.observation.sky_e * expected.factor
    good = (product.mask == 0) & (field.cosmic == 0.0) & (expected.image < (1 + BRIGHT_SKY) * sky)
    good &= np.isfinite(product.weight) & (product.weight > 0)
    off = (product.image - expected.image)[good].astype(np.float64)
    return {
        "isr.rms_over_noise": math.sqrt(
            float(np.square(off).mean() / expected.variance[good].mean())
        ),
        "isr.pull": float(np.std(off * np.sqrt(product.weight[good]))),
        "isr.mean_offset": float(off.mean()),
    }


def cosmic_rays(field: Field, hit: NDArray[np.bool_], usable: NDArray[np.bool_]) -> Figures:
    """A map of cosmic rays against the true one; star cores are those of S/N above 20."""
    noise = np.sqrt(field.charge + field.dark_variance)
    real = field.cosmic > 0.0
    plain = (field.cosmic > 5.0 * noise) & usable
    false = hit & usable & ~real
    cores = _cores(field)
    row, column = cores[:, 0], cores[:, 1]
    beside, near = binary_dilation(real, np.ones((3, 3), bool)), binary_dilation(real, iterations=3)
    response = true_flat(field)
    dim = response < 0.7 * np.median(response)
    touched = [
        bool(false[r - 1 : r + 2, c - 1 : c + 2].any()) and not near[r, c]
        for r, c in zip(row, column, strict=True)
    ]
    return {
        "found": float(hit[plain].mean()),
        "false": float((false & ~beside & ~dim).sum()),
        "false_in_bad_columns": float((false & ~beside & dim).sum()),
        "beside": float((false & beside).sum()),
        "star_cores": float(sum(touched)),
    }


def headline(field: Field, product: Product, expected: Expected) -> Figures:
    """Zero point and seeing against the truth."""
    truth = field.observation.zero_point + 2.5 * math.log10(expected.factor / lamp_level(field))
    seeing_px = float(product.cards["SEEING"]) / load_camera("decam").pixel_scale
    return {
        "zero_point_error_mmag": 1e3 * (float(product.cards["ZEROPNT"]) - truth),
        "seeing_error": seeing_px / field.seeing_px - 1.0,
    }


def detection(field: Field, product: Product, expected: Expected) -> Figures:
    """Completeness and unmatched detections, ours and those of sep on the same image."""
    fwhm = field.seeing_px
    mask = product.mask != 0
    image = np.ascontiguousarray(product.image)
    sky = sep.Background(image, mask=mask, bw=64, bh=64)
    image = image - sky.back()
    sep.set_extract_pixstack(3_000_000)
    theirs = sep.extract(image, 1.5, err=sky.rms(), mask=mask, deblend_cont=0.005)
    noise = float(sky.globalrms)
    figures = {}
    lists = {
        "": (product.table["X"] - 1.0, product.table["Y"] - 1.0),
        "_sep": (theirs["x"], theirs["y"]),
    }
    usable = ~binary_dilation((product.mask & ~np.uint8(Mask.COSMIC_RAY)) != 0, iterations=4)
    for name, places in lists.items():
        x, y = (np.asarray(column, np.float64) for column in places)
        flux, error, _ = sep.sum_circle(image, x, y, fwhm, err=noise, gain=1.0)
        chosen = (flux > MATCHED_SNR * error) & _at(usable, x, y)
        figures |= _compared(field, (x[chosen], y[chosen]), noise, usable, expected, name)
    return figures


def scatter(field: Field, product: Product, expected: Expected) -> Figures:
    """Positions and fluxes of isolated stars against the truth and against their formal errors."""
    truth, table = field.truth, product.table
    places = np.stack([truth.x, truth.y], axis=-1)
    tree = cKDTree(places)
    distance, nearest = tree.query(np.stack([table["X"] - 1.0, table["Y"] - 1.0], axis=-1))
    fit = (distance < 0.5 * field.seeing_px) & (table["FLAGS"] == 0) & truth.is_star[nearest]
    figures: Figures = {}
    for name, (low, high) in {"bright": BRIGHT, "medium": MEDIUM}.items():
        some = fit & (truth.mag[nearest] > low) & (truth.mag[nearest] < high)
        rows = np.flatnonzero(some)
        alone = [_alone(field, tree, places, int(nearest[row])) for row in rows]
        rows = rows[np.array(alone, bool)] if len(rows) else rows
        if len(rows) < 5:
            continue
        star = nearest[rows]
        dx = np.concatenate(
            [table["X"][rows] - 1.0 - truth.x[star], table["Y"][rows] - 1.0 - truth.y[star]]
        )
        sigma = np.tile(table["POSERR"][rows].astype(float), 2)
        flux = table["FLUX"][rows] / (truth.flux_e[star] * expected.factor)
        mag = -2.5 * np.log10(flux)
        error = 2.5 / math.log(10.0) * table["FLUXERR"][rows] / table["FLUX"][rows]
        off = mag - np.median(mag)
        figures |= {
            f"centroid.{name}_mas": 262.6 * _spread(dx),
            f"centroid.{name}_over_formal": _spread(dx / sigma),
            f"photometry.{name}_mmag": 1e3 * _spread(off),
            f"photometry.{name}_over_formal": _spread(off / error),
            f"photometry.{name}_offset_mmag": 1e3 * float(np.median(mag)),
            f"stars.{name}": float(len(rows)),
        }
    return figures


def wcs_error_mas(field: Field, wcs: WCS) -> float:
    """Rms distance of a WCS from the truth on a grid."""
    x, y, ra, dec = field.grid()
    found_ra, found_dec = wcs.wcs_pix2world(x, y, 0)
    east = (found_ra - ra) * np.cos(np.radians(dec))
    return 3.6e6 * math.sqrt(float((east**2 + (found_dec - dec) ** 2).mean()))


def _compared(
    field: Field,
    places: tuple[Floats, Floats],
    noise: float,
    usable: NDArray[np.bool_],
    expected: Expected,
    name: str,
) -> Figures:
    truth, fwhm = field.truth, field.seeing_px
    # Of a Moffat profile of beta 3, what lies within one FWHM.
    core = truth.fwhm_px / (2.0 * math.sqrt(2.0 ** (1.0 / 3.0) - 1.0))
    enclosed = 1.0 - (1.0 + (fwhm / core) ** 2) ** -2.0
    flux = truth.flux_e * expected.factor * enclosed
    snr = flux / np.sqrt(flux + math.pi * fwhm**2 * noise**2)
    inside = _at(usable, truth.x, truth.y)
    real = np.stack([truth.x, truth.y], axis=-1)
    found = np.stack(places, axis=-1)
    visible = snr > 0.4 * MATCHED_SNR
    away = cKDTree(real[visible]).query(found)[0]
    faint = inside & (snr > NEAR_LIMIT[0]) & (snr < NEAR_LIMIT[1])
    missed = cKDTree(found).query(real[faint])[0]
    return {
        f"detection.unmatched{name}": float((away > 0.5 * fwhm).mean()),
        f"detection.completeness{name}": float((missed < 0.5 * fwhm).mean()),
        f"detection.count{name}": float(len(found)),
    }


def _cores(field: Field) -> NDArray[np.int64]:
    """Rows and columns of the centres of bright but not full stars."""
    truth = field.truth
    dark = field.observation.sky_e + float(np.median(field.dark_variance))
    # A fit of a Moffat profile of beta 3 sees 3.78 FWHM^2 of background.
    snr = truth.flux_e / np.sqrt(truth.flux_e + 3.78 * truth.fwhm_px**2 * dark)
    row, column = np.rint(truth.y).astype(np.int64), np.rint(truth.x).astype(np.int64)
    rows, columns = field.charge.shape
    inside = (row > 1) & (row < rows - 2) & (column > 1) & (column < columns - 2)
    good = np.flatnonzero(inside & truth.is_star & (snr > 20.0))
    good = good[~field.bled[row[good], column[good]]]
    return np.stack([row[good], column[good]], axis=-1)


def _alone(field: Field, tree: cKDTree, places: Floats, star: int) -> bool:
    """Whether what shines around a star has less than a hundredth of its light."""
    around = [k for k in tree.query_ball_point(places[star], 3.0 * field.seeing_px) if k != star]
    return bool(field.truth.flux_e[around].sum() < 0.01 * field.truth.flux_e[star])


def _at(plane: NDArray[np.bool_], x: Floats, y: Floats) -> NDArray[np.bool_]:
    rows, columns = plane.shape
    row = np.clip(np.rint(y).astype(np.int64), 0, rows - 1)
    column = np.clip(np.rint(x).astype(np.int64), 0, columns - 1)
    return plane[row, column]


def _spread(values: Floats) -> float:
    """Standard deviation, by the median absolute deviation."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))
