"""The LSST Science Pipelines, run CCD by CCD: ingested by a butler, reduced by a pipetask.

By default each CCD has a repository of its own on the node's disk, which begins as a prepared
one (`seed`): its registry is copied, its files are linked. In a repository that nodes share,
one at a time makes, registers and ingests (`repository.sole_writer`); each CCD is written into
a collection of its own, so that their runs do not meet.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from astropy.io import fits

from prepipe.cameras import load_camera
from prepipe.engines.base import Engine, Finding, Order, Outcome
from prepipe.engines.external import Ran, raw_file, scratch_of
from prepipe.engines.raw import read_ccd
from prepipe.engines.stack.check import (
    environment_findings,
    limit_finding,
    path_finding,
    repository_finding,
)
from prepipe.engines.stack.figures import NO_MATCH, Attempt, finished
from prepipe.engines.stack.image import read_stack_image
from prepipe.engines.stack.repository import sole_writer, tried_again
from prepipe.engines.stack.run import Programs, point, pointings, told
from prepipe.engines.stopwatch import Stopwatch
from prepipe.errors import ConfigError, EngineError
from prepipe.files import storage_errors
from prepipe.model import PointingHint, WcsTry

if TYPE_CHECKING:
    from prepipe.config import Lsst, Site

__all__ = ["carry_out", "check", "engine"]

NAME = "lsst"
BUTLER = "butler.yaml"
UNFINISHED = ".prepipe.unfinished"
"""In a repository that is being made; what a killed maker left is made anew."""

NOT_THERE = ("missingcollectionerror", "no such collection", "missingdatasettypeerror")
"""What logs say, in lower case, if the repository lacks what the settings name."""


def engine(site: Site) -> Engine:
    """This engine, as a site uses it."""
    return Engine(
        NAME, carry_out, check=partial(check, site.engines.lsst, site.cluster.time_limit_s)
    )


def check(settings: Lsst, worker_limit_s: float) -> tuple[Finding, ...]:
    """Whether the pipelines can be run here, for `prepipe doctor`."""
    programs = {"butler": settings.butler, "pipetask": settings.pipetask}
    findings = list(environment_findings(NAME, settings.setup, programs))
    if settings.repository is not None:
        findings.append(repository_finding(settings.repository))
    elif settings.seed is not None:
        findings.append(path_finding("seed", settings.seed / BUTLER, "engines.lsst.seed"))
    else:
        found = "a CCD's own repository has no flats and no reference catalogue"
        findings.append(Finding("seed", found, "set engines.lsst.seed or engines.lsst.repository"))
    return (*findings, limit_finding(NAME, settings.time_limit_s, worker_limit_s))


def carry_out(order: Order) -> Outcome:
    """Reduce and grade the CCD of an order; this is what a worker runs.

    Raises
    ------
    ConfigError
        If the pipelines or what they need are not set up.
    EngineError
        If they failed; another try may succeed.
    InputError
        If the packet or file cannot be read.
    StorageError
        If something cannot be written.
    """
    watch, camera = Stopwatch(), load_camera(order.camera)
    with scratch_of(order) as scratch:
        with watch.timing("read"):
            raw = read_ccd(order.source, order.hdu, camera)
        settings, tries = order.settings.lsst, list[WcsTry]()
        programs = Programs.of(settings.setup, scratch, settings.time_limit_s)
        for number, hint in enumerate(_pointings(order)):
            root = settings.repository or scratch / f"repository{number}"
            ccd = _Ccd(settings, programs, root, raw.exposure.number, raw.ccd.number)
            with watch.timing("register"):
                ccd.register(_raw_file(order, scratch / f"raw{number}", hint))
            with watch.timing("reduce"):
                made = ccd.reduce()
            tries.append(told(hint, made.matched))
            if made.matched:
                break
        with watch.timing("write"):
            done = finished(order, raw, camera, made, NAME, tries=tuple(tries))
    return replace(done, reduction=replace(done.reduction, seconds=watch.seconds))


def _pointings(order: Order) -> Iterator[PointingHint | None]:
    """Where to look; a shared repository keeps the raw file that it has, as it points."""
    movable = order.hdu is None and order.settings.lsst.repository is None
    return pointings(order) if movable else iter((None,))


def _raw_file(order: Order, directory: Path, hint: PointingHint | None) -> Path:
    """The raw file, its headers pointing where others found the field."""
    file = raw_file(order, directory)
    if hint is not None:
        with fits.open(file, mode="update") as hdus:
            for hdu in hdus:
                point(hdu.header, hint)
    return file


@dataclass(frozen=True)
class _Ccd:
    """One CCD of one exposure in a repository."""

    settings: Lsst
    programs: Programs
    root: Path
    exposure: int
    detector: int

    @property
    def _lock_wait_s(self) -> float:
        return min(self.settings.lock_wait_s, self.programs.left_s)

    @property
    def output(self) -> str:
        """Collection of this CCD alone."""
        return f"{self.settings.output}/{self.exposure}_{self.detector}"

    @property
    def of_exposure(self) -> str:
        """Query for its exposure."""
        return f"instrument='{self.settings.short_name}' AND exposure={self.exposure}"

    def register(self, file: Path) -> None:
        """Ingest the raw file, into a repository that is made if it is not there."""
        if self.settings.repository is None:
            seed = self.settings.seed
            self._make() if seed is None else link_repository(seed, self.root)
            self._ingest(file, "link")
            return
        with sole_writer(self.root, self._lock_wait_s):
            if not (self.root / BUTLER).exists() or (self.root / UNFINISHED).exists():
                self._make()
            self._ingest(file, "copy")

    def _make(self) -> None:
        with storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / UNFINISHED).touch()
            for name in (BUTLER, "gen3.sqlite3"):
                (self.root / name).unlink(missing_ok=True)
        root, instrument = str(self.root), self.settings.instrument
        self._butler("create", root)
        if not (self.root / BUTLER).exists():
            raise EngineError(f"butler create made no repository at {root}")
        self._butler("register-instrument", root, instrument)
        self._butler("write-curated-calibrations", root, instrument)
        with storage_errors(self.root):
            (self.root / UNFINISHED).unlink()

    def _ingest(self, file: Path, transfer: str) -> None:
        root = str(self.root)
        self._butler("ingest-raws", root, str(file), "--transfer", transfer)
        self._butler("define-visits", root, self.settings.instrument, "--where", self.of_exposure)

    def _butler(self, *words: str) -> None:
        """Run a command of the butler; one that meets a busy registry is tried again."""

        def attempt() -> EngineError | None:
            ran = self.programs.run(self.settings.butler, "engines.lsst.butler", *words)
            return ran.failure(f"{words[0]} failed") if ran.status else None

        tried_again(attempt)

    def reduce(self) -> Attempt:
        """The calibrated image, if the astrometry let there be one."""
        words = ["run", "-b", str(self.root), "-i", ",".join(self.settings.inputs)]
        words += ["-o", self.output, "-p", self._pipeline()]
        words += ["-d", f"{self.of_exposure} AND detector={self.detector}"]
        words += ["--register-dataset-types"]
        for setting in self.settings.config:
            words += ["-c", setting]
        if (self.root / self.output).is_dir():
            # an earlier try left something; there is nothing to extend before the first one
            words += ["--extend-run", "--skip-existing-in", self.output]
        ran = self.programs.run(self.settings.pipetask, "engines.lsst.pipetask", *words)
        made = self._made()
        if made is None:
            self._require_no_match(ran)
        return Attempt.of(None if made is None else read_stack_image(made), ran)

    def _pipeline(self) -> str:
        return _expanded(self.settings.pipeline, self.programs.environment)

    def _made(self) -> Path | None:
        """The newest image in this CCD's collection."""
        collection = self.root / self.output
        with storage_errors(collection):
            for pattern in self.settings.product:
                if found := list(collection.glob(pattern)):
                    return max(found, key=lambda path: path.stat().st_mtime_ns)
        return None

    def _require_no_match(self, ran: Ran) -> None:
        """Raise whatever went wrong, unless it is that the astrometry found no match."""
        if any(ran.says(text) for text in NOT_THERE):
            raise ConfigError(
                f"the repository {self.root} lacks what engines.lsst.inputs names "
                f"({', '.join(self.settings.inputs)}); the end of pipetask's log: {ran.tail}"
            )
        if not any(ran.says(text) for text in NO_MATCH):
            raise ran.failure(
                f"ended with status {ran.status} and left no image at "
                f"{self.output}/{' or '.join(self.settings.product)}"
            )


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    """A setting with its variables filled in."""
    try:
        return Template(text).substitute(environment)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"engines.lsst.pipeline {text}: there is no variable {error} in the environment; "
            "set up the package that has it, or write the path"
        ) from error


def link_repository(seed: Path, root: Path) -> None:
    """Begin a repository as another one: its registry copied, its files linked.

    Parameters
    ----------
    seed : Path
        With paths relative to its root; it is not written.
    root : Path
        Its ``raw`` collections stay behind, for raw files will be ingested here.

    Raises
    ------
    ConfigError
        If there is no repository at `seed`.
    StorageError
    """
    if not (seed / BUTLER).is_file():
        raise ConfigError(f"engines.lsst.seed: {seed} is no repository: it has no {BUTLER}")
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        for entry in seed.iterdir():
            here = root / entry.name
            if entry.is_file():
                shutil.copyfile(entry, here)
                continue
            here.mkdir(exist_ok=True)
            for below in entry.iterdir():
                link = here / below.name
                if below.name != "raw" and not link.is_symlink():
                    link.symlink_to(below)
