"""What external pipelines need to be told, each in a table of its own."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

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
    time_limit_s: float = Field(900.0, gt=0, description="a run that takes longer is killed")


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
    time_limit_s: float = Field(900.0, gt=0, description="a program that takes longer is killed")
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
    time_limit_s: float = Field(900.0, gt=0, description="a program that takes longer is killed")
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
