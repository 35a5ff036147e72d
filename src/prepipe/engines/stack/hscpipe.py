"""hscPipe, run CCD by CCD: registered in a repository, reduced, its CORR image made a product.

By default each CCD has a repository of its own on the node's disk, to which the site's
calibrations are linked: the many small files that hscPipe writes never reach the shared disk.
In a repository that nodes share, one at a time registers raw files (`repository.sole_writer`).
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from prepipe.cameras import load_camera
from prepipe.engines.base import Engine, Finding, Order, Outcome
from prepipe.engines.external import Ran, copy_product, plain_raw_file, scratch_of
from prepipe.engines.raw import RawCcd, read_ccd
from prepipe.engines.stack.check import (
    environment_findings,
    limit_finding,
    path_finding,
    repository_finding,
)
from prepipe.engines.stack.figures import NO_MATCH, Attempt, finished
from prepipe.engines.stack.image import read_stack_image
from prepipe.engines.stack.repository import sole_writer, tried_again
from prepipe.engines.stack.run import Programs, moved, pointings, told
from prepipe.engines.stopwatch import Stopwatch
from prepipe.errors import ConfigError, EngineError
from prepipe.files import atomic_write, storage_errors
from prepipe.model import WcsTry

if TYPE_CHECKING:
    from prepipe.config import Hscpipe, Site

__all__ = ["carry_out", "engine", "grid_seeing"]

NAME = "hscpipe"
REGISTRY = "registry.sqlite3"

NO_CATALOGUE = "none/andConfig.py"
"""What the log says if no reference catalogue was set up."""

GRID_SCALE_ARCSEC = 0.17
"""Pixel by which a seeing grid becomes arcsec."""

_FRAME = re.compile(r"HSC[A-Z]\d{8}")


def engine(site: Site) -> Engine:
    """This engine, as a site uses it."""
    settings = site.engines.hscpipe
    return Engine(
        NAME,
        carry_out,
        wants_seeing=True,
        check=partial(check, settings, site.cluster.time_limit_s),
    )


def check(settings: Hscpipe, worker_limit_s: float) -> tuple[Finding, ...]:
    """Whether hscPipe can be run here, for `prepipe doctor`."""
    programs = {"ingest": settings.ingest, "process": settings.process}
    findings = list(environment_findings(NAME, settings.setup, programs))
    if settings.repository is not None:
        findings.append(_repository_finding(settings.repository, settings.mapper))
    elif settings.calibrations is None:
        found = "a CCD's own repository has no bias, dark and flat"
        findings.append(Finding("calibrations", found, "set engines.hscpipe.calibrations"))
    for name in ("calibrations", "reference", "config"):
        path: Path | None = getattr(settings, name)
        if path is not None:
            findings.append(path_finding(name, path, f"engines.hscpipe.{name}"))
    return (*findings, limit_finding(NAME, settings.time_limit_s, worker_limit_s))


def _repository_finding(root: Path, mapper: str) -> Finding:
    told = root / "_mapper"
    if told.is_file() and mapper not in told.read_text(errors="replace"):
        found = f"{told} names another mapper than {mapper}"
        return Finding("repository", found, "look at engines.hscpipe.mapper")
    return repository_finding(root)


def carry_out(order: Order) -> Outcome:
    """Reduce and grade the CCD of an order; this is what a worker runs.

    Raises
    ------
    ConfigError
        If hscPipe or what it needs is not set up.
    EngineError
        If it failed; another try may succeed.
    InputError
        If the packet or file cannot be read.
    StorageError
        If something cannot be written.
    """
    watch, camera = Stopwatch(), load_camera(order.camera)
    with scratch_of(order) as scratch:
        with watch.timing("read"):
            raw = read_ccd(order.source, order.hdu, camera)
        ccd = _Ccd.of(order, raw, scratch)
        tries: list[WcsTry] = []
        for hint in pointings(order):
            with watch.timing("register"):
                ccd.register(moved(raw, hint))
            with watch.timing("reduce"):
                made = ccd.reduce()
            tries.append(told(hint, made.matched))
            if made.matched:
                break
        with watch.timing("write"):
            seeing = ccd.seeing_arcsec()
            done = finished(order, raw, camera, made, NAME, seeing, tuple(tries))
    return replace(done, reduction=replace(done.reduction, seconds=watch.seconds))


@dataclass(frozen=True)
class _Ccd:
    """One CCD of one visit in a repository."""

    settings: Hscpipe
    programs: Programs
    root: Path
    visit: int
    number: int
    date: str
    """UTC, as in the names of directories."""
    guess_arcsec: float
    """Seeing to begin with."""

    @classmethod
    def of(cls, order: Order, raw: RawCcd, scratch: Path) -> _Ccd:
        settings = order.settings.hscpipe
        return cls(
            settings,
            Programs.of(settings.setup, scratch, settings.time_limit_s),
            settings.repository or scratch / "repository",
            raw.exposure.number,
            raw.ccd.number,
            f"{raw.exposure.start:%Y-%m-%d}",
            order.seeing_arcsec or order.calibration.seeing_guess_arcsec,
        )

    @property
    def _lock_wait_s(self) -> float:
        return min(self.settings.lock_wait_s, self.programs.left_s)

    @property
    def name(self) -> str:
        """How hscPipe calls it in the names of files."""
        return f"{self.visit:07d}-{self.number:03d}"

    def register(self, raw: RawCcd) -> None:
        """Put the raw file into the repository, or in the place of the one that is there."""
        file = self.programs.scratch / "raw" / _file_name(raw)
        plain_raw_file(raw, file)
        if self.settings.repository is None:
            self._prepare(self.root)
            self._link_calibrations()
            self._enter(file, "link")
            return
        with sole_writer(self.root, self._lock_wait_s):
            self._prepare(self.root)
            self._enter(file, "copy")

    def _prepare(self, root: Path) -> None:
        mapper = root / "_mapper"
        with storage_errors(mapper):
            if not mapper.exists():
                with atomic_write(mapper) as stream:
                    stream.write(f"{self.settings.mapper}\n".encode())

    def _link_calibrations(self) -> None:
        for name, setting in (("CALIB", "calibrations"), ("ref_cats", "reference")):
            target: Path | None = getattr(self.settings, setting)
            if target is None:
                continue
            if not target.is_dir():
                raise ConfigError(f"engines.hscpipe.{setting}: the directory {target} is not there")
            with storage_errors(self.root):
                link = self.root / name
                link.unlink(missing_ok=True)
                link.symlink_to(target)

    def _enter(self, file: Path, mode: str) -> None:
        """Register the file; one that is registered already is replaced."""
        there = self._raw_files()
        if there and self._registered():
            for path in there:
                copy_product(file, path)
            return
        with storage_errors(self.root):
            for path in there:
                path.unlink()  # left by somebody who was killed before it was registered
        tried_again(lambda: self._ingest(file, mode))

    def _ingest(self, file: Path, mode: str) -> EngineError | None:
        # in a registry that is there, --create would drop what it holds
        fresh = [] if (self.root / REGISTRY).exists() else ["--create"]
        words = [str(self.root), *fresh, f"--mode={mode}", str(file)]
        ran = self.programs.run(self.settings.ingest, "engines.hscpipe.ingest", *words)
        if self._raw_files() and self._registered():
            return None
        return ran.failure("registered no raw file")

    def _raw_files(self) -> list[Path]:
        """FIELD/DATE/POINTING/FILTER/HSC-VVVVVVV-CCC.fits, which should be one."""
        with storage_errors(self.root):
            return list(self.root.glob(f"[!._]*/{self.date}/*/*/HSC-{self.name}.fits"))

    def _registered(self) -> bool:
        query = "SELECT 1 FROM raw WHERE visit = ? AND ccd = ?"
        registry = f"file:{quote(str(self.root / REGISTRY))}?mode=ro"
        try:
            with closing(sqlite3.connect(registry, timeout=10.0, uri=True)) as connection:
                return connection.execute(query, (self.visit, self.number)).fetchone() is not None
        except sqlite3.Error:
            return False

    def reduce(self) -> Attempt:
        """The CORR image, if the astrometry let there be one."""
        with storage_errors(self.root):
            for stale in self._made("corr", f"CORR-{self.name}.fits"):
                stale.unlink()
        words = [str(self.root), "--rerun", self.settings.rerun]
        words += ["--id", f"visit={self.visit}", f"ccd={self.number}"]
        if self.settings.config is not None:
            words += ["-C", str(self.settings.config)]
        words += ["-c", f"isr.fwhm={self.guess_arcsec:.2f}"]
        words += ["--clobber-config", "--no-backup-config", "--doraise"]
        ran = self.programs.run(self.settings.process, "engines.hscpipe.process", *words)
        made = self._made("corr", f"CORR-{self.name}.fits")
        if not made:
            _require_no_match(ran)
        return Attempt.of(read_stack_image(made[0]) if made else None, ran)

    def seeing_arcsec(self) -> float | None:
        """What the grid of seeing tells, if it was written."""
        grids = self._made("qa", f"seeingGrid-{self.name}.txt")
        return grid_seeing(grids[0]) if grids else None

    def _made(self, kind: str, name: str) -> list[Path]:
        """Files of this CCD's: rerun/NAME/PPPPP/FILTER/KIND/NAME."""
        return list((self.root / "rerun" / self.settings.rerun).glob(f"*/*/{kind}/{name}"))


def _require_no_match(ran: Ran) -> None:
    """Raise whatever went wrong, unless it is that the astrometry found no match."""
    if ran.says(NO_CATALOGUE):
        raise ConfigError(
            "hscPipe found no reference catalogue: put `setup -j astrometry_net_data VERSION` "
            "into the file that engines.hscpipe.setup names, after hscPipe's own setup"
        )
    if not any(ran.says(text) for text in NO_MATCH):
        # errors leave the exit status 0
        raise ran.failure(f"ended with status {ran.status} and left no CORR image")


def _file_name(raw: RawCcd) -> str:
    """HSCAvvvvvvcc.fits, as the telescope named it."""
    frame = str(raw.header.get("FRAMEID", "")).strip()
    known = _FRAME.fullmatch(frame) is not None
    return f"{frame if known else f'{raw.exposure.name}_{raw.ccd.number:03d}'}.fits"


def grid_seeing(path: Path) -> float | None:
    """Mean FWHM of a seeing grid of hscPipe, arcsec; None if it tells none.

    Parameters
    ----------
    path : Path
        Columns ccd, x, y, FWHM (pixels) and others; NaN in cells without stars.
    """
    try:
        rows = [line.split() for line in path.read_text().splitlines() if line[:1] != "#"]
        fwhm_px = np.array([float(row[3]) for row in rows if row])
    except (OSError, ValueError, IndexError):
        return None
    fwhm_px = fwhm_px[np.isfinite(fwhm_px)]
    return float(fwhm_px.mean()) * GRID_SCALE_ARCSEC if len(fwhm_px) else None
