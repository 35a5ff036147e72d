"""The cluster's end: where packets land and what is done at once."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from prepipe.config.section import JournalUrl, Section

__all__ = ["Cluster"]


class Cluster(Section):
    """The cluster's end: where packets land and CCDs are calibrated."""

    landing: Path = Field(Path("landing"), description="directory that packets land in")
    work: Path = Field(
        Path("cluster"), description="prepipe's own directory here: journal, packets"
    )
    journal: JournalUrl | None = Field(
        None,
        examples=["postgresql+psycopg://prepipe@db.site/cluster"],
        description="PostgreSQL database for the journal (password in ~/.pgpass); unset: a file "
        "in work",
    )
    products: Path = Field(
        Path("cluster/products"),
        description="calibrated CCDs: utYYMMDD/CCD/FIELD.F.utYYMMDD.EXPNUM_CCD",
    )
    calibrations: Path = Field(
        Path("cluster/calibrations"), description="master biases and dome flats"
    )
    workers: int = Field(2, ge=1, description="CCDs calibrated at the same time")
    poll_s: float = Field(
        1.0, gt=0, description="seconds between two looks at the landing directory"
    )
    tries: int = Field(3, ge=1, description="a CCD that failed this often is quarantined")
    time_limit_s: float = Field(
        600.0, gt=0, description="a worker that takes longer over one CCD hangs and is replaced"
    )
    ccds_per_minute: float | None = Field(
        None,
        gt=0,
        examples=[62.0],
        description="begin no more CCDs than this a minute; unset: as many as find room",
    )
    under_way: int | None = Field(
        None,
        ge=1,
        examples=[60],
        description="CCDs handed over and not yet done, at most; unset: two more than can run",
    )
