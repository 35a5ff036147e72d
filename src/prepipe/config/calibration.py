"""How a CCD is calibrated, and when its result is good."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from prepipe.config.engines import EXTERNAL_ENGINES
from prepipe.config.section import Section

__all__ = ["BiasChange", "Calibration", "FlatChange", "Limits", "ProductForm", "Rescue"]

_ENGINE = rf"^(builtin|{'|'.join(EXTERNAL_ENGINES)}|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$"


class Rescue(Section):
    """What is tried when a CCD's WCS failed and others tell where it looked."""

    search_arcsec: float = Field(
        15.0, gt=0, description="search around the pointing error that others found"
    )
    relaxed_search_arcsec: float = Field(
        25.0, gt=0, description="and once more with this radius and the limits below"
    )
    relaxed_rms_mas: float = Field(
        275.0, gt=0, description="largest residual accepted then, milli-arcsec"
    )
    relaxed_max_mag: float | None = Field(
        None, examples=[14.2], description="only reference stars brighter than this then"
    )


class ProductForm(Section):
    """In what form calibrated CCDs are written."""

    wcs: Literal["tpv", "sip"] = Field(
        "tpv", description="distortion as TPV, or as SIP within 1 mas of it"
    )
    catalogue: Literal["fits", "parquet", "both"] = Field(
        "fits", description="source table as FITS, Parquet, or both"
    )
    pixels: Literal["quantised", "float"] = Field(
        "quantised",
        description="in steps of an eighth of the noise, or float: to the last bit, uncompressed",
    )


class BiasChange(Section):
    """A new master bias that differs more from the last good one is held until accepted by hand."""

    shift_adu: float = Field(1.0, ge=0, description="median of the difference, ADU")
    rms_adu: float = Field(1.0, ge=0, description="its rms beyond the noise of both, ADU")
    deviating: float = Field(
        0.005, ge=0, le=1, description="fraction of the pixels beyond 5 sigma of that rms"
    )


class FlatChange(Section):
    """A new dome flat that differs more from the last good one is held until accepted by hand."""

    shift: float = Field(0.003, ge=0, description="median of the difference, both flats being 1")
    rms: float = Field(0.003, ge=0, description="its rms beyond the noise of both")
    deviating: float = Field(
        0.005, ge=0, le=1, description="fraction of the pixels beyond 5 sigma of that rms"
    )


class Calibration(Section):
    """How a CCD is calibrated."""

    engine: str = Field(
        "builtin",
        pattern=_ENGINE,
        description="what reduces a CCD: builtin, photpipe, hscpipe, lsst, or module:name of an "
        "engine of one's own",
    )
    reference: Path | None = Field(
        None,
        examples=["gaia.fits"],
        description="star catalogue: FITS, CSV or Parquet with ra, dec and a magnitude",
    )
    columns: dict[str, str] = Field(
        {}, description='its columns, where not recognised: {ra = "RA_J2000", mag = "rmag"}'
    )
    search_arcsec: float = Field(75.0, gt=0, description="largest pointing error looked for")
    max_order: Literal[1, 2, 3] = Field(
        3, description="highest order of the correction of the header's distortion, if stars allow"
    )
    detection_snr: float = Field(5.0, gt=1, description="faintest source, in sigma")
    photometry: Literal["aperture", "psf"] = Field(
        "aperture",
        description="psf fits overlapping stars together, for crowded fields; aperture is faster",
    )
    seeing_guess_arcsec: float = Field(1.1, gt=0, description="seeing to begin with")
    masters: Literal["nearest", "night"] = Field(
        "nearest",
        description="which bias and flat a CCD takes: the nearest night's, or night (only those "
        "of its own); where there is none it goes on without, and is yellow",
    )
    days: int = Field(30, ge=0, description="masters further away in time than this are not used")
    old_days: int = Field(
        7, ge=0, description="a bias or flat further away than this makes the CCD yellow"
    )
    crosstalk: Path | None = Field(
        None,
        examples=["DECam_xtalk_20130606.txt"],
        description="table of crosstalk: the observatory's, or a CSV of victim,source,coefficient",
    )
    crosstalk_between: bool = Field(
        False, description="subtract the crosstalk of other CCDs, too, where they are at hand"
    )
    linearity: Path | None = Field(
        None,
        examples=["linearity_table_v0.4.fits"],
        description="linearity: the observatory's FITS, or a CSV of ccd,amplifier,adu,linear_adu",
    )
    bad_pixels: Path | None = Field(
        None,
        examples=["bad_pixels"],
        description="map of bad pixels (ECSV, FITS, CSV), or a directory of maps",
    )
    bias_change: BiasChange = BiasChange()
    flat_change: FlatChange = FlatChange()
    rescue: Rescue = Rescue()
    output: ProductForm = ProductForm()

    @property
    def master_days(self) -> int:
        """How many nights away a master may be."""
        return 0 if self.masters == "night" else self.days


class Limits(Section):
    """A CCD is green below the first figure, yellow below the second, orange below the third."""

    seeing_arcsec: tuple[float, float, float] = Field(
        (1.5, 2.0, 3.0), description="seeing, FWHM in arcsec"
    )
    wcs_rms_mas: tuple[float, float, float] = Field(
        (100.0, 200.0, 350.0), description="astrometric residual, milli-arcsec"
    )
    zero_point_scatter: tuple[float, float, float] = Field(
        (0.08, 0.15, 0.3), description="scatter of the zero point's stars, mag"
    )
    ellipticity: tuple[float, float, float] = Field(
        (0.15, 0.25, 0.4), description="ellipticity of the stars"
    )

    extinction_mag: tuple[float, float, float] = Field(
        (0.7, 1.5, 3.0), description="light lost against a clear sky at the zenith, mag"
    )

    sky_fraction: tuple[float, float, float] = Field(
        (0.2, 0.3, 0.6), description="sky, as a part of what saturates a pixel: twilight, moon"
    )

    @model_validator(mode="after")
    def _ascending(self) -> Limits:
        for name, limits in self:
            if list(limits) != sorted(limits):
                raise ValueError(f"{name}: the three limits must ascend")
        return self
