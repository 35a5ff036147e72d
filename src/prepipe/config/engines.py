"""What external pipelines need to be told, each in a table of its own."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from prepipe.config.section import Section

__all__ = ["EXTERNAL_ENGINES", "Engines", "Hscpipe", "Lsst", "Photpipe"]

EXTERNAL_ENGINES = ("photpipe", "hscpipe", "lsst")
"""Pipelines of others that prepipe knows how to run."""


_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$"
_COLLECTION = r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*$"


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

    setup: Path | None = Field(
        None,
        examples=["/fred/hscpipe/setup.sh"],
        description="bash file that sets up hscPipe and its reference catalogue; unset: this "
        "process's own environment is used",
    )
    ingest: str = Field("hscIngestImages.py", description="program that registers a raw file")
    process: str = Field("hscProcessCcd.py", description="program that reduces a CCD")
    repository: Path | None = Field(
        None,
        examples=["/fred/hsc"],
        description="one repository that all nodes share; unset: each CCD has its own on its node",
    )
    calibrations: Path | None = Field(
        None,
        examples=["/fred/hsc/CALIB"],
        description="directory linked as CALIB into a CCD's own repository",
    )
    reference: Path | None = Field(
        None,
        examples=["/fred/hsc/ref_cats"],
        description="directory linked as ref_cats there; older ones take it from the setup",
    )
    mapper: str = Field("lsst.obs.hsc.HscMapper", description="class that a repository is of")
    rerun: str = Field("prepipe", pattern=_NAME, description="name of the rerun")
    config: Path | None = Field(
        None,
        examples=["minimal.py"],
        description="file of settings for the program that reduces (-C)",
    )
    time_limit_s: float = Field(
        500.0, gt=0, description="of one CCD; below cluster.time_limit_s, which ends the worker"
    )
    lock_wait_s: float = Field(
        300.0, gt=0, description="longest wait until others have written into a shared repository"
    )


class Lsst(Section):
    """The LSST Science Pipelines, run CCD by CCD: see docs/engines.md."""

    setup: Path | None = Field(
        None,
        examples=["/fred/lsst/setup.sh"],
        description="bash file that sets up the pipelines; unset: this process's own environment",
    )
    butler: str = Field("butler", description="program that keeps a repository")
    pipetask: str = Field("pipetask", description="program that runs a pipeline")
    repository: Path | None = Field(
        None,
        examples=["/fred/repo"],
        description="one repository that all nodes share; unset: each CCD has its own on its node",
    )
    seed: Path | None = Field(
        None,
        examples=["/fred/seed_repo"],
        description="repository with calibrations and reference catalogues that a CCD's own "
        "repository begins as; unset: it begins empty",
    )
    instrument: str = Field(
        "lsst.obs.decam.DarkEnergyCamera",
        examples=["lsst.obs.subaru.HyperSuprimeCam"],
        description="class of the instrument",
    )
    short_name: str = Field(
        "DECam", pattern=_NAME, examples=["HSC"], description="what the repository calls it"
    )
    inputs: tuple[str, ...] = Field(
        ("DECam/raw/all", "DECam/calib", "refcats"), description="collections that are read"
    )
    output: str = Field(
        "prepipe",
        pattern=_COLLECTION,
        description="collection that is written, one of each CCD below it",
    )
    pipeline: str = Field(
        "$AP_PIPE_DIR/pipelines/DECam/SingleFrame.yaml",
        examples=["$DRP_PIPE_DIR/pipelines/HSC/DRP-RC2.yaml#step1"],
        description="file of the pipeline, # and a subset of it if wanted; variables are those "
        "of the setup",
    )
    config: tuple[str, ...] = Field(
        (), examples=[["isr:doFringe=False"]], description="settings of its tasks (-c)"
    )
    product: tuple[str, ...] = Field(
        ("*/preliminary_visit_image/**/*.fits", "*/calexp/**/*.fits"),
        description="where below its collection the calibrated CCD may be written",
    )
    time_limit_s: float = Field(
        500.0, gt=0, description="of one CCD; below cluster.time_limit_s, which ends the worker"
    )
    lock_wait_s: float = Field(
        300.0, gt=0, description="longest wait until others have written into a shared repository"
    )


class Engines(Section):
    """Pipelines of others; the one named by calibration.engine is used."""

    own: dict[str, str | int | float | bool] = Field(
        {}, description="settings of an engine of one's own, which reads them in order.settings.own"
    )
    photpipe: Photpipe = Photpipe()
    hscpipe: Hscpipe = Hscpipe()
    lsst: Lsst = Lsst()
