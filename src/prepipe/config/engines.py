"""What external pipelines need to be told, each in a table of its own."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from prepipe.config.section import Section

__all__ = ["EXTERNAL_ENGINES", "Engines", "Hscpipe", "Lsst", "Photpipe"]

EXTERNAL_ENGINES = ("photpipe", "hscpipe", "lsst")
"""Pipelines of others that prepipe knows how to run."""


class Photpipe(Section):
    """photpipe, run CCD by CCD: see docs/engines.md."""

    sourceme: Path | None = Field(
        None,
        examples=["/fred/photpipe/config/DECAM/dwf/dwf.bash.sourceme"],
        description="bash file that sets its environment; unset: this process's own is used",
    )
    pipeloop: str = Field("pipeloop.pl", description="program that reduces, a path or a name")
    pipeview: str = Field("pipeview.pl", description="program that tells how it went")
    data: Path | None = Field(
        None,
        examples=["/fred/photpipe/data"],
        description="PIPE_DATA, shared by all nodes; unset: as the environment says",
    )
    node_local: bool = Field(
        False,
        description="reduce each CCD in a PIPE_DATA of its own on the node's disk: the shared "
        "one's rawdata is linked into it and its workspace copied, as far as `calibrations` says, "
        "and all else in it linked",
    )
    calibrations: tuple[str, ...] = Field(
        (
            "rawdata/{night}/{ccd}/bias.*",
            "rawdata/{night}/{ccd}/domeflat.*",
            "workspace/{night}/{ccd}/bias*",
            "workspace/{night}/{ccd}/domeflat*",
        ),
        description="node_local: what a CCD is reduced with",
    )
    instrument: str | None = Field(
        None, examples=["DECAM"], description="PIPE_INSTRUMENT; unset: as the environment says"
    )
    stages: tuple[str, ...] = Field(
        (), description='stages to run: ["FLATTEN", "WCSNON"]; empty: all that its stages.init has'
    )
    keys: dict[str, str] = Field(
        {}, description='further parameters, passed as -k: {WCSNON_CAT = "WEB2MASS_J"}'
    )
    expnum_digits: int = Field(
        0, ge=0, le=12, description="exposure numbers in its names have at least so many digits"
    )
    rms_max_arcsec: float | None = Field(
        None,
        examples=[0.25],
        gt=0,
        description="WCSNON_RMSMAX, largest residual accepted; unset: as its own parameters say",
    )
    image_ends: tuple[str, ...] = Field(
        (".fits",),
        min_length=1,
        description="how the calibrated image's name ends in its workspace; the first that is "
        "there becomes the product",
    )
    catalogue_ends: tuple[str, ...] = Field(
        (".dcmp",), description="the same of the source table, if there is one"
    )
    time_limit_s: float = Field(
        540.0,
        gt=0,
        description="a CCD that takes longer in all is given up and its programs are killed; less "
        "than cluster.time_limit_s",
    )

    @field_validator("calibrations")
    @classmethod
    def _below_the_data(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if not pattern or pattern.startswith("/") or ".." in pattern.split("/"):
                raise ValueError(f"{pattern!r} must be a path below PIPE_DATA")
        return patterns


class Hscpipe(Section):
    """hscPipe, run CCD by CCD: see docs/engines.md."""


class Lsst(Section):
    """The LSST Science Pipelines, run CCD by CCD: see docs/engines.md."""


class Engines(Section):
    """Pipelines of others; the one named by calibration.engine is used."""

    own: dict[str, str | int | float | bool] = Field(
        {}, description="settings of an engine of one's own, which reads them in order.settings.own"
    )
    photpipe: Photpipe = Photpipe()
    hscpipe: Hscpipe = Hscpipe()
    lsst: Lsst = Lsst()
