"""From a CCD that hscPipe or the LSST stack calibrated to a graded product."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

from astropy.io.fits import Header
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS

from prepipe import __version__
from prepipe.calibrate.sky.tpv import Tpv
from prepipe.cameras import Camera
from prepipe.engines.base import Order, Outcome
from prepipe.engines.external import Ran, graded
from prepipe.engines.names import IMAGE, product_path
from prepipe.engines.products import Card
from prepipe.engines.raw import RawCcd
from prepipe.engines.sanity import exposure_flags
from prepipe.engines.stack.image import StackImage, write_stack_image
from prepipe.errors import HeaderError
from prepipe.model import Reduction, WcsTry
from prepipe.quality.rescue import with_every_rung

__all__ = ["NO_MATCH", "Attempt", "finished"]

NO_MATCH = (
    "unable to match sources",
    "unable to solve astrometry",
    "unable to perform astrometry",
    "number of matches less than requested",
    "badastrometryfit",
    "matcherfailure",
)
"""What logs say, in lower case, when the astrometry found no match."""

FWHM_OF_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))


@dataclass(frozen=True)
class Attempt:
    """What a pipeline made of a CCD.

    Parameters
    ----------
    image : StackImage or None
    matched : bool
        Whether its astrometry found a match.
    """

    image: StackImage | None
    matched: bool

    @classmethod
    def of(cls, image: StackImage | None, ran: Ran) -> Attempt:
        """An image, and what the log of the run says."""
        if image is None:
            return cls(None, False)
        residual = image.number("WCS_RMS", "SFM_ASTROM_OFFSET_MEAN")
        if residual is not None:
            return cls(image, residual >= 0.0)
        return cls(image, not any(ran.says(text) for text in NO_MATCH))


def finished(
    order: Order,
    raw: RawCcd,
    camera: Camera,
    made: Attempt,
    engine: str,
    seeing_arcsec: float | None = None,
    tries: tuple[WcsTry, ...] = (),
) -> Outcome:
    """Write the product of a calibrated CCD, if there is one, and grade it.

    Parameters
    ----------
    order : Order
    raw : RawCcd
    camera : Camera
    made : Attempt
    engine : str
        Whose work it is.
    seeing_arcsec : float, optional
        FWHM as the pipeline told it elsewhere than in the image.
    tries : tuple of WcsTry
        Attempts at its WCS.

    Raises
    ------
    StorageError
        If the product cannot be written.
    """
    flags = exposure_flags(raw.exposure) + (() if made.matched else ("NO_WCS", "NO_MATCH"))
    image = made.image
    if image is None:
        reduction = Reduction(raw.exposure.number, raw.ccd.number, flags=flags, wcs_tries=tries)
        return graded(order, raw, with_every_rung(reduction, order.hints))
    product = product_path(order.products, raw.exposure, raw.ccd.number)
    product = product.with_name(product.name.removesuffix(IMAGE) + ".fits")
    wcs, odd = _wcs(image)
    shift = _pointing_error(raw, camera, wcs) if made.matched and wcs else None
    reduction = replace(
        _figures(image, raw),
        seeing_arcsec=seeing_arcsec if seeing_arcsec is not None else _seeing(image, camera),
        offset_arcsec=None if shift is None else math.hypot(*shift),
        offset_east_arcsec=None if shift is None else shift[0],
        offset_north_arcsec=None if shift is None else shift[1],
        wcs_tries=tries,
        product=str(product),
    )
    flags = tuple(dict.fromkeys((*flags, *odd, *_untold(reduction))))
    reduction = with_every_rung(replace(reduction, flags=flags), order.hints)
    outcome = graded(order, raw, reduction)
    kept = order.calibration.output.wcs == "sip"
    write_stack_image(product, image, {} if kept else wcs, _cards(outcome, engine))
    return outcome


def _untold(reduction: Reduction) -> tuple[str, ...]:
    """A flag for figures that the pipeline does not tell: those are no fault of the CCD."""
    figures = (reduction.seeing_arcsec, reduction.ellipticity, reduction.zero_point)
    return ("NOT_TOLD",) if None in figures else ()


def _wcs(image: StackImage) -> tuple[Mapping[str, float | str], tuple[str, ...]]:
    """Its WCS as a TPV; where there is none, nothing but a flag that says why."""
    try:
        return image.tpv_cards(), ()
    except HeaderError:
        return {}, ("WCS_IN_SIP" if "CTYPE1" in image.headers["IMAGE"] else "NO_WCS",)


def _pointing_error(
    raw: RawCcd, camera: Camera, wcs: Mapping[str, float | str]
) -> tuple[float, float] | None:
    """From where the header puts the middle of the CCD to where it lay, east and north, arcsec."""
    try:
        layout = camera.layout(raw.header, raw.pixels)
        nominal = Tpv.from_header(camera.wcs_header(raw.header, layout))
    except HeaderError:
        return None
    rows, columns = layout.trimmed_shape
    middle = (columns - 1) / 2, (rows - 1) / 2
    ra, dec = nominal.pixel_to_sky(*middle)
    # wcslib knows the high orders as well
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        true_ra, true_dec = WCS(Header(wcs)).all_pix2world(*middle, 0)
    east = ((float(true_ra - ra) + 180.0) % 360.0 - 180.0) * math.cos(math.radians(float(dec)))
    return 3600.0 * east, 3600.0 * float(true_dec - dec)


def _seeing(made: StackImage, camera: Camera) -> float | None:
    """FWHM by what the image tells, arcsec."""
    fwhm_px = made.number("SEEING_MODE")
    if fwhm_px is None and "psfSigma" in made.summary:
        fwhm_px = FWHM_OF_SIGMA * made.summary["psfSigma"]
    return None if fwhm_px is None or fwhm_px <= 0.0 else fwhm_px * camera.pixel_scale


def _figures(made: StackImage, raw: RawCcd) -> Reduction:
    zero_point = _zero_point(made, raw.exposure.exposure_s)
    scatter = made.number("MAGZERO_RMS") if zero_point is not None else None
    return Reduction(
        exposure=raw.exposure.number,
        ccd=raw.ccd.number,
        wcs_rms_mas=_residual_mas(made),
        wcs_matches=int(made.number("WCS_NOBJ", "NOBJ_MATCHED") or 0),
        zero_point=zero_point,
        zero_point_scatter=scatter,
        zero_point_stars=int(made.number("MAGZERO_NOBJ") or 0),
        ellipticity=made.number("ELL_MED"),
        sky_adu=made.number("BGMEAN", "SKYLEVEL"),
        sky_noise_adu=made.number("SKYSIGMA", "SIGMA_SKY"),
    )


def _residual_mas(made: StackImage) -> float | None:
    """Residual of the astrometry: hscPipe's own, or mean and scatter of the stack's distances."""
    rms = made.number("WCS_RMS")
    if rms is not None:
        return 1000.0 * rms if rms >= 0.0 else None
    mean = made.number("SFM_ASTROM_OFFSET_MEAN")
    scatter = made.number("SFM_ASTROM_OFFSET_STD")
    if mean is None or scatter is None:
        mean, scatter = (made.summary.get(f"astromOffset{name}") for name in ("Mean", "Std"))
    return None if mean is None or scatter is None else 1000.0 * math.hypot(mean, scatter)


def _zero_point(made: StackImage, exposure_s: float) -> float | None:
    """Magnitude of one count of the image per second."""
    if (zero_point := made.number("MAGZERO")) is not None:
        return zero_point
    whole = made.number("FLUXMAG0")
    if whole is not None and whole > 0.0 and exposure_s > 0.0:
        return 2.5 * math.log10(whole / exposure_s)
    integrated = made.summary.get("zeroPoint")
    counts = made.headers["IMAGE"].get("BUNIT") != "nJy"
    if integrated is not None and exposure_s > 0.0 and counts:
        return integrated - 2.5 * math.log10(exposure_s)
    return None


def _cards(outcome: Outcome, engine: str) -> list[Card]:
    """What prepipe adds to the header."""
    exposure, reduction, graded = outcome.exposure, outcome.reduction, outcome.grade
    figures = (
        ("SEEING", reduction.seeing_arcsec, "[arcsec] FWHM"),
        ("WCSRMS", reduction.wcs_rms_mas, "[mas] residual of the WCS"),
        ("ZEROPNT", reduction.zero_point, "[mag] of one count per second"),
        ("WCSOFF", reduction.offset_arcsec, "[arcsec] pointing error found"),
    )
    return [
        ("PREPIPE", __version__, "version that brought this"),
        ("ENGINE", engine, "pipeline that made this"),
        ("EXPNUM", exposure.number, "exposure number"),
        ("CCDNUM", outcome.ccd.number, "CCD number"),
        ("NIGHT", str(exposure.night), "local date on which the night began"),
        *((key, value, note) for key, value, note in figures if value is not None),
        ("GRADE", graded.colour.value, "green, yellow, orange or red"),
        *((f"WHY{n}", reason, "") for n, reason in enumerate(graded.reasons, start=1)),
        *((f"QFLAG{n}", flag, "") for n, flag in enumerate(reduction.flags, start=1)),
    ]
