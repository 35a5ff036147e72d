"""A night in miniature: a simulated telescope, both ends at work, everything on this machine.

It uses what a site uses, in the same way: `push` and `ingest` run side by side while
exposures appear one after the other.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import fitsio

from prepipe.cameras import load_camera
from prepipe.cli.journals import journal_of
from prepipe.cli.settings import commented_toml
from prepipe.cluster import Ingest
from prepipe.compute import open_compute
from prepipe.config import Calibration, Cluster, Link, Pack, Site, Telescope
from prepipe.engines.builtin.warm_up import warm_up
from prepipe.engines.detector.masters import gather, make_master
from prepipe.errors import ConfigError
from prepipe.files import atomic_write
from prepipe.link import open_link
from prepipe.model import Colour, Kind, Mark, Stage
from prepipe.quality.picture import Tile, draw_focal_planes, thumbnail
from prepipe.simulate import Settings, simulate_exposure
from prepipe.store import CcdKey, CcdRow, Journal
from prepipe.store.status import NightStatus, night_status
from prepipe.telescope import Push

__all__ = ["DemoNight", "run_demo"]

MARK = ".prepipe-demo"
CALIBRATION_FRAMES = 3
PATIENCE_S = 600.0
"""A night in which nothing moves for so long is given up."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class DemoNight:
    """What came of it.

    Parameters
    ----------
    site : Site
    status : NightStatus
        Both journals seen as one.
    rows : tuple of CcdRow
        The object exposures' CCDs, newest exposure first, as the cluster knows them.
    expected : int
        CCDs that should have been calibrated.
    failures : dict
        What failed, with its reason.
    picture : Path
    seconds : float
        From the first frame to the last calibrated CCD.
    """

    site: Site
    status: NightStatus
    rows: tuple[CcdRow, ...]
    expected: int
    failures: dict[str, str]
    picture: Path
    seconds: float

    @property
    def calibrated(self) -> tuple[CcdRow, ...]:
        """The CCDs that came through."""
        return tuple(row for row in self.rows if row.stage is Stage.CALIBRATED)


def run_demo(workdir: Path, exposures: int, ccds: int, seed: int, tell: Tell) -> DemoNight:
    """Run a simulated night through every stage.

    Parameters
    ----------
    workdir : Path
        Made, or emptied if an earlier demo made it.
    exposures, ccds : int
        Exposures of the sky, and CCDs in each.
    seed : int
        The same seed gives the same sky, errors and noise.
    tell : callable
        Is told each step.

    Raises
    ------
    ConfigError
        If `workdir` holds something that no demo put there.
    """
    site = _prepare(workdir)
    sky = Settings(seed=seed, ccds=ccds)
    assert site.calibration.reference is not None
    sky.star_field.write_reference(site.calibration.reference)
    begin = time.monotonic()
    with _both_ends(site) as ends:
        _make_masters(site, sky, ends, tell)
        for index in range(exposures):
            path = simulate_exposure(sky, index, site.telescope.raw)
            tell(f"the telescope wrote {path.name}")
        _wait(ends, (Kind.OBJECT,), exposures * ccds, tell)
    seconds = time.monotonic() - begin
    rows, sky_rows = (
        tuple(row for row in journal.rows() if row.exposure.kind is Kind.OBJECT)
        for journal in (ends.there, ends.here)
    )
    ends.here.close()
    ends.there.close()
    picture = workdir.resolve() / "focal-plane.png"
    _draw(picture, site, rows)
    status = night_status(sky_rows, rows)
    return DemoNight(site, status, rows, exposures * ccds, ends.failures, picture, seconds)


def _prepare(workdir: Path) -> Site:
    workdir = workdir.resolve()
    if workdir.exists() and any(workdir.iterdir()):
        if not (workdir / MARK).exists():
            raise ConfigError(f"{workdir} is not empty and no demo's: choose another --workdir")
        shutil.rmtree(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / MARK).touch()
    landing = workdir / "landing"
    site = Site(
        name="demo",
        telescope=Telescope(raw=workdir / "raw", work=workdir / "telescope", poll_s=0.5),
        pack=Pack(codec="jpeg2000"),
        link=Link(kind="local", landing=landing),
        cluster=Cluster(
            landing=landing,
            work=workdir / "cluster",
            products=workdir / "products",
            calibrations=workdir / "calibrations",
            poll_s=0.5,
        ),
        calibration=Calibration(reference=workdir / "stars.fits"),
    )
    site.telescope.raw.mkdir()
    with atomic_write(workdir / "prepipe.toml") as stream:
        stream.write(commented_toml(site).encode())
    return site


@dataclass
class _Ends:
    """Both ends' journals, and what failed so far."""

    here: Journal
    there: Journal
    failures: dict[str, str] = field(default_factory=dict)

    def look_for_failures(self) -> None:
        for journal in (self.here, self.there):
            for row in journal.rows(Stage.QUARANTINED):
                self.failures[str(row.key)] = row.reason
            for file in journal.quarantined_files():
                self.failures[file.path] = file.reason

    def end_died(self, future: Future[object]) -> None:
        if future.exception() is not None:
            self.failures["the night"] = str(future.exception())


@contextmanager
def _both_ends(site: Site) -> Iterator[_Ends]:
    """Run push and ingest, each in a thread of its own, until the block ends."""
    ends = _Ends(Journal(journal_of(site.telescope)), Journal(journal_of(site.cluster)))
    link, compute, stop = open_link(site.link), open_compute(site, warm_up), threading.Event()
    push = Push(site, ends.here, link, load_camera(site.camera))
    ingest = Ingest(site, ends.there, compute)
    with ThreadPoolExecutor(2, "end") as threads:
        try:
            for run in (push.run, ingest.run):
                threads.submit(run, stop=stop).add_done_callback(ends.end_died)
            yield ends
        finally:
            stop.set()
    link.close()
    compute.close()


def _make_masters(site: Site, sky: Settings, ends: _Ends, tell: Tell) -> None:
    """Take zeros and dome flats in the afternoon, as at the telescope, and combine them."""
    assert isinstance(sky.ccds, int)
    kinds = (Kind.ZERO, Kind.DOME_FLAT)
    for kind in kinds:
        settings = Settings(seed=sky.seed, ccds=sky.ccds, kind=kind)
        for index in range(CALIBRATION_FRAMES):
            simulate_exposure(settings, index, site.telescope.raw)
        tell(f"the telescope wrote {CALIBRATION_FRAMES} frames of kind {kind}")
    _wait(ends, kinds, 2 * CALIBRATION_FRAMES * sky.ccds, tell)
    camera = load_camera(site.camera)
    packets = [Path(row.packet) for row in ends.there.rows() if row.packet]
    groups, unusable = gather(packets, camera)
    ends.failures.update({str(path): reason for path, reason in unusable.items()})
    for group in groups:
        made = make_master(group, site.cluster.calibrations, camera, site.calibration)
        ends.failures.update(dict.fromkeys(made.left_out, "left out of a master"))
        if made.mark is not Mark.GOOD:
            ends.failures[made.path.name] = made.why
    tell(f"{len(groups)} masters made of them")


def _wait(ends: _Ends, kinds: Sequence[Kind], count: int, tell: Tell) -> None:
    """Wait until `count` CCDs of these kinds are through, or one fails, or nothing moves."""
    through: set[CcdKey] = set()
    moved = time.monotonic()
    while len(through) < count and not ends.failures:
        time.sleep(0.2)
        ends.look_for_failures()
        for row in ends.there.rows(Stage.CALIBRATED):
            if row.exposure.kind in kinds and row.key not in through:
                through.add(row.key)
                moved = time.monotonic()
                if row.grade:
                    tell(f"{row.key}: {row.grade}")
        if time.monotonic() - moved > PATIENCE_S:
            ends.failures["the night"] = f"nothing moved for {PATIENCE_S:.0f} s"


def _draw(path: Path, site: Site, rows: Sequence[CcdRow]) -> None:
    numbers = sorted({row.exposure.number for row in rows})
    exposures = []
    for number in numbers:
        own = [row for row in rows if row.exposure.number == number and row.grade]
        seeing = [row.reduction["seeing_arcsec"] for row in own if row.reduction["seeing_arcsec"]]
        title = f"exposure {number}, {own[0].exposure.band}" if own else f"exposure {number}"
        if seeing:
            title += f', seeing {sorted(seeing)[len(seeing) // 2]:.2f}"'
        exposures.append((title, [_tile(row) for row in own]))
    draw_focal_planes(path, exposures, load_camera(site.camera).focal_plane())


def _tile(row: CcdRow) -> Tile:
    found = row.reduction
    rms, zero = found["wcs_rms_mas"], found["zero_point"]
    lines = [
        "no WCS" if rms is None else f"{rms:.0f} mas",
        "" if zero is None else f"zp {zero:.2f}",
    ]
    image = fitsio.read(found["product"], ext="IMAGE")
    return Tile(
        row.ccd.number, Colour(row.grade or Colour.RED), "\n".join(lines).strip(), thumbnail(image)
    )
