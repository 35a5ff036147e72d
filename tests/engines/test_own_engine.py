"""The engine of docs/engines.md is short, and works as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from astropy.io import fits
from small_packets import packets

from prepipe.cluster import Ingest
from prepipe.compute import LocalCompute
from prepipe.config import Calibration, Cluster, Engines, Site
from prepipe.engines.choice import open_engine
from prepipe.store import Journal

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "engines.md"
PROGRAM = f"""#!{sys.executable}
import sys
from astropy.io import fits
with fits.open(sys.argv[1]) as hdus:
    if hdus[0].header["CCDNUM"] == 2:
        sys.exit("no flat for CCD 2")
    hdus[0].header["ASTRMS"] = 0.05
    hdus.writeto(sys.argv[2])
"""


@pytest.fixture
def example(tmp_path, monkeypatch) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "my_engine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    program = tmp_path / "reduce_ccd"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    return code


def test_it_has_fewer_than_60_lines(example):
    assert len(example.splitlines()) < 60


def test_its_ccds_are_calibrated_graded_and_quarantined_like_any_others(example, tmp_path):
    site = Site(
        cluster=Cluster(
            landing=tmp_path / "landing",
            work=tmp_path / "cluster",
            products=tmp_path / "products",
            calibrations=tmp_path / "calibrations",
            poll_s=0.02,
        ),
        calibration=Calibration(engine="my_engine:engine"),
        engines=Engines(own={"program": str(tmp_path / "reduce_ccd")}),
    )
    packets(site.cluster.landing, 941420, (1, 2))
    journal, compute = Journal(tmp_path / "j.sqlite"), LocalCompute(1, open_engine(site).warm_up)
    try:
        report = Ingest(site, journal, compute).run(once=True)
    finally:
        compute.close()
        journal.close()
    assert [str(grade.colour) for grade in report.calibrated.values()] == ["green"]
    assert "no flat for CCD 2" in next(iter(report.failures.values()))
    (product,) = (tmp_path / "products").rglob("*.fits")
    assert product.name == "COSMOS.g.ut200306.941420_1.fits"
    assert fits.getval(product, "ASTRMS") == 0.05
