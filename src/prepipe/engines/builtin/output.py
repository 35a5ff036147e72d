"""What a reduction leaves on disk: image, mask and weight with its WCS and quality, and sources."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prepipe import __version__
from prepipe.calibrate.detector.weight import inverse_variance
from prepipe.calibrate.flags import Mask
from prepipe.calibrate.stars.psf import Psf
from prepipe.config import ProductForm
from prepipe.engines.base import Outcome
from prepipe.engines.builtin.buffers import Buffers
from prepipe.engines.builtin.catalogue import write_catalogues
from prepipe.engines.builtin.sky import Astrometry, Photometry, Results
from prepipe.engines.builtin.steps import Masters
from prepipe.engines.builtin.wcs import wcs_cards
from prepipe.engines.products import NOISE_STEPS, Card, Plane, write_image
from prepipe.engines.raw import RawCcd
from prepipe.errors import HeaderError
from prepipe.model import Packet, Reduction

__all__ = ["write_products"]

WEIGHT_STEPS = 256.0
"""Steps to the weight of a sky pixel: 0.2 % there, and 20 % where a star has a hundredth of it."""

MAG_PER_RELATIVE_ERROR = 2.5 / math.log(10.0)


def write_products(
    path: Path,
    raw: RawCcd,
    results: Results,
    outcome: Outcome,
    reference: str,
    form: ProductForm | None = None,
    buffers: Buffers | None = None,
) -> None:
    """Write the calibrated CCD to `path` and its source table beside it.

    Parameters
    ----------
    path : Path
    raw : RawCcd
    results : Results
    outcome : Outcome
    reference : str
        Name of the reference catalogue.
    form : ProductForm, optional
        The usual one if not given.
    buffers : Buffers, optional
        Memory for the compressed planes.

    Raises
    ------
    StorageError
        If they cannot be written.
    """
    form = form or ProductForm()
    cards = [
        *_quality_cards(raw, results, outcome.reduction),
        *_grade_cards(outcome),
        *_provenance_cards(raw, results, reference),
    ]
    # The table first: a product under its final name is complete.
    table_cards = [*_exposure_cards(raw), *(card for card in cards if card[0] != "BUNIT")]
    write_catalogues(path, form.catalogue, _columns(raw, results), table_cards)
    write_image(path, *raw.original_cards(), _planes(results, form), cards, buffers)


def _planes(results: Results, form: ProductForm) -> dict[str, Plane]:
    clean = results.clean
    frame = clean.frame
    noise = clean.background.median_rms
    noise = noise if math.isfinite(noise) and noise > 0 else max(frame.read_noise, 1.0)
    image_step, weight_step = noise / NOISE_STEPS, 1.0 / (WEIGHT_STEPS * noise**2)
    # Nothing needs the variance any more.
    weight = inverse_variance(frame.variance, frame.mask, smallest=weight_step, out=frame.variance)
    wcs = _wcs_cards(results.astrometry, (weight.shape[0], weight.shape[1]), form)
    image_cards = (*wcs, ("INHERIT", True, "the primary header holds here too"))
    weight_cards = (*wcs, ("BUNIT", "electron-2", "1 / variance"))
    quantised = form.pixels == "quantised"
    return {
        "IMAGE": Plane(frame.image, image_step if quantised else None, image_cards),
        "MASK": Plane(frame.mask, None, (*wcs, *_mask_cards())),
        "WEIGHT": Plane(weight, weight_step if quantised else None, weight_cards),
    }


def _wcs_cards(astrometry: Astrometry, shape: tuple[int, int], form: ProductForm) -> list[Card]:
    wcs = astrometry.wcs
    if wcs is None:
        return []
    try:
        cards = wcs_cards(wcs, shape, form.wcs)
    except HeaderError:
        cards = wcs_cards(wcs, shape, "tpv")  # CTYPE says which it is
    if astrometry.solved:
        cards.append(("RADESYS", "ICRS", "frame of the reference catalogue"))
    return cards


def _mask_cards() -> list[Card]:
    return [(f"BIT{bit.value.bit_length() - 1}", bit.name, "meaning of this bit") for bit in Mask]


def _exposure_cards(raw: RawCcd) -> list[Card]:
    exposure = raw.exposure
    return [
        ("EXPNUM", exposure.number, "exposure number"),
        ("CCDNUM", raw.ccd.number, "CCD number"),
        ("OBJECT", exposure.field, "field"),
        ("FILTER", exposure.band, "band"),
        ("EXPTIME", exposure.exposure_s, "[s] open-shutter time"),
        ("DATE-OBS", exposure.start.replace(tzinfo=None).isoformat(), "start, UTC"),
        ("RADESYS", "ICRS", "frame of RA and DEC"),
    ]


def _grade_cards(outcome: Outcome) -> list[Card]:
    grade, flags = outcome.grade, outcome.reduction.flags
    return [
        ("GRADE", grade.colour.value, "green, yellow, orange or red"),
        *((f"WHY{n}", reason, "") for n, reason in enumerate(grade.reasons, start=1)),
        *((f"QFLAG{n}", flag, "") for n, flag in enumerate(flags, start=1)),
    ]


def _provenance_cards(raw: RawCcd, results: Results, reference: str) -> list[Card]:
    known = results.masters.corrections
    cards: list[Card] = [
        ("PROCTYPE", "calibrated", "data processing level"),
        ("PREPIPE", __version__, "version that made this"),
        ("BIASFILE", results.masters.bias_name or "none", "bias subtracted"),
        ("FLATFILE", results.masters.flat_name or "none", "dome flat divided by"),
        *_nights_cards(results.masters),
        ("XTALKFIL", known.crosstalk_name or "none", "crosstalk subtracted"),
        ("LINFILE", known.linearity_name or "none", "linearity corrected"),
        ("BPMFILE", known.bad_pixels_name or "none", "bad pixels masked"),
        ("REFCAT", reference or "none", "reference catalogue"),
    ]
    if known.ghost_ccds is not None:
        cards.append(("XTALKNUM", known.ghost_ccds, "other CCDs whose crosstalk was subtracted"))
    if raw.packet is not None:
        cards.append(("PPCODEC", raw.packet.codec, "codec that brought the pixels"))
        cards += _packing_cards(raw.packet)
        if (noise := raw.packing_noise) is not None:
            cards.append(("PPNOISE", noise.original_adu, "[adu] rms of the sky before packing"))
            cards.append(("PPADDED", noise.added, "noise added as a star sees it / noise"))
    return cards


def _packing_cards(packet: Packet) -> list[Card]:
    """What a packet tells of its codec; each card only where it tells it."""
    asked = packet.parameters.get("asked")
    told = {**(asked if isinstance(asked, dict) else {}), **packet.parameters}
    known: list[tuple[str, str, type, str]] = [
        ("PPPRESET", "preset", str, "of the codec"),
        ("PPFILL", "fill", bool, "noise filled in where it was rounded away"),
        ("PPRATIO", "ratio", float, "bytes of the pixels / bytes sent"),
        ("PPRMSSIG", "rms_error_sigma", float, "rms error of packing / noise"),
    ]
    return [
        (key, told[name], note)
        for key, name, kind, note in known
        if isinstance(told.get(name), kind)
    ]


def _nights_cards(masters: Masters) -> list[Card]:
    nights = {"BIASAGE": masters.bias_nights, "FLATAGE": masters.flat_nights}
    comment = "nights between the exposure and it"
    return [(key, count, comment) for key, count in nights.items() if count is not None]


def _quality_cards(raw: RawCcd, results: Results, reduction: Reduction) -> list[Card]:
    exposure, frame = raw.exposure, results.clean.frame
    integrated = None
    if reduction.zero_point is not None and exposure.exposure_s > 0:
        integrated = reduction.zero_point + 2.5 * math.log10(exposure.exposure_s)
    figures: list[tuple[str, float | int | str | None, str]] = [
        ("BUNIT", "electron", "unit of the pixels"),
        ("GAIN", 1.0, "[e-/e-] of these pixels"),
        ("RAWGAIN", frame.gain, "[e-/adu] median of the amplifiers"),
        ("RDNOISE", frame.read_noise, "[e-] read noise"),
        ("MAGZERO", integrated, "[mag] of 1 e- in this image"),
        ("ZEROPNT", reduction.zero_point, "[mag] of 1 e-/s"),
        ("ZEROSCAT", reduction.zero_point_scatter, "[mag] scatter of its stars"),
        ("ZERONUM", reduction.zero_point_stars, "stars of the zero point"),
        ("APFACTOR", results.photometry.factor, "whole flux / flux in the main aperture"),
        ("MAGLIM", reduction.limiting_mag, "[mag] 5 sigma, point source"),
        ("PHOTOM", "aperture" if results.measured.fitted is None else "psf", "of the zero point"),
        ("SEEING", reduction.seeing_arcsec, "[arcsec] FWHM"),
        ("ELLIPTIC", reduction.ellipticity, "ellipticity of the stars"),
        *_psf_cards(reduction.seeing_arcsec, results.measured.psf),
        ("SKYADU", reduction.sky_adu, "[adu] median sky"),
        ("SKYNOISE", reduction.sky_noise_adu, "[adu] rms of the sky"),
        ("WCSOK", reduction.wcs_rms_mas is not None, "WCS solved against the catalogue"),
        ("WCSRMS", reduction.wcs_rms_mas, "[mas] residual of one coordinate"),
        ("WCSWORST", reduction.wcs_worst_mas, "[mas] largest formal error on the CCD"),
        ("WCSNUM", reduction.wcs_matches, "stars of the WCS"),
        ("WCSOFF", reduction.offset_arcsec, "[arcsec] pointing error found"),
        ("NSOURCES", reduction.n_sources, "sources detected"),
        ("NSATUR", reduction.n_saturated, "saturated pixels"),
        ("NCOSMIC", reduction.n_cosmic_rays, "pixels of cosmic rays"),
        ("NIGHT", str(exposure.night), "local date on which the night began"),
    ]
    return [(key, value, note) for key, value, note in figures if value is not None]


def _psf_cards(seeing_arcsec: float | None, psf: Psf) -> list[tuple[str, float | None, str]]:
    """How the stars vary over the CCD; the coefficients are those of `PsfMap`."""
    if seeing_arcsec is None or not psf.known:
        return []
    scale = seeing_arcsec / psf.fwhm_px
    smallest, largest = psf.map.fwhm_range_px
    cards: list[tuple[str, float | None, str]] = [
        ("SEEMIN", smallest * scale, "[arcsec] smallest FWHM on the CCD"),
        ("SEEMAX", largest * scale, "[arcsec] largest FWHM on the CCD"),
        ("ELLIP1", psf.ellipticity[0], "(xx-yy)/(xx+yy) of the stars"),
        ("ELLIP2", psf.ellipticity[1], "2xy/(xx+yy) of the stars"),
        ("ELLIPMAX", psf.map.largest_ellipticity, "largest ellipticity on the CCD"),
    ]
    terms = ("1", "u", "v", "u^2", "uv", "v^2")
    for name, values, what in (
        ("FWHM_", psf.map.fwhm_px * scale, "[arcsec] FWHM"),
        ("ELL1_", psf.map.e1, "ellipticity 1"),
        ("ELL2_", psf.map.e2, "ellipticity 2"),
    ):
        told = zip(values, terms, strict=False)
        cards += [(f"{name}{n}", float(c), f"{what}: {t}") for n, (c, t) in enumerate(told)]
    return cards


def _columns(raw: RawCcd, results: Results) -> dict[str, tuple[NDArray[Any], str]]:
    """Source table; pixel coordinates count from 1, as FITS does."""
    sources, astrometry, photometry = (
        results.measured.sources,
        results.astrometry,
        results.photometry,
    )
    ra, dec = np.full(len(sources), np.nan), np.full(len(sources), np.nan)
    if astrometry.wcs is not None and astrometry.solved:
        ra, dec = astrometry.wcs.pixel_to_sky(sources.x, sources.y)
    flux, error = sources.flux * photometry.factor, sources.flux_error * photometry.factor
    mag, mag_error = _magnitudes(flux, error, raw, photometry)
    single = np.float32
    return {
        "X": (sources.x + 1.0, "pixel"),
        "Y": (sources.y + 1.0, "pixel"),
        "RA": (ra, "deg"),
        "DEC": (dec, "deg"),
        "POSERR": (sources.position_sigma.astype(single), "pixel"),
        "FLUX": (flux.astype(single), "electron"),
        "FLUXERR": (error.astype(single), "electron"),
        "MAG": (mag.astype(single), "mag"),
        "MAGERR": (mag_error.astype(single), "mag"),
        "SNR": (sources.snr.astype(single), ""),
        "PEAK": (sources.peak.astype(single), "electron"),
        "XX": (sources.xx.astype(single), "pixel2"),
        "YY": (sources.yy.astype(single), "pixel2"),
        "XY": (sources.xy.astype(single), "pixel2"),
        "HLR": (sources.half_light_radius.astype(single), "pixel"),
        "FLAGS": (sources.flags.astype(np.int32), ""),
        **_profile_columns(raw, results),
        **_reference_columns(len(sources), astrometry, photometry),
    }


def _magnitudes(
    flux: NDArray[np.float64], error: NDArray[np.float64], raw: RawCcd, photometry: Photometry
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Magnitudes and their errors; NaN where the flux is not positive."""
    zero = math.nan if photometry.zero_point is None else photometry.zero_point.value
    with np.errstate(divide="ignore", invalid="ignore"):
        mag = zero - 2.5 * np.log10(flux / raw.exposure.exposure_s)
        mag_error = MAG_PER_RELATIVE_ERROR * error / flux
    mag[~np.isfinite(mag)] = np.nan
    mag_error[~np.isfinite(mag)] = np.nan
    return mag, mag_error


def _profile_columns(raw: RawCcd, results: Results) -> dict[str, tuple[NDArray[Any], str]]:
    """What fitted profiles tell, where they were fitted."""
    fitted, photometry = results.measured.fitted, results.photometry
    if fitted is None:
        return {}
    flux, error = fitted.flux * photometry.psf_factor, fitted.flux_error * photometry.psf_factor
    mag, mag_error = _magnitudes(flux, error, raw, photometry)
    columns = {
        "PSFFLUX": (flux, "electron"),
        "PSFFLUXERR": (error, "electron"),
        "PSFMAG": (mag, "mag"),
        "PSFMAGERR": (mag_error, "mag"),
        "PSFCHI2": (fitted.chi2, ""),
    }
    return {name: (values.astype(np.float32), unit) for name, (values, unit) in columns.items()}


def _reference_columns(
    count: int, astrometry: Astrometry, photometry: Photometry
) -> dict[str, tuple[NDArray[Any], str]]:
    """What the catalogue says of the sources that the WCS was matched with."""
    matched = np.zeros(count, np.bool_)
    ra, dec, mag = (np.full(count, np.nan) for _ in range(3))
    solution, stars = astrometry.solution, astrometry.stars
    if solution is not None and stars is not None and solution.accepted:
        matched[solution.source] = True
        ra[solution.source] = stars.ra[solution.reference]
        dec[solution.source] = stars.dec[solution.reference]
        if len(photometry.reference_mag) == len(solution.source):
            mag[solution.source] = photometry.reference_mag
    return {
        "MATCHED": (matched, ""),
        "REFRA": (ra, "deg"),
        "REFDEC": (dec, "deg"),
        "REFMAG": (mag.astype(np.float32), "mag"),
    }
