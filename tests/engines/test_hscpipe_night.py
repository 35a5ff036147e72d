"""HSC packets through the cluster's end with hscPipe as its engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from stack_orders import HSC_RAW, calls, hsc_packet, setup_file

from prepipe.cluster import Ingest
from prepipe.compute import LocalCompute
from prepipe.config import Calibration, Cluster, Compute, Engines, Hscpipe, Site
from prepipe.store import Journal

GOOD, LOST = 55, 56
PROCESS = "hscProcessCcd.py"


def whole_frame(path: Path, header: fits.Header, south_arcsec: float) -> Path:
    """A raw frame of the size of a CCD, with the pointing of a header or south of that."""
    header = header.copy()
    header["CRVAL2"] -= south_arcsec / 3600.0
    fits.PrimaryHDU(np.full((4241, 2144), 2000, np.uint16), header).writeto(path)
    return path


@pytest.fixture
def site(tmp_path: Path, shared_data: Path) -> Site:
    header = fits.getheader(shared_data / HSC_RAW)
    landing = tmp_path / "landing"
    for ccd, south in ((GOOD, 0.0), (LOST, 20.0)):
        raw = whole_frame(tmp_path / f"{ccd}.fits", header, south)
        hsc_packet(landing, raw, ccd)
    for left in landing.glob("*.fits"):
        left.unlink()
    calibrations = tmp_path / "CALIB"
    calibrations.mkdir()
    (calibrations / "calibRegistry.sqlite3").touch()
    # 25 arcsec off, of which 30 are searched: the lost one, 45 off, finds nothing
    truth = f"{header['CRVAL1']},{header['CRVAL2'] + 25.0 / 3600.0}"
    setup = setup_file(tmp_path / "pipeline", STANDIN_TRUTH=truth)
    return Site(
        camera="hsc",
        cluster=Cluster(
            landing=landing,
            work=tmp_path / "cluster",
            products=tmp_path / "products",
            calibrations=tmp_path / "masters",
            poll_s=0.05,
        ),
        compute=Compute(scratch=str(tmp_path / "node")),
        calibration=Calibration(engine="hscpipe"),
        engines=Engines(hscpipe=Hscpipe(setup=setup, calibrations=calibrations)),
    )


def test_a_lost_ccd_is_found_with_what_its_neighbour_tells(site: Site, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    journal = Journal(tmp_path / "journal.sqlite")
    compute = LocalCompute(1)

    try:
        report = Ingest(site, journal, compute).run(once=True)
    finally:
        compute.close()

    assert report.failures == {}
    found = {row.key.ccd: row.reduction for row in journal.rows()}
    assert [found[ccd]["flags"] for ccd in (GOOD, LOST)] == [[], []]
    (tried,) = found[LOST]["wcs_tries"]
    assert (tried["rung"], tried["accepted"]) == ("neighbouring CCDs", True)
    assert found[LOST]["offset_north_arcsec"] == pytest.approx(45.0, abs=0.5)
    assert all(Path(found[ccd]["product"]).is_relative_to(tmp_path / "products") for ccd in found)
    # once the seeing of the first is known, others begin with it
    guesses = [words[words.index("-c") + 1] for words in calls(tmp_path / "pipeline", PROCESS)]
    assert (guesses[0], guesses[-1]) == ("isr.fwhm=1.10", "isr.fwhm=0.68")
