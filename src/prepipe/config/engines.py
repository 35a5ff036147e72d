"""What external pipelines need to be told, each in a table of its own."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

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
    time_limit_s: float = Field(900.0, gt=0, description="a run that takes longer is killed")


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
