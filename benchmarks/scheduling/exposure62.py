"""One exposure of 62 CCDs through the built-in engine on two cores of this machine."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from prepipe.cameras import load_camera
from prepipe.cluster import Ingest
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import write_packet
from prepipe.compute import LocalCompute
from prepipe.config import Calibration, Cluster, Site
from prepipe.engines.choice import open_engine
from prepipe.engines.detector.masters import gather, make_master
from prepipe.engines.raw import list_ccds, read_ccd
from prepipe.errors import InputError
from prepipe.model import Kind, Stage
from prepipe.simulate import Settings, simulate_exposure
from prepipe.store import Journal

CCDS = 62
WORKERS = 2
FEW = 8


def seconds(directory: Path, *, quick: bool) -> float:
    """Wall time from the first packet in the landing directory to the last product, s.

    With `quick` eight CCDs are simulated and calibrated, and the time is that of 62 by their
    number.
    """
    ccds = FEW if quick else CCDS
    site = _site(directory)
    packets = _night(directory, site, ccds)
    compute = LocalCompute(WORKERS, open_engine(site).warm_up)
    journal = Journal(site.cluster.work / "journal.sqlite")
    try:
        for packet in packets[:WORKERS]:  # workers warm up, and find what they share
            _land(packet, site)
        ingest = Ingest(site, journal, compute)
        ingest.run(once=True)
        for row in journal.rows(Stage.CALIBRATED):
            journal.return_to(row.key, Stage.LANDED)
        for packet in packets[WORKERS:]:
            _land(packet, site)
        begun = time.perf_counter()
        report = ingest.run(once=True)
        took = time.perf_counter() - begun
        assert len(report.calibrated) == ccds, report.failures
    finally:
        compute.close()
        journal.close()
    return took * CCDS / ccds


def _site(directory: Path) -> Site:
    return Site(
        cluster=Cluster(
            landing=directory / "landing",
            work=directory / "work",
            products=directory / "products",
            calibrations=directory / "masters",
            workers=WORKERS,
            poll_s=0.1,
        ),
        calibration=Calibration(reference=directory / "stars.fits"),
    )


def _night(directory: Path, site: Site, ccds: int) -> list[Path]:
    """Packets of one exposure of the sky, masters and catalogue being made on the way."""
    camera = load_camera("decam")
    sky = Settings(ccds=ccds)
    for kind in (Kind.ZERO, Kind.DOME_FLAT):
        frames = [
            simulate_exposure(replace(sky, kind=kind), index, directory / "raw")
            for index in range(2)
        ]
        for group in gather(frames, camera)[0]:
            with suppress(InputError):  # a dead CCD has none
                make_master(group, site.cluster.calibrations, camera)
    sky.star_field.write_reference(directory / "stars.fits")
    raw = simulate_exposure(sky, 0, directory / "raw")
    packed = []
    for hdu, _ in list_ccds(raw, camera):
        ccd = read_ccd(raw, hdu, camera)
        packet = pack_ccd(raw, hdu, ccd.exposure, ccd.ccd, "wavelet", {"preset": "fast"})
        packed.append(write_packet(directory / "packed", packet))
    return packed


def _land(packet: Path, site: Site) -> None:
    site.cluster.landing.mkdir(parents=True, exist_ok=True)
    packet.rename(site.cluster.landing / packet.name)
